"""`python dask_tasks.py TASKS MILLISECONDS CORES`: tasks, seconds and CPU seconds as JSON."""

from __future__ import annotations

import json
import os
import sys
import time

import cpu
from distributed import Client, LocalCluster
from work import RESULT, work


def task(i: int, group: str, milliseconds: int) -> str:
    """The same as ours."""
    if milliseconds:
        work(milliseconds / 1000.0)
    return RESULT


def main() -> None:
    """Warm up, then measure."""
    tasks, milliseconds, cores = map(int, sys.argv[1:4])
    mark = f"BENCH_MARK={os.environ['BENCH_MARK']}".encode()
    with (
        LocalCluster(
            n_workers=cores, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(task, range(200), group="warm", milliseconds=0, pure=False))
        time.sleep(1.0)
        cpu_s, start = sum(map(cpu.cpu_s, cpu.marked(mark))), time.perf_counter()
        futures = client.map(task, range(tasks), group="g", milliseconds=milliseconds, pure=False)
        results = client.gather(futures)
        wall_s = time.perf_counter() - start
        cpu_s = sum(map(cpu.cpu_s, cpu.marked(mark))) - cpu_s
        assert results == [RESULT] * tasks
        print(json.dumps({"tasks": tasks, "wall_s": wall_s, "cpu_s": cpu_s}), flush=True)


if __name__ == "__main__":
    main()
