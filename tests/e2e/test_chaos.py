"""`hyper chaos` on a real cluster: workers are really killed, the work comes out the same."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from hyper.client import Client
from tests.support.local_cluster import LocalCluster

pytestmark = pytest.mark.timeout(300)
TASKS = 24


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Two machines, none, one, two."""
    file = tmp_path / "zone.json"
    data = [2, 0, 1, 2] * 200
    file.write_text(json.dumps({"metadata": {"gap_seconds": 600}, "data": data}))
    return file


SPEED = "300"  # a tick of the recording in two seconds


def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({
        "version": 1, "name": "drilled", "experiments": {"work": {
            "command": "sleep 0.4; printf '::hyper result {\"i\": %s}\\n' {{i}}",
            "parameters": {"i": {"range": [0, TASKS]}}, "retries": 0,
        }},
    }))  # fmt: skip
    return file


def results(cluster: LocalCluster, name: str) -> list[int]:
    with Client(cluster.endpoint) as client:
        workflow = client.workflow(name)
        return [workflow.task("work", i).result["i"] for i in range(TASKS)]


def chaos(cluster: LocalCluster, *arguments: str) -> Any:
    return cluster.json("chaos", "--speed", SPEED, *arguments)


def test_a_workflow_comes_through(local_cluster: LocalCluster, trace: Path, tmp_path: Path):
    workflow = local_cluster.json("submit", str(recipe(tmp_path)))["name"]
    done = chaos(local_cluster, "--trace", str(trace), workflow)
    assert done["state"] == "SUCCEEDED"
    assert done["kills"] >= 2
    assert done["restarts"] == done["kills"]
    assert 0 < done["usd"] < done["on_demand_usd"]
    assert done["ledger"] is None  # this cluster has no catalogue of offers
    assert results(local_cluster, workflow) == list(range(TASKS))


def test_a_job_beside_it(local_cluster: LocalCluster, trace: Path, tmp_path: Path):
    job = [sys.executable, "-m", "hyper.cli.main", "submit", "-w", str(recipe(tmp_path))]
    done = chaos(local_cluster, "--trace", str(trace), "--beside", shlex.join(job))
    assert done["exit_status"] == 0
    assert done["kills"] >= 1


def test_a_job_that_fails_is_said(local_cluster: LocalCluster, trace: Path):
    done = local_cluster.run("chaos", "--trace", str(trace), "--beside", "sh -c 'exit 3'")
    assert (done.returncode, "ended with status 3" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--trace", "absent.json"], "cannot be read"),
        (["--beside", "no-such-program"], "cannot be started"),
        (["--beside", "true", "a-workflow"], "both say when to end"),
    ],
)
def test_mistakes_are_one_line(
    local_cluster: LocalCluster, trace: Path, arguments: list[str], says: str
):
    if "--trace" not in arguments:
        arguments = ["--trace", str(trace), *arguments]
    done = local_cluster.run("chaos", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
