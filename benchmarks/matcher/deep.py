"""Cracks and folds of known width, elastic and `deep`: `python -m benchmarks.matcher.deep`.

Sections are warped smoothly; one is torn open along a curve (tissue on either side moves apart, the
gap is blank), another is folded (a strip is swallowed under a dark line). Reported: distance from
the truth, px, within 100 px of the damage, and CPC94 elsewhere, for both methods; and, as what no
method can better, of the elastic alignment there without any damage. What the truth is worth is
what the sections are aligned to before: `--align` aligns them first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from benchmarks.matcher.damage import smooth_field, turn
from benchmarks.matcher.sections import aligned, read_stack
from hyper_matcher.align.deep import DeepOptions, refine_section
from hyper_matcher.align.fading import compose
from hyper_matcher.align.metrics import chunked_correlation
from hyper_matcher.align.pipeline import AlignedStack, align_stack
from hyper_matcher.align.render import inverse_map, render_maps

NEAR_PX = 100


def tear(
    section: NDArray[Any], width_px: float, seed: int, fold: bool
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """A torn or folded section, where its pixels lie in the original, px from the damage.

    Returns (section, (2, H, W), (H, W)).
    """
    height, width = section.shape
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    wave = 30 * np.sin(y / 140 + rng.uniform(0, 6)) + width * rng.uniform(0.4, 0.6)
    side = x - wave
    ends = np.clip(np.minimum(y, height - 1 - y) / 200 - 0.3, 0, 1)  # closed at both ends
    opened = width_px * ends * ends * (3 - 2 * ends)
    fade = np.exp(-((np.abs(side) / 220) ** 2))  # tissue far off has not moved
    half = opened / 2
    if fold:
        where_x = x + np.sign(side) * half * fade
        torn = scipy.ndimage.map_coordinates(section.astype(np.float32), [y, where_x], order=1)
        dark = (np.abs(side) < 5) & (opened > 4)
        torn[dark] = 12 + rng.normal(0, 3, int(dark.sum()))
        gap = np.abs(side) < 5
    else:
        where_x = x - np.sign(side) * np.minimum(half, np.abs(side)) * fade
        torn = scipy.ndimage.map_coordinates(section.astype(np.float32), [y, where_x], order=1)
        gap = (np.abs(side) < half) & (opened > 1)
        torn[gap] = 0
    pixels = np.clip(np.rint(torn), 0, 255).astype(section.dtype)
    distance = scipy.ndimage.distance_transform_edt(~(gap & (opened > 4)))
    where = np.stack([y, where_x])
    where[:, gap] = np.nan
    return pixels, where, distance


def spoil(
    stack: NDArray[Any], width_px: float, seed: int, *, damaged: bool = True
) -> tuple[NDArray[Any], NDArray[np.float64], dict[int, NDArray[np.float64]]]:
    """Warped sections, two of them damaged; where pixels lie; px from the damage of each.

    If not `damaged`, they are warped alone; the distances are from where the damage would be.
    """
    depth = len(stack)
    torn_z, folded_z = depth // 3, (2 * depth) // 3
    pixels, wheres, near = [], [], {}
    rng = np.random.default_rng(seed)
    for z, section in enumerate(stack):
        section = np.maximum(section, 1)
        where = np.mgrid[: section.shape[0], : section.shape[1]].astype(np.float64)
        if z in (torn_z, folded_z):
            torn, moved_to, near[z] = tear(section, width_px, seed + z, fold=z == folded_z)
            section, where = (torn, moved_to) if damaged else (section, where)
        angle, shift = rng.uniform(-0.01, 0.01), rng.uniform(-8, 8, 2)
        field = smooth_field(section.shape, 3.0, seed + z)
        moved, at = turn(section, angle, shift, field)
        pixels.append(moved)
        wheres.append(np.stack([
            scipy.ndimage.map_coordinates(axis, at, order=1, cval=np.nan) for axis in where
        ]))  # fmt: skip
        if z in near:
            near[z] = scipy.ndimage.map_coordinates(near[z], at, order=1, cval=1e6)
    return np.stack(pixels), np.stack(wheres), near


def originals(maps: NDArray[np.float32], where: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, H, W): which original pixel each pixel of the canvas shows; NaN where none."""
    at = np.moveaxis(np.nan_to_num(maps, nan=-1e4), -1, 0)
    return np.stack([
        scipy.ndimage.map_coordinates(axis, at, order=1, cval=np.nan) for axis in where
    ])  # fmt: skip


def distances(
    maps: list[NDArray[np.float32]], near: dict[int, NDArray[np.float64]]
) -> dict[int, NDArray[np.float64]]:
    """How far what each pixel of the canvas shows is from the damage, px: (H, W) a section."""
    return {
        z: scipy.ndimage.map_coordinates(
            distance, np.moveaxis(np.nan_to_num(maps[z], nan=-1e4), -1, 0), order=1, cval=1e6
        )
        for z, distance in near.items()
    }


