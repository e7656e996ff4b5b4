"""`hyper align` on a real local cluster: the result, bad input, and machines that vanish."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

import hyper
from hyper import align, align_source
from hyper.client import Client
from hyper.images import write_png
from tests.support.local_cluster import LocalCluster
from tests.support.sections import texture

pytestmark = pytest.mark.timeout(420)

RESULT_KEYS = {
    "cpc94_before", "cpc94", "residual_z1_p50", "residual_z1_p95", "residual_z1_p99",
    "residual_z2_p95", "residual_z2_p99", "residual_over_10px", "tissue_kept", "sharpness",
    "jacobian_min", "jacobian_max", "matches", "rejected", "flagged_sections", "seconds",
    "cpu_seconds", "peak_rss_mb", "array", "array_url", "report",
}  # fmt: skip
DETERMINISTIC = RESULT_KEYS - {
    "seconds", "cpu_seconds", "peak_rss_mb", "array", "array_url", "report",
}  # fmt: skip


def served(cluster: LocalCluster, service: str, method: str) -> float:
    """How many calls of a method ended well on a service, from its /metrics."""
    total = 0.0
    for member in cluster.processes(service):
        url = f"http://{member['metrics_address']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        for line in text.splitlines():
            wanted = f'method="{method}"' in line and 'code="OK"' in line
            if line.startswith("hyper_rpc_total{") and wanted:
                total += float(line.rsplit(" ", 1)[1])
    return total


@pytest.fixture(scope="module")
def aligned(local_cluster: LocalCluster, small_stack: Path) -> dict[str, Any]:
    """The result of an undisturbed alignment."""
    result: dict[str, Any] = local_cluster.json("align", str(small_stack), "lab/calm")
    return result


def test_result_object(aligned: dict[str, Any]) -> None:
    assert set(aligned) >= RESULT_KEYS
    assert aligned["cpc94"] > aligned["cpc94_before"] + 0.2
    assert aligned["residual_over_10px"] == 0
    assert aligned["tissue_kept"] >= 0.95
    assert 0.5 < aligned["jacobian_min"] <= aligned["jacobian_max"] < 2
    assert aligned["flagged_sections"] == []


def test_features_and_matches_went_through_the_services(
    local_cluster: LocalCluster, aligned: dict[str, Any]
) -> None:
    assert served(local_cluster, "inference", "InferVolume") >= 4
    assert served(local_cluster, "matcher", "MatchSections") >= 3


def test_plain_zarr_opens_the_array_from_the_bucket(
    local_cluster: LocalCluster, aligned: dict[str, Any]
) -> None:
    import zarr
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    s3 = local_cluster.json("status")["s3"]
    credentials = configparser.ConfigParser()
    credentials.read(s3["credentials_file"])
    assert Path(s3["credentials_file"]).stat().st_mode & 0o777 == 0o600
    bucket, _, prefix = aligned["array_url"].removeprefix("s3://").partition("/")
    assert bucket == s3["bucket"]
    store = S3Store(
        bucket, prefix=prefix, endpoint=s3["endpoint"], region=s3["region"],
        access_key_id=credentials["default"]["aws_access_key_id"],
        secret_access_key=credentials["default"]["aws_secret_access_key"],
        client_options={"allow_http": True},
    )  # fmt: skip
    array = zarr.open_array(ObjectStore(store, read_only=True), mode="r")
    assert array.ndim == 3 and array.shape[0] == 4 and array.dtype == np.uint8
    assert (np.asarray(array[:]) > 0).mean() > 0.7


def test_export_and_report(
    local_cluster: LocalCluster, aligned: dict[str, Any], tmp_path: Path
) -> None:
    done = local_cluster.run("export", "lab/calm/aligned", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert len(pictures) == 4
    assert np.asarray(Image.open(pictures[2])).any()
    again = local_cluster.run("export", "lab/calm/aligned", str(tmp_path / "out"))
    assert again.returncode == 2 and again.stderr.count("error:") == 1

    done = local_cluster.run("cp", "hyper://lab/calm/align/report.html", str(tmp_path))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/") >= 4, "pictures"
    assert not re.search(r'(src|href)="https?://', page), "the report must be self-contained"
    for stage in ("ingest", "features", "match", "relax", "render", "measure"):
        assert stage in page


def test_an_array_as_source(local_cluster: LocalCluster, aligned: dict[str, Any]) -> None:
    result = local_cluster.json("align", "lab/calm/raw", "lab/from-array")
    for key in DETERMINISTIC:
        assert result[key] == aligned[key], key


def test_a_second_alignment_into_the_same_dataset(
    local_cluster: LocalCluster, small_stack: Path, aligned: dict[str, Any], tmp_path: Path
) -> None:
    """A new version, untouched by what the first one left: other sections, fewer of them."""
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for section in sorted(small_stack.iterdir())[1:]:
        shutil.copy(section, fewer)
    fresh = local_cluster.json("align", str(fewer), "lab/fresh")
    local_cluster.json("align", str(small_stack), "lab/twice")
    again = local_cluster.json("align", str(fewer), "lab/twice")
    for key in DETERMINISTIC:
        assert again[key] == fresh[key], key
    versions = local_cluster.json("versions", "lab/twice")
    assert len(versions) == 2
    with hyper.Client(local_cluster.endpoint) as client:
        assert client.open_array("lab/twice@1/aligned").shape[0] == 4
        assert client.open_array("lab/twice@2/aligned").shape[0] == 3


STAGES = ["prepare", "ingest", "features", "match", "relax", "render", "measure", "report"]


def wait_for_stage(cluster: LocalCluster, stage: str, command: subprocess.Popen[str]) -> None:
    """Until the job that `command` follows has come to a stage; fails if it ends before."""
    deadline = time.monotonic() + 120
    with hyper.Client(cluster.endpoint) as client:
        while time.monotonic() < deadline:
            assert command.poll() is None, f"{command.communicate()}"
            for workflow in client.workflows():
                running = [e.id for e in workflow.experiments if e.state == "RUNNING"]
                if running and STAGES.index(running[-1]) >= STAGES.index(stage):
                    return
            time.sleep(0.02)
    pytest.fail(f"the job never came to {stage}")


def test_a_killed_worker_changes_nothing(
    local_cluster: LocalCluster, small_stack: Path, aligned: dict[str, Any]
) -> None:
    command = local_cluster.popen("align", str(small_stack), "lab/killed", "--json")
    wait_for_stage(local_cluster, "render", command)
    victim = local_cluster.processes("worker")[0]
    os.kill(victim["pid"], signal.SIGKILL)
    try:
        out, err = command.communicate(timeout=200)
    finally:
        restarted = local_cluster.run("restart", victim["name"])
    assert restarted.returncode == 0, restarted.stderr
    assert command.returncode == 0, f"{err}\n{local_cluster.logs()}"
    result = json.loads(out.strip().splitlines()[-1])
    for key in DETERMINISTIC:
        assert result[key] == aligned[key], key


def test_a_killed_scheduler_changes_nothing(
    local_cluster: LocalCluster, small_stack: Path, aligned: dict[str, Any]
) -> None:
    command = local_cluster.popen("align", str(small_stack), "lab/scheduler", "--json")
    wait_for_stage(local_cluster, "match", command)
    (scheduler,) = local_cluster.processes("scheduler")
    os.kill(scheduler["pid"], signal.SIGKILL)
    restarted = local_cluster.run("restart", "scheduler")
    assert restarted.returncode == 0, f"{restarted.stderr}\n{local_cluster.logs()}"
    out, err = command.communicate(timeout=200)
    assert command.returncode == 0, f"{err}\n{local_cluster.logs()}"
    result = json.loads(out.strip().splitlines()[-1])
    for key in DETERMINISTIC:
        assert result[key] == aligned[key], key


def test_interrupt_stops_cleanly(local_cluster: LocalCluster, small_stack: Path) -> None:
    command = local_cluster.popen("align", str(small_stack), "lab/interrupted")
    wait_for_stage(local_cluster, "features", command)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=60)
    assert command.returncode == 130, f"{out}\n{err}"
    assert "Traceback" not in err
    newest = local_cluster.json("ps")[0]
    assert newest["state"] == "CANCELLED"
    missing = local_cluster.run("ls", "lab/interrupted")
    assert missing.returncode == 2, "nothing half-written may be visible"


def finished_tasks(cluster: LocalCluster) -> tuple[str, dict[str, str]]:
    """The newest workflow, and by name of its tasks that are done, when they ended."""
    with hyper.Client(cluster.endpoint) as client:
        workflow = client.workflow(next(client.workflows()).name)
        return workflow.name, {
            task.name: str(task.end_time)
            for experiment in workflow.status.experiments
            for task in workflow.tasks(experiment.id)
            if task.state == "SUCCEEDED"
        }


@pytest.mark.parametrize("end", ["the command is killed", "interrupted", "cancelled"])
def test_resume_goes_on_where_it_stopped(
    local_cluster: LocalCluster, small_stack: Path, aligned: dict[str, Any], end: str
) -> None:
    """The job is the same, what was done is not done again, and the result is that of any other."""
    source, destination = str(small_stack), f"lab/resumed-{end.replace(' ', '-')}"
    command = local_cluster.popen("align", source, destination)
    wait_for_stage(local_cluster, "match", command)
    if end == "cancelled":
        name, _ = finished_tasks(local_cluster)
        assert local_cluster.run("cancel", name).returncode == 0
    else:
        command.send_signal(signal.SIGINT if end == "interrupted" else signal.SIGKILL)
    out, err = command.communicate(timeout=60)
    if end != "the command is killed":
        assert "--resume" in err, f"{out}\n{err}"
    name, before = finished_tasks(local_cluster)
    result = local_cluster.json("align", source, destination, "--resume")
    for key in DETERMINISTIC:
        assert result[key] == aligned[key], key
    again, after = finished_tasks(local_cluster)
    assert again == name and before and before.items() <= after.items()

    once_more = local_cluster.json("align", f"{source}/", destination, "--resume")
    assert once_more["array"] == result["array"], "a job that is done gives its result"


def test_resume_of_another_job_is_refused(
    local_cluster: LocalCluster, small_stack: Path, aligned: dict[str, Any], tmp_path: Path
) -> None:
    done = local_cluster.run("align", str(small_stack), "lab/never", "--resume")
    one_line_error(done, "lab/never", "without --resume")
    done = local_cluster.run("align", str(small_stack), "lab/calm", "--resume", "--neighbours", "2")
    one_line_error(done, "neighbours 3, not 2")
    done = local_cluster.run("align", "lab/other/raw", "lab/calm", "--resume")
    one_line_error(done, "lab/other/raw")
    order = tmp_path / "order.txt"
    names = sorted(file.name for file in small_stack.iterdir())
    order.write_text("\n".join(reversed(names)))
    done = local_cluster.run(
        "align", str(small_stack), "lab/calm", "--resume", "--order", str(order)
    )
    one_line_error(done, "their order")


def broken_stack(small_stack: Path, folder: Path) -> Path:
    shutil.copytree(small_stack, folder)
    return folder


def one_line_error(done: Any, *words: str) -> None:
    assert done.returncode == 2, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0], errors[0]


def test_missing_folder(local_cluster: LocalCluster, tmp_path: Path) -> None:
    done = local_cluster.run("align", str(tmp_path / "nothing"), "lab/bad")
    one_line_error(done, "nothing", "no such folder")


def test_truncated_section(local_cluster: LocalCluster, small_stack: Path, tmp_path: Path) -> None:
    folder = broken_stack(small_stack, tmp_path / "cut")
    victim = folder / "s02.png"
    victim.write_bytes(victim.read_bytes()[:3000])
    one_line_error(local_cluster.run("align", str(folder), "lab/bad"), "s02.png", "--skip-bad")
    assert local_cluster.run("ls", "lab/bad").returncode == 2, "nothing may be half-written"

    result = local_cluster.json("align", str(folder), "lab/skipped", "--skip-bad")
    assert result["flagged_sections"] == [2]
    assert result["residual_over_10px"] == 0


def test_not_an_image(local_cluster: LocalCluster, small_stack: Path, tmp_path: Path) -> None:
    folder = broken_stack(small_stack, tmp_path / "text")
    (folder / "s01.png").write_text("these are not the pixels you are looking for")
    one_line_error(local_cluster.run("align", str(folder), "lab/bad"), "s01.png")


def test_sections_of_different_sizes(
    local_cluster: LocalCluster, small_stack: Path, tmp_path: Path
) -> None:
    folder = broken_stack(small_stack, tmp_path / "sizes")
    Image.new("L", (300, 288), 128).save(folder / "s03.png")
    one_line_error(local_cluster.run("align", str(folder), "lab/bad"), "s03.png", "differ")


@pytest.mark.parametrize("name", ["lab/../etc", "../lab", "lab/a/b", "lab", "lab/x@2", "lab/.."])
def test_bad_destinations(local_cluster: LocalCluster, small_stack: Path, name: str) -> None:
    one_line_error(local_cluster.run("align", str(small_stack), name))


def test_no_cluster(tmp_path: Path, small_stack: Path) -> None:
    nowhere = LocalCluster(tmp_path / "home")
    done = nowhere.run("align", str(small_stack), "lab/x")
    assert done.returncode == 3
    assert "hyper up" in done.stderr and "Traceback" not in done.stderr


def test_neighbours_that_do_not_match_are_named_and_the_exit_status_is_1(
    local_cluster: LocalCluster, small_stack: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sections"
    folder.mkdir()
    for file in sorted(small_stack.iterdir()):
        shutil.copy(file, folder / file.name)
    names = sorted(file.name for file in folder.iterdir())
    pixels = np.asarray(Image.open(folder / names[1]))
    noise = np.random.default_rng(0).integers(1, 255, pixels.shape, np.uint8)
    Image.fromarray(noise).save(folder / names[1])
    done = local_cluster.run("align", str(folder), "lab/torn", "--json")
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [(p["source_z"], p["target_z"]) for p in result["failed_pairs"]] == [(0, 1), (1, 2)]
    assert "error: sections 0 and 1 could not be matched" in done.stderr
    order = tmp_path / "order.txt"
    order.write_text("\n".join([names[1], names[0], *names[2:]]))
    result = local_cluster.json(
        "align", str(folder), "lab/torn", "--order", str(order), "--exclude", names[1]
    )
    assert result["failed_pairs"] == [] and result["flagged_sections"] == [0]


def test_fields_are_kept_and_render_again_with_a_pyramid(
    local_cluster: LocalCluster, small_stack: Path, aligned: dict[str, Any]
) -> None:
    result = local_cluster.json(
        "align", str(small_stack), "lab/again", "--from-fields", "lab/calm/fields",
        "--voxel-size", "40,4,4",
    )  # fmt: skip
    assert result["cpc94"] == aligned["cpc94"] and result["matches"] == 0
    with hyper.connect(local_cluster.endpoint) as client:
        dataset = client.open_dataset("lab/again")
        assert {"aligned", "valid", "fields", "aligned-levels/1"} <= set(dataset.arrays())
        section, valid = (np.asarray(dataset[name][1]) for name in ("aligned", "valid"))
        assert valid.any() and not section[valid == 0].any()
        fields = dataset["fields"]
        assert fields.shape[:2] == (2, len(list(small_stack.iterdir())))
        assert np.isfinite(np.asarray(fields[:, 0])).all() and np.asarray(fields[:, 0]).any()
    wrong = local_cluster.run("align", str(small_stack), "lab/no", "--from-fields", "lab/calm/raw")
    assert wrong.returncode == 1 and "needed are fields" in wrong.stderr


def test_a_stack_relaxed_tile_by_tile_is_aligned_alike(
    local_cluster: LocalCluster, small_stack: Path
) -> None:
    with Client(local_cluster.endpoint) as client:
        source = align_source.inspect_folder(small_stack)
        options = align.AlignOptions(spacing_px=9.6, relax_vertices=1000)
        job = align.submit(client, source, "lab/tiled", options, say=print)
        result = align.finish(client, job)
        tasks = {each.id: each.tasks.total for each in job.workflow.status.experiments}
        assert tasks["settle-1-1"] == tasks["settle-1-2"] > 3 and tasks["place"] >= 1
        job = align.submit(
            client, source, "lab/whole", replace(options, relax_vertices=10**6), say=print
        )
        whole = align.finish(client, job)
        assert "place" not in {each.id for each in job.workflow.status.experiments}
        tiled, at_once = (
            client.open_array(f"lab/{each}/fields")[...] for each in ("tiled", "whole")
        )
    assert result["cpc94"] == pytest.approx(whole["cpc94"], abs=0.01)
    assert result["residual_z1_p95"] < whole["residual_z1_p95"] + 0.1
    off = (tiled - at_once) - (tiled - at_once).mean(axis=1, keepdims=True)  # what sections share
    assert np.percentile(np.linalg.norm(off, axis=0), 95) < 1.0


def test_large_sections_are_rendered_and_measured_part_by_part(
    local_cluster: LocalCluster, tmp_path: Path
) -> None:
    plane = np.maximum(texture((4720, 320), seed=4), 1)
    for z, (y, x) in enumerate([(4, 6), (10, 2), (0, 12)]):
        write_png(tmp_path / f"z{z}.png", plane[y : y + 4700, x : x + 300])
    with Client(local_cluster.endpoint) as client:
        source, found = align_source.inspect_folder(tmp_path), {}
        for name, part_px, level_voxels in (("parts", 4096, 200_000), ("one", 8192, 2**29)):
            options = align.AlignOptions(
                part_px=part_px, level_voxels=level_voxels, voxel_size_nm=(40.0, 4.0, 4.0)
            )
            job = align.submit(client, source, f"lab/{name}", options, say=print)
            found[name] = align.finish(client, job)
            tasks = {each.id: each.tasks.total for each in job.workflow.status.experiments}
            expected = 2 if name == "parts" else 1
            assert {tasks[k] for k in ("features", "render", "measure")} == {3 * expected}
            assert tasks["gather"] == 2  # sections of several blocks
            assert [k for k in tasks if k.startswith("coarsen")] == (
                ["coarsen-1", "coarsen-2", "coarsen-3"] if name == "parts" else []
            )
        names = {name: client.open_dataset(f"lab/{name}").arrays() for name in found}
        assert names["parts"] == names["one"] and "aligned-levels/6" in names["one"]
        for each in names["one"]:
            np.testing.assert_array_equal(
                client.open_array(f"lab/parts/{each}")[...],
                client.open_array(f"lab/one/{each}")[...],
            )
        pytest.importorskip("torch", reason="the deep refinement needs torch")
        options = align.AlignOptions(part_px=4096, method="deep")
        job = align.submit(client, source, "lab/deep", options, say=print)
        found["deep"] = align.finish(client, job)
        tasks = {each.id: each.tasks.total for each in job.workflow.status.experiments}
        assert tasks["refine"] == tasks["redraw"] == 3 * 2
        # once more, from its fields, and without a voxel size: no level of the old version stays
        again = align.AlignOptions(part_px=4096, from_fields="lab/parts/fields")
        align.finish(client, align.submit(client, source, "lab/one", again, say=print))
        names["again"] = client.open_dataset("lab/one").arrays()
        assert names["again"] == [each for each in names["one"] if "levels" not in each]
        for each in ("aligned", "fields"):
            np.testing.assert_array_equal(
                client.open_array(f"lab/parts/{each}")[...],
                client.open_array(f"lab/one/{each}")[...],
            )
    for key in ("cpc94_before", "cpc94", "residual_z1_p95", "tissue_kept", "sharpness",
                "jacobian_min", "matches", "rejected", "flagged_sections"):  # fmt: skip
        assert found["parts"][key] == pytest.approx(found["one"][key], abs=1e-4)
    assert found["deep"]["cpc94"] > found["one"]["cpc94"] - 0.005
    assert found["deep"]["tissue_kept"] > found["one"]["tissue_kept"] - 0.005
    assert found["deep"]["jacobian_min"] > 0.5


def test_large_sections_may_be_turned_and_shifted_as_far_as_small_ones(
    local_cluster: LocalCluster, tmp_path: Path
) -> None:
    """Blocks alone would look for their tissue where other tissue lies."""
    plane = np.maximum(texture((4200, 1900), seed=6), 1)
    shape, middle = (3300, 1000), (2100, 950)
    for z, (degrees, shift) in enumerate([(0, (0, 0)), (170, (12, -30)), (4, (430, -260))]):
        where = np.stack(np.mgrid[: shape[0], : shape[1]], -1) - (np.array(shape) - 1) / 2
        turn = np.exp(1j * np.radians(degrees)) * (where @ np.array([1, 1j]))
        places = [turn.real + middle[0] + shift[0], turn.imag + middle[1] + shift[1]]
        section = scipy.ndimage.map_coordinates(plane, places, order=1)
        write_png(tmp_path / f"z{z}.png", section)
    result = local_cluster.json("align", str(tmp_path), "lab/turned")
    assert result["flagged_sections"] == [] and result["failed_pairs"] == []
    assert result["residual_z1_p95"] < 0.5
    assert result["cpc94"] > 0.9 and result["tissue_kept"] > 0.99
