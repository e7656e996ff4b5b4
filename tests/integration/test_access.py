"""Tokens on a whole cluster: roles, joining, tasks' own tokens, revocation, every RPC refused."""

from __future__ import annotations

import base64
import json
import os
import secrets
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyper import _transport, access, running, stores
from hyper._wire_errors import from_rpc_error
from hyper.cli.visible import shown, visible_workflows
from hyper.client import Client
from hyper.datasets import list_datasets
from hyper.errors import (
    HyperError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from hyper.status import RunState, WorkerState
from hyper_servicekit.etcd import Etcd
from hyper_servicekit.objects import S3Store
from hyper_servicekit.signing import new_key, public_key
from hyper_servicekit.tokens import ANY_TENANT, Role, Signer
from hyperapi.inference.v1 import inference_service_pb2
from hyperapi.matcher.v1 import matcher_service_pb2
from hyperapi.scheduler.v1 import (
    cluster_service_pb2,
    placement_service_pb2,
    secret_service_pb2,
    workflow_service_pb2,
)
from hyperapi.storage.v1 import array_service_pb2, dataset_service_pb2, history_service_pb2
from hyperapi.worker.v1 import agent_service_pb2
from tests.compiler.nets import bandpass_model
from tests.support import fuzz
from tests.support.servers import EtcdServer, S3Server
from tests.support.services import Services, run_services
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
KEY = new_key()
SIGNER = Signer("k1", KEY)
SECRETS_KEY = base64.b64encode(secrets.token_bytes(32)).decode()
FILES = {
    "scheduler": (
        cluster_service_pb2, placement_service_pb2, secret_service_pb2, workflow_service_pb2,
        agent_service_pb2,
    ),
    "storage": (dataset_service_pb2, array_service_pb2, history_service_pb2),
    "inference": (inference_service_pb2,),
    "matcher": (matcher_service_pb2,),
}  # fmt: skip
METHODS = [
    (process, method)
    for process, files in FILES.items()
    for file in files
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
NAMES = [f"{process}-{method.name}" for process, method in METHODS]
# What a caller may be told of its own mistakes, or of the cluster's state.
TOLD = {
    "OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "ABORTED",
    "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "CANCELLED",
    "DEADLINE_EXCEEDED",  # our own, of streams that have no end
}  # fmt: skip
MADE: list[str] = []  # every token that was shown
TRIED: Counter[tuple[str, str]] = Counter()  # by method and answer


def token(tenant: str, role: Role | None = None, *, lifetime_s: float = 3600) -> str:
    expires_s = time.time() + lifetime_s
    MADE.append(SIGNER.sign(tenant, subject="test", expires_s=expires_s, role=role))
    return MADE[-1]


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, etcd_server: EtcdServer, s3_server: S3Server
) -> Iterator[tuple[Services, EtcdServer, str]]:
    name = f"test-{secrets.token_hex(8)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPER_TOKEN", token(ANY_TENANT, Role.WORKER))
        with run_services(
            tmp_path_factory.mktemp("services"), etcd_server, s3_server.settings(name), f"/{name}",
            workers=1, compute=True, compute_token=token(ANY_TENANT, Role.SERVICE),
            common_settings={"AUTH_KEYS__K1": public_key(KEY), "MAX_CONCURRENT_RPCS": "64",
                             "LOG_FORMAT": "json", "LOG_LEVEL": "DEBUG"},
            worker_settings={"LOG_LEVEL": "DEBUG"},
            scheduler_settings={"AUTH_KEYS__K1": KEY, "SECRETS_KEY": SECRETS_KEY,
                                "HEARTBEAT_S": "0.3", "LEASE_S": "2", "LEADER_TTL_S": "2"},
        ) as started:  # fmt: skip
            pids = {each: started.process(each).pid for each in FILES}
            yield started, etcd_server, f"/{name}"
            found = fuzz.Found(TRIED, *crashes(started, pids))
    print(found.in_short())
    if report := os.environ.get("HYPER_FUZZ_REPORT"):
        Path(report).write_text(found.table())


