"""`python -m benchmarks.segmentation [--quick] [--json] [--seeds 0,1,2]`.

How good segmentations are. The example as it is (`python -m examples.run segmentation`), on a
cluster of its own, once with a net of each seed: trained on sections 0 to 14 of `em/vnc_stack1`,
run over all 20 by the inference service, cut into objects, and compared with the truth on sections
16 to 19, which nobody trained on. Beside it a watershed on intensity, with the settings of a grid
that do best on section 15.

- `ours`, `intensity`: adapted Rand error and variation of information (bits) within sections, each
  the mean of the sections; `ours_3d`: of the volume.
- `rand_error_ratio`, `information_ratio`: ours over the watershed's. Below 0.5 is better by half.
- `training_s`, `segmentation_s`: of the workflows, from submission to end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.workloads import cluster
from examples.run import load
from examples.workloads import WORKLOADS, results
from hyper.client import Client
from hyper.run_report import collect

NAME, NET = "segmentation", "membranes"


def once(client: Client, size: str, seed: int) -> dict[str, Any]:
    """Train a net with a seed, segment with it, compare."""
    training = load(WORKLOADS[NET], size)
    training["experiments"]["train"]["parameters"]["seed"] = seed
    trained = client.submit(training)
    trained.wait(check=True)
    workflow = client.submit(load(WORKLOADS[NAME], size))
    workflow.wait(check=True)
    (found,) = results(workflow, "measure")
    return {
        "seed": seed, **found, "training_s": round(collect(trained).wall_s, 1),
        "segmentation_s": round(collect(workflow).wall_s, 1),
    }  # fmt: skip


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the seeds, and the worst of the ratios."""
    measures = ("rand_error", "information_bits", "split_bits", "merge_bits")
    kinds = ("ours", "intensity", "ours_3d")
    found: dict[str, Any] = {
        kind: {key: statistics.median(run[kind][key] for run in runs) for key in measures}
        for kind in kinds
    }
    for ratio in ("rand_error_ratio", "information_ratio"):
        found[ratio] = statistics.median(run[ratio] for run in runs)
        found[f"{ratio}_worst"] = max(run[ratio] for run in runs)
    for seconds in ("training_s", "segmentation_s"):
        found[seconds] = statistics.median(run[seconds] for run in runs)
    return found


def main() -> int:
    """Run the example for every seed and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="the smallest size, one seed")
    parser.add_argument("--seeds", default="0,1,2", help="of the nets, by commas (%(default)s)")
    asked = parser.parse_args()
    size = "test" if asked.quick else "machine"
    seeds = [int(seed) for seed in asked.seeds.split(",")][: 1 if asked.quick else None]
    runs = []
    with cluster() as client:
        prepare = WORKLOADS[NAME].prepare
        assert prepare is not None
        data = prepare(client, asked.quick)
        print(data, file=sys.stderr)
        for seed in seeds:
            runs.append(once(client, size, seed))
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    found = {"data": data, **summary(runs), "seeds": runs}
    print(json.dumps(found) if asked.json else json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
