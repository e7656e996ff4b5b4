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

# Enters the mount namespace of a process, takes on its user and its folder, then execs. Root only.
_ENTER = """
import ctypes, os, sys
pid, uid, gid, cwd = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
libc = ctypes.CDLL(None, use_errno=True)
namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
if libc.setns(namespace, 0) != 0:
    sys.exit(f"setns: {os.strerror(ctypes.get_errno())}")
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

    pid: int
    environment: dict[str, str]
    cwd: str
    user: int
    group: int
    same_root: bool  # as the agent's

    @classmethod
    def of(cls, pid: int) -> _Seen:
        """Look at the newest descendant of `pid`: it has left all wrappers behind it.

        Raises:
            OSError: it is gone.
        """
        newest = Path(f"/proc/{tree(pid)[-1]}")
        pairs = os.fsdecode((newest / "environ").read_bytes()).split("\0")
        status = newest.stat()
        return cls(
            int(newest.name),
            dict(pair.split("=", 1) for pair in pairs if "=" in pair),
            str((newest / "cwd").readlink()),
            status.st_uid,
            status.st_gid,
            (newest / "ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink(),
        )


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
    command = list(arguments)
    if not seen.same_root:
        enter = [sys.executable, "-I", "-S", "-c", _ENTER]
        place = (str(seen.pid), str(seen.user), str(seen.group), seen.cwd)
        command = [*enter, *place, *command]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=seen.cwd if seen.same_root else "/",
            env=seen.environment,
            start_new_session=True,
        )
    except OSError as error:
        raise ValueError(f"{arguments[0]!r} cannot be run: {error.strerror}") from error
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
