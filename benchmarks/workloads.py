"""`python -m benchmarks.workloads [--quick] [--json] [--only NAME ...] [--rounds N]`.

The workloads of `examples/` on a local cluster of two workers of one slot each: how much faster two
are than one, and what Hyper costs over running the same functions by hand, one after another in one
process, on the same stored data. One thread a task everywhere.

- `speedup_2_workers`: seconds of the stage with one worker (one rank) over those with two.
- `speedup_2_processes`: the same of one and two processes by hand: what this machine has to give.
- `overhead_percent`: from submission to the workflow's end with one worker, over the time of the
  process that calls the functions by hand, its start included.
- `loss_difference` (detector): the greatest difference between the loss curves of one process and
  of two ranks at equal batch, each the mean of 20 steps, relative to the loss; and
  `loss_difference_first`: between single losses, over the first 20 steps. Both add the same numbers
  in another order: the last bits differ, and training carries that on.

Rounds are taken in turn (one, two, by hand, two by hand), medians are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.run import load
from examples.workloads import ROOT, WORKLOADS, Workload
from hyper.client import Client
from hyper.run_report import collect
from hyper.sessions import Session

THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_SMOOTH = 20  # steps
BY_HAND = """
import importlib, json, sys
from hyper.context import AttemptId, TaskContext
folder, target, calls = json.load(sys.stdin)
sys.path.insert(0, folder)
module, _, name = target.partition(":")
function = getattr(importlib.import_module(module), name)
for number, parameters in enumerate(calls):
    task = f"tenants/default/workflows/by-hand/experiments/x/tasks/{number}"
    function(TaskContext(task, AttemptId(1, 1)), **parameters)
"""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of a workload is run.

    Args:
        before: the stages before, which make the data, with parameters in place of the recipe's.
        stage: parameters of the stage that is measured, in place of the recipe's.
        splits: the parameter that tells tasks apart and how many there are; none: one task.
    """

    before: Mapping[str, Mapping[str, Any]]
    stage: Mapping[str, Any]
    splits: tuple[str, int] | None


FULL = {
    "text": Size(
        {"generate": {"files": 1200, "shard": {"range": [0, 8]}}}, {"source": ""}, ("shard", 8)
    ),
    "detector": Size(
        {"generate": {"images": 256, "part": {"range": [0, 4]}}},
        {"source": "", "steps": 300}, None,
    ),
    "boosting": Size({}, {"rounds": 300}, None),
    "detection": Size(
        {"generate": {"images": 1024, "part": {"range": [0, 8]}}, "plan": {"shards": 8}},
        {"source": ""}, ("shard", 8),
    ),
}  # fmt: skip
QUICK = {
    "text": Size(
        {"generate": {"files": 100, "shard": {"range": [0, 2]}}}, {"source": ""}, ("shard", 2)
    ),
    "detector": Size(
        {"generate": {"images": 32, "part": {"range": [0, 2]}}},
        {"source": "", "steps": 6, "save_every": 3}, None,
    ),
    "boosting": Size({}, {"rounds": 5}, None),
    "detection": Size(
        {"generate": {"images": 32, "part": {"range": [0, 2]}}, "plan": {"shards": 2}},
        {"source": ""}, ("shard", 2),
    ),
}  # fmt: skip
_COMBINATIONS = {"leaves": [4, 8, 15, 31], "rate": [0.02, 0.05, 0.1, 0.2],
                 "least": [5, 10, 20, 40], "l2": [0.0, 0.1, 1.0, 10.0]}  # fmt: skip


def calls(name: str, size: Size, quick: bool, session: str) -> list[dict[str, Any]]:
    """The parameters of every task of the stage."""
    experiments = load(WORKLOADS[name], "machine")["experiments"]
    given = dict(experiments[WORKLOADS[name].stage]["parameters"])
    given.update(size.stage)
    if "session" in given:
        given["session"] = session
    if name == "boosting":
        given |= {"columns": 0.8, "rows": 0.7}
        grids = {k: v[:2] if quick else v for k, v in _COMBINATIONS.items()}
        found: list[dict[str, Any]] = [given]
        for key, values in grids.items():
            found = [{**each, key: value} for each in found for value in values]
        return found
    if size.splits is None:
        return [given]
    key, count = size.splits
    return [{**given, key: at} for at in range(count)]


