"""Recipes on the real scheduler, storage gateway and workers, through the SDK and the CLI."""

from __future__ import annotations

import json
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hyper.cli import main as cli
from hyper.client import Client
from hyper.errors import InvalidArgumentError, NotFoundError
from hyper.status import RunState, TaskState, WorkerInfo, WorkerState
from tests.support.servers import EtcdServer, S3Server
from tests.support.services import REPOSITORY, Services, run_services
from tests.support.waiting import until

MODULE = "tests.integration.worker_functions"


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, etcd_server: EtcdServer, s3_server: S3Server
) -> Iterator[Services]:
    """One cluster for all tests here: starting it takes longer than most of them."""
    fast = {"HEARTBEAT_S": "0.3", "LEASE_S": "1.5", "LEADER_TTL_S": "2"}
    name = f"test-{secrets.token_hex(8)}"
    with run_services(
        tmp_path_factory.mktemp("services"),
        etcd_server,
        s3_server.settings(name),
        f"/{name}",
        scheduler_settings=fast,
    ) as running:
        yield running


@pytest.fixture
def services(cluster: Services) -> Services:
    """The cluster with whatever an earlier test has killed or drained started again."""
    for process in (cluster.scheduler, *cluster.workers):
        if process.child is None or process.child.poll() is not None:
            process.start()
    with cluster.client() as client:
        until(lambda: len(ready(client)) == 2, "two workers that are ready")
    return cluster


def ready(client: Client) -> list[WorkerInfo]:
    return [worker for worker in client.workers() if worker.state is WorkerState.READY]


@pytest.fixture
def client(services: Services) -> Iterator[Client]:
    with services.client() as connected:
        yield connected


