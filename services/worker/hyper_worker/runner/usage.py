"""What a tree of processes uses: sampled from /proc, because rusage has no sum of memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SAMPLE_S = 0.5
_FIRST_S = 0.05


@dataclass(slots=True)
class Usage:
    """Peak memory of a process and its descendants, and their CPU time, as far as sampled."""

    pid: int
    limit_bytes: int = 0  # 0: none
    over_bytes: int = 0  # what was used when the limit was first seen exceeded
    peak_rss_bytes: int = 0
    rss_bytes: int = 0  # at the last look
    cpu_s: float = 0.0
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self, on_over: Callable[[], None] = lambda: None) -> None:
        """Sample until `stop`; more often at first, for the sake of short attempts.

        `on_over` is called once, when more than `limit_bytes` are in use.
        """
        pause_s = _FIRST_S
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), pause_s)
                return
            self.sample()
            if self.limit_bytes and not self.over_bytes and self.rss_bytes > self.limit_bytes:
                self.over_bytes = self.rss_bytes
                on_over()
            pause_s = min(2 * pause_s, SAMPLE_S)

    def stop(self) -> None:
        """End `watch`."""
        self._stopped.set()

    def sample(self) -> None:
        """Look once; processes that vanish meanwhile count for nothing."""
        rss = 0
        cpu_s = 0.0
        for pid in tree(self.pid):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process = psutil.Process(pid)
                rss += process.memory_info().rss
                times = process.cpu_times()
                cpu_s += times.user + times.system
        self.rss_bytes = rss
        self.peak_rss_bytes = max(self.peak_rss_bytes, rss)
        self.cpu_s = max(self.cpu_s, cpu_s)


def kernel_kills() -> int:
    """How many processes of this machine the kernel has killed for want of memory."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return 0


def tree(pid: int) -> list[int]:
    """A process and its descendants.

    The kernel's own lists of children cost microseconds; looking at every process of the
    machine, as psutil must, costs milliseconds.
    """
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):  # it has ended
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
    return found
