"""`python -m benchmarks.scheduler [--quick] [--json] [--only PART] [--plot FILE]`.

Parts: `peers` (no-op tasks, in turn with Ray and Dask), `busy` (10 ms of work each, they too),
`printing` (what a line of output adds to the CPU time of such a task, in turn), `commands`,
`latency`, `large` (ten million tasks), `plan` (time to plan from ten thousand to ten million, drawn
into the file that `--plot` names), `agents` (ten thousand streams), `whole` (only where asked for:
`--tasks` no-op tasks run to their end; the most memory and the largest database on the way).

CPU time is that of whole systems: ours of scheduler, worker and tasks, etcd, storage gateway and
S3, with every result durable; the peers' of all their processes, with nothing durable.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.scheduler import cpu, peer_runs
from benchmarks.scheduler.cluster import ROOT, Cluster, cluster, recipe, run
from benchmarks.scheduler.planning import plan, plot
from hyper.client import Client
from hyper.status import WorkerState

PEERS = ("ray", "dask")
# ten thousand workers share a machine of two cores with the scheduler: they beat more slowly
CALM = {"HYPER_SCHEDULER__HEARTBEAT_S": "10", "HYPER_SCHEDULER__LEASE_S": "40"}


def rate(figures: dict[str, Any], tasks: int) -> float:
    """Tasks per CPU second."""
    return float(tasks / figures["cpu_s"])


def throughput(where: Cluster, client: Client, quick: bool, cores: int) -> dict[str, Any]:
    """No-op tasks, in turn with the peers."""
    tasks, peer_tasks, rounds = (20_000, 4_000, 1) if quick else (50_000, 8_000, 3)
    found: dict[str, Any] = {"rounds": []}
    why = {peer: peer_runs.install(peer) for peer in PEERS}
    for _ in range(rounds):
        ours = run(where, client, recipe(tasks))
        one: dict[str, Any] = {"hyper": rate(ours, tasks), "hyper_cpu_s": ours["by_role"]}
        for peer in PEERS:
            if why[peer]:
                continue
            figures = peer_runs.run(peer, peer_tasks, 0, cores)
            if isinstance(figures, str):
                why[peer] = figures
            else:
                one[peer] = rate(figures, peer_tasks)
        found["rounds"].append(one)
    rounds_done = found["rounds"]
    found["tasks_per_cpu_second"] = statistics.median(each["hyper"] for each in rounds_done)
    for peer in PEERS:
        ratios = [each["hyper"] / each[peer] for each in rounds_done if peer in each]
        found[f"vs_{peer}"] = None if why[peer] else statistics.median(ratios)
        if why[peer]:
            found[f"vs_{peer}_reason"] = why[peer]
    return found


def busy(where: Cluster, client: Client, quick: bool, cores: int) -> dict[str, Any]:
    """Tasks of 10 ms of CPU time each: how much of the CPU time of all is the tasks' own."""
    tasks, milliseconds = 400 if quick else 2_000, 10
    per_second = rate(run(where, client, recipe(tasks, milliseconds)), tasks)
    ideal = 1000.0 / milliseconds
    found: dict[str, Any] = {
        "tasks_per_cpu_second_10ms": per_second, "share_of_ideal_10ms": per_second / ideal,
    }  # fmt: skip
    for peer in PEERS:
        figures = peer_runs.install(peer) or peer_runs.run(peer, tasks, milliseconds, cores)
        share = None if isinstance(figures, str) else rate(figures, tasks) / ideal
        found[f"{peer}_share_of_ideal_10ms"] = share
    return found


def printing(where: Cluster, client: Client, quick: bool) -> dict[str, float]:
    """What it costs that tasks of 10 ms print a line each: CPU time of all, logs durable."""
    tasks, rounds = (400, 1) if quick else (2_000, 3)
    more_ms: list[float] = []
    for _ in range(rounds):
        silent = run(where, client, recipe(tasks, 10))["cpu_s"]
        loud = run(where, client, recipe(tasks, 10, function="loud"))["cpu_s"]
        more_ms.append(1000.0 * (loud - silent) / tasks)
    return {"printing_cpu_ms_per_task": statistics.median(more_ms)}


def commands(where: Cluster, client: Client, quick: bool) -> float:
    """Commands, a fork each, per second of the worker's CPU time, the commands' own included."""
    tasks = 200 if quick else 1_000
    what = {
        "version": 1,
        "name": "commands",
        "experiments": {"c": {"command": "true", "parameters": {"i": {"range": [0, tasks]}}}},
    }
    return float(tasks / run(where, client, what)["by_role"]["worker"])


def start_latency(client: Client, quick: bool) -> float:
    """From the call of submit to the first line of the task, on an idle cluster."""
    what = {
        "version": 1,
        "name": "latency",
        "experiments": {
            "one": {"function": "benchmarks.scheduler.work:now", "parameters": {"i": [0]}}
        },
    }
    latencies: list[float] = []
    for _ in range(8 if quick else 40):
        asked = time.time()
        workflow = client.submit(what)
        workflow.wait(timeout_s=60)
        latencies.append((float(workflow.task("one", 0).result) - asked) * 1000.0)
    return statistics.median(latencies)