def recipe(workload: Workload, asked: Sequence[Mapping[str, Any]], workers: int) -> dict[str, Any]:
    """The stage alone, over `asked`: a task each."""
    stage = load(workload, "machine")["experiments"][workload.stage]
    fixed = {key: value for key, value in asked[0].items() if all(e[key] == value for e in asked)}
    varied = {key: [] for key in asked[0] if key not in fixed}
    experiment: dict[str, Any] = {
        "function": stage["function"], "workdir": stage["workdir"],
        "parameters": {key: {"value": value} for key, value in fixed.items()},
    }  # fmt: skip
    for key in varied:
        experiment["parameters"][key] = list(dict.fromkeys(each[key] for each in asked))
    if workload.gang:
        experiment["gang"] = workers
    else:
        experiment["workers"] = workers
    return {"version": 1, "name": "measured", "experiments": {"stage": experiment}}


def through_hyper(
    client: Client, workload: Workload, asked: Sequence[Mapping[str, Any]], workers: int
) -> tuple[float, float]:
    """(seconds of the stage, seconds from submission to the end)."""
    began = time.monotonic()
    workflow = client.submit(recipe(workload, asked, workers))
    workflow.wait(check=True)
    total_s = time.monotonic() - began
    return collect(workflow).stage_s("stage"), total_s


def by_hand(workload: Workload, asked: Sequence[Mapping[str, Any]], processes: int) -> float:
    """Seconds of so many processes that make the same calls between them."""
    stage = load(workload, "machine")["experiments"][workload.stage]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    began = time.monotonic()
    started: list[subprocess.Popen[str]] = []
    for rank in range(processes):
        mine = list(asked if workload.gang else asked[rank::processes])
        ranks = {"RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port}  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", BY_HAND], stdin=subprocess.PIPE, text=True,
            stdout=subprocess.DEVNULL, env={**os.environ, **THREADS, **ranks},
        )  # fmt: skip
        started.append(process)
        assert process.stdin is not None
        json.dump([str(ROOT / workload.folder), stage["function"], mine], process.stdin)
        process.stdin.close()
    statuses = [process.wait() for process in started]
    if any(statuses):
        raise RuntimeError(f"{stage['function']} failed when it was called by hand")
    return time.monotonic() - began


def measure(client: Client, name: str, quick: bool, rounds: int) -> dict[str, Any]:
    """The figures of one workload."""
    workload, size = WORKLOADS[name], (QUICK if quick else FULL)[name]
    session = client.session(f"default/bench-{name}")
    try:
        experiments = load(workload, "machine")["experiments"]
        before = {stage: experiments[stage] for stage in size.before}
        for stage, parameters in size.before.items():
            before[stage]["parameters"] |= {"session": session.name, **parameters}
        if before:
            document = {"version": 1, "name": "data", "experiments": before}
            client.submit(document).wait(check=True)
        asked = calls(name, size, quick, session.name)
        one, two, total, hand, pair = [], [], [], [], []
        curves: list[list[float]] = []
        first = {**asked[0], "steps": 1} if workload.gang else asked[0]
        through_hyper(client, workload, [first], 1)  # imports, compiled nets
        for _ in range(rounds):
            for workers, times in ((1, one), (2, two)):
                _fresh(session, workload)
                stage_s, total_s = through_hyper(client, workload, asked, workers)
                times.append(stage_s)
                if workers == 1:
                    total.append(total_s)
                if workload.gang:
                    curves.append(json.loads(session.read("losses.json")))
            _fresh(session, workload)
            hand.append(by_hand(workload, asked, 1))
            _fresh(session, workload)
            pair.append(by_hand(workload, asked, 2))
    finally:
        session.abort()
    found = {
        "tasks": len(asked),
        "seconds_1_worker": statistics.median(one),
        "seconds_2_workers": statistics.median(two),
        "seconds_by_hand": statistics.median(hand),
        "speedup_2_workers": statistics.median(a / b for a, b in zip(one, two, strict=True)),
        "speedup_2_processes": statistics.median(a / b for a, b in zip(hand, pair, strict=True)),
        "overhead_percent": statistics.median(
            100 * (a / b - 1) for a, b in zip(total, hand, strict=True)
        ),
    }
    if curves:
        first, second = np.array(curves[0]), np.array(curves[1])
        found["loss_difference_first"] = _apart(first[:_SMOOTH], second[:_SMOOTH])
        window = np.full(min(_SMOOTH, len(first)), 1 / min(_SMOOTH, len(first)))
        means = [np.convolve(each, window, "valid") for each in (first, second)]
        found["loss_difference"] = _apart(*means)
    return found


