"""Synchronous training: ranks are as one process, and a killed one changes nothing."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import psutil
import pytest

from examples.run import load
from examples.workloads import WORKLOADS
from hyper.client import Client
from hyper.errors import NotFoundError
from tests.support.local_cluster import LocalCluster

pytestmark = pytest.mark.timeout(300)


def recipe(ranks: int, dataset: str, **parameters: Any) -> dict[str, Any]:
    document = load(WORKLOADS["detector"], "test", ranks)
    document["experiments"]["begin"]["parameters"]["dataset"] = dataset
    document["experiments"]["train"]["parameters"].update(parameters)
    return document


def losses(client: Client, dataset: str) -> np.ndarray:
    return np.array(json.loads(client.open_dataset(dataset).read("losses.json")))


def test_two_ranks_are_as_one_process(local_cluster: LocalCluster) -> None:
    with Client(local_cluster.endpoint) as client:
        for ranks in (1, 2):
            client.submit(recipe(ranks, f"default/ranks-{ranks}")).wait(check=True)
        one, two = (losses(client, f"default/ranks-{ranks}") for ranks in (1, 2))
    assert np.allclose(one, two, rtol=1e-4), (one, two)


def test_a_killed_rank_changes_nothing(local_cluster: LocalCluster) -> None:
    with Client(local_cluster.endpoint) as client:
        client.submit(recipe(2, "default/unharmed", steps=100)).wait(check=True)
        workflow = client.submit(recipe(2, "default/killed", steps=100))
        _kill_a_rank(local_cluster, client, workflow)
        workflow.wait(check=True)
        tasks = list(workflow.tasks("train"))
        assert sum(task.failures + task.losses for task in tasks) > 0
        expected, found = losses(client, "default/unharmed"), losses(client, "default/killed")
    assert len(found) == 100
    assert np.allclose(expected, found, rtol=1e-4)


def _kill_a_rank(cluster: LocalCluster, client: Client, workflow: Any) -> None:
    """SIGKILL the process of one rank once there is a checkpoint."""
    while not list(workflow.tasks("begin")) or workflow.task("begin", 0).result is None:
        time.sleep(0.05)
    session = client.attach(workflow.task("begin", 0).result["session"])
    while not _exists(session, "checkpoint.pt"):
        assert not workflow.refresh().state.ended, workflow.status.message
        time.sleep(0.02)
    task = workflow.task("train", 1)
    (worker,) = [
        each for each in cluster.processes("worker") if each["name"] in task.worker
    ] or cluster.processes("worker")[:1]
    children = [
        child
        for child in psutil.Process(worker["pid"]).children(recursive=True)
        if "hyper_worker.runner.child" in " ".join(child.cmdline())
    ]
    assert children, f"no process runs rank 1 on {task.worker}"
    for child in children:
        child.kill()


def _exists(session: Any, path: str) -> bool:
    try:
        return bool(session.exists(path))
    except NotFoundError:
        return False
