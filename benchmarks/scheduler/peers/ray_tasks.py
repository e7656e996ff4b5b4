"""`python ray_tasks.py TASKS MILLISECONDS`: prints tasks, seconds and CPU seconds as JSON."""

from __future__ import annotations

import json
import os
import sys
import time

import cpu
import ray
from work import RESULT, work


@ray.remote(num_cpus=1)
def task(i: int, group: str, milliseconds: int) -> str:
    """The same as ours."""
    if milliseconds:
        work(milliseconds / 1000.0)
    return RESULT


def main() -> None:
    """Warm up, then measure."""
    tasks, milliseconds = int(sys.argv[1]), int(sys.argv[2])
    mark = f"BENCH_MARK={os.environ['BENCH_MARK']}".encode()
    ray.init(num_cpus=int(sys.argv[3]), include_dashboard=False, log_to_driver=False)
    ray.get([task.remote(i, "warm", 0) for i in range(200)])
    time.sleep(1.0)
    cpu_s, start = sum(map(cpu.cpu_s, cpu.marked(mark))), time.perf_counter()
    results = ray.get([task.remote(i, "g", milliseconds) for i in range(tasks)])
    wall_s = time.perf_counter() - start
    cpu_s = sum(map(cpu.cpu_s, cpu.marked(mark))) - cpu_s
    assert results == [RESULT] * tasks
    print(json.dumps({"tasks": tasks, "wall_s": wall_s, "cpu_s": cpu_s}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