def crashes(services: Services, pids: dict[str, int]) -> tuple[int, int]:
    """How many services have ended or been started again, and how many bugs their logs tell of."""
    ended = bugs = 0
    for name, pid in pids.items():
        process = services.process(name)
        assert process.child is not None
        ended += process.pid != pid or process.child.poll() is not None
        bugs += process.log.read_text(errors="replace").count('"call failed"')
    return ended, bugs


@pytest.fixture
def as_(
    cluster: tuple[Services, EtcdServer, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Client]]:
    """A client that shows a token; one at a time."""
    made: list[Client] = []

    def client(shown: str) -> Client:
        monkeypatch.setenv("HYPER_TOKEN", shown)
        made.append(Client(cluster[0].scheduler.address, tenant="lab", patience_s=10))
        return made[-1]

    yield client
    for each in made:
        each.close()


def refused(call: Callable[[], Any], kind: type[HyperError]) -> bool:
    try:
        call()
    except HyperError as error:
        assert isinstance(error, kind), error
        return True
    return False


@pytest.mark.timeout(120)
def test_a_task_has_its_tenants_token_and_not_the_workers(as_: Callable[[str], Client]) -> None:
    bob = as_(token("bob"))
    with bob.session("bob/notes") as session:
        session.write("secret.txt", b"of bob")
    lab = as_(token("lab"))
    with lab.session("lab/notes") as session:
        session.write("own.txt", b"of lab")
    program = (
        "import hyper\n"
        "c = hyper.connect()\n"
        "print(list(c.open('lab/notes').files())[0].path)\n"
        "try:\n    c.open('bob/notes'); print('READ')\n"
        "except hyper.errors.PermissionDeniedError: print('refused')\n"
    )
    recipe = {"version": 1, "name": "t", "experiments": {"t": {
        "command": "python -c {{p}}", "parameters": {"p": program}}}}  # fmt: skip
    workflow = lab.submit(recipe)
    assert workflow.wait().state is RunState.SUCCEEDED
    lines = lab.workflow(workflow.name).log_tail(workflow.task("t", 0))
    assert lines == ["own.txt", "refused"]


def test_lists_of_every_tenant_are_for_tokens_of_all(
    as_: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"version": 1, "name": "t", "experiments": {"t": {"command": "true"}}}
    made = as_(token("lab")).submit(recipe).name
    assert refused(
        lambda: list(as_(token("lab")).workflows(every_tenant=True)), PermissionDeniedError
    )
    operator = as_(token(ANY_TENANT))
    assert made in [each.name for each in operator.workflows(every_tenant=True)]
    operator.tenant = "bob"
    assert made not in [each.name for each in operator.workflows()]
    monkeypatch.delenv("HYPER_TENANT", raising=False)
    assert made in [each.name for each in visible_workflows(operator)]
    monkeypatch.setenv("HYPER_TENANT", "bob")
    assert made not in [each.name for each in visible_workflows(operator)]
    monkeypatch.delenv("HYPER_TENANT")
    own = list(visible_workflows(as_(token("lab"))))
    assert {each.name.split("/")[1] for each in own} == {"lab"}
    assert shown(own[0]) == own[0].name
    monkeypatch.setenv("HYPER_TENANT", "lab")
    assert shown(own[0]) == own[0].id


def test_roles(as_: Callable[[str], Client]) -> None:
    admin = as_(token(ANY_TENANT))
    (worker,) = [each for each in admin.workers() if each.state is WorkerState.READY]
    made = access.create_token(admin, "lab", role="user", subject="ada", lifetime_s=60)
    tenant_admin = token("lab", Role.ADMIN)

    user = as_(made.text)
    assert list(user.workflows()) is not None
    for forbidden in (
        lambda: user.drain(worker.name),
        lambda: access.create_token(user, "lab", role="user", subject="", lifetime_s=60),
        lambda: list(list_datasets(user, "bob")),
    ):
        assert refused(forbidden, PermissionDeniedError)

    agent = as_(token(ANY_TENANT, Role.WORKER))
    assert refused(lambda: list(agent.workflows()), PermissionDeniedError)
    assert refused(lambda: agent.drain(worker.name), PermissionDeniedError)
    assert list(list_datasets(agent, "lab")) is not None

    local = as_(tenant_admin)
    access.create_token(local, "lab", role="user", subject="", lifetime_s=60)
    for tenant in ("bob", ANY_TENANT):
        assert refused(
            lambda t=tenant: access.create_token(local, t, role="user", subject="", lifetime_s=60),
            PermissionDeniedError,
        )
    assert refused(lambda: access.revoke_token(local, made.id), PermissionDeniedError)


