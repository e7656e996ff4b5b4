"""The warm process: `python -P -m hyper_worker.runner.child` with the arguments of `main`.

Requests come as packets on the socket REQUESTS, one call each; the agent takes those back that
have not been started, by reading the same socket. Answers go to the pipe ANSWERS. stdout and
stderr belong to the functions: all they print is the task's log. The agent reads that pipe while a
call runs; what a call leaves there goes with its answer, for which this process reads it at OUTPUT.
Either holds the lock LOCK meanwhile, so that no byte is taken for another call's.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import functools
import importlib
import json
import os
import resource
import shutil
import signal
import socket
import struct
import sys
import termios
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hyper.context import ATTEMPT, PARAMETERS, TASK, AttemptId, TaskContext, TaskStopped

if TYPE_CHECKING:
    from hyper_worker.core.model import Job

RESULT_BYTES_MAX = 64 << 10
MESSAGE_CHARS_MAX = 500
ANSWER = struct.Struct("=IIIBddQ")  # text and output in bytes, call, flags, wall_s, cpu_s, peak
OK, PERMANENT, STOPPED = 1, 2, 4  # flags of an answer
OUTPUT_BYTES_MAX = 1 << 20  # with an answer; a pipe holds no more
PACKET_BYTES_MAX = 128 << 10  # a request that is longer comes as a file
INLINE, FILE = b"=", b"@"
_WITH_THREADS = {
    "asyncio", "concurrent", "grpc", "hyper", "logging", "queue", "threading", "urllib3",
}  # fmt: skip
_ALONE = "hyper.context"  # prints reports: where a task that does worse than others is often hit
_PEAK_S = 0.25  # the peak of memory is looked at so often, and after calls of 10 ms and more
_SHORT_S = 0.01
_STATUS_BYTES = 4096
_ZERO = b"\0\0\0\0"


class _Stopper:
    """SIGTERM: ends the process between functions, raises `TaskStopped` inside one.

    `heeded` says that it did in the latest call, and hit nobody else: the process is as good as one
    whose function has failed. Children, which SIGTERM hits too, may be needed by later calls; and a
    wait for another thread, our client's calls among them, may have left a lock behind.
    """

    def __init__(self) -> None:
        self.running = self.heeded = False
        signal.signal(signal.SIGTERM, self._asked)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.running:
            self.running = False
            self.heeded = not _has_children() and not _waits_for_threads(frame)
            raise TaskStopped("the worker was asked to end this task")
        os._exit(128 + number)


def _waits_for_threads(frame: FrameType | None) -> bool:
    """Whether what was interrupted is on behalf of a module that shares locks with threads."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] in _WITH_THREADS and name != _ALONE:
            return True
        frame = frame.f_back
    return False


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@functools.lru_cache(maxsize=64)
def resolve(name: str) -> Callable[..., Any]:
    """The function that "package.module:callable" names; the import is paid once a process.

    Raises:
        ValueError: the name is malformed, or names nothing that can be called.
        ImportError: the module cannot be imported.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not module_name or not path:
        raise ValueError(f"function {name!r} is malformed: write package.module:callable")
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # another module, which it imports
        raise ModuleNotFoundError(
            f"{error}: give the experiment `workdir: .`, so that the recipe's folder goes to the "
            "workers, or install the module there",
            name=error.name,
        ) from None
    for part in path.split("."):
        if not hasattr(target, part):
            raise ValueError(f"function {name!r}: {module_name} has no {path!r}")
        target = getattr(target, part)
    if not callable(target):
        raise ValueError(f"function {name!r} is a {type(target).__name__}, not a function")
    function: Callable[..., Any] = target
    return function


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


_ENCODER = json.JSONEncoder(default=_plain, allow_nan=False)


def encode_result(result: Any) -> str:
    """A function's result as JSON; numpy's numbers and arrays become numbers and lists.

    Raises:
        ValueError: it is not JSON, or too large.
    """

    if result is None:
        return ""
    try:
        text = _ENCODER.encode(result)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the function's result is not JSON ({error}): return numbers, text, lists and dicts"
        ) from None
    if len(text) > RESULT_BYTES_MAX:  # ASCII
        raise ValueError(
            f"the function's result is {len(text)} bytes of JSON, over the limit of "
            f"{RESULT_BYTES_MAX}: write it to a dataset and return its address"
        )
    return text


def _reset_peak() -> None:
    """Start the kernel's high-water mark of this process anew."""
    with contextlib.suppress(OSError), Path("/proc/self/clear_refs").open("w") as file:
        file.write("5")


