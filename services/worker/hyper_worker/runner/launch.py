"""Starting a process so that nothing of it can be left behind.

It gets a session and process group of its own and starts as a tiny shell that waits for one
line on its stdin; only when the guard knows its group does it get that line and becomes the
real program (exec, same pid). If the agent dies before, the pipe closes and the shell ends.
Daemons, which leave group and parent, are found by a mark in their environment (`orphans.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from hyper_worker.runner.guard import Guard, signal_group
from hyper_worker.runner.orphans import MARK, end_orphans
from hyper_worker.runner.usage import tree

# When memory runs out the kernel shall take tasks, not the agent.
_GATE = 'read -r go || exit 125; { echo 500 >/proc/self/oom_score_adj; } 2>/dev/null; exec "$@"'


class Process:
    """A started process group. When its leader ends, all that it left running is killed."""

    def __init__(self, popen: subprocess.Popen[bytes], guard: Guard, mark: str) -> None:
        self._popen, self._guard, self._mark = popen, guard, mark
        self.pid = popen.pid
        self._loop = asyncio.get_running_loop()
        self._descriptor = os.pidfd_open(popen.pid)
        self._ended = asyncio.Event()
        self.exit_code = 0
        self.cpu_s = 0.0
        self._loop.add_reader(self._descriptor, self._reap)

    @property
    def ended(self) -> bool:
        """Whether the leader has ended."""
        return self._ended.is_set()

    async def wait(self) -> int:
        """Wait for the leader's end; its exit code, negative for a signal."""
        await self._ended.wait()
        return self.exit_code

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole group; with SIGKILL also descendants that have left it."""
        if self.ended:
            return
        strays: list[psutil.Process] = []
        if number == signal.SIGKILL:
            for pid in tree(self.pid)[1:]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    strays.append(psutil.Process(pid))
        signal_group(self.pid, number)
        for stray in strays:
            with contextlib.suppress(psutil.NoSuchProcess):
                stray.kill()

    def _reap(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        # before the leader is reaped its number cannot become someone else's
        signal_group(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        self._guard.forget(self.pid)
        end_orphans(self._mark, self._guard.children)
        self.exit_code = os.waitstatus_to_exitcode(status)
        self.cpu_s = usage.ru_utime + usage.ru_stime
        self._popen.returncode = self.exit_code
        self._ended.set()


def launch(
    arguments: Sequence[str],
    *,
    guard: Guard,
    env: Mapping[str, str],
    cwd: Path,
    output: int,
    requests: bool = False,
    pass_fds: Sequence[int] = (),
) -> tuple[Process, int]:
    """Start `arguments`; stdout and stderr both go to the descriptor `output`, in order.

    With `requests`, the second value is the writing end of a pipe to its stdin; else its stdin
    is empty and the value -1.

    Raises:
        OSError: it cannot be started.
    """
    mark = uuid.uuid4().hex
    gate, opener = os.pipe()
    try:
        popen = subprocess.Popen(
            ["/bin/sh", "-c", _GATE if requests else f"{_GATE} </dev/null", "sh", *arguments],
            stdin=gate,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env={**env, MARK: mark},
            start_new_session=True,
            pass_fds=pass_fds,
        )
        guard.watch(popen.pid)
        process = Process(popen, guard, mark)
        with contextlib.suppress(BrokenPipeError):  # killed already: `wait` tells
            os.write(opener, b"go\n")
    except BaseException:
        os.close(opener)
        raise
    finally:
        os.close(gate)
    if requests:
        return process, opener
    os.close(opener)
    return process, -1