def _apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.max(np.abs(one - other) / np.abs(one)))


def _fresh(session: Session, workload: Workload) -> None:
    """Training starts anew."""
    if workload.gang and session.exists("checkpoint.pt"):
        session.delete("checkpoint.pt")


@contextmanager
def cluster() -> Iterator[Client]:
    """A cluster of two workers of its own, on temporary data."""
    with tempfile.TemporaryDirectory(prefix="hyper-workloads-") as folder:
        environment = {**os.environ, **THREADS, "HYPER_HOME": folder}
        environment.pop("HYPER_ENDPOINT", None)
        hyper = [sys.executable, "-m", "hyper.cli.main"]
        subprocess.run(
            [*hyper, "up", "--workers", "2"], env=environment, check=True, stdout=sys.stderr
        )
        try:
            facts = json.loads(Path(folder, "cluster.json").read_text())
            os.environ["HYPER_ENDPOINT"] = facts["endpoint"]
            with Client(facts["endpoint"]) as client:
                yield client
        finally:
            subprocess.run([*hyper, "down"], env=environment, check=False, stdout=sys.stderr)


def plot(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Seconds of each workload by hand, with one worker and with two."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.5))
    bars = (("by hand", "seconds_by_hand"), ("1 worker", "seconds_1_worker"),
            ("2 workers", "seconds_2_workers"))  # fmt: skip
    for i, (label, key) in enumerate(bars):
        places = [row + 0.26 * i for row in range(len(found))]
        axes.barh(places, [each[key] for each in found.values()], 0.24, label=label)
    for row, each in enumerate(found.values()):
        text = f"{each['speedup_2_workers']:.2f}x, {each['overhead_percent']:+.1f}%"
        axes.text(each["seconds_2_workers"], row + 0.52, " " + text, va="center", fontsize=8)
    axes.set_yticks([row + 0.26 for row in range(len(found))], list(found))
    axes.invert_yaxis()
    axes.set_xlabel("seconds (speed-up by the second worker, overhead over by hand)")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small inputs, one round")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--only", nargs="*", choices=sorted(FULL), default=sorted(FULL))
    parser.add_argument("--plot", type=Path, help="draw the seconds, as PNG or SVG")
    parser.add_argument("--rounds", type=int, default=0, help="of one, two, by hand, two by hand")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    found: dict[str, Any] = {}
    with cluster() as client:
        if "detection" in arguments.only:
            _train(client)
        for name in arguments.only:
            found[name] = measure(client, name, arguments.quick, rounds)
            print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    if arguments.plot is not None:
        plot(found, arguments.plot)
    if arguments.json:
        print(json.dumps(found))
    return 0


def _train(client: Client) -> None:
    """A model for the detection: what it finds does not matter here, how long it takes does."""
    document = load(WORKLOADS["detector"], "machine", 1)
    experiments = document["experiments"]
    experiments["generate"]["parameters"] |= {"part": 0, "images": 64}
    experiments["train"]["parameters"]["steps"] = 2
    client.submit(document).wait(check=True)


if __name__ == "__main__":
    sys.exit(main())
