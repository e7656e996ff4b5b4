"""`python -m benchmarks.inference`: this engine and its peers on the same nets, in turn.

Every engine is a process of its own that loads the net once; then rounds, in each of which every
engine computes once. Reported are medians, and `speedup`: the median over rounds of a peer's
seconds to ours (`hyper`: mode fast). `max_rel_error` is the largest difference to torch in float64
relative to the largest value; `compile_s` is what comes before the first result, less one run (for
ours with an empty cache; `cached_compile_s` with a full one); `peak_rss_mb` that of the process.

`--json` ends with one object, {net: {engine: {...} | null}}; why an engine is null stands under
"reasons". `--into FILE` adds the rows to those in FILE, so that a long measurement can be made in
pieces: one net, or a few peers, at a time; `--keep FOLDER` then saves preparing a net each time.
`--table FILE` measures nothing and prints such a file as a Markdown table.

`--scaling` measures this engine alone: 1 and 2 threads, patches of 16x64x64 to 32x512x512, the
share of each layer, and how much of the machine's peak (measured in the same run); `--plot FILE`
draws the cost of a voxel. `--cost` adds dollars per teravoxel against GPUs (`prices.yaml`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.inference import cost
from benchmarks.inference.engines import LOADERS, MODES, PEERS
from benchmarks.inference.measure import Setting, measure, prepared
from benchmarks.inference.nets import CASES, Case
from benchmarks.inference.scaling import SIZES, plot, report, scaling
from benchmarks.inference.table import table


def main() -> None:
    """Measure and print."""
    arguments = parse()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    shape = tuple(int(n) for n in arguments.shape.split("x")) if arguments.shape else None
    engines = [*(MODES[mode] for mode in arguments.modes), *arguments.peers]
    assert all(engine in LOADERS for engine in engines)
    results: dict[str, Any] = {}
    for name in arguments.net or list(CASES):
        case = CASES.get(name) or Case(name, shape or (), shape or ())
        size = shape or (case.small if arguments.quick else case.shape)
        if not size:
            raise SystemExit(f"give --shape for {name}")
        setting = Setting(size, rounds, arguments.threads, arguments.isa, arguments.keep)
        if arguments.scaling or arguments.cost:
            results[name] = alone(case.net, setting, arguments)
            continue
        if arguments.prepare:
            if arguments.keep is None:
                raise SystemExit("--prepare without --keep prepares for nobody")
            with prepared(case.net, setting):
                continue
        label = f"{name}@{arguments.isa}" if arguments.isa else name
        results[label] = measure(case.net, engines, setting)
        results[label] |= {"shape": list(size), "threads": arguments.threads}
        show(label, size, results[label])
    if arguments.into and results:
        results = merge(arguments.into, results)
    if arguments.json:
        print(json.dumps(results))


def alone(net: str, setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    """This engine without peers: scaling, cost, or both."""
    result: dict[str, Any] = {}
    with prepared(net, setting, reference=False) as folder:
        onnx = folder / "net.onnx"
        if arguments.scaling:
            sizes = SIZES[:3] if arguments.quick else SIZES
            rows = scaling(onnx, sizes, sorted({1, setting.threads}), setting.rounds)
            result["scaling"] = rows
            print(f"\n{net}\n{report(rows)}", file=sys.stderr, flush=True)
            if arguments.plot:
                plot(rows, arguments.plot, f"{net.rpartition(':')[2]}, mode fast")
        if arguments.cost:
            size = setting.shape[2:]
            (row,) = scaling(onnx, [size], [setting.threads], setting.rounds)
            voxels = math.prod(size)
            measured = cost.Measured(row["median_s"], setting.threads, voxels, row["gflop"])
            result["cost"] = cost.compare(measured)
            print(f"\n{net}\n{cost.report(result['cost'])}", file=sys.stderr, flush=True)
    return result


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", action="append", help=f"module:function, or {', '.join(CASES)}")
    parser.add_argument("--shape", help="as 1x1x20x256x256; needed with module:function")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=list(MODES))
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--isa", choices=["avx2"], default="", help="hold every engine to it")
    parser.add_argument("--quick", action="store_true", help="small inputs, few rounds")
    parser.add_argument("--keep", type=Path, help="folder of prepared nets, used again")
    parser.add_argument("--prepare", action="store_true", help="fill --keep, measure nothing")
    parser.add_argument("--into", type=Path, help="JSON file to add the rows to")
    parser.add_argument("--table", type=Path, help="print such a file as a Markdown table")
    parser.add_argument("--scaling", action="store_true", help="threads and patch sizes, no peers")
    parser.add_argument("--plot", type=Path, help="with --scaling: draw the cost of a voxel")
    parser.add_argument("--cost", action="store_true", help="dollars per teravoxel against GPUs")
    parser.add_argument("--json", action="store_true", help="one object at the end")
    return parser.parse_args()


def merge(path: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Rows of the file, those of `results` in their place or added; written back."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name, rows in results.items():
        before = kept.get(name, {})
        if before.get("shape") != rows["shape"] or before.get("threads") != rows["threads"]:
            before = {}
        reasons = {k: v for k, v in before.get("reasons", {}).items() if k not in rows}
        kept[name] = {**before, **rows, "reasons": {**reasons, **rows["reasons"]}}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    return dict(kept)


def show(name: str, shape: Sequence[int], rows: dict[str, Any]) -> None:
    """For people."""
    print(f"\n{name} {'x'.join(map(str, shape))}", file=sys.stderr)
    for engine, row in rows.items():
        if engine not in LOADERS:
            continue
        if row is None:
            print(f"  {engine:<21}null: {rows['reasons'].get(engine, '')}", file=sys.stderr)
            continue
        speedup = f"{row['speedup']:>6.2f}x" if row["speedup"] else " " * 7
        cached = row.get("cached_compile_s")
        print(
            f"  {engine:<21}{row['median_s']:>8.3f} s  cpu {row['cpu_s']:>8.3f} s {speedup}"
            f"  error {row['max_rel_error']:.1e}  {row['peak_rss_mb']:>7.0f} MB"
            f"  first {row['compile_s']:.1f} s" + (f", cached {cached:.1f} s" if cached else ""),
            file=sys.stderr, flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
