"""The guard: ends all tasks of an agent that is no more.

    agent --pipe--> guard        "+123" a process group to watch, "-123" it has ended

When the agent dies, by SIGKILL too, the pipe closes, and the guard kills every group that is
still on its list. It runs in a session of its own, so that no signal meant for the agent's
group reaches it. A process that joins the list waits until its line has been written (see
`launch.py`), so there is no moment at which it could be missed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys


class Guard:
    """The agent's end: keeps the guard process informed, and replaces it if it dies."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The guard process."""
        return self._process.pid

    @property
    def children(self) -> frozenset[int]:
        """Processes that the agent has started and waits for."""
        return frozenset((self.pid, *self._groups))

    def watch(self, group: int) -> None:
        """The guard knows of this process group on return."""
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """The group has ended; its number may be used again by others."""
        self._groups.discard(group)
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """Let the guard go; groups still on its list are killed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
        except BrokenPipeError:  # someone killed it: the next one learns all groups
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            self._process = self._start()
            assert self._process.stdin is not None
            for group in self._groups:
                self._process.stdin.write(f"+{group}\n".encode())

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            cwd="/",
        )


# Small on purpose: no import of this package, so that it starts fast and stays a few MB.
_PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
groups = set()
for line in sys.stdin.buffer:
    (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


def signal_group(group: int, number: signal.Signals) -> None:
    """Signal a process group; one that is gone is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
