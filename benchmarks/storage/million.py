"""`python -m benchmarks.storage.million [--files N] [--json]`: many small files, bounded memory.

N files of 1 KB are written in sessions, committed, listed, opened and read at random; reported are
rates, the largest memory of the gateway and of this process, and the size of etcd's database.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.scheduler import cpu
from benchmarks.scheduler.cluster import Cluster, cluster
from hyper.client import Client

SIZE = 1024
READS = 500
PER_FOLDER = 1000


def _files(first: int, stop: int) -> Iterator[tuple[str, bytes]]:
    block = os.urandom(2 * SIZE)
    for number in range(first, stop):
        at = number % SIZE
        yield f"{number // PER_FOLDER:07d}/{number % PER_FOLDER:03d}", block[at : at + SIZE]


def _peak_mb(pid: int) -> float:
    """The largest resident memory that a process has had."""
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123  (one line of /proc)
        return next(float(line.split()[1]) / 1e3 for line in status if line.startswith("VmHWM"))


def _etcd_mb(where: Cluster) -> float:
    name = "etcd_mvcc_db_total_size_in_use_in_bytes "
    lines = where.metrics("etcd").splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name)) / 1e6


def measure(where: Cluster, client: Client, count: int) -> dict[str, Any]:
    """Everything, in this order."""
    (gateway,) = where.pids("storage-gateway")
    before_mb, begin = _etcd_mb(where), time.perf_counter()
    with client.session("bench/million") as session:
        session.write_many(_files(0, count))
        written = time.perf_counter()
        session.commit()
    committed = time.perf_counter()
    dataset = client.open_dataset("bench/million")
    opened = time.perf_counter()
    assert sum(1 for _ in dataset.files()) == count
    listed = time.perf_counter()
    folder = f"{(count - 1) // PER_FOLDER:07d}/"
    files, _ = dataset.list_folder(folder)
    looked = time.perf_counter()
    assert files
    picks = random.Random(1)
    for _ in range(READS):
        number = picks.randrange(count)
        path = f"{number // PER_FOLDER:07d}/{number % PER_FOLDER:03d}"
        assert len(dataset.read(path)) == SIZE
    read = time.perf_counter()
    return {
        "files": count,
        "write_per_s": count / (written - begin),
        "commit_s": committed - written,
        "open_s": opened - committed,
        "list_per_s": count / (listed - opened),
        "folder_s": looked - listed,
        "random_reads_per_s": READS / (read - looked),
        "gateway_peak_mb": _peak_mb(gateway),
        "gateway_rss_mb": cpu.rss_mb(gateway),
        "client_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "etcd_added_mb": _etcd_mb(where) - before_mb,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.storage.million", description=__doc__
    )
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="50,000 files")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with cluster(1, 1) as where, Client(where.endpoint) as client:
        found = measure(where, client, 50_000 if options.quick else options.files)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:20} {value:.4g}")


if __name__ == "__main__":
    main()
