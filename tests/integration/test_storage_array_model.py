"""Arrays against numpy: any order of writes, reads, growth, commits, edits and aborts."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hyper.client import Client
from hyper.errors import ConflictError
from hyper_servicekit.config import S3Settings
from hyperapi.storage.v1 import dataset_service_pb2 as api
from hyperapi.storage.v1.dataset_service_pb2_grpc import DatasetServiceStub
from tests.support.gateway import Gateway, run_gateway, storage_client
from tests.support.servers import EtcdServer, S3Server

STEPS = settings(
    max_examples=8, stateful_step_count=15, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # a shorter failure is not worth minutes
)  # fmt: skip


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> S3Settings:
    return s3_server.settings(f"model-{secrets.token_hex(8)}")


@pytest.fixture(scope="module")
def gateway(
    etcd_server: EtcdServer, bucket: S3Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    prefix = f"/test-{secrets.token_hex(8)}"
    with run_gateway(folder, etcd_server.endpoint, bucket, prefix) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[Client]:
    with storage_client(gateway.address) as client:
        yield client


class Arrays(RuleBasedStateMachine):
    """One array through sessions and versions; `seen` is what each of them must show."""

    client: Client

    @initialize(
        layout=st.sampled_from([((5, 7), (2, 3), (4, 6)), ((9,), (2,), (4,)),
                                ((3, 4, 5), (1, 2, 5), (2, 4, 5))]),
        dtype=st.sampled_from(["uint8", "int16", "float32", "bool", "complex64", "uint64"]),
        compressor=st.sampled_from(["zstd", None]),
    )  # fmt: skip
    def begin(self, layout: Any, dtype: str, compressor: str | None) -> None:
        shape, chunks, shards = layout
        self.name = f"lab/model-{secrets.token_hex(6)}"
        self.session = self.client.session(self.name)
        self.array = self.session.create_array(
            "a", shape, dtype, chunks=chunks, shards=shards, fill_value=1, compressor=compressor
        )
        self.model = np.ones(shape, dtype)
        self.committed: np.ndarray | None = None
        self.old: list[np.ndarray] = []

    def _key(self, data: st.DataObject) -> tuple[Any, ...]:
        parts: list[Any] = []
        for n in self.model.shape:
            if data.draw(st.booleans()):
                bounds = data.draw(
                    st.tuples(st.integers(-n - 1, n + 1), st.integers(-n - 1, n + 1))
                )
                parts.append(slice(*bounds, data.draw(st.sampled_from([None, 1, 2, -1]))))
            else:
                parts.append(data.draw(st.integers(-n, n - 1)))
        return tuple(parts)

    @rule(data=st.data(), value=st.integers(0, 100))
    def write(self, data: st.DataObject, value: int) -> None:
        key = self._key(data)
        block = (np.arange(self.model[key].size) + value).reshape(self.model[key].shape)
        block = block.astype(self.model.dtype)
        self.array[key] = block
        self.model[key] = block

    @rule(value=st.integers(0, 1))
    def write_all(self, value: int) -> None:
        self.array[...] = value
        self.model[...] = value

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        key = self._key(data)
        np.testing.assert_array_equal(self.array[key], self.model[key])

    @rule(rows=st.integers(1, 3))
    def append(self, rows: int) -> None:
        block = np.full((rows, *self.model.shape[1:]), 3).astype(self.model.dtype)
        self.array.append(block)
        self.model = np.concatenate([self.model, block])

    @rule()
    def resize(self) -> None:
        shape = [n + 1 for n in self.model.shape]
        self.array.resize(shape)
        grown = np.ones(shape, self.model.dtype)
        grown[tuple(slice(n) for n in self.model.shape)] = self.model
        self.model = grown

    @rule()
    def commit_and_edit(self) -> None:
        self.session.commit()
        self.committed = self.model.copy()
        self.old.append(self.committed)
        self.session = self.client.session(self.name)
        self.array = self.session.edit_array("a")

    @precondition(lambda self: self.committed is not None)
    @rule()
    def abort(self) -> None:
        self.session.abort()
        assert self.committed is not None
        self.model = self.committed.copy()
        self.session = self.client.session(self.name)
        self.array = self.session.edit_array("a")

    @invariant()
    def everyone_sees_what_they_must(self) -> None:
        assert self.array.shape == self.model.shape
        if self.committed is not None:
            found = self.client.open_array(f"{self.name}/a")[...]
            np.testing.assert_array_equal(found, self.committed)

    def teardown(self) -> None:
        if not hasattr(self, "session"):
            return
        np.testing.assert_array_equal(self.array[...], self.model)
        for number, expected in enumerate(self.old, 1):
            found = self.client.open_array(f"{self.name}@{number}/a")[...]
            np.testing.assert_array_equal(found, expected)
        self.session.abort()


@pytest.mark.timeout(150)
def test_arrays_behave_like_numpy(client: Client) -> None:
    Arrays.client = client
    run_state_machine_as_test(Arrays, settings=STEPS)


def test_a_sparse_brain_opens_at_once(client: Client) -> None:
    name = f"lab/sparse-{secrets.token_hex(6)}"
    shape = (7_600, 92_000, 187_000)
    before = psutil.Process().memory_info().rss
    with client.session(name) as session:
        array = session.create_array("a", shape, "uint8", fill_value=7)
        corner = tuple(s * 3 for s in array.shards)
        box = tuple(slice(a, a + s) for a, s in zip(corner, array.shards, strict=True))
        block = np.zeros(array.shards, np.uint8)
        block[5:9, 100:200, :50] = 200
        array[box] = block
        array[7_599, 91_999, 186_990:] = 9
    found = client.open_array(f"{name}/a")
    assert found.nbytes == 7_600 * 92_000 * 187_000
    np.testing.assert_array_equal(found[box], block)
    np.testing.assert_array_equal(found[7_599, 91_998:, 186_989:], [[7] * 11, [7] + [9] * 10])
    assert found[0, 0, 0] == 7
    assert found[4000, 40_000:40_064, 100_000:100_064].min() == 7
    with pytest.raises(MemoryError):
        found[...]
    assert psutil.Process().memory_info().rss - before < 400e6


def test_two_who_write_parts_of_one_shard_lose_nothing(client: Client) -> None:
    """Threads of two clients: each write is there at the end, or was refused."""
    name = f"lab/race-{secrets.token_hex(6)}"
    session = client.session(name)
    session.create_array("a", (64, 64), "uint8", chunks=(16, 16), shards=(64, 64))
    refused: list[int] = []

    def fill(rows: range) -> None:
        array = client.attach(session.name)["a"]
        for row in rows:
            try:
                array[row, ::2] = row + 1
            except ConflictError:
                refused.append(row)

    threads = [threading.Thread(target=fill, args=(range(k, 24, 3),)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = np.zeros((64, 64), np.uint8)
    for row in set(range(24)) - set(refused):
        expected[row, ::2] = row + 1
    np.testing.assert_array_equal(session["a"][...], expected)
    session.abort()


def test_writes_go_through_the_gateway_where_s3_does_not_answer(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"lab/through-{secrets.token_hex(6)}"
    data = np.random.default_rng(0).integers(0, 255, (300, 300, 30), dtype=np.uint8)
    told: list[str] = []
    monkeypatch.setattr(client, "_notice", told.append)
    with client.session(name) as session:
        array = session.create_array("a", data.shape, data.dtype)
        remote = array.remote
        monkeypatch.setattr(
            remote, "_url", lambda key, method: "http://127.0.0.1:1/nobody-listens-here"
        )
        array[...] = data
        session.write("b", b"small")
        monkeypatch.undo()
    np.testing.assert_array_equal(client.open_array(f"{name}/a")[...], data)
    assert client.open_dataset(name).read("b") == b"small"
    assert any("through the gateway" in line for line in told)


def test_a_client_that_does_not_read_costs_the_gateway_little(
    client: Client, gateway: Gateway
) -> None:
    name = f"lab/slow-{secrets.token_hex(6)}"
    with client.session(name) as session:
        session.write("big", np.random.default_rng(0).bytes(40_000_000))
    dataset = client.open_dataset(name)
    request = api.ReadObjectRequest(parent=dataset.name, object=dataset.file("big").object)
    process = psutil.Process(gateway.server.process.pid)
    before = process.memory_info().rss
    with grpc.insecure_channel(gateway.address) as channel:
        stub = DatasetServiceStub(channel)
        calls = [stub.ReadObject(request, timeout=60) for _ in range(20)]
        for call in calls:
            next(call)  # has begun; nothing more is read
        most, until = 0, time.monotonic() + 3
        while time.monotonic() < until:  # 800 MB are on their way if nothing holds them back
            most = max(most, process.memory_info().rss - before)
            time.sleep(0.05)
        for call in calls:
            call.cancel()
    assert most < 400e6
