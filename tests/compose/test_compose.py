"""docker-compose.yml for real, from outside through the SDK. Opt-in: `make compose-test`."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hyper
from hyper import sample_data
from hyper.client import Client
from hyper.compute_matching import match_images
from hyper.images import write_png
from hyper.status import RunState
from hyperapi.storage.v1.dataset_service_pb2 import ListDatasetsRequest
from hyperapi.storage.v1.dataset_service_pb2_grpc import DatasetServiceStub
from scripts import compose_env, dashboards
from tests.compiler.nets import small_unet_model
from tests.support import compose
from tests.support.compose import OWN, Stack, docker, wait_for

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(
        os.environ.get("HYPER_TEST_COMPOSE") != "1",
        reason="the stack of containers is opt-in: `make compose-test`, with a Docker daemon",
    ),
    pytest.mark.timeout(1800),
]
REPLICAS = 3
NONE = " or vector(0)"
SCALED = ("worker", "inference", "matcher", "storage-gateway")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    compose.build()
    made = compose.new_stack(tmp_path_factory.mktemp("compose"))
    try:
        made.compose("up", "-d")
        for service in OWN:
            wait_for(lambda s=service: made.healthy(s, 2 if s == "scheduler" else 1), service)
        yield made
    finally:
        made.compose("down", "-v", "-t", "20")
    assert made.leftovers() == {"containers": "", "networks": "", "volumes": ""}


@pytest.fixture
def client(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    for name, value in stack.environment.items():
        if name.startswith("HYPER_"):
            monkeypatch.setenv(name, value)
    with hyper.connect(patience_s=120) as made:
        yield made


@contextmanager
def meanwhile(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Call `work` again and again while the block runs; its results. An exception is one, too."""
    results: list[Any] = []
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            try:
                results.append(work())
            except hyper.errors.HyperError as error:
                results.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        wait_for(lambda: len(results) > 5, "the first calls")
        yield results
        so_far = len(results)
        wait_for(lambda: len(results) > so_far + 5, "calls afterwards")
    finally:
        stop.set()
        thread.join()


def list_datasets(client: Client) -> Any:
    request = ListDatasetsRequest(parent="tenants/demo")
    return client.call("storage-gateway", DatasetServiceStub, "ListDatasets", request)


def recipe(tasks: int, command: str) -> dict[str, Any]:
    parameters = {"i": {"range": [0, tasks]}}
    return {"version": 1, "name": "many", "experiments": {
        "many": {"command": command, "parameters": parameters}}}  # fmt: skip


def done(workflow: hyper.Workflow) -> int:
    """How many of its tasks have succeeded."""
    return sum(each.tasks.succeeded for each in workflow.refresh().experiments)


def scale(stack: Stack) -> None:
    """Three of each, for the tests that want replicas."""
    arguments = [text for name in SCALED for text in ("--scale", f"{name}={REPLICAS}")]
    stack.compose("up", "-d", "--no-recreate", *arguments)
    for name in SCALED:
        wait_for(lambda n=name: stack.healthy(n, REPLICAS), f"three of {name}")


def test_a_new_users_first_commands(stack: Stack) -> None:
    endpoint = stack.port("scheduler", 50051)
    ran = stack.hyper("--endpoint", endpoint, "submit", "examples/hello/recipe.yaml", "--watch")
    assert ran.returncode == 0, ran.stderr
    assert "11 of 11 tasks done" in ran.stderr + ran.stdout


