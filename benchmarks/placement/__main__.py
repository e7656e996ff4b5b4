"""`python -m benchmarks.placement [--traces PATH...] [--quick] [--check] [--json] [--plot FILE]`.

Replays jobs on spot markets and says what each policy would have paid, as a share of running all
of it on demand. Without `--traces`: Bamboo's fleets below HYPER_DATA_DIR, if they are there, and
synthetic markets. PATH is a file or folder; JSON files are read as in the NSDI 2024 traces of
"Can't Be Late" (`{"metadata": {"gap_seconds": s}, "data": [machines available at each tick]}`),
those of one folder and machine type as zones of one market.

Spot costs a third of on-demand (`--spot-price`). A job runs in windows spread over the recording;
its work is a part (`--work`) of what one lane can do until the deadline. The figures are means over
the windows: `cost_ratio`, `on_demand_hours`, `preemptions`; `missed_deadlines` is a sum.
`omniscient` is a lower bound, not a policy. `mean` is over all scenarios. `limits` says whether
ours shows what it has to (`limits.py`); with `--check` the exit status is 1 if it does not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.placement import limits, synthetic
from benchmarks.placement.plots import plot
from benchmarks.placement.replay import OMNISCIENT, POLICIES, Figures, replay, scenarios
from hyper import spot_traces
from hyper.errors import HyperError


def summary(found: dict[str, dict[str, Figures]]) -> dict[str, Figures]:
    """Means over the scenarios."""
    names = [*POLICIES, OMNISCIENT]
    return {
        name: {
            key: statistics.fmean(each[name][key] for each in found.values())
            for key in next(iter(found.values()))[name]
        }
        for name in names
    }


def table(found: dict[str, dict[str, Figures]]) -> str:
    """Cost ratios for people."""
    names = [*POLICIES, OMNISCIENT]
    width = max(map(len, found))
    lines = [" ".join([" " * width, *(f"{name:>16}" for name in names)])]
    for scenario, figures in found.items():
        cells = []
        for name in names:
            missed = int(figures[name].get("missed_deadlines", 0))
            cells.append(
                f"{figures[name]['cost_ratio']:.3f}" + (f" ({missed} late)" * bool(missed))
            )
        lines.append(" ".join([f"{scenario:<{width}}", *(f"{cell:>16}" for cell in cells)]))
    return "\n".join(lines)


def main() -> int:
    """Replay, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--windows", type=int, default=40, help="of each scenario")
    parser.add_argument("--work", type=float, default=0.9, help="part of the time to the deadline")
    parser.add_argument("--spot-price", type=float, default=1 / 3, help="of on-demand's 1")
    parser.add_argument("--seed", type=int, default=1, help="of synthetic markets")
    parser.add_argument("--quick", action="store_true", help="6 windows")
    parser.add_argument("--check", action="store_true", help="fail if a limit is not kept")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="draw the table, as PNG or SVG")
    arguments = parser.parse_args()
    if not 0 < arguments.work < 1 or arguments.spot_price <= 0:
        parser.error("--work lies between 0 and 1, --spot-price above 0")
    try:
        recordings = spot_traces.read(arguments.traces or _bamboo())
    except (OSError, HyperError) as error:
        parser.error(str(error))
    if not arguments.traces:
        recordings += synthetic.recordings(arguments.seed)
    if not recordings:
        parser.error(f"these hold no recording of {spot_traces.LEAST_H:g} h")
    jobs = scenarios(recordings, arguments.work)
    windows = 6 if arguments.quick else arguments.windows
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(replay, each, windows, arguments.spot_price) for each in jobs]
        found = {each.name: done.result() for each, done in zip(jobs, waiting, strict=True)}
    found["mean"] = summary(found)
    kept = limits.limits(found, jobs, arguments.work, arguments.spot_price)
    print(table(found), limits.table(kept), sep="\n\n", file=sys.stderr)
    if arguments.plot is not None:
        plot(found, list(POLICIES), arguments.plot)
    if arguments.json:
        print(json.dumps({**found, "limits": {each.name: each.facts() for each in kept}}))
    return 1 if arguments.check and not all(each.kept for each in kept) else 0


def _bamboo() -> list[Path]:
    """The traces that the sample data have."""
    folder = Path(os.environ.get("HYPER_DATA_DIR", "")) / "spot-traces" / "bamboo"
    return [folder / "traces", folder / "doc" / "data"] if folder.is_dir() else []


if __name__ == "__main__":
    sys.exit(main())