def measure(
    maps: list[NDArray[np.float32]],
    sections: list[NDArray[Any]],
    wheres: NDArray[np.float64],
    off: dict[int, NDArray[np.float64]],
    away: NDArray[np.bool_],
) -> dict[str, float]:
    """Truth near the damage (`off`: the `distances`), and correlation where it is `away`."""
    shown = [originals(m, w) for m, w in zip(maps, wheres, strict=True)]
    healthy = [s for z, s in enumerate(shown) if z not in off]
    centre = np.nanmedian(np.stack(healthy), axis=0)
    errors = []
    for z, distance in off.items():
        error = np.linalg.norm(shown[z] - centre, axis=0)
        errors.append(error[(distance > 3) & (distance < NEAR_PX) & np.isfinite(error)])
    scores = []
    for a, b in itertools.pairwise(sections):
        scores.append(chunked_correlation(np.where(away, a, 0), np.where(away, b, 0)))
    every = np.concatenate(errors)
    return {
        "near_p50": round(float(np.median(every)), 3),
        "near_p95": round(float(np.percentile(every, 95)), 3),
        "cpc94_elsewhere": round(float(np.concatenate(scores).mean()), 4),
    }


def compared(
    maps: dict[str, list[NDArray[np.float32]]],
    pixels: NDArray[Any],
    wheres: NDArray[np.float64],
    near: dict[int, NDArray[np.float64]],
) -> dict[str, dict[str, float]]:
    """`measure` each method's maps; correlation over the same places, where all are away."""
    off = {name: distances(each, near) for name, each in maps.items()}
    away = np.min([d for each in off.values() for d in each.values()], axis=0) > NEAR_PX
    return {
        name: measure(
            each,
            [render_maps(s, m)[0] for s, m in zip(pixels, each, strict=True)],
            wheres,
            off[name],
            away,
        )
        for name, each in maps.items()
    }


def refine_all(
    stack: AlignedStack, options: DeepOptions
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Inverse maps of all sections, elastic and refined."""
    relaxed, depth = stack.relaxed, len(stack.sections)
    elastic = [inverse_map(p, relaxed.mesh, stack.canvas) for p in relaxed.positions]
    refined = []
    for z in range(depth):
        others = [(abs(d), stack.sections[z + d]) for d in (-2, -1, 1, 2) if 0 <= z + d < depth]
        field = refine_section(stack.sections[z], others, options, elastic[z])
        refined.append(compose(elastic[z], field))
    return elastic, refined


def one_width(volume: NDArray[Any], width_px: float, seed: int) -> dict[str, Any]:
    """Spoil, align, refine, compare."""
    spoilt, wheres, near = spoil(volume, width_px, seed)
    stack = align_stack(spoilt, measure=False)
    start, cpu = time.perf_counter(), time.process_time()
    elastic, refined = refine_all(stack, DeepOptions())
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    result: dict[str, Any] = {"width_px": width_px, "damaged": sorted(near)}
    result |= compared({"elastic": elastic, "deep": refined}, spoilt, wheres, near)
    sound, truth, near = spoil(volume, width_px, seed, damaged=False)
    relaxed = align_stack(sound, measure=False)
    maps = [inverse_map(p, relaxed.relaxed.mesh, relaxed.canvas) for p in relaxed.relaxed.positions]
    result |= compared({"elastic_undamaged": maps}, sound, truth, near)
    result["ratio_near_p50"] = round(
        result["deep"]["near_p50"] / max(result["elastic"]["near_p50"], 1e-9), 3
    )
    result["seconds"] = round(seconds, 1)
    result["cpu_seconds_a_megapixel"] = round(cpu_seconds / (volume.size / 1e6), 2)
    return result


def main(argv: list[str] | None = None) -> int:
    """Measure each width and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("HYPER_DATA_DIR", "../shared/data"))
    parser.add_argument("--sections", default=str(data / "em" / "aligntk_raw") + ":0-6")
    parser.add_argument("--align", action=argparse.BooleanOptionalAction, default=True,
                        help="the sections, before they are spoilt")  # fmt: skip
    parser.add_argument("--width", type=float, nargs="+", default=[20.0, 40.0, 60.0],
                        help="of crack and fold, px")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="the middle of five sections, 40 px")
    parser.add_argument("--json", action="store_true", help="end with the object")
    arguments = parser.parse_args(argv)
    volume = read_stack(arguments.sections)
    if arguments.align:
        volume = aligned(volume)
    widths = arguments.width
    if arguments.quick:
        volume, widths = volume[:5, 200:840, 200:840], [40.0]
    results = []
    for width_px in widths:
        results.append(one_width(volume, width_px, arguments.seed))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"widths": results}) if arguments.json else json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
