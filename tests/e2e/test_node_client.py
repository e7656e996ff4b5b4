"""The Node client, made from the protos alone, on a local cluster: a workflow, and a chunk."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hyper.client import Client
from tests.support.local_cluster import LocalCluster

pytestmark = pytest.mark.timeout(300)
FOLDER = Path(__file__).resolve().parents[2] / "clients" / "node"
RECIPE = """\
version: 1
name: from-node
experiments:
  count:
    command: "test {{n}} -lt 3"
    parameters: {n: [0, 1, 2]}
"""


@pytest.fixture(scope="module")
def node() -> str:
    """The program, with the client's packages beside it."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        pytest.skip("there is no node: apt-get install nodejs npm")
    if not (FOLDER / "node_modules" / "fzstd").is_dir():
        done = subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund"], cwd=FOLDER, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            pytest.skip(f"the packages of npm cannot be had: {done.stderr.strip()[-200:]}")
    return program


def test_a_workflow_and_a_chunk(node: str, local_cluster: LocalCluster, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    values = np.random.default_rng(5).integers(0, 200, (3, 70, 90), np.uint8)
    with Client(local_cluster.endpoint) as client:
        with client.session("default/node") as session:
            made = session.create_array(
                "raw", values.shape, "uint8", chunks=(1, 32, 32), shards=(1, 64, 64)
            )
            made[...] = values
        name = client.open_array("default/node/raw").name
    done = subprocess.run(
        [node, "example.js", local_cluster.endpoint, str(recipe), name, "2,1,1"], cwd=FOLDER,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["state"] == "RUN_STATE_SUCCEEDED" and found["succeeded"] == 3
    assert found["shape"] == [3, 70, 90]
    assert found["bytes"] == 32 * 32
    assert found["sum"] == int(values[2, 32:64, 32:64].sum())


def test_an_error_is_one_line(node: str, local_cluster: LocalCluster, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nname: x\nexperiments: {a: {comand: x}}\n")
    done = subprocess.run(
        [node, "example.js", local_cluster.endpoint, str(recipe)], cwd=FOLDER,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "comand" in done.stderr and len(done.stderr.strip().splitlines()) == 1
