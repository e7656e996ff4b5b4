"""`python -m examples.run NAME`: run an example on your cluster and write its report.

Yours is the one of `--home`, else of HYPER_ENDPOINT, else of HYPER_HOME (~/.hyper). A local one
that does not run is started, and stopped again at the end, unless `--keep` is given; its datasets
stay.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from examples.workloads import WORKLOADS, Workload
from hyper.client import Client
from hyper.errors import HyperError, NotFoundError
from hyper.run_report import Run, collect, render

if TYPE_CHECKING:
    from hyper.workflows import Workflow

# Where no machines were launched: a core of a c7a.xlarge on the spot market (benchmarks/inference).
USD_PER_SLOT_HOUR = 0.1014 / 4


def load(workload: Workload, size: str, workers: int | None = None) -> dict[str, Any]:
    """The recipe as a mapping; its stage on so many workers at once, or a gang of so many."""
    path = workload.recipe(size)
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    for experiment in document["experiments"].values():
        if "workdir" in experiment:
            experiment["workdir"] = str(path.parent)
    if workers is not None:
        stage = document["experiments"][workload.stage]
        stage["gang" if workload.gang else "workers"] = workers
    return document


def run_workload(client: Client, name: str, size: str, workers: int | None = None) -> Workflow:
    """Run an example, what it needs first; returns its workflow, which has ended well.

    Raises:
        WorkFailedError: it failed.
    """
    workload = WORKLOADS[name]
    for needed in workload.needs:
        if not _made(client, WORKLOADS[needed], size):
            print(f"{name} needs {needed}: running it first", flush=True)
            run_workload(client, needed, size)
    if workload.prepare is not None:
        print(workload.prepare(client, size == "test"), flush=True)
    workflow = client.submit(load(workload, size, workers))
    print(f"{name}: {workflow.name}", flush=True)
    workflow.wait(check=True)
    return workflow


def _made(client: Client, workload: Workload, size: str) -> bool:
    """Whether the dataset that a workload makes is there."""
    experiments = load(workload, size)["experiments"]
    try:
        client.open_dataset(experiments["begin"]["parameters"]["dataset"])
    except NotFoundError:
        return False
    return True


def report(client: Client, name: str, workflows: Sequence[Workflow], out: Path) -> Path:
    """Write the page of one or several runs of an example; returns its file."""
    workload = WORKLOADS[name]
    runs: list[Run] = [collect(workflow) for workflow in workflows]
    sections = workload.show(client, workflows[-1]) if workload.show is not None else {}
    page = render(
        workload.title, runs, stage=workload.stage, usd_per_hour=USD_PER_SLOT_HOUR,
        sections=sections,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    file = out / "report.html"
    file.write_text(page)
    return file


@contextmanager
def cluster(home: Path | None, workers: int, *, keep: bool) -> Iterator[Client]:
    """A client of the user's cluster; a local one is started, and stopped again, if need be."""
    if home is not None:
        os.environ["HYPER_HOME"] = str(home.absolute())
        os.environ.pop("HYPER_ENDPOINT", None)
    if os.environ.get("HYPER_ENDPOINT") or _hyper("status", "--quiet") in (0, 1):
        with Client() as client:
            yield client
        return
    if _hyper("up", "--workers", str(workers)) != 0:
        raise SystemExit(1)
    try:
        with Client() as client:
            yield client
    finally:
        again = "hyper up" if home is None else f"HYPER_HOME={shlex.quote(str(home))} hyper up"
        if keep:
            print(f"the cluster goes on: `{again.replace(' up', ' down')}` stops it", flush=True)
        else:
            _hyper("down")
            print(f"its datasets stay: `{again}` starts the cluster again, and --keep would have "
                  "left it running", flush=True)  # fmt: skip


def _hyper(*arguments: str) -> int:
    """The exit status of a command on the cluster of this process's environment."""
    command = [sys.executable, "-m", "hyper.cli.main", *arguments]
    return subprocess.run(command, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(WORKLOADS))
    parser.add_argument("--size", choices=("machine", "test"), default="machine")
    parser.add_argument("--workers", help="tasks at once; several, such as 1,2, one after another")
    parser.add_argument("--speedup", action="store_true", help="the same as --workers 1,2")
    parser.add_argument("--home", type=Path, help="HYPER_HOME of another cluster than yours")
    parser.add_argument("--out", type=Path, help="folder of the report (demo/NAME)")
    parser.add_argument("--keep", action="store_true", help="leave a started cluster running")
    asked = parser.parse_args(arguments)
    counts = [int(n) for n in (asked.workers or ("1,2" if asked.speedup else "")).split(",") if n]
    try:
        with cluster(asked.home, max([2, *counts]), keep=asked.keep) as client:
            workflows = [
                run_workload(client, asked.name, asked.size, count) for count in counts or [None]
            ]
            file = report(client, asked.name, workflows, asked.out or Path("demo") / asked.name)
    except HyperError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"report: {file}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
