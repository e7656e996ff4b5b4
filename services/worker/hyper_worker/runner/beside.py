"""Commands beside a task's process: in its folder, with its environment, in its namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyper_worker.runner.base import Ran
from hyper_worker.runner.guard import Guard
from hyper_worker.runner.usage import tree

OUTPUT_BYTES_MAX = 1 << 20
_READ_BYTES = 1 << 16

# Enters a mount namespace (a descriptor), takes on a user and a folder, then execs. Root only.
_ENTER = """
import ctypes, os, sys
namespace, uid, gid, cwd = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
libc = ctypes.CDLL(None, use_errno=True)
if libc.setns(namespace, 0) != 0:
    sys.exit(f"setns: {os.strerror(ctypes.get_errno())}")
os.close(namespace)
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
libc.prctl(38, 1, 0, 0, 0)
os.chdir(cwd)
os.execvp(sys.argv[5], sys.argv[5:])
"""


@dataclass(frozen=True, slots=True)
class _Seen:
    """How a process sees the machine."""

    environment: dict[str, str]
    cwd: str
    user: int
    group: int
    namespace: int | None  # of mounts, where it is another than the agent's: a descriptor

    @classmethod
    def of(cls, pid: int) -> _Seen:
        """Look at the newest descendant of `pid` that still lives: it has left wrappers behind it.

        Raises:
            OSError: they are all gone.
        """
        *younger, last = reversed(tree(pid))
        for each in younger:
            with contextlib.suppress(OSError):  # it has ended: its parent sees the same
                seen = cls._of_one(Path(f"/proc/{each}"))
                if seen.environment:  # it has none while it ends, nor while it becomes a program
                    return seen
                seen.close()
        return cls._of_one(Path(f"/proc/{last}"))

    @classmethod
    def _of_one(cls, process: Path) -> _Seen:
        pairs = os.fsdecode((process / "environ").read_bytes()).split("\0")
        status = process.stat()
        cwd = str((process / "cwd").readlink())
        space = process / "ns/mnt"
        same = space.readlink() == Path("/proc/self/ns/mnt").readlink()
        return cls(
            dict(pair.split("=", 1) for pair in pairs if "=" in pair),
            cwd,
            status.st_uid,
            status.st_gid,
            None if same else os.open(space, os.O_RDONLY | os.O_CLOEXEC),
        )

    def close(self) -> None:
        """Let the namespace go."""
        if self.namespace is not None:
            os.close(self.namespace)


async def run_beside(guard: Guard, pid: int, arguments: Sequence[str], timeout_s: float) -> Ran:
    """Run a command as if the process `pid` had started it.

    Args:
        guard: ends it with the agent.
        pid: of the task.
        arguments: program and arguments.
        timeout_s: it is killed after this.

    Raises:
        ValueError: the process is gone, or the command does not end in time.
    """
    try:
        seen = _Seen.of(pid)
    except OSError as error:
        raise ValueError(f"the task's process cannot be looked at: {error}") from error
    command, descriptors = list(arguments), []
    if seen.namespace is not None:
        enter = [sys.executable, "-I", "-S", "-c", _ENTER]
        place = (str(seen.namespace), str(seen.user), str(seen.group), seen.cwd)
        command, descriptors = [*enter, *place, *command], [seen.namespace]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd="/" if descriptors else seen.cwd,
            env=seen.environment,
            start_new_session=True,
            pass_fds=descriptors,
        )
    except OSError as error:
        raise ValueError(f"{arguments[0]!r} cannot be run: {error.strerror}") from error
    finally:
        seen.close()
    guard.watch(process.pid)
    data, truncated = b"", False
    try:
        async with asyncio.timeout(timeout_s):
            assert process.stdout is not None
            while part := await process.stdout.read(_READ_BYTES):
                data += part
                if len(data) > OUTPUT_BYTES_MAX:
                    data, truncated = data[-OUTPUT_BYTES_MAX:], True
            return Ran(await process.wait(), data, truncated)
    except TimeoutError:
        raise ValueError(f"the command has not ended in {timeout_s:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        guard.forget(process.pid)
