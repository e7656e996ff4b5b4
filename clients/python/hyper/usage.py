"""CPU time and memory of everything a local cluster runs, sampled from outside.

A job's `cpu_seconds` and `peak_rss_mb` are those of the whole system: services, etcd, S3 server and
workers with all their children. Only where the cluster's processes are on this machine.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from types import TracebackType

import psutil

SAMPLE_EVERY_S = 0.5


class UsageSampler:
    """Samples process trees in a thread between `__enter__` and `__exit__`.

    Memory is the proportional set size (shared pages counted once over all processes) where the
    kernel tells it, else the resident set.

    Args:
        roots: process ids whose trees are sampled; those that do not exist are left out.
    """

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = list(roots)
        self._first: dict[tuple[int, float], float] = {}
        self._last: dict[tuple[int, float], float] = {}
        self._living: set[tuple[int, float]] = set()
        self._dead: set[tuple[int, float]] = set()  # roots that ended
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self.peak_rss_bytes = 0

    def __enter__(self) -> UsageSampler:
        for identity, seconds, _ in self._walk():
            self._first[identity] = seconds
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        stack: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    @property
    def cpu_seconds(self) -> float:
        """User and system time since the start.

        A living process counts with the children that it has waited for; a dead one is in its
        parent's account, unless it was a root: then its last sample counts.
        """
        counted = (
            identity
            for identity in self._last
            if identity in self._living or identity in self._dead
        )
        return sum(self._last[identity] - self._first.get(identity, 0.0) for identity in counted)

    @property
    def peak_rss_mb(self) -> float:
        """Highest sum over all processes at one sample, in MB (10^6 bytes)."""
        return self.peak_rss_bytes / 1e6

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        total = 0
        living = set()
        for identity, seconds, memory in self._walk():
            self._last[identity] = seconds
            living.add(identity)
            total += memory
        self._dead |= {gone for gone in self._living - living if gone[0] in self._roots}
        self._living = living
        self.peak_rss_bytes = max(self.peak_rss_bytes, total)

    def _walk(self) -> Iterable[tuple[tuple[int, float], float, int]]:
        """(identity, CPU seconds, memory in bytes) of every process of the trees."""
        for process in self._trees():
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    identity = (process.pid, process.create_time())
                    memory = process.memory_info().rss
                memory = _proportional(process, memory)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it ended between the listing and the reading
            waited_for = times.children_user + times.children_system
            yield identity, times.user + times.system + waited_for, memory

    def _trees(self) -> list[psutil.Process]:
        """The roots that exist and all below them; one look at the machine for all."""
        children: dict[int, list[psutil.Process]] = defaultdict(list)
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                parent = process.ppid()
            except psutil.NoSuchProcess:
                continue
            children[parent].append(process)
            if process.pid in self._roots:
                found[process.pid] = process
        waiting = list(found.values())
        while waiting:
            process = waiting.pop()
            found[process.pid] = process
            waiting += [child for child in children[process.pid] if child.pid not in found]
        return list(found.values())


def _proportional(process: psutil.Process, resident: int) -> int:
    """The process's share of memory: PSS where the kernel tells it."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):
        return resident
