"""Render what `make fault-matrix` has measured: `python -m scripts.fault_table RESULTS PAGE`.

Cells that a run has not measured stay as an earlier one left them, in the page's own data.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

_MARK = "<!-- measured: "
_HEAD = """# Faults survived

Rendered by `make fault-matrix`. A cluster of two schedulers, two gateways, three workers,
inference, matcher, etcd, S3 and Prometheus runs an alignment, a gang of two ranks with checkpoints,
240 tasks, and a program that commits version after version, all at once; then one part is

- killed (SIGKILL, started again a second later), stopped (SIGSTOP for 5 s, longer than every
  lease), restarted (SIGTERM, started again), slowed (a tenth of the CPU for 10 s), or cut off (the
  firewall drops every packet from and to it for 5 s; no connection is closed).

In every cell, every time: the alignment has the pixels, and the gang the sums, of an undisturbed
run; no task has failed, and no result is of another attempt; each version that was acknowledged
is there, byte for byte. The numbers are seconds: how long no task came to its durable end / how
long no commit was acknowledged, the fault itself included; the worst of all runs of a cell.

"""


def main() -> int:
    """Read, merge, write."""
    results, page = Path(sys.argv[1]), Path(sys.argv[2])
    cells: dict[str, list[float]] = {}
    if page.exists():
        for line in page.read_text().splitlines():
            if line.startswith(_MARK):
                cells = json.loads(line.removeprefix(_MARK).removesuffix(" -->"))
    fresh: dict[str, list[float]] = {}
    for line in results.read_text().splitlines():
        row = json.loads(line)
        key = f"{row['component']} {row['fault']}"
        tasks, storage, runs = fresh.get(key, [0.0, 0.0, 0])
        fresh[key] = [max(tasks, row["tasks_stall_s"]), max(storage, row["storage_stall_s"]),
                      runs + 1]  # fmt: skip
    cells |= fresh
    faults = ["kill", "stop", "restart", "slow", "cut"]
    parts = list(dict.fromkeys(key.split()[0] for key in cells))
    lines = ["| | " + " | ".join(faults) + " |", "| --- " * (len(faults) + 1) + "|"]
    for part in parts:
        shown = [_cell(cells.get(f"{part} {fault}")) for fault in faults]
        lines.append(f"| {part} | " + " | ".join(shown) + " |")
    table = "\n".join(lines)
    page.write_text(f"{_HEAD}{table}\n\n{_MARK}{json.dumps(cells)} -->\n")
    print(table)
    return 0


def _cell(figures: list[float] | None) -> str:
    if figures is None:
        return "not run"
    tasks, storage, runs = figures
    return f"{tasks:.1f} / {storage:.1f}" + (f" ({runs:.0f}x)" if runs > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
