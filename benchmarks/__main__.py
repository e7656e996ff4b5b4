"""`make bench`: run every benchmark and render docs/benchmarks.md, with the machine's name.

Each benchmark is a program, with arguments, that ends with one JSON object when given `--json`; one
that fails is shown as failed, with its last line, never left out. Results are kept, with their day
and machine, in docs/benchmarks.json: `python -m benchmarks MODULE...` runs these alone, and the
page shows the others as they were (`--render`: all of them).
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

COLUMNS = 8  # of a table, at most
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = PAGE.with_suffix(".json")
MODULES = (
    "benchmarks.inference",
    "benchmarks.inference --net rsunet --scaling --cost --plot docs/inference_scaling.png",
    "benchmarks.load",
    "benchmarks.matcher.alignment",
    "benchmarks.matcher.false_matches",
    "benchmarks.matcher.ncc --plot docs/matcher_ncc.png",
    "benchmarks.matcher.alignment --damage --peers none",
    "benchmarks.matcher.alignment --warp --peers none",
    "benchmarks.matcher.deep",
    "benchmarks.matcher.probe",
    "benchmarks.matcher.projection",
    "benchmarks.matcher.scale --stacks 1024x20,2048x20,4096x20,1024x100,8192x20",
    "benchmarks.matcher.stitching",
    "benchmarks.placement --plot docs/placement_cost.png",
    "benchmarks.scheduler --plot docs/scheduler_planning.png",
    "benchmarks.search",
    "benchmarks.segmentation",
    "benchmarks.storage",
    "benchmarks.storage.million",
    "benchmarks.storage.training --plot docs/storage_training.png",
    "benchmarks.worker",
    "benchmarks.workloads --plot docs/workloads.png",
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


def series(value: Any, name: str = "") -> list[tuple[str, list[dict[str, str]]]]:
    """Lists of objects that are alike, too many to stand side by side: rows, by dotted name."""
    if isinstance(value, dict):
        return [
            found for key, inner in value.items()
            for found in series(inner, f"{name}.{key}" if name else str(key))
        ]  # fmt: skip
    if isinstance(value, list) and len(value) > COLUMNS and all(isinstance(v, dict) for v in value):
        rows = [dict(flat(each)) for each in value]
        if len({frozenset(each) for each in rows}) == 1:
            return [(name, rows)]
    return []


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested objects as rows of dotted name and value, less what `series` has."""
    if isinstance(value, list) and series(value):
        return []
    if isinstance(value, dict):
        rows = []
        for key, inner in value.items():
            rows += flat(inner, f"{name}.{key}" if name else str(key))
        return rows
    if isinstance(value, float):
        return [(name, f"{value:.4g}")]
    return [(name, json.dumps(value))]


def figures(result: Any) -> list[str]:
    """The figures as tables: things that are alike side by side, the rest one a row."""
    if not isinstance(result, dict):
        return table(beside(result)) or ["| figure | value |", "| --- | --- |",
                                         f"| | {json.dumps(result)} |"]  # fmt: skip
    cases = grid(result)
    if len(cases) > COLUMNS:
        rest = {key: value for key, value in result.items() if key not in cases}
        return [*grids(cases), *([""] if rest else []), *(figures(rest) if rest else [])]
    objects = {key: value for key, value in result.items() if isinstance(value, dict) and value}
    alike = beside(objects)
    lines: list[str] = []
    plain = {}
    for key, value in result.items():
        if alike and key in objects:
            continue
        if beside(value):
            lines += [f"\n{key}:\n", *table(beside(value))]
        else:
            plain[key] = value
    rows = dict(flat(plain))
    gap = [""] if rows and alike else []
    for name, each in series(result):
        columns = {key: {str(i): row[key] for i, row in enumerate(each, 1)} for key in each[0]}
        lines += [f"\n{name}:\n", *table(columns)]
    return [*table(alike), *gap, *table({"value": rows} if rows else {}), *lines]


