"""Every example at its smallest size, by its one command, on a local cluster."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.workloads import WORKLOADS, code_of
from hyper.client import Client
from tests.support.local_cluster import LocalCluster

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).resolve().parents[2]


def run(cluster: LocalCluster, name: str, out: Path) -> str:
    """The example's command; returns its report."""
    command = [
        sys.executable, "-m", "examples.run", name, "--size", "test",
        "--home", str(cluster.home), "--out", str(out),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "HYPER_PATIENCE_S": "30"}, text=True,
        capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{cluster.logs()}"
    return (out / "report.html").read_text()


def check_text(client: Client, page: str) -> None:
    dataset = client.open_dataset("default/tfrecord-small")
    with code_of("text", "tfrecord_format") as tfrecord:
        records = [
            message
            for info, data in dataset.read_many(dataset.files("tfrecord/"))
            for message in tfrecord.unframe(gzip.decompress(data))
        ]
    assert len(records) >= 60  # every file has at least one piece


def check_boosting(client: Client, page: str) -> None:
    assert "Best combinations" in page


def check_detector(client: Client, page: str) -> None:
    dataset = client.open_dataset("default/detector-small")
    losses = json.loads(dataset.read("losses.json"))
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert not dataset.exists("checkpoint.pt")


def check_detection(client: Client, page: str) -> None:
    result = json.loads(client.open_dataset("default/detections-small").read("result.json"))
    assert result["images"] == 24
    assert 0 <= result["average_precision_50"] <= 1


def check_segmentation(client: Client, page: str) -> None:
    dataset = client.open_dataset("default/segmentation-small")
    labels = dataset["segmentation"][...]
    assert labels.shape == (6, 128, 128) and labels.min() >= 1
    # labels go on across blocks: some object lies on both sides of each seam
    assert set(labels[:, :, 63].ravel()) & set(labels[:, :, 64].ravel())
    assert set(labels[:, 63].ravel()) & set(labels[:, 64].ravel())
    assert set(labels[2].ravel()) & set(labels[3].ravel())
    result = json.loads(dataset.read("result.json"))
    assert 0 <= result["ours"]["rand_error"] <= 1


def check_whole(client: Client, page: str) -> None:
    aligned, valid = (
        client.open_array(f"default/brain-small/{name}")[...] for name in ("aligned", "valid")
    )
    labels = client.open_array("default/brain-segmented-small/segmentation")[...]
    assert labels.shape == aligned.shape
    np.testing.assert_array_equal(labels > 0, valid > 0)
    (counted,) = re.findall(r"<td>objects</td><td[^>]*>(\d+)</td>", page)
    assert int(counted) == len(np.unique(labels[labels > 0]))
    inside = client.open_array("default/brain-truth-small/aligned")[...]
    moved = client.open_dataset("default/vnc-moved-small")
    assert neighbours(aligned, valid) > 2 * neighbours(moved["raw"][...])
    assert 0.5 < np.mean(inside[valid > 0] > 127) < 0.95  # the truth went along
    light = (
        aligned[(valid > 0) & (inside > 127)].mean(),
        aligned[(valid > 0) & (inside < 128)].mean(),
    )
    assert light[0] > light[1] + 30  # and lies where it belongs: walls are dark


def neighbours(sections: NDArray[np.uint8], valid: NDArray[np.uint8] | None = None) -> float:
    """The mean correlation of neighbouring sections."""
    tissue = np.ones_like(sections) if valid is None else valid
    both = [(a > 0) & (b > 0) for a, b in itertools.pairwise(tissue)]
    pairs = zip(itertools.pairwise(sections), both, strict=True)
    return float(np.mean([np.corrcoef(a[here], b[here])[0, 1] for (a, b), here in pairs]))


CHECKS = {
    "text": check_text,
    "boosting": check_boosting,
    "detector": check_detector,
    "detection": check_detection,
    "segmentation": check_segmentation,
    "raw_to_segmented": check_whole,
}


@pytest.mark.parametrize("name", CHECKS)
def test_an_example(local_cluster: LocalCluster, tmp_path: Path, name: str) -> None:
    page = run(local_cluster, name, tmp_path)
    assert "Time line" in page and "Cost" in page and "<svg" in page
    assert WORKLOADS[name].title in page
    with Client(local_cluster.endpoint) as client:
        CHECKS[name](client, page)
