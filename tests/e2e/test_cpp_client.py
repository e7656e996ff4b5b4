"""The C++ client, made from the protos alone, on a local cluster: a workflow, and chunks."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hyper.client import Client
from tests.support.local_cluster import LocalCluster

pytestmark = pytest.mark.timeout(900)  # of which some 40 s of one processor are the compiler's
FOLDER = Path(__file__).resolve().parents[2] / "clients" / "cpp"
BUILD_S = 800
NEEDED = ("g++", "make", "pkg-config", "protoc", "grpc_cpp_plugin")
RECIPE = """\
version: 1
name: from-cpp
experiments:
  count:
    command: "test {{n}} -lt 3"
    parameters: {n: [0, 1, 2]}
"""


@pytest.fixture(scope="module")
def example() -> Path:
    """The program, built in the client's folder."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    libraries = ["grpc++", "protobuf", "libcurl", "libzstd"]
    if not missing:
        found = subprocess.run(["pkg-config", "--exists", *libraries], check=False)
        missing = libraries if found.returncode != 0 else []
    if missing:
        pytest.skip(f"without {', '.join(missing)}: see clients/cpp/README.md for apt-get install")
    built = subprocess.run(
        ["make"], cwd=FOLDER, capture_output=True, text=True, timeout=BUILD_S, check=False
    )
    assert built.returncode == 0, built.stderr[-3000:]
    assert "warning" not in built.stderr, built.stderr[-3000:]
    return FOLDER / "build" / "example"


def run(example: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(example), *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_a_workflow_and_a_chunk(example: Path, local_cluster: LocalCluster, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    values = np.random.default_rng(5).integers(0, 200, (3, 70, 90), np.uint8)
    with Client(local_cluster.endpoint) as client:
        with client.session("default/cpp") as session:
            made = session.create_array(
                "raw", values.shape, "uint8", chunks=(1, 32, 32), shards=(1, 64, 64)
            )
            made[:2] = values[:2]  # nothing is written of the third section
        name = client.open_array("default/cpp/raw").name
    for index, size, total in (
        ("1,1,1", 32 * 32, int(values[1, 32:64, 32:64].sum())),
        ("2,0,0", 0, 0),
    ):
        done = run(example, local_cluster.endpoint, str(recipe), name, index)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["state"] == "RUN_STATE_SUCCEEDED" and found["succeeded"] == 3
        assert (found["bytes"], found["sum"]) == (size, total)
    wrong = run(example, local_cluster.endpoint, str(recipe), name, "9,0,0")
    assert wrong.returncode == 1 and "no such chunk" in wrong.stderr


def test_an_error_is_one_line(example: Path, local_cluster: LocalCluster, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nname: x\nexperiments: {a: {comand: x}}\n")
    done = run(example, local_cluster.endpoint, str(recipe))
    assert done.returncode == 1
    assert "comand" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    failing = tmp_path / "failing.yaml"
    failing.write_text("version: 1\nname: x\nexperiments: {a: {command: 'false', retries: 0}}\n")
    done = run(example, local_cluster.endpoint, str(failing))
    assert done.returncode == 1 and json.loads(done.stdout)["state"] == "RUN_STATE_FAILED"
