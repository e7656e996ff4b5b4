"""`make bench`: run every benchmark and render docs/benchmarks.md, with the machine's name.

Each benchmark is a program, with arguments, that ends with one JSON object when given `--json`; one
that fails is shown as failed, with its last line, never left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
MODULES = (
    "benchmarks.inference",
    "benchmarks.inference --net rsunet --scaling --cost",
    "benchmarks.load",
    "benchmarks.matcher.alignment",
    "benchmarks.matcher.false_matches",
    "benchmarks.matcher.ncc --plot docs/matcher_ncc.png",
    "benchmarks.matcher.alignment --damage --peers none",
    "benchmarks.matcher.alignment --warp --peers none",
    "benchmarks.matcher.deep",
    "benchmarks.matcher.probe",
    "benchmarks.matcher.projection",
    "benchmarks.matcher.scale",
    "benchmarks.matcher.stitching",
    "benchmarks.placement",
    "benchmarks.scheduler --plot docs/scheduler_planning.png",
    "benchmarks.search",
    "benchmarks.storage",
    "benchmarks.storage.million",
    "benchmarks.storage.training --plot docs/storage_training.png",
    "benchmarks.worker",
    "benchmarks.workloads",
)


def run(module: str, quick: bool) -> tuple[Any, str]:
    """The benchmark's object, or None and why there is none."""
    command = [sys.executable, "-m", *module.split(), "--json"]
    helped = subprocess.run(
        [*command[:3], "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if quick and "--quick" in helped.stdout:
        command.append("--quick")
    print(f"$ python -m {' '.join(command[2:])}", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return None, f"exit status {done.returncode}: {lines[-1] if lines else 'no output'}"
    return json.loads(lines[-1]), ""


def machine() -> str:
    """What the figures were measured on."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"{os.cpu_count()} cores of {model}, {memory_gb:.0f} GB, Python {platform.python_version()}"
    )


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested objects as rows of dotted name and value."""
    if isinstance(value, dict):
        rows = []
        for key, inner in value.items():
            rows += flat(inner, f"{name}.{key}" if name else str(key))
        return rows
    if isinstance(value, float):
        return [(name, f"{value:.4g}")]
    return [(name, json.dumps(value))]


def main() -> int:
    """Run what is asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="default: all")
    parser.add_argument("--quick", action="store_true", help="small inputs, few rounds")
    arguments = parser.parse_args()
    modules = arguments.modules or list(MODULES)
    parts = [
        "# Benchmarks\n",
        f"Rendered by `make bench` on {datetime.now(UTC):%Y-%m-%d}, on {machine()}."
        + (" Small inputs (`--quick`)." if arguments.quick else ""),
    ]
    failed = False
    for module in modules:
        result, problem = run(module, arguments.quick)
        parts.append(f"\n## `python -m {module}`\n")
        if problem:
            failed = True
            parts.append(f"Failed: {problem}")
            continue
        parts.append("| figure | value |\n| --- | --- |")
        parts += [f"| {name} | {value} |" for name, value in flat(result)]
        if "--plot" in module:
            parts.append(f"\n![{module}]({Path(module.split()[-1]).name})")
    PAGE.write_text("\n".join(parts) + "\n")
    print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
