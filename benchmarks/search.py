"""`python -m benchmarks.search [--quick] [--json]`: a search, and the same with early stopping.

The 4,096 combinations of `examples/boosting` on a local cluster of two workers, each combination
trained to its end; then again with ASHA (Li et al. 2020, arXiv:1810.05934), which ends at steps 1,
3, 9, ... times the first what does worse than the best third. Compute is the sum over tasks of
their time on a worker. ASHA's best must be as good within 2% for less than half of the compute.

`--json` ends with one object, {"grid": {...}, "asha": {...}, "best_ratio", "compute_ratio"}.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import yaml

from benchmarks.scheduler.cluster import cluster
from examples.workloads import ROOT
from hyper.client import Client
from hyper.status import TaskState

ROUNDS = 400
MIN_STEPS = 15
QUICK_ROUNDS = 60
SMALL = {"leaves": [4, 31], "rate": [0.02, 0.2], "least": [10], "columns": [0.8],
         "rows": [0.7, 1.0], "l2": [0.0, 10.0]}  # fmt: skip


def recipe(*, rounds: int, quick: bool, asha: bool) -> dict[str, Any]:
    """The example's search alone, with or without early stopping."""
    folder = ROOT / "boosting"
    search = yaml.safe_load((folder / "recipe.yaml").read_text())["experiments"]["search"]
    search["workdir"] = str(folder)
    search["parameters"] |= (SMALL if quick else {}) | {"rounds": rounds}
    if asha:
        search["parameters"]["report_every"] = MIN_STEPS
        search["objective"]["early_stopping"] = {"asha": {"min_steps": MIN_STEPS, "reduction": 3}}
    return {"version": 1, "name": "search", "experiments": {"search": search}}


def run(client: Client, what: dict[str, Any]) -> dict[str, Any]:
    """Carry it out and say what it found, and what it took."""
    start = time.perf_counter()
    workflow = client.submit(what)
    workflow.wait(check=True)
    wall_s = time.perf_counter() - start
    tasks = list(workflow.tasks("search"))
    assert all(task.state is TaskState.SUCCEEDED for task in tasks)
    compute_s = sum(
        (task.end_time - task.start_time).total_seconds()
        for task in tasks
        if task.end_time is not None and task.start_time is not None
    )
    whole = [task for task in tasks if not task.stopped_early]
    best = max(whole, key=lambda task: task.objective or 0.0)
    shown = {k: v for k, v in best.parameters.items() if k not in ("data", "rounds")}
    return {
        "combinations": len(tasks), "stopped_early": len(tasks) - len(whole),
        "best_auc": best.objective, "best": shown, "compute_s": round(compute_s, 1),
        "wall_s": round(wall_s, 1),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="8 combinations; says nothing")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    result: dict[str, Any] = {}
    with cluster(2, 1) as where, Client(where.endpoint) as client:
        for name in ("grid", "asha"):
            what = recipe(rounds=rounds, quick=arguments.quick, asha=name == "asha")
            result[name] = run(client, what)
    result["best_ratio"] = round(result["asha"]["best_auc"] / result["grid"]["best_auc"], 4)
    result["compute_ratio"] = round(result["asha"]["compute_s"] / result["grid"]["compute_s"], 3)
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
