"""`hyper stitch` on a real local cluster: tiles in, a montage out, and what is wrong is said."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.matcher.stitching import cut_tiles
from hyper import stitch
from hyper.client import Client
from hyper.context import AttemptId, TaskContext
from hyper.images import read_section, write_png
from hyper.tile_positions import read_layout
from hyper_matcher.ncc import SearchImage
from hyper_matcher.stitch.jobs import report
from tests.support.local_cluster import LocalCluster
from tests.support.sections import texture

pytestmark = pytest.mark.timeout(300)


def _write(folder: Path) -> Path:
    tiles = cut_tiles(texture((420, 420), seed=2), 2, 0.3, 2.0, 8.0, seed=4)
    lines = ["{RESOLUTION}\t4.0"]
    for k, (tile, (y, x)) in enumerate(zip(tiles.images, tiles.positions, strict=True)):
        write_png(folder / f"t{k}.png", tile)
        lines.append(f"t{k}.png\t{x:.2f}\t{y:.2f}")
    (folder / "s1.txt").write_text("\n".join(lines) + "\n")
    return folder / "s1.txt"


def test_tiles_become_a_montage(local_cluster: LocalCluster, tmp_path: Path) -> None:
    positions = _write(tmp_path)
    report, montages = tmp_path / "report.html", tmp_path / "montages"
    result = local_cluster.json(
        "stitch", str(positions), "lab/montage", "--report", str(report), "--montages",
        str(montages), "--thickness", "40",
    )  # fmt: skip
    assert result["seam_residual_p95"] <= 0.5
    assert result["flagged_tiles"] == {} and result["failed_seams"] == []
    assert result["array"] == "lab/montage/raw" and result["array_url"].startswith("s3://")
    montage = read_section(montages / "00000.png")
    assert min(montage.shape) > 380 and (montage > 0).mean() > 0.85
    assert "<svg" in report.read_text()
    listed = local_cluster.json("ls", "lab/montage")
    assert "40" in json.dumps(listed)


@dataclass(frozen=True, slots=True)
class _Context(TaskContext):
    """Of a task that is run here once more, against the cluster."""

    connected: Client | None = None

    @property
    def client(self) -> Client:
        assert self.connected is not None
        return self.connected


def test_a_report_that_runs_again_gets_the_first_ones_answer(
    local_cluster: LocalCluster, tmp_path: Path
) -> None:
    """Its worker was lost after the commit and before it could say so."""
    local_cluster.json("stitch", str(_write(tmp_path)), "lab/reported-twice")
    with Client(local_cluster.endpoint) as client:
        (name,) = [each.name for each in client.workflows() if "stitch-reported-twice" in each.name]
        task = client.workflow(name).task("report", 0)
        again = report(_Context(task.name, AttemptId(1, 9), client), **task.parameters)
        assert again["version"] == task.result["version"] == 1
        assert client.open_dataset("lab/reported-twice").version == 1


def test_a_tile_that_fits_nowhere_is_named_and_the_exit_status_is_1(
    local_cluster: LocalCluster, tmp_path: Path
) -> None:
    positions = _write(tmp_path)
    rng = np.random.default_rng(0)
    shape = read_section(tmp_path / "t3.png").shape
    write_png(tmp_path / "t3.png", rng.integers(1, 255, shape, np.uint8))
    done = local_cluster.run("stitch", str(positions), "lab/odd", "--json")
    assert done.returncode == 1
    assert list(json.loads(done.stdout.splitlines()[-1])["flagged_tiles"]) == ["t3.png"]


def test_a_missing_tile_is_named_before_any_work(
    local_cluster: LocalCluster, tmp_path: Path
) -> None:
    positions = _write(tmp_path)
    (tmp_path / "t2.png").unlink()
    done = local_cluster.run("stitch", str(positions), "lab/missing")
    assert done.returncode == 2
    assert "t2.png: listed in the positions, but not there" in done.stderr


def test_sections_of_a_long_canvas_are_rendered_part_by_part(
    local_cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stitch, "_PART_PX", 4096)
    monkeypatch.setattr(stitch, "_SEAMS_A_TASK", 5)
    rng = np.random.default_rng(1)
    files = []
    for z in range(2):
        plane = np.maximum(texture((220, 4700), seed=z), 1)
        lines = ["{RESOLUTION}\t4.0"]
        for k in range(13):
            write_png(tmp_path / f"s{z}t{k}.png", plane[10:210, 5 + 350 * k : 405 + 350 * k])
            y, x = rng.uniform(-4, 4), rng.uniform(-4, 4) + 350 * k
            lines.append(f"s{z}t{k}.png\t{x:.2f}\t{y:.2f}")
        files.append(tmp_path / f"s{z}.txt")
        files[-1].write_text("\n".join(lines) + "\n")
    options = stitch.StitchOptions(lens_degree=0)
    mosaic = stitch.inspect(read_layout(files, None), "strips", options)
    with Client(local_cluster.endpoint) as client:
        workflow, session = stitch.submit(client, mosaic, "lab/strips", options)
        result = stitch.finish(client, workflow, session, "lab/strips")
        tasks = {each.id: each.tasks.total for each in workflow.status.experiments}
        array = client.open_array("lab/strips/raw")
        pixels = array[...]
    assert tasks == {"match": 6, "lens": 1, "place": 2, "frame": 1, "render": 4, "report": 1}
    assert (result["tiles"], result["seams"], result["sections"]) == (26, 24, 2)
    assert result["seam_residual_p95"] <= 0.5 and result["flagged_tiles"] == {}
    assert 4600 <= pixels.shape[2] <= 4620
    for z in range(2):  # a seam between parts would show
        plane = np.maximum(texture((220, 4700), seed=z), 1)
        across = pixels[z, 60:140, 4046:4146].astype(float)
        score = best_score(plane.astype(float), across)
        assert score > 0.97


def best_score(plane: np.ndarray, template: np.ndarray) -> float:
    """Highest correlation of a template anywhere in the plane."""
    return float(SearchImage(plane.astype(np.float32)).correlate(template.astype(np.float32)).max())
