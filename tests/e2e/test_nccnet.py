"""`hyper train-nccnet` on a local cluster: trains, compares with filters, reports, commits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyper.client import Client
from tests.support.local_cluster import LocalCluster
from tests.support.sections import texture

pytestmark = pytest.mark.timeout(300)

SETTINGS = ("--template", "32", "--search", "16", "--batch-size", "2")


def upload(client: Client, name: str, depth: int = 7, edge: int = 180) -> None:
    base = texture((edge, edge), seed=3).astype(np.float64)
    rng = np.random.default_rng(5)
    noisy = np.clip(base + rng.normal(0, 20, (depth, edge, edge)), 1, 255).astype(np.uint8)
    with client.session(name) as session:
        session.create_array("aligned", noisy.shape, "uint8")[...] = noisy


def test_a_net_is_trained_compared_and_committed(
    local_cluster: LocalCluster, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    with Client(local_cluster.endpoint) as client:
        upload(client, "tests/nccnet-raw")
        result = local_cluster.json(
            "train-nccnet", "tests/nccnet-raw/aligned", "tests/nccnet-out", "--steps", "4",
            "--report", str(page), *SETTINGS,
        )  # fmt: skip
        dataset = client.open_dataset("tests/nccnet-out")
        assert dataset.read("nccnet/nccnet.onnx")
        names = {score["name"] for score in result["scores"]}
        assert {"raw", "net"} < names
        assert result["choice"] in names
        assert result["choice"] in result["why"]
        raw = next(score for score in result["scores"] if score["name"] == "raw")
        assert raw["rate"] > 0.9
    assert result["choice"] in page.read_text()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tests/nccnet-thin/aligned", "at least 6"),
        ("tests/nccnet-none/aligned", "nccnet-none"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    local_cluster: LocalCluster, source: str, message: str
) -> None:
    with Client(local_cluster.endpoint) as client:
        if "thin" in source:
            upload(client, "tests/nccnet-thin", depth=3)
        refused = local_cluster.run("train-nccnet", source, "tests/nccnet-out2", *SETTINGS)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_sections_are_matched_from_the_command_line(
    local_cluster: LocalCluster, tmp_path: Path
) -> None:
    with Client(local_cluster.endpoint) as client:
        upload(client, "tests/match-raw", depth=3)
    table = tmp_path / "matches.csv"
    result = local_cluster.json(
        "match", "tests/match-raw/aligned", "--template", "32", "--spacing", "24",
        "--neighbours", "2", "--table", str(table),
    )  # fmt: skip
    assert [(p["source_z"], p["target_z"]) for p in result["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    for pair in result["pairs"]:
        assert pair["accepted"] > 10
        assert np.abs(pair["offset"]).max() < 5
    lines = table.read_text().splitlines()
    tried = sum(p["accepted"] + sum(p["rejected"].values()) for p in result["pairs"])
    assert len(lines) == 1 + tried
    assert lines[0].split(",")[-1] == "rejection"
    refused = local_cluster.run("match", "tests/match-raw/aligned", "--pairs", "0-7")
    assert refused.returncode == 2
    assert "(0, 7) is no pair" in refused.stderr
    assert local_cluster.run("match", "tests/match-raw/aligned", "--pairs", "x").returncode == 2
