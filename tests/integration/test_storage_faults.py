"""The gateway when servers vanish: killed in the middle of a commit, without S3, without etcd."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from hyper import _s3
from hyper.client import Client
from hyper.config import STORAGE
from hyper.datasets import Dataset
from hyper.errors import FailedPreconditionError, ResourceExhaustedError, UnavailableError
from hyper.sessions import Session
from hyper_servicekit.config import S3Settings
from hyperapi.storage.v1 import dataset_pb2
from hyperapi.storage.v1 import dataset_service_pb2 as api
from hyperapi.storage.v1.dataset_service_pb2_grpc import DatasetServiceStub
from tests.support import servers
from tests.support.gateway import run_gateway, storage_client
from tests.support.proxy import FaultProxy, fault_proxy
from tests.support.servers import EtcdServer, S3Server, run_etcd, run_s3

QUICKLY_S = 30.0

pytestmark = pytest.mark.timeout(180)  # servers are started and killed


@dataclass(frozen=True, slots=True)
class Place:
    etcd: str
    s3: S3Settings
    prefix: str
    folder: Path


@pytest.fixture
def place(
    etcd_server: EtcdServer, s3_settings: S3Settings, etcd_prefix: str, tmp_path: Path
) -> Place:
    return Place(etcd_server.endpoint, s3_settings, etcd_prefix, tmp_path)


def _content(client: Client, address: str) -> dict[str, bytes]:
    dataset = client.open(address)
    assert isinstance(dataset, Dataset)
    return {info.path: dataset.read_file(info) for info in dataset.files()}


@pytest.fixture
def armed(request: pytest.FixtureRequest, place: Place) -> Iterator[tuple[str, str]]:
    """Address of a gateway that dies at the failpoint, and of a healthy one on the same state."""
    dying = {"HYPER_FAILPOINTS": f"{request.param}=crash"}
    with (
        run_gateway(place.folder / "a", place.etcd, place.s3, place.prefix, dying) as bad,
        run_gateway(place.folder / "b", place.etcd, place.s3, place.prefix) as good,
    ):
        yield bad.address, good.address


@pytest.mark.parametrize(
    "armed",
    [
        "storage.commit.sealed",
        "storage.commit.arrays_published",
        "storage.commit.objects_written",
        "storage.commit.visible",
    ],
    indirect=True,
)
def test_killed_in_a_commit_leaves_old_version_or_new(armed: tuple[str, str]) -> None:
    dying, healthy = armed
    old, new = {"x": b"old", "kept": b"1"}, {"x": b"new", "y": b"new", "kept": b"1"}
    with storage_client(healthy) as client:
        with client.session("lab/set") as session:
            session.write_many(old.items())
        name = client.session("lab/set").name
        session = client.attach(name)
        session.write_many([("x", b"new"), ("y", b"new")])
        session.create_array("a", (8, 8), "uint8")[...] = 4
    with storage_client(dying, patience_s=0.5) as client, pytest.raises(UnavailableError):
        client.attach(name).commit(request_id="the-commit")
    with storage_client(healthy) as client:
        assert _content(client, "lab/set") in (old, new)
        version = client.attach(name).commit(request_id="the-commit")  # as a client repeats it
        assert version.number == 2
        assert _content(client, "lab/set") == new
        assert client.open_array("lab/set/a")[3, 3] == 4
        assert _content(client, "lab/set@1") == old


@pytest.mark.parametrize("armed", ["storage.commit.sealed"], indirect=True)
def test_a_sealed_session_can_be_aborted(armed: tuple[str, str]) -> None:
    dying, healthy = armed
    with storage_client(healthy) as client:
        session = client.session("lab/set")
        session.write("x", b"1")
    with storage_client(dying, patience_s=0.5) as client, pytest.raises(UnavailableError):
        client.attach(session.name).commit()
    with storage_client(healthy) as client:
        attached = client.attach(session.name)
        with pytest.raises(FailedPreconditionError, match="committed"):
            attached.write("late", b"2")
        attached.abort()


def test_s3_down_is_said_quickly_and_survived(place: Place, tmp_path: Path) -> None:
    (tmp_path / "s3").mkdir()
    with (
        run_s3(tmp_path / "s3") as s3,
        run_gateway(place.folder / "g", place.etcd, s3.settings("p"), place.prefix) as gateway,
        storage_client(gateway.address, patience_s=0.0) as client,
    ):
        with client.session("lab/set") as first:
            first.write("x", b"1")
        session = client.session("lab/set")
        array = session.create_array("a", (64, 64), "uint8")
        session.write("y", b"2")
        s3.kill()
        _s3_is_missed(client, session)
        with pytest.raises(UnavailableError) as error:
            array[...] = np.ones((64, 64))
        assert error.value.reason == "S3_UNREACHABLE"
        s3.start()
        array[...] = np.ones((64, 64))
        session.commit()
        assert _content(client, "lab/set") == {"x": b"1", "y": b"2"}
        assert client.open_array("lab/set/a")[5, 5] == 1


async def test_s3_that_never_answers_is_given_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_s3, "_GET_SILENCE_S", 2.0)
    monkeypatch.setattr(_s3, "_GET_TIMEOUT", urllib3.Timeout(connect=3.0, read=2.0))
    host = place.s3.endpoint.removeprefix("http://")
    async with fault_proxy(host) as proxy:
        silent = place.s3.model_copy(update={"endpoint": f"http://{proxy.endpoint}"})
        await asyncio.to_thread(_read_from_silence, place, silent, proxy)


def _read_from_silence(place: Place, s3: S3Settings, proxy: FaultProxy) -> None:
    with (
        run_gateway(place.folder / "g", place.etcd, s3, place.prefix) as gateway,
        storage_client(gateway.address, patience_s=0.0) as client,
    ):
        with client.session("lab/set") as session:
            session.write("x", b"1")
        dataset = client.open("lab/set")
        assert isinstance(dataset, Dataset)
        assert dataset.read("x") == b"1"
        proxy.stall()
        begin = time.monotonic()
        with pytest.raises(UnavailableError):
            dataset.read("x")  # 2 s here, and 15 s of the gateway's
        assert time.monotonic() - begin < 30
        proxy.restore()
        assert dataset.read("x") == b"1"


def test_full_disk_is_said(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = servers.weed_command

    def small(*arguments: Any, **named: Any) -> list[str]:
        flags = ("-master.volumeSizeLimitMB", "-volume.max=")
        command = [part for part in make(*arguments, **named) if not part.startswith(flags)]
        return [*command, "-master.volumeSizeLimitMB=1", "-volume.max=8"]

    monkeypatch.setattr(servers, "weed_command", small)
    (tmp_path / "s3").mkdir()
    with (
        run_s3(tmp_path / "s3") as s3,
        run_gateway(place.folder / "g", place.etcd, s3.settings("p"), place.prefix) as gateway,
        storage_client(gateway.address, patience_s=0.5) as client,
    ):
        session = client.session("lab/set")
        session.write("small", b"1")
        with pytest.raises(ResourceExhaustedError, match="full") as error:
            session.write_many((f"{i:03d}", bytes(17 * 2**20)) for i in range(20))
        assert error.value.reason == "DISK_FULL"
        session.abort()
        with pytest.raises(FailedPreconditionError) as nothing:
            client.open("lab/set")
        assert nothing.value.reason == "EMPTY_DATASET"


def _s3_is_missed(client: Client, session: Session) -> None:
    """Every call that needs S3 says so, and soon."""
    begin = time.monotonic()
    with pytest.raises(UnavailableError) as error:
        session.commit()
    assert error.value.reason == "S3_UNREACHABLE"
    with pytest.raises(UnavailableError) as error:
        session.write("z", b"3")
    assert error.value.reason == "S3_UNREACHABLE"
    opened = client.open("lab/set")  # versions are known to etcd
    assert isinstance(opened, Dataset)
    with pytest.raises(UnavailableError):
        opened.read("x")
    assert time.monotonic() - begin < QUICKLY_S


def test_etcd_down_is_said_quickly_and_survived(
    s3_server: S3Server, tmp_path: Path, etcd_prefix: str
) -> None:
    (tmp_path / "etcd").mkdir()
    s3 = s3_server.settings(f"test-{secrets.token_hex(8)}")
    with (
        run_etcd(tmp_path / "etcd") as etcd,
        run_gateway(tmp_path / "g", etcd.endpoint, s3, etcd_prefix) as gateway,
        storage_client(gateway.address, patience_s=0.0) as client,
    ):
        with client.session("lab/set") as session:
            session.write("x", b"1")
        etcd.kill()
        begin = time.monotonic()
        with pytest.raises(UnavailableError) as error:
            client.open("lab/set")
        assert error.value.reason == "ETCD_UNREACHABLE"
        assert time.monotonic() - begin < QUICKLY_S
        etcd.start()
        deadline = time.monotonic() + QUICKLY_S
        request = api.GetVersionRequest(name="tenants/lab/datasets/set/versions/head")
        client.call(
            STORAGE, DatasetServiceStub, "GetVersion", request,
            patience_s=deadline - time.monotonic(),
        )  # fmt: skip
        assert _content(client, "lab/set") == {"x": b"1"}


def test_unused_sessions_are_aborted(place: Place) -> None:
    soon = {"HYPER_STORAGE__SWEEP_INTERVAL_S": "0.1"}
    with (
        run_gateway(place.folder / "g", place.etcd, place.s3, place.prefix, soon) as gateway,
        storage_client(gateway.address) as client,
    ):
        request = api.CreateSessionRequest(parent="tenants/lab/datasets/set", request_id="one")
        request.ttl.FromSeconds(1)
        response = client.call(STORAGE, DatasetServiceStub, "CreateSession", request)
        get = api.GetSessionRequest(name=response.session.name)
        log = place.folder / "g" / "gateway.log"
        deadline = time.monotonic() + 20
        while "unused sessions aborted" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        state = client.call(STORAGE, DatasetServiceStub, "GetSession", get).session
        assert state.state == dataset_pb2.SESSION_STATE_ABORTED
        with pytest.raises(FailedPreconditionError):
            client.attach(response.session.name).write("x", b"1")
