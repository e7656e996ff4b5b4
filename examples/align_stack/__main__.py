"""`make demo`: start a cluster, align ten sections, write a report, stop the cluster.

It runs the same `hyper` commands that a person would type, and shows each one.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from hyper import sample_data
from hyper.errors import HyperError
from hyper.images import write_png

REAL_TITLE = "Ten sections of neuropil round a capillary, aligned"
SYNTHETIC_TITLE = "SYNTHETIC stack (no real data at hand), aligned"


def find_sections(out: Path) -> tuple[Path, str]:
    """The folder of sections to align, and the report's title: real if at all possible."""
    folder = sample_data.find()
    if folder is None:
        print("no sample data on this machine: fetching the public original", flush=True)
        try:
            folder = sample_data.fetch()
        except HyperError as error:
            print(f"{error}\nmaking a synthetic stack instead", flush=True)
    if folder is not None:
        return folder, REAL_TITLE
    made = out / "synthetic"
    made.mkdir(parents=True, exist_ok=True)
    for z, section in enumerate(sample_data.synthetic_stack().sections):
        write_png(made / f"z{z:02}.png", section)
    return made, SYNTHETIC_TITLE


def hyper(*arguments: str, home: Path, quiet: bool = False) -> int:
    """Run one `hyper` command on the demo's cluster; returns its exit status."""
    if not quiet:
        print(f"\n$ hyper {shlex.join(arguments)}", flush=True)
    environment = {**os.environ, "HYPER_HOME": str(home)}
    environment.pop("HYPER_ENDPOINT", None)
    command = [sys.executable, "-m", "hyper.cli.main", *arguments]
    to = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, env=environment, check=False, stdout=to, stderr=to).returncode


def main() -> int:
    """Run the demo; the exit status is the alignment's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("demo/.hyper"), help="HYPER_HOME")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="report and result go here")
    parser.add_argument("--sections", type=Path, help="align this folder instead")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    arguments = parser.parse_args()
    out: Path = arguments.out
    home: Path = arguments.home.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if arguments.sections is not None:
        sections, title = arguments.sections, f"{arguments.sections.name}, aligned"
    else:
        sections, title = find_sections(out)

    if hyper("status", home=home, quiet=True) != 0:
        started = hyper("up", home=home)
        if started != 0:
            return started
    try:
        status = hyper(
            "align", str(sections), "demo/aligned",
            "--title", title,
            "--report", str(out / "report.html"),
            "--result", str(out / "result.json"),
            home=home,
        )  # fmt: skip
    finally:
        if not arguments.keep:
            hyper("down", home=home)
    if status == 0:
        print(f"\nreport: {out / 'report.html'}\nresult: {out / 'result.json'}")
        if arguments.keep:
            print(f"the cluster still runs; stop it with: HYPER_HOME={arguments.home} hyper down")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