def test_compute_services_may_do_what_they_need_and_no_more(as_: Callable[[str], Client]) -> None:
    lab = as_(token("lab"))
    volume = np.random.default_rng(1).integers(0, 255, (3, 300, 280)).astype("uint8")
    session = lab.session("lab/computed")
    source = session.create_array("raw", volume.shape, "uint8")
    source[...] = volume
    session.write("net.onnx", bandpass_model(9, 1.0, 2.0))
    result = session.create_array("features", volume.shape, "uint8")
    lab.infer_volume(f"{session.name}/files/net.onnx", source, result,
                     output_scale=2.0, output_shift=128.0)  # fmt: skip
    assert result[...].any()
    (pair,) = lab.match_sections(source, [(0, 1)], template_px=64)
    assert pair.source_z == 0
    session.abort()
    service = as_(token(ANY_TENANT, Role.SERVICE))
    for forbidden in (
        lambda: list(service.workflows()),
        lambda: service.session("lab/x"),
        lambda: access.create_token(service, "lab", role="user", subject="", lifetime_s=60),
    ):
        assert refused(forbidden, PermissionDeniedError)


def test_a_revoked_token_is_refused_everywhere(as_: Callable[[str], Client]) -> None:
    admin_token = token(ANY_TENANT)
    made = access.create_token(as_(admin_token), "lab", role="user", subject="", lifetime_s=60)
    user = as_(made.text)
    assert list(user.workflows()) is not None and list(list_datasets(user, "lab")) is not None
    for _ in range(2):  # fine to repeat
        access.revoke_token(as_(admin_token), made.text)
    user = as_(made.text)
    for call in (lambda: list(user.workflows()), lambda: list(list_datasets(user, "lab"))):
        until(lambda c=call: refused(c, UnauthenticatedError), "it is refused")


