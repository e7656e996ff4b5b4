"""`python -m benchmarks.inference [--quick] [--json]`: this engine against torch eager."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import hyper_inference


def bandpass() -> nn.Module:
    """Two 31 x 31 convolutions, subtracted."""

    class BandPass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low = nn.Conv2d(1, 1, 31, padding=15, bias=False)
            self.high = nn.Conv2d(1, 1, 31, padding=15, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.low(x) - self.high(x)

    return BandPass()


def unet3d() -> nn.Module:
    """A concatenating 3D U-Net of two levels."""

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv3d(1, 28, 3, padding=1), nn.Conv3d(28, 36, 3, padding=1)
            self.up = nn.ConvTranspose3d(36, 36, 2, stride=2)
            self.d, self.head = nn.Conv3d(64, 28, 3, padding=1), nn.Conv3d(28, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = torch.relu(self.a(x))
            b = torch.relu(self.b(nn.functional.max_pool3d(a, 2)))
            return self.head(torch.relu(self.d(torch.cat([a, self.up(b)], 1))))

    return UNet()


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "bandpass": (bandpass, (1, 1, 1024, 1024), (1, 1, 512, 512)),
    "unet3d": (unet3d, (1, 1, 32, 128, 128), (1, 1, 16, 64, 64)),
}


def measure(name: str, quick: bool, threads: int, rounds: int) -> dict[str, Any]:
    """Interleaved rounds of one net; medians."""
    make, full, small = NETS[name]
    torch.manual_seed(0)
    module = make().eval()
    x = torch.randn(small if quick else full)
    net = hyper_inference.compile(module, x, threads=threads)
    array = x.numpy()
    engines: dict[str, Callable[[], np.ndarray]] = {
        "hyper": lambda: net(array),
        "torch": lambda: module(x).numpy(),
    }
    reference = module.double()(x.double()).numpy()
    module.float()
    facts: dict[str, Any] = {"shape": list(x.shape), "engines": {}}
    errors, seconds, cpu = {}, {k: [] for k in engines}, {k: [] for k in engines}
    for engine, run in engines.items():
        errors[engine] = float(np.abs(run() - reference).max() / np.abs(reference).max())
    for _ in range(rounds):
        for engine, run in engines.items():
            wall, process = time.perf_counter(), time.process_time()
            run()
            seconds[engine].append(time.perf_counter() - wall)
            cpu[engine].append(time.process_time() - process)
    for engine in engines:
        ratios = [a / b for a, b in zip(seconds["torch"], seconds[engine], strict=True)]
        facts["engines"][engine] = {
            "median_s": statistics.median(seconds[engine]),
            "cpu_s": statistics.median(cpu[engine]),
            "speedup_over_torch": statistics.median(ratios),
            "max_rel_error": errors[engine],
            "compile_s": net.compile_s if engine == "hyper" else 0.0,
        }
    return facts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small inputs, few rounds")
    parser.add_argument("--json", action="store_true", help="one object at the end")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    rounds = 3 if arguments.quick else 5
    results = {name: measure(name, arguments.quick, arguments.threads, rounds) for name in NETS}
    if arguments.json:
        print(json.dumps({"inference": results}))
        return
    for name, facts in results.items():
        for engine, row in facts["engines"].items():
            print(
                f"{name:<10}{engine:<8}{row['median_s'] * 1e3:>9.1f} ms"
                f"{row['speedup_over_torch']:>7.2f}x  error {row['max_rel_error']:.1e}"
            )


if __name__ == "__main__":
    main()