@pytest.fixture
def hyper(
    services: Services, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line: (exit status, stdout, stderr)."""
    monkeypatch.setenv("HYPER_ENDPOINT", services.scheduler.address)
    monkeypatch.setenv("HYPER_TENANT", "test")

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = cli.run(list(arguments))
        out, err = capfd.readouterr()
        return status, out, err

    return run


def recipe(**experiments: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "name": "test", "experiments": experiments}


@pytest.mark.timeout(120)
def test_hello(services: Services, hyper: Callable[..., tuple[int, str, str]]) -> None:
    file = REPOSITORY / "examples" / "hello" / "recipe.yaml"
    status, out, err = hyper("submit", str(file), "--watch", "--json")
    assert status == 0, err
    workflow = json.loads(out.splitlines()[-1])
    assert workflow["state"] == "SUCCEEDED"
    assert workflow["tasks"]["succeeded"] == 11
    assert "greet succeeded: 10 of 10 tasks done" in err
    name = workflow["id"]

    status, out, _ = hyper("tasks", f"{name}/greet/3", "--json")
    assert json.loads(out)["result"]["task"] == 3
    status, out, _ = hyper("logs", f"{name}/greet/0")
    assert out.startswith("hello, Ada")
    until(lambda: "says hello" in hyper("logs", name)[1], "the command's log")
    status, out, _ = hyper("logs", f"{name}/greet/0", "--json")
    (row,) = json.loads(out)
    assert status == 0 and (row["task"], row["state"]) == ("greet/0", "SUCCEEDED") and row["log"]
    status, out, _ = hyper("ps")
    assert name in out and "11/11" in out
    status, out, _ = hyper("ps", name)
    assert "greet" in out and "count" in out
    status, out, _ = hyper("nodes", "--json")
    assert sum(worker["state"] == "READY" for worker in json.loads(out)) == 2


@pytest.mark.timeout(120)
def test_a_failing_task_is_shown_with_its_log(
    client: Client, hyper: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"version: 1\nname: bad\nexperiments:\n  e:\n    function: {MODULE}:fail\n    retries: 1\n"
    )
    status, _, err = hyper("submit", str(file), "-w")
    assert status == 1
    assert "error: task e/0 failed: ValueError: the volume is upside down" in err
    assert "  | ValueError: the volume is upside down" in err
    workflow = next(client.workflows())
    task = client.workflow(workflow.name).task("e", 0)
    assert (task.state, task.failures) == (TaskState.FAILED, 2)


@pytest.mark.timeout(120)
def test_a_killed_worker_costs_no_failure(services: Services, client: Client) -> None:
    work = {"command": "sleep 0.3; echo {{i}}", "parameters": {"i": {"range": [0, 24]}}}
    workflow = client.submit(recipe(work=work))
    victim = services.workers[0]
    until(lambda: psutil.Process(victim.pid).children(recursive=True)[1:], "tasks on worker-0")
    orphans = psutil.Process(victim.pid).children(recursive=True)
    victim.stop(signal.SIGKILL)
    psutil.wait_procs(orphans, timeout=5)
    assert not [p for p in orphans if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    status = workflow.wait(60)
    assert status.state is RunState.SUCCEEDED
    assert status.tasks.lost > 0
    assert status.tasks.failed == 0
    assert {task.failures for task in workflow.tasks("work")} == {0}


@pytest.mark.timeout(120)
def test_a_killed_worker_leaves_no_orphan(services: Services, client: Client) -> None:
    workflow = client.submit(
        recipe(
            deaf={
                "command": "trap '' TERM; sleep 600 & sleep 600",
                "parameters": {"i": [1, 2]},
                "grace": "0.5s",
            },
            stubborn={"function": f"{MODULE}:stubborn", "grace": "0.5s"},
        )
    )
    victim = psutil.Process(services.workers[0].pid)
    until(lambda: workflow.refresh().tasks.running == 3, "all tasks run")
    until(lambda: b"child" in b"".join(workflow.logs("stubborn/0")), "the function's child")
    orphans = victim.children(recursive=True)
    services.workers[0].stop(signal.SIGKILL)
    _, alive = psutil.wait_procs(orphans, timeout=5)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    workflow.cancel()
    assert workflow.wait(60).state is RunState.CANCELLED


@pytest.mark.timeout(120)
def test_a_killed_scheduler_costs_nothing(services: Services, client: Client) -> None:
    counter = services.workers[0].folder / "counter"
    command = f"sleep 0.2; echo {{{{i}}}} >> {counter}"
    work = {"command": command, "parameters": {"i": {"range": [0, 24]}}}
    workflow = client.submit(recipe(work=work))
    until(lambda: counter.exists(), "the first task")
    services.scheduler.stop(signal.SIGKILL)
    timer = threading.Timer(1.0, services.scheduler.start)
    timer.start()
    status = workflow.wait(60)
    timer.join()
    assert status.state is RunState.SUCCEEDED
    assert status.tasks.failed == 0
    ran = list(map(int, counter.read_text().split()))
    assert sorted(set(ran)) == list(range(24))
    assert len(ran) <= 28  # only what was not yet written down may run a second time


@pytest.mark.timeout(120)
def test_sigterm_hands_tasks_to_others(services: Services, client: Client) -> None:
    work = {"command": "sleep 0.5", "parameters": {"i": {"range": [0, 8]}}}
    workflow = client.submit(recipe(work=work))
    victim = services.workers[0]
    until(lambda: psutil.Process(victim.pid).children(recursive=True)[1:], "tasks on worker-0")
    assert victim.stop(signal.SIGTERM) == 0
    status = workflow.wait(60)
    assert (status.state, status.tasks.failed) == (RunState.SUCCEEDED, 0)
    assert {task.failures for task in workflow.tasks("work")} == {0}


@pytest.mark.timeout(120)
def test_cancel_and_retry(
    services: Services, client: Client, hyper: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    command = f"echo waiting; while ! [ -e {gate} ]; do sleep 0.05; done"
    workflow = client.submit(recipe(e={"command": command}))
    until(lambda: workflow.refresh().tasks.running == 1, "the task runs")
    status, out, _ = hyper("cancel", workflow.status.id, "--reason", "a test")
    assert status == 0
    assert "cancelled" in out
    assert workflow.wait(20).state is RunState.CANCELLED
    assert workflow.status.message
    gate.touch()
    status, _, err = hyper("retry", workflow.status.id, "--watch")
    assert status == 0, err
    assert workflow.refresh().state is RunState.SUCCEEDED


@pytest.mark.timeout(120)
def test_logs_can_be_followed(services: Services, client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    command = f"echo first; while ! [ -e {gate} ]; do sleep 0.05; done; echo second"
    workflow = client.submit(recipe(e={"command": command}))
    log = b""
    for part in workflow.logs("e/0", follow=True):
        log += part
        if b"first" in log:
            gate.touch()
    assert log == b"first\nsecond\n"


@pytest.mark.timeout(120)
def test_drain_and_wrong_names(
    services: Services, client: Client, hyper: Callable[..., tuple[int, str, str]]
) -> None:
    victim = next(worker for worker in ready(client) if "/worker-0-" in worker.name)
    assert client.drain(victim.name).state is WorkerState.DRAINING
    status, out, _ = hyper("nodes")
    assert f"{victim.name.removeprefix('workers/')}  draining" in out
    assert services.workers[0].stop(signal.SIGTERM) == 0
    with pytest.raises(NotFoundError):
        client.workflow("nothing")
    with pytest.raises(InvalidArgumentError, match="does not exist"):
        client.submit("no/such/recipe.yaml")
    with pytest.raises(InvalidArgumentError, match="line 5"):
        client.submit("version: 1\nname: x\nexperiments:\n  e:\n    workdir: nowhere\n")
    status, _, err = hyper("logs", "a/b/c/d")
    assert (status, err.count("\n")) == (2, 1)