def large(where: Cluster, client: Client) -> dict[str, float]:
    """Ten million tasks: handed in, looked at, cancelled."""
    start = time.perf_counter()
    workflow = client.submit(recipe(10_000_000, 1, "large"))
    submitted = time.perf_counter()
    list(client.workflows())
    workflow.refresh()
    next(iter(workflow.tasks("noop")))
    looked = time.perf_counter()
    workflow.cancel("measured")
    workflow.wait(timeout_s=120)
    return {
        "submit_10m_seconds": submitted - start,
        "look_10m_seconds": looked - submitted,
        "scheduler_rss_mb": max(map(cpu.rss_mb, where.pids("scheduler"))),
    }


def whole(where: Cluster, client: Client, tasks: int) -> dict[str, float]:
    """A workflow of so many tasks, run to its end: the largest that anything grew to."""
    before, start = where.cpu_s(), time.perf_counter()
    workflow = client.submit(recipe(tasks, 0, "whole"))
    rss_mb = db_mb = 0.0
    while not workflow.refresh().state.ended:
        rss_mb = max(rss_mb, *map(cpu.rss_mb, where.pids("scheduler")))
        db_mb = max(db_mb, etcd_db_mb(where))
        time.sleep(1.0)
    wall_s = time.perf_counter() - start
    after = where.cpu_s()
    assert workflow.state == "SUCCEEDED", workflow.status
    return {
        "whole_tasks": tasks,
        "whole_seconds": wall_s,
        "whole_tasks_per_cpu_second": tasks / (sum(after.values()) - sum(before.values())),
        "whole_scheduler_rss_mb": rss_mb,
        "whole_etcd_db_mb": db_mb,
    }


def etcd_db_mb(where: Cluster) -> float:
    """etcd's database, as its own metrics say."""
    lines = where.metrics("etcd").splitlines()
    name = "etcd_mvcc_db_total_size_in_bytes "
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name)) / 1e6


def percentile_ms(text: str, name: str, share: float) -> float:
    """An upper bound of a histogram's percentile, from /metrics."""
    buckets: list[tuple[float, float]] = []
    for line in text.splitlines():
        if line.startswith(f"{name}_bucket"):
            bound, _, count = line.partition('le="')[2].partition('"} ')
            buckets.append((float(bound), float(count)))
    total = buckets[-1][1]
    return next(bound for bound, count in buckets if count >= share * total) * 1000.0


def many_workers(quick: bool) -> dict[str, Any]:
    """Ten thousand streams, and tasks over all of them."""
    count, tasks = (1_000, 5_000) if quick else (10_000, 50_000)
    with cluster(1, 1, CALM) as where, Client(where.endpoint, timeout_s=60) as client:
        (scheduler,) = [each for each in where.processes if each["role"] == "scheduler"]
        command = [sys.executable, "-m", "benchmarks.scheduler.agents"]
        command += [scheduler["address"], str(count), "30" if quick else "90"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        try:
            process.stdout.readline()
            client.submit(recipe(tasks)).wait(timeout_s=300, check=True)
            text = where.metrics("scheduler")
            lost = sum(each.state is WorkerState.LOST for each in client.workers())
            facts = json.loads(process.stdout.readline() or "{}")
            process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
    name = "hyper_scheduler_dispatch_seconds"
    return {
        "agents": count,
        "agents_connect_seconds": facts.get("connect_s"),
        "agents_lost": facts.get("broken"),  # streams that ended
        "nodes_lost": lost,  # as the scheduler says
        "dispatch_ms_p99": percentile_ms(text, name, 0.99),
    }


PARTS = ("peers", "busy", "printing", "commands", "latency", "large", "plan", "agents")
ON_REQUEST = ("whole",)


def measure(quick: bool, parts: Sequence[str], tasks: int) -> dict[str, Any]:
    """The parts that are wanted."""
    figures: dict[str, Any] = {}
    if set(parts) - {"agents"}:
        cores = len(os.sched_getaffinity(0))
        with cluster(1, cores) as where, Client(where.endpoint) as client:
            run(where, client, recipe(500))
            if "peers" in parts:
                figures |= throughput(where, client, quick, cores)
            if "busy" in parts:
                figures |= busy(where, client, quick, cores)
            if "printing" in parts:
                figures |= printing(where, client, quick)
            if "commands" in parts:
                figures["commands_per_core_second"] = commands(where, client, quick)
            if "latency" in parts:
                figures["submit_to_start_ms_p50"] = start_latency(client, quick)
            if "large" in parts:
                figures |= large(where, client)
                figures["etcd_db_mb"] = etcd_db_mb(where)
            if "plan" in parts:
                figures |= plan(client, quick)
            if "whole" in parts:
                figures |= whole(where, client, tasks)
    return figures | (many_workers(quick) if "agents" in parts else {})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduler", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller: two or three minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS + ON_REQUEST, default=PARTS, help="some parts"
    )
    parser.add_argument("--tasks", type=int, default=1_000_000, help="of the part `whole`")
    parser.add_argument("--plot", type=Path, help="with the part `plan`: draw it, as PNG or SVG")
    options = parser.parse_args()
    if options.plot is not None and "plan" not in options.only:
        parser.error("--plot needs the part `plan`")
    figures = measure(options.quick, options.only, options.tasks)
    if options.plot is not None:
        plot(figures, options.plot)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        if name != "rounds":
            print(f"{name:28} {value if not isinstance(value, float) else format(value, '.4g')}")


if __name__ == "__main__":
    main()
