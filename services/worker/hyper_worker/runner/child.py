"""The warm process: `python -P -m hyper_worker.runner.child RESPONSE_FD FOLDER`.

Requests come on stdin and answers go to RESPONSE_FD, both as frames: four bytes of length, then
a JSON list. stdout and stderr belong to the functions: all they print is the task's log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from hyper.context import ATTEMPT, PARAMETERS, TASK, AttemptId, TaskContext, TaskStopped

RESULT_BYTES_MAX = 64 << 10
MESSAGE_CHARS_MAX = 500
_LENGTH = struct.Struct(">I")


def write_frame(file: BinaryIO, items: list[dict[str, Any]]) -> None:
    """Send a batch."""
    data = json.dumps(items).encode()
    file.write(_LENGTH.pack(len(data)) + data)
    file.flush()


def read_frame(file: BinaryIO) -> list[dict[str, Any]] | None:
    """Receive a batch; None at the end."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    data = file.read(_LENGTH.unpack(head)[0])
    items: list[dict[str, Any]] = json.loads(data)
    return items


class _Stopper:
    """SIGTERM: ends the process between functions, raises `TaskStopped` inside one."""

    def __init__(self) -> None:
        self.running = False
        signal.signal(signal.SIGTERM, self._asked)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.running:
            self.running = False
            raise TaskStopped("the worker was asked to end this task")
        os._exit(128 + number)


def resolve(name: str) -> Callable[..., Any]:
    """The function that "package.module:callable" names; the import is paid once a process.

    Raises:
        ValueError: the name is malformed, or names nothing that can be called.
        ImportError: the module cannot be imported.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not module_name or not path:
        raise ValueError(f"function {name!r} is malformed: write package.module:callable")
    target: Any = importlib.import_module(module_name)
    for part in path.split("."):
        if not hasattr(target, part):
            raise ValueError(f"function {name!r}: {module_name} has no {path!r}")
        target = getattr(target, part)
    if not callable(target):
        raise ValueError(f"function {name!r} is a {type(target).__name__}, not a function")
    function: Callable[..., Any] = target
    return function


def encode_result(result: Any) -> str:
    """A function's result as JSON; numpy's numbers and arrays become numbers and lists.

    Raises:
        ValueError: it is not JSON, or too large.
    """

    def convert(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        raise TypeError(f"a {type(value).__name__}")

    if result is None:
        return ""
    try:
        text = json.dumps(result, default=convert, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the function's result is not JSON ({error}): return numbers, text, lists and dicts"
        ) from None
    if len(text.encode()) > RESULT_BYTES_MAX:
        raise ValueError(
            f"the function's result is {len(text.encode())} bytes of JSON, over the limit of "
            f"{RESULT_BYTES_MAX}: write it to a dataset and return its address"
        )
    return text


def _reset_peak() -> None:
    """Start the kernel's high-water mark of this process anew."""
    with contextlib.suppress(OSError), Path("/proc/self/clear_refs").open("w") as file:
        file.write("5")


def _peak_rss_bytes() -> int:
    with contextlib.suppress(OSError), Path("/proc/self/status").open() as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _cpu_s() -> float:
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def run_one(request: dict[str, Any], stopper: _Stopper) -> dict[str, Any]:
    """Carry one request out; whatever the function does is an answer."""
    epoch, number = request["attempt"]
    attempt = AttemptId(epoch, number)
    os.environ[TASK], os.environ[ATTEMPT] = request["task"], str(attempt)
    os.environ[PARAMETERS] = request["parameters"]
    os.chdir(request["folder"])
    _reset_peak()
    cpu_before_s = _cpu_s()
    answer: dict[str, Any] = {"ok": False}
    try:
        stopper.running = True
        function = resolve(request["function"])
        parameters = json.loads(request["parameters"])
        answer["result"] = encode_result(
            function(TaskContext(request["task"], attempt), **parameters)
        )
        answer["ok"] = True
    except TaskStopped as stopped:
        answer["message"] = str(stopped)
    except SystemExit as error:
        answer["ok"] = error.code in (None, 0)
        answer["message"] = "" if answer["ok"] else f"the function called sys.exit({error.code!r})"
    except BaseException as error:  # noqa: BLE001  (everything a function raises is its failure)
        _print_traceback(error)
        answer["message"] = _sentence(error)
    finally:
        stopper.running = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    answer["cpu_s"] = _cpu_s() - cpu_before_s
    answer["peak_rss_bytes"] = _peak_rss_bytes()
    return answer


def _print_traceback(error: BaseException) -> None:
    """Into the log, without the frames of this module."""
    stack = error.__traceback__
    while stack is not None and stack.tb_frame.f_code.co_filename == __file__:
        stack = stack.tb_next
    traceback.print_exception(type(error), error, stack)


def _sentence(error: BaseException) -> str:
    first_line = str(error).partition("\n")[0]
    text = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    return text[:MESSAGE_CHARS_MAX]


def main() -> None:
    """Answer requests until stdin ends."""
    response_fd, folder = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(response_fd, False)
    responses = os.fdopen(response_fd, "wb")
    requests = os.fdopen(os.dup(0), "rb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    faulthandler.enable()
    stopper = _Stopper()
    sys.argv = [""]
    if folder:
        sys.path.insert(0, folder)
    while (batch := read_frame(requests)) is not None:
        for request in batch:
            write_frame(responses, [run_one(request, stopper)])
    os._exit(0)  # threads that functions have left behind must not keep it alive


if __name__ == "__main__":
    main()