def grid(result: dict[str, Any]) -> dict[str, dict[str, dict[str, str]]]:
    """Cases of a benchmark: those of its objects that have the same parts with the same figures.

    What a case has beside its parts is a part by itself, `value`.
    """
    cases: dict[str, dict[str, dict[str, str]]] = {}
    for case, parts in result.items():
        if isinstance(parts, dict) and any(isinstance(each, dict) for each in parts.values()):
            own = {key: each for key, each in parts.items() if not isinstance(each, dict)}
            rows = {part: dict(flat(parts[part])) for part in parts if part not in own}
            rows |= {"value": dict(flat(own))} if own else {}
            first = next(iter(cases.values()), rows)
            if rows and {p: each.keys() for p, each in first.items()} == {
                p: each.keys() for p, each in rows.items()
            }:
                cases[case] = rows
    return cases


def grids(cases: dict[str, dict[str, dict[str, str]]]) -> list[str]:
    """A table for each figure: a row a case, a column a part that has it."""
    first = next(iter(cases.values()))
    lines: list[str] = []
    for figure in dict.fromkeys(figure for part in first.values() for figure in part):
        columns = {
            part: {case: rows[part][figure] for case, rows in cases.items()}
            for part, figures in first.items()
            if figure in figures
        }
        lines += [*([""] if lines else []), f"{figure}:\n", *table(columns)]
    return lines


def table(columns: dict[str, dict[str, str]]) -> list[str]:
    """Rows are what the columns have."""
    if not columns:
        return []
    rows = list(dict.fromkeys(key for values in columns.values() for key in values))
    lines = ["| figure | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for row in rows:
        cells = " | ".join(values.get(row, "") for values in columns.values())
        lines.append(f"| {row} | {cells} |")
    return lines


def beside(value: Any) -> dict[str, dict[str, str]]:
    """Columns of a table of objects that have most of their keys in common, by name; else none."""
    if not isinstance(value, dict | list) or not 2 <= len(value) <= COLUMNS:
        return {}
    named = value.items() if isinstance(value, dict) else enumerate(value, 1)
    columns = {str(name): dict(flat(each)) for name, each in named if isinstance(each, dict)}
    if len(columns) < len(value) or not all(columns.values()):
        return {}
    every = [set(each) for each in columns.values()]
    return columns if 2 * len(set.intersection(*every)) >= len(set.union(*every)) else {}


def section(module: str, entry: dict[str, Any]) -> list[str]:
    """A benchmark's part of the page."""
    small = ", small inputs (`--quick`)" if entry["quick"] else ""
    lines = [f"\n## `python -m {module}`\n", f"{entry['date']}, {entry['machine']}{small}.\n"]
    if entry["problem"]:
        return [*lines, f"Failed: {entry['problem']}"]
    lines += figures(entry["result"])
    if "--plot" in module:
        lines.append(f"\n![{module}]({Path(module.split()[-1]).name})")
    return lines


def render(results: dict[str, dict[str, Any]]) -> str:
    """The page."""
    parts = [
        "# Benchmarks\n",
        "Rendered by `make bench` from `benchmarks.json`. Peers run in the same command, in turn "
        "with ours; what a figure means is said by `python -m BENCHMARK --help`.",
    ]
    missing = [module for module in MODULES if module not in results]
    if missing:
        parts.append("\nNot run yet: " + ", ".join(f"`{module}`" for module in missing) + ".")
    for module in [*MODULES, *sorted(results.keys() - set(MODULES))]:
        if module in results:
            parts += section(module, results[module])
    return "\n".join(parts) + "\n"


def main() -> int:
    """Run what is asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="with their arguments in quotes; default: all")
    parser.add_argument("--quick", action="store_true", help="small inputs, few rounds")
    parser.add_argument("--render", action="store_true", help="run nothing: only write the page")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    named = {module.split()[0]: module for module in MODULES if module.count(" ") in (0, 2)}
    asked = [named.get(module, module) for module in arguments.modules] or list(MODULES)
    failed = False
    for module in [] if arguments.render else asked:
        result, problem = run(module, arguments.quick)
        failed = failed or bool(problem)
        results[module] = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine(), "quick": arguments.quick,
            "problem": problem, "result": result,
        }  # fmt: skip
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        PAGE.write_text(render(results))
    PAGE.write_text(render(results))
    print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