@pytest.mark.timeout(120)
def test_a_revoked_worker_is_cut_off(
    cluster: tuple[Services, EtcdServer, str], as_: Callable[[str], Client]
) -> None:
    services = cluster[0]
    admin = as_(token(ANY_TENANT))
    (worker,) = services.workers
    worker.stop()
    made = access.create_token(admin, "*", role="worker", subject="w", lifetime_s=600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPER_TOKEN", made.text)
        worker.start()
    ready = lambda: [w for w in admin.workers() if w.state is WorkerState.READY]  # noqa: E731
    until(ready, "it has joined")
    access.revoke_token(admin, made.id)
    until(lambda: not ready(), "its open stream is cut")
    worker.stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPER_TOKEN", token(ANY_TENANT, Role.WORKER))
        worker.start()
    until(ready, "another token lets it in")


@pytest.mark.timeout(120)
def test_what_a_worker_joined_with_may_expire_and_revoking_it_ends_the_worker(
    cluster: tuple[Services, EtcdServer, str], as_: Callable[[str], Client]
) -> None:
    services = cluster[0]
    join = token(ANY_TENANT, Role.WORKER, lifetime_s=-24)  # 30 s are allowed: 6 are left
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPER_TOKEN", join)
        joined = services.add_worker("joined")
    try:
        admin = as_(token(ANY_TENANT))
        until(lambda: refused(lambda: as_(join).cluster(), UnauthenticatedError), "it has expired")
        as_(token(ANY_TENANT))
        time.sleep(1.5)  # by then its stream was looked at

        def ready() -> bool:
            return any(
                "joined" in each.name and each.state is WorkerState.READY
                for each in admin.workers()
            )

        until(ready, "it goes on with a token of its own")
        access.revoke_token(admin, join)
        until(lambda: not ready(), "its own went with what it joined with")
    finally:
        joined.destroy()


def test_an_open_stream_ends_when_its_token_is_revoked(
    cluster: tuple[Services, EtcdServer, str], as_: Callable[[str], Client]
) -> None:
    """Streams that say nothing for now are the hard case: a log, and a workflow that waits."""
    services = cluster[0]
    lab = as_(token("lab"))
    workflow = lab.submit(
        {"version": 1, "name": "t", "experiments": {"t": {"command": "sleep 60"}}}
    )
    follow = dataset_service_pb2.ReadLogRequest(task=workflow.task("t", 0).name, follow=True)
    watch = workflow_service_pb2.WatchWorkflowRequest(name=workflow.name)
    asked = [
        (services.storage, "hyperapi.storage.v1.LogService/ReadLog", follow,
         dataset_service_pb2.ReadLogResponse),
        (services.scheduler, "hyperapi.scheduler.v1.WorkflowService/WatchWorkflow", watch,
         workflow_service_pb2.WatchWorkflowResponse),
    ]  # fmt: skip
    until(lambda: workflow.refresh().tasks.running == 1, "it runs")
    admin = as_(token(ANY_TENANT))
    for service, path, request, answer in asked:
        made = access.create_token(admin, "lab", role="user", subject="", lifetime_s=600)
        with _transport.plain_channel(_transport.target([service.address])) as channel:
            call = channel.unary_stream(
                f"/{path}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )(request, metadata=(("authorization", f"Bearer {made.text}"),), timeout=60)
            errors: list[HyperError] = []

            def read(call: Any = call, errors: list[HyperError] = errors) -> None:
                try:
                    for _ in call:
                        pass
                except grpc.RpcError as error:
                    errors.append(from_rpc_error(error))

            reading = threading.Thread(target=read)
            reading.start()
            reading.join(1.5)
            assert reading.is_alive(), errors
            access.revoke_token(admin, made.id)
            reading.join(20)
            if goes_on := reading.is_alive():
                call.cancel()
                reading.join()
            assert not goes_on, path
            assert isinstance(errors[0], UnauthenticatedError) and "revoked" in str(errors[0])
    as_(token("lab"))
    workflow.cancel()
    until(lambda: workflow.refresh().state.ended, "nothing changes any more")


def test_a_recipe_names_nothing_of_another_tenant(as_: Callable[[str], Client]) -> None:
    bob = as_(token("bob"))
    with bob.session("bob/code") as session:
        session.write("secret.txt", b"of bob")
    lab = as_(token("lab"))
    for more in (
        {"workdir": "hyper://bob/code@1"},
        {"inputs": {"/in": "hyper://bob/code@1"}},
        {"outputs": {"/out": "hyper://bob/code"}},
    ):
        work = {"command": "ls", **more}
        with pytest.raises(InvalidArgumentError, match="another tenant"):
            lab.submit({"version": 1, "name": "t", "experiments": {"t": work}})


def test_every_change_is_a_line_that_says_who_and_what(
    cluster: tuple[Services, EtcdServer, str], as_: Callable[[str], Client]
) -> None:
    services = cluster[0]
    admin = as_(token(ANY_TENANT))
    made = access.create_token(admin, "lab", role="user", subject="ada", lifetime_s=60)
    lab = as_(made.text)
    with lab.session("lab/audited") as session:
        session.write("a.txt", b"a" * 100_000)
        name = session.name
    list(lab.open("lab/audited").files())
    workflow = lab.submit({"version": 1, "name": "w", "experiments": {"t": {"command": "true"}}})
    assert workflow.wait().state is RunState.SUCCEEDED
    access.revoke_token(as_(token(ANY_TENANT)), made.id)

    def lines(process: str) -> list[dict[str, Any]]:
        written = services.process(process).log.read_text().splitlines()
        found = [json.loads(line) for line in written if line.startswith("{")]
        return [line for line in found if line["event"] == "audit"]

    stored = [line for line in lines("storage") if line["token"] == made.id]
    assert {line["subject"] for line in stored} == {"ada"}
    of = {line["method"]: line["resources"] for line in stored}
    assert {"CreateSession", "SignUrls", "AddFiles", "CommitSession"} <= of.keys()
    assert not {"ListFiles", "GetVersion"} & of.keys()
    assert of["CreateSession"] == ["tenants/lab/datasets/audited", name]
    assert of["SignUrls"] == [name]
    assert of["CommitSession"] == [name, "tenants/lab/datasets/audited/versions/1"]
    scheduled = lines("scheduler")
    (created,) = [line for line in scheduled if workflow.name in line["resources"]]
    assert (created["method"], created["code"]) == ("CreateWorkflow", "OK")
    about = {line["method"]: line for line in scheduled if line.get("id") == made.id}
    assert about["CreateToken"]["role"] == "user"
    assert about["CreateToken"]["resources"] == ["tenants/lab"]
    assert about["RevokeToken"]["tenant"] == "*"
    for process in ("scheduler", "storage"):
        assert made.text not in services.process(process).log.read_text()


def test_no_log_tells_a_key_or_a_token(
    cluster: tuple[Services, EtcdServer, str], s3_server: S3Server, as_: Callable[[str], Client]
) -> None:
    """Of services that say all they can, and of a task that prints its environment."""
    services = cluster[0]
    told = {name: secrets.token_hex(16) for name in ("secret", "key of a store")}
    admin = as_(token(ANY_TENANT))
    made = access.create_token(admin, "lab", role="user", subject="ada", lifetime_s=600)
    expired = token("lab", lifetime_s=-100)
    assert refused(lambda: list(as_(expired).workflows()), UnauthenticatedError)
    assert refused(lambda: list(as_(made.text[:-3]).workflows()), UnauthenticatedError)
    lab = as_(made.text)
    running.put_secret(lab, "password", told["secret"])
    stores.set_store(
        lab, "elsewhere", endpoint="http://127.0.0.1:1", bucket="bucket", access_key="ada",
        secret_key=told["key of a store"],
    )  # fmt: skip
    with lab.session("lab/told") as session:
        session.write("a", b"a")
        with pytest.raises(HyperError):
            session.register_array("x", "elsewhere", "x")
        session.commit()
    work = {"command": "env | grep -v ^HYPER_TOKEN; test -n \"$PASSWORD\"",
            "secrets": {"PASSWORD": "password"}}  # fmt: skip
    workflow = lab.submit({"version": 1, "name": "w", "experiments": {"t": work}})
    assert workflow.wait().state is RunState.SUCCEEDED
    task = "\n".join(lab.workflow(workflow.name).log_tail(workflow.task("t", 0), 1000))
    ours = {
        "auth key": KEY, "key of secrets": SECRETS_KEY, "S3 access key": s3_server.access_key,
        "S3 secret key": s3_server.secret_key,
    }  # fmt: skip
    tokens = {f"token {i}": text for i, text in enumerate([made.text, *MADE])}
    assert told["secret"] in task  # the recipe asked for it
    for what, text in {**ours, **tokens}.items():
        assert text not in task, what
    for process in (*map(services.process, FILES), *services.workers):
        log = process.log.read_text(errors="replace")
        assert "[debug" in log or '"debug"' in log, process.name
        assert "X-Amz-Signature" not in log, process.name
        for what, text in {**ours, **told, **tokens}.items():
            assert text not in log, (process.name, what)


def test_overload_is_refused_and_says_when_to_come_back(
    cluster: tuple[Services, EtcdServer, str], as_: Callable[[str], Client]
) -> None:
    """More streams than the gateway takes: refused with RetryInfo; those that run go on."""
    client = as_(token("lab"))
    workflow = client.submit(
        {"version": 1, "name": "t", "experiments": {"t": {"command": "sleep 5"}}}
    )
    task = workflow.task("t", 0).name
    request = dataset_service_pb2.ReadLogRequest(task=task, follow=True)
    with _transport.channel([cluster[0].storage.address]) as channel:
        follow = channel.unary_stream(
            "/hyperapi.storage.v1.LogService/ReadLog",
            request_serializer=type(request).SerializeToString,
            response_deserializer=dataset_service_pb2.ReadLogResponse.FromString,
        )
        calls = [follow(request, timeout=60) for _ in range(80)]
        until(lambda: sum(call.done() for call in calls) >= 80 - 64, "those too many are refused")
        errors = [from_rpc_error(call) for call in calls if call.done()]
        assert {type(error) for error in errors} == {ResourceExhaustedError}
        assert all(error.retry_after_s for error in errors)
        for call in calls:
            call.cancel()
    until(lambda: not refused(lambda: list(list_datasets(client, "lab")), HyperError), "room again")
    workflow.cancel()
    until(lambda: workflow.refresh().state.ended, "nothing changes any more")


# Every RPC


async def state_of(etcd: EtcdServer, prefix: str) -> dict[str, bytes]:
    """What refused calls must not change."""
    async with Etcd([etcd.endpoint]) as client:
        items, _ = await client.get_prefix(prefix + "/")
    moving = ("/services/", "/leader", "/election", "/steady", "/clock", "/revoked/")
    return {item.key: item.value for item in items if not any(m in item.key for m in moving)}


async def objects_of(s3: S3Server, prefix: str) -> dict[str, int]:
    """All objects of the cluster; probes of the store, and what tasks have said, apart."""
    async with S3Store(s3.settings(prefix.strip("/"))) as store:
        return {
            item.key: item.size
            async for item in store.list()
            if not item.key.startswith("logs/") and not item.key.endswith("/probe")
        }


@pytest.mark.parametrize(("process", "method"), METHODS, ids=NAMES)
async def test_nobody_without_a_token_gets_an_answer(
    cluster: tuple[Services, EtcdServer, str], process: str, method: Any
) -> None:
    services, etcd, prefix = cluster
    address = services.process(process).address
    good = token("lab")
    before = await state_of(etcd, prefix)
    shown = {
        "none": None,
        "expired": token("lab", lifetime_s=-100),
        "tampered": good[:-2] + ("AA" if good[-2:] != "AA" else "BB"),
        "foreign key": Signer("k1", "x" * 40).sign("lab", subject="", expires_s=4e9),
        "not one": "hyp1.k1.e30.AAAA",
        "long": "a" * 5000,
    }
    request = naming(method, "lab")
    for what, text in shown.items():
        code, details = fuzz.call(address, method, [request.SerializeToString()], text)
        TRIED[method.name, code] += 1
        assert code == "UNAUTHENTICATED", (what, code, details)
        assert text is None or text not in details
    assert await state_of(etcd, prefix) == before


def naming(method: Any, tenant: str, **others: str) -> Any:
    """A request whose names are of `tenant`, and of others by path (source.name="bob")."""
    paths = fuzz.name_paths(method.input_type)
    return fuzz.request_naming(
        method.input_type, {path: others.get(".".join(path), tenant) for path in paths}
    )


@pytest.mark.parametrize(("process", "method"), METHODS, ids=NAMES)
async def test_each_name_of_another_tenant_is_refused(
    cluster: tuple[Services, EtcdServer, str], process: str, method: Any
) -> None:
    services, etcd, prefix = cluster
    before = await state_of(etcd, prefix)
    paths = fuzz.name_paths(method.input_type)
    if not paths and method.name in ("GetCluster", "Match"):
        pytest.skip("it names nothing and is open to all who have a token")
    for path in paths or [()]:
        request = naming(method, "lab", **{".".join(path): "bob"})
        code, details = fuzz.call(
            services.process(process).address, method, [request.SerializeToString()],
            token("lab", Role.ADMIN),
        )  # fmt: skip
        TRIED[method.name, code] += 1
        assert code == "PERMISSION_DENIED", (path, code, details)
    assert await state_of(etcd, prefix) == before


STRAY = [
    "lab/..", "lab/../bob", "lab/datasets/a/../../../bob", "lab/datasets/a/versions/1/../../../bob",
    "lab/./", "lab/", "lab//", "lab\0", "lab%2F..%2Fbob", "lab\\..\\bob", "lab/datasets/\u202e", "",
    ".", "..",
]  # fmt: skip
REFUSED = {"INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED"}


@pytest.mark.parametrize(
    ("process", "method"),
    [pytest.param(*each, id=name) for each, name in zip(METHODS, NAMES, strict=True)
     if fuzz.name_paths(each[1].input_type)],
)  # fmt: skip
async def test_names_that_lead_astray_are_refused_and_change_nothing(
    cluster: tuple[Services, EtcdServer, str], s3_server: S3Server, process: str, method: Any
) -> None:
    """By who may do everything in lab, with all else as it should be."""
    services, etcd, prefix = cluster
    before = await state_of(etcd, prefix), await objects_of(s3_server, prefix)
    for path in fuzz.name_paths(method.input_type):
        for stray in STRAY:
            names = dict.fromkeys(fuzz.name_paths(method.input_type), "lab") | {path: stray}
            request = fuzz.request_naming(method.input_type, names, filled=True)
            code, details = fuzz.call(
                services.process(process).address, method, [request.SerializeToString()],
                token("lab", Role.ADMIN),
            )  # fmt: skip
            TRIED[method.name, code] += 1
            assert code in REFUSED, (path, stray, code, details)
    assert (await state_of(etcd, prefix), await objects_of(s3_server, prefix)) == before


ELSEWHERE = ["../x", "/etc/passwd", "blobs/../../x", "manifests/x", "logs/x", "sessions/x/y",
             "blobs/{other}/x", "blobs/{own}/../x", "blobs/{own}/", "{array}/v1/zarr.json",
             "{array}/v1/c/../0", "{array}/v1/c/9/9/9", "\0", ""]  # fmt: skip


async def test_keys_of_objects_lead_nowhere_else(
    cluster: tuple[Services, EtcdServer, str], s3_server: S3Server, as_: Callable[[str], Client]
) -> None:
    """In an open session, and with an open session of somebody else beside it."""
    services, etcd, prefix = cluster
    theirs = as_(token("bob")).session("bob/keys")
    array_of_bob = theirs.create_array("x", shape=(8, 8, 8), dtype="uint8")
    mine = as_(token("lab")).session("lab/keys")
    mine.create_array("x", shape=(8, 8, 8), dtype="uint8")
    known = {
        "own": mine.name.rpartition("/")[2], "other": theirs.name.rpartition("/")[2],
        "array": array_of_bob.prefix.rpartition("/")[0],
    }  # fmt: skip
    methods = {method.name: method for _, method in METHODS}
    pb = dataset_service_pb2
    file = {"path": "a", "size_bytes": 1, "sha256": bytes(32), "offset": 0}
    before = await state_of(etcd, prefix), await objects_of(s3_server, prefix)
    for template in ELSEWHERE:
        key = template.format(**known)
        asked: list[Any] = [
            pb.SignUrlsRequest(parent=mine.name, method=pb.METHOD_PUT, objects=[key]),
            pb.SignUrlsRequest(parent=mine.name, method=pb.METHOD_GET, objects=[key]),
            pb.ReadObjectRequest(parent=mine.name, object=key),
            pb.WriteObjectRequest(session=mine.name, object=key, data=b"x", size_bytes=1),
            pb.AddFilesRequest(session=mine.name, files=[{**file, "object": key}]),
            pb.LeaseShardsRequest(session=mine.name, objects=[key], owner=str(uuid.uuid4())),
        ]
        for request in asked:
            method = methods[type(request).__name__.removesuffix("Request")]
            sent = [request.SerializeToString()]
            code, details = fuzz.call(services.storage.address, method, sent, token("lab"))
            TRIED[method.name, code] += 1
            assert code in REFUSED, (method.name, template, code, details)
    assert (await state_of(etcd, prefix), await objects_of(s3_server, prefix)) == before
    as_(token(ANY_TENANT))
    theirs.abort()
    mine.abort()


def test_a_request_that_another_tenant_repeats_is_another_request(
    cluster: tuple[Services, EtcdServer, str], as_: Callable[[str], Client]
) -> None:
    """Neither is the first one's result shown, nor is it touched; nor is the repeat refused."""
    services = cluster[0]
    again = str(uuid.uuid4())
    recipe = "{version: 1, name: w, experiments: {e: {command: 'true'}}}"
    asked = [
        (services.scheduler, "CreateWorkflow", lambda tenant: workflow_service_pb2.
         CreateWorkflowRequest(parent=f"tenants/{tenant}", request_id=again, recipe_yaml=recipe)),
        (services.storage, "CreateSession", lambda tenant: dataset_service_pb2.
         CreateSessionRequest(parent=f"tenants/{tenant}/datasets/r", request_id=again)),
    ]  # fmt: skip
    for service, name, make in asked:
        (method,) = [each for _, each in METHODS if each.name == name]
        made: dict[str, list[str]] = {}
        for tenant in ("lab", "bob", "lab"):
            answer = fuzz.answer(service.address, method, make(tenant), token(tenant))
            ((_, part),) = answer.ListFields()
            made.setdefault(tenant, []).append(part.name)
            assert part.name.startswith(f"tenants/{tenant}/")
        assert made["lab"][0] == made["lab"][1] and len(made["bob"]) == 1
        if name == "CreateWorkflow":
            for each in (made["lab"][0], *made["bob"]):
                assert as_(token(ANY_TENANT)).workflow(each).wait().state is RunState.SUCCEEDED


OPERATORS = {
    "Connect", "ReadSecrets", "CollectGarbage", "CreateToken", "DrainWorker", "RevokeToken",
    "ListWorkers",
}  # fmt: skip


@pytest.mark.parametrize(
    ("process", "method"),
    [pytest.param(*each, id=name) for each, name in zip(METHODS, NAMES, strict=True)
     if each[1].name not in OPERATORS],
)  # fmt: skip
def test_a_user_may_call_it_for_what_is_its_tenants(
    cluster: tuple[Services, EtcdServer, str], process: str, method: Any
) -> None:
    request = naming(method, "lab")
    code, details = fuzz.call(
        cluster[0].process(process).address, method, [request.SerializeToString()], token("lab"),
        timeout_s=2.0,
    )  # fmt: skip
    assert code in TOLD - {"PERMISSION_DENIED", "UNAUTHENTICATED"}, details


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("process", "method"), METHODS, ids=NAMES)
@settings(
    max_examples=fuzz.EXAMPLES,
    derandomize=fuzz.SAME_EVERY_TIME,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_message_is_answered_politely(
    cluster: tuple[Services, EtcdServer, str], process: str, method: Any, data: st.DataObject
) -> None:
    """Hostile values, any bytes, from one who may do everything: no bug, no detail of ours."""
    address = cluster[0].process(process).address
    messages = data.draw(st.lists(fuzz.payloads(method.input_type), min_size=1, max_size=3))
    code, details = fuzz.call(address, method, messages, token(ANY_TENANT), timeout_s=2.0)
    TRIED[method.name, code] += 1
    assert code in TOLD, (code, details, messages)
    for inner in ("Traceback", ".py", str(ROOT), "site-packages", KEY):
        assert inner not in details, details
    child = cluster[0].process(process).child
    assert child is not None and child.poll() is None


FAR = timestamp_pb2.Timestamp(seconds=1 << 40)
OUT_OF_TIME = {
    "CollectGarbage": history_service_pb2.CollectGarbageRequest(
        grace=duration_pb2.Duration(seconds=1 << 40)
    ),
    "ReadLog": dataset_service_pb2.ReadLogRequest(
        task="tenants/lab/workflows/w/experiments/e/tasks/0", since=FAR
    ),
    "AddFiles": dataset_service_pb2.AddFilesRequest(
        session="tenants/lab/datasets/a/sessions/s",
        files=[{"path": "a", "sha256": bytes(32), "object": "blobs/x", "modify_time": FAR}],
    ),
}


@pytest.mark.parametrize("name", OUT_OF_TIME)
def test_times_without_end_are_refused(
    cluster: tuple[Services, EtcdServer, str], name: str
) -> None:
    (method,) = [each for _, each in METHODS if each.name == name]
    sent = [OUT_OF_TIME[name].SerializeToString()]
    code, details = fuzz.call(cluster[0].storage.address, method, sent, token(ANY_TENANT))
    assert code in ("INVALID_ARGUMENT", "NOT_FOUND"), details


@pytest.mark.parametrize(("process", "method"), METHODS, ids=NAMES)
def test_too_large_a_message_is_refused(
    cluster: tuple[Services, EtcdServer, str], process: str, method: Any
) -> None:
    address = cluster[0].process(process).address
    code, _ = fuzz.call(address, method, [b"\x0a" + b"\xff" * (5 << 20)], token(ANY_TENANT))
    TRIED[method.name, code] += 1
    assert code == "RESOURCE_EXHAUSTED"
