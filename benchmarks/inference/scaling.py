"""Scaling of one net: threads, patch sizes, the share of each layer, and how much of the peak.

The peak is what fused multiply-adds on registers reach on the same threads, measured between the
net's own rounds. A net may pass 100%: Winograd does fewer multiplications than are counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import CFUNCTYPE, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.ir as ir
import numpy as np

SIZES = ((16, 64, 64), (16, 128, 128), (20, 192, 192), (20, 256, 256), (32, 512, 512))
LANES = 512
TURNS = 20_000_000


@dataclass(frozen=True, slots=True)
class Peak:
    """A loop of independent multiply-adds, the best that a core can do."""

    call: Any
    flops: float
    keep_alive: Any

    def gflops(self, threads: int) -> float:
        """Of `threads` at once."""
        outputs = [np.zeros(LANES, np.float32) for _ in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(lambda array: self.call(array.ctypes.data, TURNS), outputs))
            return threads * self.flops / (time.perf_counter() - start) / 1e9


def make_peak() -> Peak:
    """Compile the loop for this CPU."""
    from hyper_inference.compiler.codegen.jit import compile_object, load_object
    from hyper_inference.compiler.codegen.target import find_target

    target = find_target()
    count = min(target.accumulators, LANES // target.width)
    vector, i64 = ir.VectorType(ir.FloatType(), target.width), ir.IntType(64)
    pointer = ir.PointerType()
    module = ir.Module("peak")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer, i64]), "peak")
    fma = ir.Function(module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{target.width}f32")
    entry, body, after = (function.append_basic_block(name) for name in ("entry", "body", "after"))
    b = ir.IRBuilder(entry)
    factor = ir.Constant(vector, [0.999] * target.width)
    b.branch(body)
    b.position_at_end(body)
    turn = b.phi(i64)
    turn.add_incoming(ir.Constant(i64, 0), entry)
    sums = [b.phi(vector) for _ in range(count)]
    following_sums = [b.call(fma, [value, factor, factor]) for value in sums]
    for number, (value, then) in enumerate(zip(sums, following_sums, strict=True)):
        value.add_incoming(ir.Constant(vector, [1.0 + number] * target.width), entry)
        value.add_incoming(then, body)
    following = b.add(turn, ir.Constant(i64, 1))
    turn.add_incoming(following, body)
    b.cbranch(b.icmp_signed("<", following, function.args[1]), body, after)
    b.position_at_end(after)
    for number, value in enumerate(following_sums):  # not the old ones: they would be copied
        at = b.gep(function.args[0], [ir.Constant(i64, number * target.width)],
                   source_etype=ir.FloatType())  # fmt: skip
        b.store(value, at, align=4)
    b.ret_void()
    code = load_object(compile_object(str(module), target), target, "peak")
    call = CFUNCTYPE(None, c_void_p, c_int64)(code.address)
    return Peak(call, 2.0 * TURNS * count * target.width, code)


def scaling(
    onnx: Path,
    sizes: Sequence[Sequence[int]],
    threads: Sequence[int],
    rounds: int,
    mode: str = "fast",
) -> list[dict[str, Any]]:
    """One row for each size (z, y, x) and number of threads.

    The largest size's rows also have `layers`: {name: share of the time}.
    """
    import hyper_inference

    peak = make_peak()
    rows = []
    for size in sizes:
        shape = (1, 1, *size)
        x = np.random.default_rng(0).random(shape, np.float32)
        for count in threads:
            net = hyper_inference.compile(onnx, shape, mode=mode, threads=count)
            net(x)
            seconds, peaks = [], []
            for _ in range(rounds):
                peaks.append(peak.gflops(count))
                start = time.perf_counter()
                net(x)
                seconds.append(time.perf_counter() - start)
            median = statistics.median(seconds)
            gflops, most = net.flops / median / 1e9, statistics.median(peaks)
            rows.append(
                {
                    "size": list(size),
                    "threads": count,
                    "median_s": median,
                    "ns_per_voxel": median / np.prod(size) * 1e9,
                    "gflop": net.flops / 1e9,
                    "gflop_per_s": gflops,
                    "peak_gflop_per_s": most,
                    "of_peak": gflops / most,
                    "layers": net.layer_shares(),
                }
            )
            del net
    return rows


def report(rows: Sequence[dict[str, Any]], layers: int = 12) -> str:
    """For people: a line a row, then the layers of the last."""
    lines = []
    for row in rows:
        size = "x".join(str(n) for n in row["size"])
        lines.append(
            f"  {size:<12}{row['threads']} threads {row['median_s']:>8.3f} s "
            f"{row['ns_per_voxel']:>9.1f} ns a voxel {row['gflop_per_s']:>8.1f} GFLOP/s, "
            f"{row['of_peak']:.0%} of {row['peak_gflop_per_s']:.0f}"
        )
    shares = sorted(rows[-1]["layers"].items(), key=lambda item: -item[1])
    lines.append("  time of each layer: " + ", ".join(f"{n} {s:.1%}" for n, s in shares[:layers]))
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Cost of a voxel over patch sizes, a line for each number of threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4))
    for count in sorted({row["threads"] for row in rows}):
        mine = [row for row in rows if row["threads"] == count]
        voxels = [float(np.prod(row["size"])) for row in mine]
        label = f"{count} thread" + "s" * (count > 1)
        axis.plot(voxels, [row["ns_per_voxel"] for row in mine], marker="o", label=label)
    axis.set(xscale="log", xlabel="voxels of a patch", ylabel="ns a voxel", title=title)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