def _peak_rss_bytes() -> int:
    """The high-water mark; by bare calls, as it is looked at after many a call."""
    with contextlib.suppress(OSError):
        descriptor = os.open("/proc/self/status", os.O_RDONLY)
        try:
            _, found, rest = os.read(descriptor, _STATUS_BYTES).partition(b"VmHWM:")
        finally:
            os.close(descriptor)
        if found:
            return int(rest.split(None, 1)[0]) * 1024
    return 0


def _cpu_s() -> float:
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def pack_request(number: int, job: Job, scratch: str, traceparent: str = "") -> bytes:
    """One call as a packet."""
    call = "\0".join(
        (job.key.task, job.key.attempt, traceparent, job.function, job.parameters_json or "{}")
    ).encode(errors="surrogatepass")
    if len(call) > PACKET_BYTES_MAX:
        path = Path(f"{scratch}.call-{number}")
        path.write_bytes(call)
        return FILE + number.to_bytes(4, "little") + str(path).encode()
    return INLINE + number.to_bytes(4, "little") + call


def packet_number(packet: bytes) -> int:
    """Which call a packet holds."""
    return int.from_bytes(packet[1:5], "little")


@dataclass(slots=True)
class _Peak:
    """The high-water mark of this process's memory, looked at no more often than it pays."""

    value_bytes: int = 0
    reset_at: float = 0.0

    def begin(self, now: float) -> None:
        """A call starts."""
        if now - self.reset_at > _PEAK_S:
            self.reset_at, self.value_bytes = now, 0
            _reset_peak()

    def end(self, wall_s: float) -> int:
        """A call has ended."""
        if wall_s > _SHORT_S or not self.value_bytes:
            self.value_bytes = _peak_rss_bytes()
        return self.value_bytes


@dataclass(slots=True)
class _Answer:
    """What a call has come to."""

    ok: bool = False
    text: str = ""  # the result, or why there is none
    permanent: bool = False  # it would fail again in the same way


def run_one(task: str, attempt: AttemptId, function: str, text: str, stopper: _Stopper) -> _Answer:
    """Carry one call out; whatever the function does is an answer."""
    os.environ[TASK], os.environ[ATTEMPT] = task, str(attempt)
    os.environ[PARAMETERS] = text
    answer = _Answer()
    try:
        stopper.running, stopper.heeded = True, False
        target = resolve(function)
        answer.text = encode_result(target(TaskContext(task, attempt), **json.loads(text)))
        answer.ok = True
    except TaskStopped as stopped:
        answer.text = str(stopped)
    except SystemExit as error:
        answer.ok = error.code in (None, 0)
        answer.text = "" if answer.ok else f"the function called sys.exit({error.code!r})"
    except BaseException as error:  # noqa: BLE001  (everything a function raises is its failure)
        _print_traceback(error)
        answer.text, answer.permanent = _sentence(error), _is_permanent(error)
    finally:
        stopper.running = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return answer


def _print_traceback(error: BaseException) -> None:
    """Into the log, without the frames of this module."""
    stack = error.__traceback__
    while stack is not None and stack.tb_frame.f_code.co_filename == __file__:
        stack = stack.tb_next
    traceback.print_exception(type(error), error, stack)


def _is_permanent(error: BaseException) -> bool:
    """Whether a service or the SDK has refused what the function asked for, whatever the state.

    So it is too when the function cannot be called with these parameters, or returns no JSON. An
    error of the function's own making says so by an attribute `permanent = True`.
    """
    stack = error.__traceback__
    while stack is not None and stack.tb_frame.f_code.co_filename == __file__:
        stack = stack.tb_next
    if stack is None and isinstance(error, TypeError | ValueError):
        return True
    errors = sys.modules.get("hyper.errors")
    if errors is not None and isinstance(error, errors.InvalidArgumentError):
        return True
    return getattr(error, "permanent", False) is True


