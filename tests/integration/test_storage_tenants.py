"""Tokens and quotas: a tenant cannot read, list, sign or change what is another's."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from hyper import stores
from hyper.cli.visible import visible_datasets
from hyper.client import Client
from hyper.config import STORAGE
from hyper.datasets import delete_dataset, list_datasets
from hyper.errors import (
    HyperError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from hyper.history import collect_garbage
from hyper_servicekit.config import S3Settings
from hyper_servicekit.tokens import ANY_TENANT, Signer
from hyperapi.storage.v1 import array_service_pb2 as array_api
from hyperapi.storage.v1 import array_service_pb2_grpc as array_grpc
from hyperapi.storage.v1 import dataset_service_pb2 as api
from hyperapi.storage.v1 import dataset_service_pb2_grpc as api_grpc
from hyperapi.storage.v1 import history_service_pb2 as history_api
from hyperapi.storage.v1 import history_service_pb2_grpc as history_grpc
from tests.support.gateway import Gateway, run_gateway, storage_client
from tests.support.servers import EtcdServer, S3Server

KEY = secrets.token_hex(32)
SIGNER = Signer("k1", KEY)
QUOTA = 3_000_000


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> S3Settings:
    return s3_server.settings(f"tenants-{secrets.token_hex(8)}")


@pytest.fixture(scope="module")
def gateway(
    etcd_server: EtcdServer, bucket: S3Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    extra = {
        "HYPER_STORAGE__AUTH_KEYS": json.dumps({"k1": KEY}),
        "HYPER_STORAGE__QUOTAS": json.dumps({"small": QUOTA}),
        "HYPER_STORAGE__SESSION_RESERVE_BYTES": "1000000",
    }
    folder = tmp_path_factory.mktemp("gateway")
    prefix = f"/test-{secrets.token_hex(8)}"
    with run_gateway(folder, etcd_server.endpoint, bucket, prefix, extra) as gateway:
        yield gateway


def token(tenant: str, *, hours: float = 1.0) -> str:
    return SIGNER.sign(tenant, subject="test", expires_s=time.time() + hours * 3600)


@contextmanager
def client_of(gateway: Gateway, tenant: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("HYPER_TOKEN", token(tenant))
    monkeypatch.setenv("HYPER_TENANT", tenant if tenant != ANY_TENANT else "default")
    with storage_client(gateway.address) as client:
        yield client


@pytest.mark.parametrize(
    "shown",
    ["", "hyp1.k1.e30.x", token("alice") + "x", token("alice", hours=-1),
     Signer("k2", KEY).sign("alice", subject="", expires_s=time.time() + 60),
     Signer("k1", "another key, long enough").sign("alice", subject="", expires_s=2e9)],
)  # fmt: skip
def test_without_a_good_token_nothing_is_answered(
    gateway: Gateway, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPER_TOKEN", shown)
    with storage_client(gateway.address) as client:
        with pytest.raises(UnauthenticatedError) as caught:
            list(list_datasets(client, "alice"))
        assert not shown or shown not in str(caught.value)


def test_datasets_of_every_tenant_are_for_tokens_of_all(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(f"t{i}{end}/d{i}" for i in range(3) for end in ("", "-x"))
    for name in names:
        with client_of(gateway, name.partition("/")[0], monkeypatch) as client:
            with client.session(name) as session:
                session.write("x", b"x")
            with pytest.raises(PermissionDeniedError):
                list(list_datasets(client, None))
            monkeypatch.setenv("HYPER_TENANT", client.tenant)
            own = [each.name for each in visible_datasets(client)]
            assert all(each.startswith(f"tenants/{client.tenant}/") for each in own)
    with client_of(gateway, ANY_TENANT, monkeypatch) as client:
        monkeypatch.delenv("HYPER_TENANT")
        listed = [each.name for each in visible_datasets(client)]
        mine = ["/".join(each.split("/")[1::2]) for each in listed]
        assert [each for each in mine if each in names] == names
        stub = api_grpc.DatasetServiceStub
        paged: list[str] = []
        request = api.ListDatasetsRequest(parent="tenants/-", page_size=2)
        while True:
            answer = client.call("storage-gateway", stub, "ListDatasets", request)
            paged += [each.name for each in answer.datasets]
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        assert paged == listed


def _requests(session: str, version: str, dataset: str) -> list[tuple[type, str, object]]:
    """One request of every kind that names something of a tenant."""
    tenant = dataset.rpartition("/datasets/")[0]
    d, a, h = (
        api_grpc.DatasetServiceStub, array_grpc.ArrayServiceStub, history_grpc.HistoryServiceStub
    )  # fmt: skip
    array = f"{version}/arrays/a"
    return [
        (d, "GetDataset", api.GetDatasetRequest(name=dataset)),
        (d, "ListDatasets", api.ListDatasetsRequest(parent=tenant)),
        (d, "DeleteDataset", api.DeleteDatasetRequest(name=dataset, request_id="1")),
        (d, "GetVersion", api.GetVersionRequest(name=version)),
        (d, "ListVersions", api.ListVersionsRequest(parent=dataset)),
        (d, "CreateSession", api.CreateSessionRequest(parent=dataset)),
        (d, "GetSession", api.GetSessionRequest(name=session)),
        (d, "CommitSession", api.CommitSessionRequest(name=session)),
        (d, "AbortSession", api.AbortSessionRequest(name=session)),
        (d, "AddFiles", api.AddFilesRequest(session=session)),
        (d, "DeleteFiles", api.DeleteFilesRequest(session=session, paths=["x"])),
        (d, "ListFiles", api.ListFilesRequest(parent=version)),
        (d, "GetFiles", api.GetFilesRequest(parent=version, paths=["x"], sign=True)),
        (d, "CreateArray", api.CreateArrayRequest(session=session, array="b", shape=[1])),
        (d, "GetArray", api.GetArrayRequest(name=array)),
        (d, "ListArrays", api.ListArraysRequest(parent=version)),
        (d, "DeleteArray", api.DeleteArrayRequest(name=f"{session}/arrays/a")),
        (d, "UpdateArray", api.UpdateArrayRequest(name=f"{session}/arrays/a")),
        (d, "LeaseShards", api.LeaseShardsRequest(session=session, objects=["x"], owner="o")),
        (d, "ReleaseShards", api.ReleaseShardsRequest(session=session, objects=["x"], owner="o")),
        (d, "SignUrls", api.SignUrlsRequest(parent=version, method=api.METHOD_GET)),
        (d, "ReadObject", api.ReadObjectRequest(parent=version, object="x")),
        (d, "WriteObject", iter([api.WriteObjectRequest(session=session, object="x")])),
        (a, "EditArray", array_api.EditArrayRequest(name=f"{session}/arrays/a")),
        (a, "ListShards", array_api.ListShardsRequest(name=array)),
        (a, "RegisterArray", array_api.RegisterArrayRequest(session=session, array="r")),
        (a, "SetStore", array_api.SetStoreRequest(
            store=array_api.ExternalStore(name=f"{tenant}/stores/s", endpoint="http://h"))),
        (a, "ListStores", array_api.ListStoresRequest(parent=tenant)),
        (a, "DeleteStore", array_api.DeleteStoreRequest(name=f"{tenant}/stores/s")),
        (h, "SetTag", history_api.SetTagRequest(
            tag=history_api.Tag(name=f"{dataset}/tags/t", version=1))),
        (h, "DeleteTag", history_api.DeleteTagRequest(name=f"{dataset}/tags/t")),
        (h, "ListTags", history_api.ListTagsRequest(parent=dataset)),
        (h, "DiffVersions", history_api.DiffVersionsRequest(base=version, target=version)),
        (h, "CollectGarbage", history_api.CollectGarbageRequest()),
    ]  # fmt: skip


def test_what_is_anothers_cannot_be_touched(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"alice/set-{secrets.token_hex(4)}"
    data = np.arange(60, dtype=np.uint8).reshape(5, 12)
    with client_of(gateway, "alice", monkeypatch) as alice:
        with alice.session(name) as session:
            session.create_array("a", data.shape, data.dtype)[...] = data
        np.testing.assert_array_equal(alice.open_array(f"{name}/a")[...], data)
        open_session = alice.session(name)
        version = alice.open_dataset(name).name
        dataset = version.rpartition("/versions/")[0]
        with pytest.raises(PermissionDeniedError, match="operators"):
            list(collect_garbage(alice))
    cases = _requests(open_session.name, version, dataset)
    services = api_grpc.DatasetServiceServicer, array_grpc.ArrayServiceServicer
    methods = {m for service in services for m in vars(service) if not m.startswith("_")}
    assert methods <= {method for _, method, _ in cases}, "a method that is not tried here"
    with client_of(gateway, "bob", monkeypatch) as bob:
        for stub, method, request in cases:
            with pytest.raises(grpc.RpcError) as caught:
                answer = getattr(bob.stub(STORAGE, stub), method)(request, timeout=10)
                next(answer)  # of a stream; of anything else a TypeError
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, method
    with client_of(gateway, "alice", monkeypatch) as alice:
        np.testing.assert_array_equal(alice.open_array(f"{name}/a")[...], data)
        alice.attach(open_session.name).abort()
    with client_of(gateway, ANY_TENANT, monkeypatch) as operator:
        assert operator.open_dataset(name).arrays() == ["a"]


def test_a_session_of_anothers_cannot_be_reached_by_ones_own_name(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(gateway, "alice", monkeypatch) as alice:
        session = alice.session("alice/hidden").name
    with client_of(gateway, "bob", monkeypatch) as bob:
        bob.session("bob/hidden").abort()
        stolen = session.replace("tenants/alice", "tenants/bob")
        with pytest.raises(HyperError, match="no session"):
            bob.attach(stolen)


def test_a_quota_is_reserved_at_begin_and_settled_at_commit(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(gateway, "small", monkeypatch) as client:
        sessions = [client.session("small/a") for _ in range(3)]  # each reserves 1 MB of 3
        with pytest.raises(ResourceExhaustedError, match="may keep") as caught:
            client.session("small/b")
        assert caught.value.reason == "QUOTA_EXCEEDED"
        sessions[0].abort()
        sessions[0] = client.session("small/b")
        for session in sessions[:2]:
            session.abort()
        big = sessions[2]
        big.write("x", secrets.token_bytes(2_500_000))  # more than reserved: there is room
        big.commit()
        with pytest.raises(ResourceExhaustedError):
            client.session("small/b")
        delete_dataset(client, "small/a", request_id=secrets.token_hex(8))
        last = client.session("small/b")
        last.write("x", secrets.token_bytes(3_500_000))
        with pytest.raises(ResourceExhaustedError):
            last.commit()
        last.abort()


def test_a_store_is_its_tenants(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(gateway, "alice", monkeypatch) as alice:
        stores.set_store(alice, "mine", endpoint="http://127.0.0.1:1", bucket="bucket")
        session = alice.session("alice/x")
    with client_of(gateway, "bob", monkeypatch) as bob:
        assert list(stores.list_stores(bob)) == []
        request = array_api.RegisterArrayRequest(
            session=bob.session("bob/x").name, array="a", store="tenants/alice/stores/mine"
        )
        with pytest.raises(PermissionDeniedError):
            bob.call(STORAGE, array_grpc.ArrayServiceStub, "RegisterArray", request)
    assert session.name.startswith("tenants/alice")


def test_a_stranger_on_the_wire_is_refused(gateway: Gateway) -> None:
    with grpc.insecure_channel(gateway.address) as channel:
        stub = api_grpc.DatasetServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListDatasets(api.ListDatasetsRequest(parent="tenants/alice"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