def test_nobody_gets_in_without_a_token(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYPER_TOKEN", raising=False)
    for token in (None, "hyp1.k1.e30.AAAA"):
        if token is not None:
            monkeypatch.setenv("HYPER_TOKEN", token)
        stranger = hyper.connect(stack.port("scheduler", 50051))
        with stranger, pytest.raises(hyper.errors.UnauthenticatedError):
            list(stranger.workflows())


def test_containers_are_what_the_file_says(stack: Stack) -> None:
    for service in OWN:
        for container in stack.containers(service):
            facts = stack.inspect(container)
            assert facts["Config"]["User"] == "hyper"
            assert facts["HostConfig"]["CapDrop"] == ["ALL"] and facts["HostConfig"]["Memory"] > 0
            for bound in facts["NetworkSettings"]["Ports"].values():
                assert all(each["HostIp"] == "127.0.0.1" for each in bound or [])
            secrets = [line for line in facts["Config"]["Env"] if "S3__" in line or "AUTH" in line]
            assert bool(secrets) != (service == "worker")  # agents have no keys


LOOK_AROUND = """\
import os, socket, time
for name in ("etcd", "grafana"):
    try:
        print("found", name, socket.gethostbyname(name))
    except OSError:
        pass
own, end = os.environ["HYPER_TOKEN"], time.monotonic() + 25
while time.monotonic() < end:  # two health checks are made meanwhile
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ") as file:
                pairs = file.read().split(chr(0))
        except OSError:
            continue
        tokens = [pair for pair in pairs if pair.startswith("HYPER_TOKEN=")]
        if tokens and tokens != [f"HYPER_TOKEN={own}"]:
            print("found a token in", pid)
    time.sleep(0.001)
print("looked around")
"""


def test_a_task_finds_neither_etcd_nor_the_workers_token(client: Client) -> None:
    looking = recipe(1, "python -c {{program}}")
    looking["experiments"]["many"]["parameters"]["program"] = LOOK_AROUND
    workflow = client.submit(looking)
    workflow.wait()
    assert workflow.log_tail(workflow.task("many", 0)) == ["looked around"]


def test_the_demo_from_outside(stack: Stack, tmp_path: Path) -> None:
    folder = sample_data.find()
    if folder is None:
        folder = tmp_path / "synthetic"
        folder.mkdir()
        for z, section in enumerate(sample_data.synthetic_stack().sections):
            write_png(folder / f"z{z:02}.png", section)
    result = tmp_path / "result.json"
    report = tmp_path / "report.html"
    ran = stack.hyper(
        "align", str(folder), "demo/aligned", "--report", str(report), "--result", str(result),
        timeout_s=1500,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    facts = json.loads(result.read_text())
    print({key: facts[key] for key in ("cpc94_before", "cpc94", "tissue_kept", "seconds")})
    assert facts["cpc94"] >= 0.5 and facts["tissue_kept"] >= 0.95
    assert facts["residual_over_10px"] == 0 and report.stat().st_size > 10_000


def test_each_replica_serves_its_share(stack: Stack, client: Client) -> None:
    list_datasets(client)  # knows one gateway
    with client.session("demo/net") as session:
        session.write("net.onnx", small_unet_model())
    scale(stack)
    for service in SCALED[1:]:
        wait_for(lambda s=service: len(client.addresses(s)) == REPLICAS, f"{service} is known")
    image = np.random.default_rng(0).integers(0, 255, (300, 300)).astype(np.uint8)
    block = np.zeros((1, 1, 4, 32, 32), np.float32)
    points = np.array([[150.0, 150.0]])
    work = {
        "storage-gateway": ("ListDatasets", lambda: list_datasets(client)),
        "inference": ("Predict", lambda: client.predict("demo/net/net.onnx", block)),
        "matcher": ("Match", lambda: match_images(client, image, image, points, template_px=64)),
    }
    for service, (method, call) in work.items():
        call()
        before = {
            each: stack.metric(each, "hyper_rpc_total", f'method="{method}"')
            for each in stack.containers(service)
        }
        for _ in range(60):
            call()
        shares = [
            stack.metric(each, "hyper_rpc_total", f'method="{method}"') - count
            for each, count in before.items()
        ]
        print(service, shares)
        assert sum(shares) == 60 and all(18 <= share <= 22 for share in shares), service
    before = {
        each: stack.metric(each, "hyper_worker_finished_total")
        for each in stack.containers("worker")
    }
    client.submit(recipe(180, "sleep 0.5")).wait()
    shares = [stack.metric(each, "hyper_worker_finished_total") - n for each, n in before.items()]
    print("worker", shares)
    assert sum(shares) == 180 and all(54 <= share <= 66 for share in shares)


def test_killed_replicas_fail_no_call(stack: Stack, client: Client) -> None:
    scale(stack)
    block = np.zeros((1, 1, 4, 32, 32), np.float32)
    with client.session("demo/net") as session:
        session.write("net.onnx", small_unet_model())

    def calls() -> Any:
        list_datasets(client)
        return client.predict("demo/net/net.onnx", block)

    with meanwhile(calls) as results:
        for service in ("storage-gateway", "inference"):
            victim = stack.containers(service)[0]
            stack.crash(victim)
            wait_for(lambda s=service: stack.healthy(s, REPLICAS), f"{service} is back")
    failed = [each for each in results if isinstance(each, Exception)]
    print(f"{len(results)} rounds of calls while two replicas were killed, {len(failed)} failed")
    assert failed == []


@pytest.mark.parametrize("victim", ["leader", "worker", "etcd", "s3"])
def test_a_workflow_outlives_a_kill(stack: Stack, client: Client, victim: str) -> None:
    workflow = client.submit(recipe(60, "sleep 1"))
    wait_for(lambda: done(workflow) >= 2, "it runs")
    if victim == "leader":
        (container,) = (
            each for each in stack.containers("scheduler")
            if stack.metric(each, "hyper_scheduler_leading") == 1
        )  # fmt: skip
    else:
        container = stack.containers(victim)[0]
    begun = time.monotonic()
    stack.crash(container)
    workflow.wait()
    print(f"{victim} killed: done {time.monotonic() - begun:.1f} s later")
    assert done(workflow) == 60
    service = "scheduler" if victim == "leader" else victim
    wait_for(lambda: len(stack.containers(service)) >= 1, f"{service} is back")


@pytest.mark.parametrize("service", ["worker", "storage-gateway", "scheduler"])
def test_a_workflow_outlives_a_partition(stack: Stack, client: Client, service: str) -> None:
    scale(stack)
    workflow = client.submit(recipe(90, "sleep 1"))
    wait_for(lambda: done(workflow) >= 2, "it runs")
    container = stack.containers(service)[0]
    begun = time.monotonic()
    with stack.cut_off(container, service):
        before = done(workflow)
        wait_for(lambda: done(workflow) >= before + 10, "goes on without it")
        print(f"{service} cut off: ten more done {time.monotonic() - begun:.1f} s later")
    workflow.wait()
    assert done(workflow) == 90
    wait_for(lambda: stack.healthy(service, 2 if service == "scheduler" else 3), "it is back")
    if service == "worker":
        wait_for(
            lambda: stack.metric(container, "hyper_worker_connected") == 1, "the worker is back"
        )


def test_everything_is_watched(stack: Stack, client: Client) -> None:
    """After the tests above: every replica is scraped, every panel of every dashboard has data."""
    client.submit(recipe(4, "echo hello")).wait()
    prometheus = stack.port("prometheus", 9090)

    def down() -> list[Any]:
        with urllib.request.urlopen(f"http://{prometheus}/api/v1/targets") as answer:
            targets = json.load(answer)["data"]["activeTargets"]
        assert {each["labels"]["job"] for each in targets} >= {*OWN, "etcd", "prometheus"}
        return [each["scrapeUrl"] for each in targets if each["health"] != "up"]

    wait_for(lambda: not down(), "every target is up")
    # what a cluster without alerts, offers and GPUs has none of is shown as 0 (`or vector(0)`)
    shown = panels(stack)
    assert len(shown) > 50
    zeros = {title for title, text in shown if text.endswith(NONE)}
    assert zeros == {
        "Alerts", "Machines by offer", "Dollars an hour", "Launches and preemptions", "GPUs in use"
    }  # fmt: skip
    shown = [(title, text) for title, text in shown if not text.endswith(NONE)]

    def empty() -> list[tuple[str, str]]:
        return [(title, text) for title, text in shown if not ask(prometheus, text)]

    end = time.monotonic() + 90
    while empty() and time.monotonic() < end:
        time.sleep(1)
    assert empty() == []


def test_replicas_are_replaced_one_after_the_other(stack: Stack, client: Client) -> None:
    """As docs/operations.md says: new ones first, then the old ones go; no call fails."""
    service = "storage-gateway"
    old = stack.containers(service)
    with meanwhile(lambda: list_datasets(client)) as results:
        more = f"{service}={2 * len(old)}"
        stack.compose("up", "-d", "--no-deps", "--no-recreate", "--scale", more, service)
        wait_for(lambda: stack.healthy(service, 2 * len(old)), "the new ones are there")
        docker("stop", *old)
        docker("rm", *old)
        wait_for(lambda: stack.healthy(service, len(old)), "the new ones alone")
    assert not set(old) & set(stack.containers(service))
    assert [each for each in results if isinstance(each, Exception)] == []


def test_a_backup_is_restored(stack: Stack, client: Client, tmp_path: Path) -> None:
    """As docs/operations.md says, into volumes that are new."""
    with client.session("demo/kept") as session:
        session.write("text.txt", b"kept")
    workflow = client.submit(recipe(2, "echo hello"))
    workflow.wait()
    folder = tmp_path / "backup"
    folder.mkdir()
    mount = ("-v", f"{folder}:/backup", "--user", f"{os.getuid()}:{os.getgid()}")
    once = ("run", "--rm", "--no-deps", "-T")
    backup = ("--entrypoint", "python", "storage-gateway", "-m", "hyper_servicekit.backup")
    said = stack.compose(*once, *mount, *backup, "save", "/backup")
    assert "objects" in said
    stack.compose("down", "-v", "-t", "20")
    stack.compose(
        *once, "-v", f"{folder}:/backup", "--entrypoint", "etcdctl", "etcd", "snapshot", "restore",
        "/backup/etcd.db", "--data-dir", "/var/lib/etcd/data",
    )  # fmt: skip
    stack.compose("up", "-d", "s3")
    wait_for(lambda: stack.healthy("s3", 1), "S3 is there")
    stack.compose(*once, *mount, *backup, "restore", "/backup")
    stack.compose("up", "-d")
    wait_for(lambda: stack.healthy("scheduler", 2), "schedulers are there")
    wait_for(lambda: stack.healthy("storage-gateway", 1), "the gateway is there")
    with hyper.connect(stack.port("scheduler", 50051), patience_s=60) as again:
        assert again.open("demo/kept").read("text.txt") == b"kept"
        assert again.workflow(workflow.name).refresh().state is RunState.SUCCEEDED


def panels(stack: Stack) -> list[tuple[str, str]]:
    """Title and query of every panel that Grafana has, as the files say."""
    known = compose_env.read(stack.env)
    secret = base64.b64encode(f"admin:{known['HYPER_GRAFANA_PASSWORD']}".encode()).decode()
    grafana = stack.port("grafana", 3000)
    found = []
    for uid in (json.loads(text)["uid"] for text in dashboards.texts().values()):
        url = f"http://{grafana}/api/dashboards/uid/{uid}"
        request = urllib.request.Request(url, headers={"Authorization": f"Basic {secret}"})
        with urllib.request.urlopen(request) as answer:
            dashboard = json.load(answer)["dashboard"]
        for panel in dashboard["panels"]:
            found += [(panel["title"], each["expr"]) for each in panel.get("targets", [])]
    return found


def ask(prometheus: str, query: str) -> list[Any]:
    """The series that a panel's query has now."""
    text = query.replace("$__rate_interval", "1m")
    assert "$" not in text, text
    url = f"http://{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': text})}"
    with urllib.request.urlopen(url) as answer:
        series: list[Any] = json.load(answer)["data"]["result"]
    return series
