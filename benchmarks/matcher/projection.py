"""What aligning a whole fly brain would cost: `python -m benchmarks.matcher.projection`.

Sections of growing size (an aligned stack, mirrored side by side, under known smooth warps) go
through the stages of `hyper align` as its tasks run them, block by block, on one core. From CPU
seconds a megapixel at the largest size follow core-hours, dollars and days for 7,600 sections of
187,000 x 92,000 px. What is assumed is part of the result.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.matcher.damage import smooth_field, turn
from benchmarks.matcher.sections import aligned, read_stack
from hyper.align import blocks
from hyper_matcher.align.blocks import grown, join_blocks, render_window, within_block
from hyper_matcher.align.geometry import Affine, Mesh, PairMatches
from hyper_matcher.align.levels import Tiling
from hyper_matcher.align.match import MatchOptions, PreparedSection, match_pair
from hyper_matcher.align.pipeline import pairs_of
from hyper_matcher.align.quality import measure_windows, residuals_at
from hyper_matcher.align.render import Canvas, inverse_map
from hyper_matcher.align.tiled import relax_tiled
from hyper_matcher.bandpass import bandpass

SECTIONS, HEIGHT, WIDTH = 7600, 187_000, 92_000
CORES = 10_000
MESH_PX, TILE_VERTICES = 40.0, 800_000  # as `hyper align` chooses them
NEIGHBOURS = 3
DOLLARS_A_CORE_HOUR = 0.012  # a spot core of a large machine, the order of public prices
EFFICIENCY = 0.85  # of the cores: start-up, waiting for storage, tasks run again
ASSUMED = {
    "dollars_a_core_hour": DOLLARS_A_CORE_HOUR,
    "efficiency": EFFICIENCY,
    "storage": "reads and writes are not counted; 1 byte a pixel in, 1 out, and 1 of features",
    "relaxation": "by tiles, a vertex as often as tiles overlap; coarser meshes not counted",
}


def large_stack(stack: NDArray[Any], edge: int, depth: int) -> NDArray[Any]:
    """(depth, edge, edge): each section mirrored side by side, and warped by a field of its own."""
    found = []
    for z in range(depth):
        one = stack[z]
        row = np.concatenate([one, one[:, ::-1]], axis=1)
        plane = np.concatenate([row, row[::-1]], axis=0)
        times = [-(-edge // length) for length in plane.shape]
        plane = np.tile(plane, times)[:edge, :edge]
        rng = np.random.default_rng(z)
        field = smooth_field(plane.shape, 4.0, z)
        found.append(turn(np.maximum(plane, 1), rng.uniform(-0.002, 0.002), rng.uniform(-6, 6, 2),
                          field)[0])  # fmt: skip
    return np.stack(found)


def run(volume: NDArray[Any]) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds of each stage, as in a tall stack, and quality."""
    depth, height, width = volume.shape
    shape, options = (height, width), MatchOptions()
    spent: dict[str, float] = {}
    clock = [time.process_time()]

    def lap(stage: str) -> None:
        now = time.process_time()
        spent[stage] = spent.get(stage, 0.0) + now - clock[0]
        clock[0] = now

    features = np.stack([bandpass(section, 2.0, 10.0) for section in volume])
    lap("features")
    parts: dict[tuple[int, int], list[PairMatches]] = {}
    for core in blocks((depth, height, width)):
        y0, x0, y1, x1 = window = grown(core, 2 * options.template_px + 64, shape)
        prepared = [PreparedSection(f[y0:y1, x0:x1], options) for f in features]
        for a, b in pairs_of(depth, NEIGHBOURS):
            found = within_block(match_pair(prepared[a], prepared[b], a, b), window, core)
            parts.setdefault((a, b), []).append(found)
    lap("match")
    relaxed = relax_tiled(
        shape, depth, [join_blocks(p) for p in parts.values()], levels=(5 * MESH_PX, MESH_PX),
        budget=TILE_VERTICES,
    )  # fmt: skip
    lap("relax")
    aligned = np.zeros_like(volume)
    for z in range(depth):
        for y0, x0, y1, x1 in blocks((depth, height, width)):
            part = Canvas((y0, x0), (y1 - y0, x1 - x0))
            maps = inverse_map(relaxed.positions[z], relaxed.mesh, part)
            aligned[z, y0:y1, x0:x1] = render_window(
                maps, shape, "uint8", lambda y, x, z=z: volume[z, y, x]
            )[0]
    lap("render")
    after = [
        measure_windows(shape, lambda d, y, x: aligned[d, y, x], a, b)
        for a, b in pairs_of(depth, 2)
    ]
    lap("measure")
    quality = {
        "cpc94": float(np.mean([p.cpc for p in after if p.cpc and p.target_z == p.source_z + 1])),
        "residual_z1_p95": residuals_at(after, 1).percentile(95),
    }
    # A short stack has fewer pairs a section than a tall one: scaled to the pairs of a tall one.
    spent["match"] *= NEIGHBOURS * depth / len(pairs_of(depth, NEIGHBOURS))
    whole = Tiling.of(Mesh.over((HEIGHT, WIDTH), MESH_PX), [Affine.identity()] * SECTIONS,
                      TILE_VERTICES)  # fmt: skip
    spent["relax"] *= NEIGHBOURS * depth / len(pairs_of(depth, NEIGHBOURS)) * whole.times
    spent["measure"] *= 2 * depth / len(pairs_of(depth, 2))
    return spent, quality


def project(cpu_s_a_megapixel: float) -> dict[str, Any]:
    """The whole brain at so many CPU seconds a megapixel."""
    megapixels = SECTIONS * HEIGHT * WIDTH / 1e6
    core_hours = megapixels * cpu_s_a_megapixel / 3600 / EFFICIENCY
    return {
        "sections": SECTIONS,
        "height_px": HEIGHT,
        "width_px": WIDTH,
        "megapixels": megapixels,
        "core_hours": round(core_hours),
        "dollars": round(core_hours * DOLLARS_A_CORE_HOUR),
        "days_on_10000_cores": round(core_hours / CORES / 24, 2),
        "assumed": ASSUMED,
    }


def main(argv: list[str] | None = None) -> int:
    """Measure at growing sizes and project."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    data = Path(os.environ.get("HYPER_DATA_DIR", "../shared/data"))
    parser.add_argument("--sections", default=str(data / "em" / "vnc_stack1"))
    parser.add_argument("--sizes", default="1024,2048,4096", help="edges, px")
    parser.add_argument("--depth", type=int, default=3, help="sections at each size")
    parser.add_argument("--quick", action="store_true", help="1024 and 2048 px alone")
    parser.add_argument("--json", action="store_true", help="end with the object")
    arguments = parser.parse_args(argv)
    sizes = [1024, 2048] if arguments.quick else [int(s) for s in arguments.sizes.split(",")]
    stack = aligned(read_stack(arguments.sections))
    run(large_stack(stack, 512, 2))  # compile
    rows = []
    for edge in sizes:
        volume = large_stack(stack, edge, arguments.depth)
        spent, quality = run(volume)
        megapixels = volume.size / 1e6
        rows.append({
            "edge_px": edge,
            "sections": len(volume),
            **{k: round(v / megapixels, 4) for k, v in spent.items()},
            "cpu_s_a_megapixel": round(sum(spent.values()) / megapixels, 3),
            **{k: round(v, 3) for k, v in quality.items()},
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        })  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    costs = [row["cpu_s_a_megapixel"] for row in rows]
    result = {
        "sizes": rows,
        "flatness": round(max(costs) / min(costs), 3),
        "projection": project(costs[-1]),
    }
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
