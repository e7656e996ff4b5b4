"""What this machine and its tasks use: sampled for heartbeats, logs and Prometheus."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from hyper_worker import metrics
from hyper_worker.gpus import GpuPool
from hyper_worker.runner.usage import tree
from hyperapi.scheduler.v1 import workflow_pb2

TASKS_MAX = 100


@dataclass(slots=True)
class Sample:
    """What a task uses at a moment."""

    task: str
    cpus: float
    memory_bytes: int
    seconds: float
    read_bytes: int
    written_bytes: int

    def line(self, now: float) -> bytes:
        """As JSON, for the task's log of usage."""
        facts = {
            "t": round(now, 3),
            "cpus": round(self.cpus, 3),
            "memory_bytes": self.memory_bytes,
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
        }
        return json.dumps(facts).encode() + b"\n"


_FULL_BYTES = 8 << 20  # less is no room: writes of usual size fail


class Node:
    """Samples this machine.

    Args:
        scratch: the folder whose disk counts.
        gpus: of the machine.
    """

    def __init__(self, scratch: Path, gpus: GpuPool) -> None:
        self._scratch, self._gpus = scratch, gpus
        self._at = time.monotonic()
        self._network = psutil.net_io_counters()
        self._cpu_s: dict[int, float] = {}
        self._tasks_at = self._at
        psutil.cpu_percent()  # the first answer means nothing

    def look(self, samples: Iterable[Sample]) -> workflow_pb2.NodeUsage:
        """The machine now, and the tasks that use most."""
        now, network = time.monotonic(), psutil.net_io_counters()
        passed_s = max(now - self._at, 1e-3)
        memory = psutil.virtual_memory()
        usage = workflow_pb2.NodeUsage(
            cpus=psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1),
            cpus_total=psutil.cpu_count() or 1,
            memory_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            disk_free_bytes=psutil.disk_usage(str(self._scratch)).free,
            received_bytes_per_s=(network.bytes_recv - self._network.bytes_recv) / passed_s,
            sent_bytes_per_s=(network.bytes_sent - self._network.bytes_sent) / passed_s,
        )
        self._at, self._network = now, network
        holders = self._gpus.holders
        for gpu in self._gpus.devices.look() if self._gpus.count else ():
            usage.gpus.add(
                index=gpu.index,
                model=gpu.model,
                utilization=gpu.utilization,
                memory_bytes=gpu.memory_bytes,
                memory_total_bytes=gpu.memory_total_bytes,
                task=holders.get(gpu.index, ""),
            )
        largest = sorted(samples, key=lambda each: -each.memory_bytes)[:TASKS_MAX]
        for each in largest:
            usage.tasks.add(
                task=each.task,
                cpus=each.cpus,
                memory_bytes=each.memory_bytes,
                seconds=each.seconds,
                read_bytes=each.read_bytes,
                written_bytes=each.written_bytes,
            )
        _tell_prometheus(usage)
        return usage

    def full_disk(self) -> str:
        """Says so where tasks have next to no room left for their files; "" where they have."""
        free = psutil.disk_usage(str(self._scratch)).free
        return f"the worker's disk is full: {free >> 20} MiB free" if free < _FULL_BYTES else ""

    def tasks(self, running: Iterable[tuple[str, int, float]]) -> list[Sample]:
        """What tasks use now, from (name, process id, start on the monotonic clock)."""
        now = time.monotonic()
        passed_s = max(now - self._tasks_at, 1e-3)
        samples, cpu_s = [], {}
        for task, pid, start in running:
            memory = used_s = 0.0
            read = written = 0
            for each in tree(pid):
                try:
                    process = psutil.Process(each)
                    memory += process.memory_info().rss
                    times = process.cpu_times()
                    used_s += times.user + times.system
                    io = process.io_counters()
                    read, written = read + io.read_bytes, written + io.write_bytes
                except psutil.Error:  # it has ended
                    continue
            cpu_s[pid] = used_s
            before = self._cpu_s.get(pid)
            since_s = passed_s if before is not None else max(now - start, 1e-3)
            cpus = max(used_s - (before or 0.0), 0.0) / since_s
            samples.append(Sample(task, cpus, int(memory), now - start, read, written))
        self._cpu_s, self._tasks_at = cpu_s, now
        return samples


def _tell_prometheus(usage: workflow_pb2.NodeUsage) -> None:
    metrics.NODE_CPUS.set(usage.cpus)
    metrics.NODE_MEMORY.set(usage.memory_bytes)
    metrics.NODE_DISK_FREE.set(usage.disk_free_bytes)
    metrics.NODE_RECEIVED.set(usage.received_bytes_per_s)
    metrics.NODE_SENT.set(usage.sent_bytes_per_s)
    for gpu in usage.gpus:
        metrics.GPU_UTILIZATION.labels(str(gpu.index)).set(gpu.utilization)
        metrics.GPU_MEMORY.labels(str(gpu.index)).set(gpu.memory_bytes)
