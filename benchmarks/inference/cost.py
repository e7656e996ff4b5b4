"""Dollars per teravoxel: this engine on CPU spot offers against GPUs, from `prices.yaml`.

The CPU's speed is measured; so is a GPU's where one was at hand (`benchmarks.inference.gpu`). Other
GPUs have their published speed on a net of the same kind, turned into operations a second. Where a
GPU has no spot price, its list price is used and named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).parent / "prices.yaml"


@dataclass(frozen=True, slots=True)
class Measured:
    """This engine on one net.

    Args:
        seconds: of one patch.
        threads: cores at work.
        voxels: of one patch's output.
        gflop: of one patch, as direct convolutions count.
    """

    seconds: float
    threads: int
    voxels: int
    gflop: float


def compare(measured: Measured, path: Path = TABLE) -> dict[str, Any]:
    """{"cpu": row, "gpus": {name: {precision: row}}}, rows with `usd_per_teravoxel`.

    Rows of GPUs also say how many times the CPU's cost theirs is, and whether the thesis holds.
    """
    table = yaml.safe_load(path.read_text())
    cpu = table["cpu"]
    voxels_per_s = measured.voxels / measured.seconds / measured.threads * cpu["cores"]
    ours = _dollars(cpu["spot_per_hour"], voxels_per_s)
    gflop_per_voxel = measured.gflop / measured.voxels
    reference, gpus = table["reference"], table["gpus"]
    best = gpus[reference["gpu"]]
    rows: dict[str, Any] = {}
    for name, gpu in gpus.items():
        spot = gpu["spot_per_hour"]
        price = gpu["on_demand_per_hour"] if spot is None else spot
        rows[name] = {}
        for precision, gflops in _speeds(gpu, best, reference).items():
            cost = _dollars(price, gflops / gflop_per_voxel)
            rows[name][precision] = {
                "usd_per_teravoxel": cost,
                "tflop_per_s": gflops / 1000,
                "usd_per_hour": price,
                "spot": spot is not None,
                "measured": "measured" in gpu,
                "times_the_cpu": cost / ours,
                "thesis_holds": cost / ours >= table["thesis"],
            }
    return {
        "as_of": str(table["as_of"]),
        "thesis": table["thesis"],
        "cpu": {
            "name": cpu["name"],
            "usd_per_teravoxel": ours,
            "tflop_per_s": voxels_per_s * gflop_per_voxel / 1000,
            "usd_per_hour": cpu["spot_per_hour"],
        },
        "gpus": rows,
    }


def _speeds(
    gpu: dict[str, Any], best: dict[str, Any], reference: dict[str, Any]
) -> dict[str, float]:
    """GFLOP/s by precision: as measured, or as far from the reference's as the datasheets say."""
    measured = gpu.get("measured")
    if measured:
        gflop_per_voxel = measured["gflop"] / measured["voxels"]
        return {name: speed * gflop_per_voxel for name, speed in measured["voxels_per_s"].items()}
    scales = {
        "float32": gpu["float32_tflops"] / best["float32_tflops"],
        "float16": gpu["bandwidth_gbs"] / best["bandwidth_gbs"],
    }
    return {
        name: images_per_s * reference["gflop_per_image"] * scales[name]
        for name, images_per_s in reference["images_per_s"].items()
    }


def _dollars(per_hour: float, voxels_per_s: float) -> float:
    return per_hour / 3600 / voxels_per_s * 1e12


def report(found: dict[str, Any]) -> str:
    """For people: a line a machine, and where the thesis holds."""
    cpu = found["cpu"]
    lines = [
        f"dollars per teravoxel, prices of {found['as_of']} (benchmarks/inference/prices.yaml)",
        f"  {cpu['name']:<11}{'float32':<9}{cpu['usd_per_teravoxel']:>9.2f}"
        f"   {cpu['tflop_per_s']:.2f} TFLOP/s, measured per core here, {cpu['usd_per_hour']} $/h",
    ]
    verdicts: dict[bool, list[str]] = {True: [], False: []}
    for name, precisions in found["gpus"].items():
        for precision, row in precisions.items():
            kind = "spot" if row["spot"] else "list price"
            kind += ", measured" if row["measured"] else ""
            lines.append(
                f"  {name:<11}{precision:<9}{row['usd_per_teravoxel']:>9.2f}"
                f"   {row['tflop_per_s']:.2f} TFLOP/s, {row['usd_per_hour']} $/h {kind}: "
                f"{row['times_the_cpu']:.2f} times the CPU's"
            )
            verdicts[row["thesis_holds"]].append(f"{name} {precision}")
    for holds, names in verdicts.items():
        verb = "holds" if holds else "does not hold"
        against = ", ".join(names) or "none"
        lines.append(f"  that CPUs are {found['thesis']} times cheaper {verb} against: {against}")
    return "\n".join(lines)
