"""What `hyper align` costs as sections and stacks grow: `python -m benchmarks.matcher.scale`.

Stacks of real texture (the sections of `--sections`, aligned first and cut to the place they have
in common unless `--as-they-are`, mirrored over and over along all axes) under known smooth warps
are made band by band, written as folders of PNGs, and aligned by `hyper align`
on a local cluster of two workers. Figures of each: CPU seconds a megapixel of the whole system
(etcd, object store, services, workers), by stage the seconds of its tasks, the most memory that all
processes held at once (shared pages counted once) and that each part held, and the result object's
quality, beside what the same tissue scores without warps (`cpc94_unwarped`).

`--stacks EDGExDEPTH,...`: the sizes, px and sections; 8192x20 takes three quarters of an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from benchmarks.matcher.sections import aligned, read_stack
from benchmarks.scheduler.cluster import ROOT, hyper
from hyper.client import Client
from hyper.images import write_png
from hyper.usage import UsageSampler
from hyper_matcher.align.metrics import chunked_correlation

STACKS, QUICK = "1024x20,2048x20,4096x20,1024x100", "512x4"
RMS_PX, ANGLE_RAD, SHIFT_PX = 4.0, 0.002, 8.0
_CELL_PX, _SMOOTH_CELLS, _BAND_PX = 16, 6.0, 256
_KEPT = (
    "cpc94_before", "cpc94", "residual_z1_p50", "residual_z1_p95", "residual_z2_p99",
    "tissue_kept", "sharpness", "jacobian_min", "jacobian_max", "flagged_sections", "seconds",
    "cpu_seconds", "peak_rss_mb",
)  # fmt: skip


class Texture:
    """Endless serial sections: a stack mirrored at its borders, along z too."""

    def __init__(self, stack: NDArray[Any]) -> None:
        self._stack = stack

    def section(self, z: int) -> NDArray[Any]:
        """The stack's section that z shows."""
        depth = len(self._stack)
        at = z % (2 * depth - 2) if depth > 1 else 0
        return np.asarray(self._stack[at if at < depth else 2 * depth - 2 - at])

    def warped(self, z: int, edge: int) -> NDArray[np.uint8]:
        """(edge, edge): section z turned, moved, and warped by a smooth field of its own."""
        rng = np.random.default_rng(z)
        cells = edge // _CELL_PX + 2
        noise = rng.normal(size=(2, cells, cells))
        field = scipy.ndimage.gaussian_filter(noise, (0, _SMOOTH_CELLS, _SMOOTH_CELLS))
        field *= RMS_PX / np.sqrt((field**2).sum(axis=0).mean())
        angle, shift = rng.uniform(-ANGLE_RAD, ANGLE_RAD), rng.uniform(-SHIFT_PX, SHIFT_PX, 2)
        section = np.maximum(self.section(z), 1).astype(np.float32)
        made = np.empty((edge, edge), np.uint8)
        for top in range(0, edge, _BAND_PX):
            y, x = np.mgrid[top : min(top + _BAND_PX, edge), :edge].astype(np.float64)
            moved = [
                scipy.ndimage.map_coordinates(part, [y / _CELL_PX, x / _CELL_PX], order=1)
                for part in field
            ]
            v, u = y - edge / 2, x - edge / 2
            where = [
                np.cos(angle) * v - np.sin(angle) * u + edge / 2 + shift[0] + moved[0],
                np.sin(angle) * v + np.cos(angle) * u + edge / 2 + shift[1] + moved[1],
            ]
            band = scipy.ndimage.map_coordinates(section, where, order=1, mode="reflect")
            made[top : top + _BAND_PX] = np.rint(band)
        return made

    def unwarped_cpc(self, depth: int) -> float:
        """CPC94 of neighbours as they are."""
        tiles = [
            chunked_correlation(self.section(z), self.section(z + 1)) for z in range(depth - 1)
        ]
        return float(np.mean([each.mean() for each in tiles]))


def measure(texture: Texture, edge: int, depth: int, workers: int) -> dict[str, Any]:
    """Make a stack, align it on a cluster of its own."""
    megapixels = depth * edge * edge / 1e6
    with tempfile.TemporaryDirectory(prefix="hyper-scale-") as name:
        folder, home, file = Path(name) / "sections", Path(name) / "home", Path(name) / "result"
        folder.mkdir()
        for z in range(depth):
            write_png(folder / f"z{z:03}.png", texture.warped(z, edge))
        hyper(home, "up", "--workers", str(workers), "--slots", "1")
        try:
            environment = {k: v for k, v in os.environ.items() if k != "HYPER_ENDPOINT"}
            environment |= {"HYPER_HOME": str(home), "PYTHONPATH": str(ROOT)}
            start = time.perf_counter()
            with samplers(home) as parts:
                subprocess.run(
                    [sys.executable, "-m", "hyper.cli.main", "align", str(folder), "scale/aligned",
                     "--result", str(file)],
                    env=environment, check=False, stdout=subprocess.DEVNULL,
                )  # fmt: skip
            wall_s = time.perf_counter() - start
            result = json.loads(file.read_text())
            stages = stage_seconds(home)
        finally:
            hyper(home, "down")
    return {
        "edge_px": edge,
        "sections": depth,
        "cpu_s_a_megapixel": round(result["cpu_seconds"] / megapixels, 3),
        "tasks_s_a_megapixel": {k: round(v / megapixels, 3) for k, v in stages.items()},
        **{key: result[key] for key in _KEPT},
        "peak_rss_mb_by_part": {role: round(each.peak_rss_mb) for role, each in parts.items()},
        "cpc94_unwarped": round(texture.unwarped_cpc(min(depth, 20)), 4),
        "command_s": round(wall_s, 1),
    }


@contextmanager
def samplers(home: Path) -> Iterator[dict[str, UsageSampler]]:
    """One for each part of the cluster."""
    pids: dict[str, list[int]] = defaultdict(list)
    for each in json.loads((home / "cluster.json").read_text())["processes"]:
        pids[each["role"]].append(int(each["pid"]))
    with ExitStack() as stack:
        yield {role: stack.enter_context(UsageSampler(roots)) for role, roots in pids.items()}


def stage_seconds(home: Path) -> dict[str, float]:
    """Seconds that tasks of each experiment of the only workflow took, all together."""
    endpoint = json.loads((home / "cluster.json").read_text())["endpoint"]
    with Client(endpoint) as client:
        (status,) = client.workflows()
        tasks = {each.id: client.workflow(status.name).tasks(each.id)
                 for each in status.experiments}  # fmt: skip
        return {
            name: sum(
                (task.end_time - task.start_time).total_seconds()
                for task in each
                if task.end_time is not None and task.start_time is not None
            )
            for name, each in tasks.items()
        }


def main(argv: list[str] | None = None) -> int:
    """Measure each size and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("HYPER_DATA_DIR", "../shared/data"))
    parser.add_argument("--sections", default=str(data / "em" / "aligntk_raw"), help="DIR[:a-b]")
    parser.add_argument("--as-they-are", action="store_true", help="sections are aligned already")
    parser.add_argument("--stacks", default=STACKS, help="EDGExDEPTH,...")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} alone")
    parser.add_argument("--json", action="store_true", help="end with the object")
    arguments = parser.parse_args(argv)
    sections = read_stack(arguments.sections)
    texture = Texture(sections if arguments.as_they_are else aligned(sections))
    rows = []
    for size in (QUICK if arguments.quick else arguments.stacks).split(","):
        edge, depth = (int(part) for part in size.split("x"))
        rows.append(measure(texture, edge, depth, arguments.workers))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"stacks": rows}) if arguments.json else json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
