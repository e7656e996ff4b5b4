"""A net on a GPU, by torch: `python -m benchmarks.inference.gpu [--net rsunet] [--json]`.

For the table of costs (`prices.yaml`), where a GPU is at hand. Each precision in torch eager and by
`torch.compile`, in channels-last order; float32 with and without TensorFloat-32; the best of the
batch sizes. Patches lie in the GPU's memory before the clock starts, which favours the GPU. The
error is relative to torch in float64 on the same GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inference.nets import CASES

PRECISIONS: dict[str, tuple[torch.dtype, bool]] = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "float16": (torch.float16, False),
}
"""The dtype of weights and activations, and whether products may be rounded to TensorFloat-32."""


def main(argv: list[str] | None = None) -> int:
    """Measure and print; the last line with `--json` is an object of all figures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--net", default="rsunet", help="of the benchmark, or module:function")
    parser.add_argument("--shape", help="as 1x1x20x256x256; needed with module:function")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("error: torch sees no GPU here", file=sys.stderr)
        return 2
    case = CASES.get(arguments.net)
    shape = (
        tuple(int(n) for n in arguments.shape.split("x"))
        if arguments.shape
        else (case.shape if case else ())
    )
    if not shape:
        raise SystemExit(f"give --shape for {arguments.net}")
    module, _, function = (case.net if case else arguments.net).partition(":")
    make = getattr(importlib.import_module(module), function)
    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "net": arguments.net,
        "shape": list(shape),
        **measure(make, shape, arguments.batches, arguments.rounds),
    }
    if arguments.json:
        print(json.dumps(result))
    return 0


def measure(
    make: Callable[[], torch.nn.Module], shape: tuple[int, ...], batches: list[int], rounds: int
) -> dict[str, Any]:
    """`gflop` of a patch and, by precision, the best voxels a second and how they came about."""
    torch.manual_seed(0)
    net = make().eval().cuda()
    order = torch.channels_last_3d if len(shape) == 5 else torch.channels_last
    patch = torch.rand(shape, device="cuda")
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            net(patch)
        exact = net.double()(patch.double())
    found: dict[str, Any] = {"gflop": counter.get_total_flops() / 1e9}
    voxels = math.prod(shape[2:]) * shape[0]
    for name, (dtype, rounded) in PRECISIONS.items():
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = rounded
        cast = net.to(dtype).to(memory_format=order)
        best: dict[str, Any] = {}
        for engine, run in (("eager", cast), ("compile", torch.compile(cast))):
            for batch in batches:
                many = patch.to(dtype).repeat(batch, *[1] * (len(shape) - 1))
                many = many.contiguous(memory_format=order)
                seconds, last = timed(run, many, rounds)
                speed = voxels * batch / seconds
                error = (last[: shape[0]].double() - exact).abs().max() / exact.abs().max()
                row = {"engine": engine, "batch": batch, "voxels_per_s": speed,
                       "max_rel_error": float(error)}  # fmt: skip
                print(f"{name} {engine} batch {batch}: {speed / 1e6:.1f} Mvoxel/s, "
                      f"{found['gflop'] * speed / voxels / 1e3:.1f} TFLOP/s, error "
                      f"{row['max_rel_error']:.1e}", flush=True)  # fmt: skip
                if speed > best.get("voxels_per_s", 0):
                    best = row
        found[name] = best
    return found


def timed(run: Any, patch: torch.Tensor, rounds: int) -> tuple[float, torch.Tensor]:
    """Median seconds of a call, after three that do not count, and the last result."""
    taken = []
    with torch.inference_mode():
        for _ in range(3):
            run(patch)
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            last = run(patch)
            end.record()
            torch.cuda.synchronize()
            taken.append(start.elapsed_time(end) / 1e3)
    return statistics.median(taken), last


if __name__ == "__main__":
    sys.exit(main())
