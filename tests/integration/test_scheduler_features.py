"""Gangs, index-wise dependencies, fan-out, trials and refusals, on real processes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyper.client import Client
from hyper.status import RunState, TaskState
from tests.support.servers import EtcdServer, S3Server
from tests.support.services import Services, run_services

FUNCTIONS = "tests.integration.feature_functions"


# one cluster, whose start takes a while on a busy machine
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def services(
    tmp_path_factory: pytest.TempPathFactory, etcd_server: EtcdServer, s3_server: S3Server
) -> Iterator[Services]:
    """One cluster for all tests here: starting it takes longer than most of them."""
    name = f"test-{secrets.token_hex(8)}"
    folder = tmp_path_factory.mktemp("features")
    with run_services(folder, etcd_server, s3_server.settings(name), f"/{name}") as found:
        yield found


@pytest.fixture
def client(services: Services) -> Iterator[Client]:
    with services.client() as client:
        yield client


def test_a_gang_meets_and_goes_on_after_the_loss_of_a_rank(client: Client, tmp_path: Path) -> None:
    """All ranks meet at MASTER_ADDR:MASTER_PORT; one is killed once; the sum comes from all."""
    workflow = client.submit(
        {
            "version": 1,
            "name": "gang",
            "experiments": {
                "train": {
                    "gang": 3,
                    "function": f"{FUNCTIONS}:train",
                    "parameters": {"folder": str(tmp_path), "steps": 4},
                    "retries": 1,
                }
            },
        }
    )
    status = workflow.wait(timeout_s=50, check=True)
    assert status.tasks.total == 3
    results = [workflow.task("train", rank).result for rank in range(3)]
    assert [each["rank"] for each in results] == [0, 1, 2]
    assert {each["sum"] for each in results} == {0 + 1 + 2}
    assert all(each["first_step"] > 0 for each in results)  # from the checkpoint
    assert {each["local_world_size"] for each in results} == {3}


def test_a_gang_of_one_is_one(client: Client) -> None:
    """What runs as a gang runs with `gang: 1` too; ranks have processes of their own."""
    experiment = {
        "gang": 1, "function": f"{FUNCTIONS}:place", "parameters": {"number": {"range": [0, 6]}}
    }  # fmt: skip
    workflow = client.submit({"version": 1, "name": "one", "experiments": {"train": experiment}})
    workflow.wait(timeout_s=50, check=True)
    results = [workflow.task("train", index).result for index in range(6)]
    assert len({each.pop("pid") for each in results}) == 6
    assert {tuple(each.values()) for each in results} == {("0", "1", "0", "1", "0")}
    plain = {"function": f"{FUNCTIONS}:ranked"}
    workflow = client.submit({"version": 1, "name": "none", "experiments": {"train": plain}})
    workflow.wait(timeout_s=50, check=True)
    assert workflow.task("train", 0).result == {"ranked": False}


def test_commands_print_items_and_tasks_follow_them_one_by_one(client: Client) -> None:
    workflow = client.submit(
        {
            "version": 1,
            "name": "pipeline",
            "experiments": {
                "prepare": {
                    "command": 'echo \'::hyper result {"list.json": ["u v", 7, {"k": 1}]}\''
                },
                "square": {
                    "parameters": {"item": {"from": "prepare/list.json"}},
                    "command": "echo '::hyper result '\"$(echo {{item}} | wc -c)\"",
                },
                "check": {
                    "depends_on": {"square": "each"},
                    "parameters": {"item": {"from": "prepare/list.json"}},
                    "function": f"{FUNCTIONS}:echo",
                },
            },
        }
    )
    workflow.wait(timeout_s=50, check=True)
    assert [task.parameters for task in workflow.tasks("square")] == [
        {"item": "u v"}, {"item": 7}, {"item": {"k": 1}}
    ]  # fmt: skip
    assert [workflow.task("square", i).result for i in range(3)] == [4, 2, 9]
    assert workflow.task("check", 0).result == {"item": "u v"}


def test_trials_are_chosen_compared_and_stopped(client: Client) -> None:
    workflow = client.submit(
        {
            "version": 1,
            "name": "search",
            "experiments": {
                "search": {
                    "function": f"{FUNCTIONS}:trial",
                    "parameters": {"x": "0.1-0.9", "steps": 30},
                    "sampling": "tpe",
                    "samples": 8,
                    "workers": 4,
                    "objective": {
                        "metric": "score",
                        "early_stopping": {"asha": {"min_steps": 1, "reduction": 2}},
                    },
                }
            },
        }
    )
    status = workflow.wait(timeout_s=55, check=True)
    tasks = [workflow.task("search", index) for index in range(8)]
    assert all(0.1 <= task.parameters["x"] <= 0.9 for task in tasks)
    assert len({task.parameters["x"] for task in tasks}) == 8
    best = max(tasks, key=lambda task: task.objective or 0.0)
    assert not best.stopped_early
    assert f"by task {best.index}" in status.experiment("search").message
    stopped = [task for task in tasks if task.stopped_early]
    assert stopped and all(task.result["stopped_early"] for task in stopped)
    assert all(task.step < 30 for task in stopped)


def test_what_cannot_succeed_is_tried_once(client: Client) -> None:
    for function, words in (("refused", "no such section"), ("needs_more", "missing")):
        workflow = client.submit(
            {
                "version": 1,
                "name": "refused",
                "experiments": {"a": {"function": f"{FUNCTIONS}:{function}", "retries": 5}},
            }
        )
        assert workflow.wait(timeout_s=50).state is RunState.FAILED
        task = workflow.task("a", 0)
        assert (task.state, task.failures) == (TaskState.FAILED, 1)
        assert words in task.message


def test_why_a_workflow_waits_is_said_and_a_lost_reply_changes_nothing(
    services: Services, client: Client
) -> None:
    recipe = {
        "version": 1,
        "name": "large",
        "experiments": {"a": {"command": "true", "hardware": {"cpus": 5_000}}},
    }
    request_id = "7f5fbd1e-5a55-4a33-9f0a-0d8ad2d6a001"
    first = client.submit(recipe, request_id=request_id)
    seen = next(status.waiting for status in first.watch() if status.waiting)
    assert seen.startswith("a: a task needs 5000 CPUs, and no worker has more than ")
    with services.client() as other:  # as if the first one had died before the answer
        again = other.submit(recipe, request_id=request_id)
        assert again.name == first.name
        again.cancel()
