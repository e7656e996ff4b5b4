"""Stitching of tiles whose true places are known: `python -m benchmarks.matcher.stitching`.

6 x 6 tiles are cut from real texture (sections of `--sections`, four of them side by side) through
a lens that warps every tile alike, with a brightness pattern, noise of their own, and positions
that are up to 20 px off. Reported: residuals of fresh matches over all seams, and the distance of
the placed pixels from the truth, after the one affine map that no overlap can tell.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from benchmarks.matcher.sections import read_stack
from hyper_matcher.align.geometry import Affine
from hyper_matcher.stitch.pipeline import Stitched, stitch_tiles


@dataclass(frozen=True)
class Tiles:
    """Tiles with their truth.

    Args:
        images: (T, H, W).
        positions: (T, 2), as the stage says.
        true: (T, 2), where they were cut.
        lens: (2, H, W), what was added to each pixel's place before it was read.
    """

    images: NDArray[np.uint8]
    positions: NDArray[np.float64]
    true: NDArray[np.float64]
    lens: NDArray[np.float64]


def plane_of(stack: NDArray[Any]) -> NDArray[Any]:
    """Four sections side by side."""
    picks = [stack[k % len(stack)] for k in range(4)]
    return np.block([[picks[0], picks[1]], [picks[2], picks[3]]])


def lens_field(shape: tuple[int, int], strength_px: float) -> NDArray[np.float64]:
    """A barrel off the middle, with a skew part: at most about `strength_px` in the corners."""
    h, w = shape
    y, x = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
    y, x = y - 0.1, x + 0.15
    r2 = y * y + x * x
    field = np.stack([y * r2 + 0.3 * x * y, x * r2 - 0.2 * y * y])
    return np.asarray(field * strength_px / np.abs(field).max())


def cut_tiles(
    plane: NDArray[Any], grid: int, overlap: float, lens_px: float, stage_px: float, seed: int
) -> Tiles:
    """grid x grid tiles that cover the plane but for a margin."""
    rng = np.random.default_rng(seed)
    margin = int(np.ceil(lens_px)) + 2
    room = min(plane.shape) - 2 * margin
    edge = int(room / (grid - (grid - 1) * overlap))
    step = int(edge * (1 - overlap))
    true = np.array(
        [[margin + step * i, margin + step * j] for i in range(grid) for j in range(grid)]
    )
    lens = lens_field((edge, edge), lens_px)
    y, x = np.meshgrid(np.linspace(-1, 1, edge), np.linspace(-1, 1, edge), indexing="ij")
    vignette = 1 - 0.12 * (y**2 + x**2) + 0.05 * x
    own = np.mgrid[:edge, :edge].astype(np.float64)
    grey = plane.astype(np.float32)
    images = []
    for corner in true:
        where = own + corner[:, None, None] + lens
        tile = scipy.ndimage.map_coordinates(grey, where, order=1, mode="nearest")
        tile = tile * vignette * rng.uniform(0.9, 1.1) + rng.normal(0, 3, tile.shape)
        images.append(np.clip(np.rint(tile), 0, 255).astype(np.uint8))
    positions = true + rng.uniform(-stage_px, stage_px, true.shape)
    return Tiles(np.stack(images), positions, true.astype(np.float64), lens)


def truth_errors(tiles: Tiles, stitched: Stitched) -> NDArray[np.float64]:
    """Distances, px, of placed points of all tiles from the truth, less one affine map of all."""
    _, height, width = tiles.images.shape
    axes = [np.linspace(0, edge - 1, 9).round() for edge in (height, width)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    at = points.astype(int)
    placed, true = [], []
    for number in range(len(tiles.images)):
        placed.append(stitched.montage.place(number, points))
        true.append(points + tiles.true[number] + tiles.lens[:, at[:, 0], at[:, 1]].T)
    found, wanted = np.concatenate(placed), np.concatenate(true)
    return np.asarray(np.linalg.norm(Affine.fit(found, wanted)(found) - wanted, axis=1))


def main(argv: list[str] | None = None) -> int:
    """Cut, stitch, and compare with the truth."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    data = Path(os.environ.get("HYPER_DATA_DIR", "../shared/data"))
    parser.add_argument("--sections", default=str(data / "em" / "vnc_stack1"), help="DIR[:a-b]")
    parser.add_argument("--grid", type=int, default=6, help="tiles each way")
    parser.add_argument("--overlap", type=float, default=0.15, help="share of a tile")
    parser.add_argument("--lens", type=float, default=8.0, help="px in the corners")
    parser.add_argument("--stage", type=float, default=20.0, help="error of positions, +- px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="3 x 3 tiles")
    parser.add_argument("--json", action="store_true", help="end with the result object")
    arguments = parser.parse_args(argv)
    grid = 3 if arguments.quick else arguments.grid
    plane = plane_of(read_stack(arguments.sections))
    if arguments.quick:
        plane = plane[:1024, :1024]
    tiles = cut_tiles(
        plane, grid, arguments.overlap, arguments.lens, arguments.stage, arguments.seed
    )
    warm = cut_tiles(plane[:700, :700], 2, 0.3, 2.0, 5.0, 1)
    stitch_tiles(list(warm.images), warm.positions)  # compile
    start, cpu = time.perf_counter(), time.process_time()
    stitched = stitch_tiles(list(tiles.images), tiles.positions)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    error = truth_errors(tiles, stitched)
    result = {
        **stitched.result,
        "tile_px": tiles.images.shape[1],
        "truth_error_p50": round(float(np.median(error)), 3),
        "truth_error_p95": round(float(np.percentile(error, 95)), 3),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "cpu_seconds_per_megapixel": round(cpu_seconds / (tiles.images.size / 1e6), 3),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:26} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