def _sentence(error: BaseException) -> str:
    first_line = str(error).partition("\n")[0]
    if isinstance(error, ModuleNotFoundError) and first_line == f"No module named {error.name!r}":
        first_line += f": {_how_to_get(str(error.name).partition('.')[0])}"
    text = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    return text[:MESSAGE_CHARS_MAX]


def _how_to_get(module: str) -> str:
    """What brings a module that a function imports; Hyper's own extras where it is one of those."""
    from hyper.installed import EXTRAS, install_command  # most functions never need it

    extra = EXTRAS.get(module)
    how = install_command(extra) if extra else "install it"
    return f"{how} where the workers run, or let the experiment's `setup` or `image` bring it"


def _left_in(descriptor: int) -> bytes:
    """What waits in a pipe."""
    try:
        raw = fcntl.ioctl(descriptor, termios.FIONREAD, _ZERO)
        if raw == _ZERO:
            return b""
        return os.read(descriptor, min(int.from_bytes(raw, sys.byteorder), OUTPUT_BYTES_MAX))
    except OSError:  # a function has closed it, or put something else there
        return b""


def _enter(folder: str, *, scratch: bool) -> None:
    """Go to the folder of the next call, which is empty unless it is a work folder."""
    os.chdir(folder)
    if scratch:
        for name in os.listdir("."):  # noqa: PTH208  (the cheap way, on the path of each call)
            path = Path(name)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


class _Calls:
    """Takes requests and writes answers until the agent closes the socket."""

    def __init__(self, descriptors: tuple[int, int, int, int], scratch: str, workdir: str) -> None:
        requests, self._answers, self._output, self._lock = descriptors
        self._socket = socket.socket(fileno=requests)
        self._folder, self._scratch = workdir or scratch, not workdir
        self._peak = _Peak()
        self._cpu_s = _cpu_s()  # up to the end of the last call
        self._stopper = _Stopper()

    def run(self) -> None:
        """Serve."""
        while packet := self._socket.recv(PACKET_BYTES_MAX + 1024):
            call = packet[5:]
            if packet[:1] == FILE:
                path = Path(call.decode())
                call = path.read_bytes()
                path.unlink()
            self._serve(packet_number(packet), call.decode(errors="surrogatepass"))

    def _serve(self, number: int, call: str) -> None:
        task, attempt, traceparent, function, parameters = call.split("\0", 4)
        if traceparent:
            os.environ["TRACEPARENT"] = traceparent
        epoch, _, count = attempt.partition(".")
        _enter(self._folder, scratch=self._scratch)
        start, cpu_before_s = time.monotonic(), self._cpu_s
        self._peak.begin(start)
        identity = AttemptId(int(epoch), int(count))
        answer = run_one(task, identity, function, parameters, self._stopper)
        wall_s, self._cpu_s = time.monotonic() - start, _cpu_s()
        text = answer.text.encode(errors="replace")
        flags = OK if answer.ok else 0
        flags |= PERMANENT if answer.permanent else 0
        flags |= STOPPED if self._stopper.heeded else 0
        used = wall_s, self._cpu_s - cpu_before_s, self._peak.end(wall_s)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        output = _left_in(self._output)
        data = ANSWER.pack(len(text), len(output), number, flags, *used) + text + output
        while data:
            data = data[os.write(self._answers, data) :]
        fcntl.flock(self._lock, fcntl.LOCK_UN)


def main() -> None:
    """Answer requests until the agent is done: REQUESTS ANSWERS OUTPUT LOCK SCRATCH WORKDIR."""
    requests, answers, output, lock = map(int, sys.argv[1:5])
    scratch, workdir = sys.argv[5:7]
    for descriptor in (requests, answers, output, lock):
        os.set_inheritable(descriptor, False)
    faulthandler.enable()
    calls = _Calls((requests, answers, output, lock), scratch, workdir)
    sys.argv = [""]
    if workdir:
        sys.path.insert(0, workdir)
    calls.run()
    os._exit(0)  # threads that functions have left behind must not keep it alive


if __name__ == "__main__":
    main()
