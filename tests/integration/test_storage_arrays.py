"""Arrays that many write at once, and that grow, against real servers."""

from __future__ import annotations

import multiprocessing
import secrets
from collections.abc import Iterator

import numpy as np
import obstore.store
import pytest
import zarr
import zarr.storage

from hyper.arrays import ShardLease
from hyper.client import Client
from hyper.config import STORAGE
from hyper.errors import ConflictError, InvalidArgumentError, NotFoundError
from hyper_servicekit.config import S3Settings
from tests.support.gateway import run_gateway, storage_client
from tests.support.servers import EtcdServer, S3Server


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> S3Settings:
    return s3_server.settings(f"arrays-{secrets.token_hex(8)}")


@pytest.fixture(scope="module")
def client(
    etcd_server: EtcdServer, bucket: S3Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("gateway")
    prefix = f"/test-{secrets.token_hex(8)}"
    with (
        run_gateway(folder, etcd_server.endpoint, bucket, prefix) as gateway,
        storage_client(gateway.address) as client,
    ):
        yield client


@pytest.fixture
def name() -> str:
    return f"lab/set-{secrets.token_hex(6)}"


def test_a_part_of_a_shard_that_another_changes_is_refused(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = client.session(name)
    array = session.create_array("a", (8, 8), "uint8", shards=(4, 4), chunks=(4, 4))
    shards = [f"{array._message.prefix}/c/0/{i}" for i in range(2)]
    monkeypatch.setattr(client, "patience_s", 0.2)
    with ShardLease(client, session.name, shards[:1]):
        with pytest.raises(ConflictError, match="c/0/0"):
            array[0, :] = 1  # the other shard of the row is given back
        array[0, 4:] = 2
        array[:4, :4] = 3  # a whole shard needs no reservation
    array[0, :4] = 4
    expected = np.zeros((8, 8), np.uint8)
    expected[:4, :4], expected[0, 4:], expected[0, :4] = 3, 2, 4
    np.testing.assert_array_equal(array[...], expected)
    with pytest.raises(InvalidArgumentError), ShardLease(client, session.name, ["arrays/x"]):
        pass
    session.abort()


def test_a_write_that_took_too_long_is_refused(client: Client, name: str) -> None:
    session = client.session(name)
    array = session.create_array("a", (8, 8), "uint8", shards=(8, 8))
    late = ShardLease(client, session.name, [f"{array._message.prefix}/c/0/0"])
    with late:
        late.check()
        late._until = 0.0
        with pytest.raises(ConflictError, match="too long"):
            late.check()
    session.abort()


def _fill_columns(endpoint: str, session: str, columns: list[int]) -> None:
    with storage_client(endpoint, patience_s=60) as client:
        array = client.attach(session)["a"]
        for column in columns:
            array[:, column] = column + 1


@pytest.mark.timeout(120)
def test_processes_write_parts_of_one_shard_and_lose_nothing(client: Client, name: str) -> None:
    with client.session(name) as session:
        session.create_array("a", (16, 16), "uint8", shards=(16, 16))
        spawn = multiprocessing.get_context("spawn")
        endpoint = client.addresses(STORAGE)[0]
        workers = [
            spawn.Process(
                target=_fill_columns, args=(endpoint, session.name, list(range(k, 16, 2)))
            )
            for k in range(2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(100)
            assert worker.exitcode == 0
        expected = np.broadcast_to(np.arange(1, 17, dtype=np.uint8), (16, 16))
        np.testing.assert_array_equal(session["a"][...], expected)


def test_an_array_grows(client: Client, name: str, bucket: S3Settings) -> None:
    rng = np.random.default_rng(1)
    parts = [rng.integers(0, 255, (n, 20), dtype=np.uint8) for n in (5, 3, 9)]
    with client.session(name) as session:
        array = session.create_array(
            "log", (5, 20), "uint8", chunks=(2, 10), shards=(4, 20), voxel_size_nm=(40, 4, 4)
        )
        array[...] = parts[0]
        stale = client.attach(session.name)["log"]
        array.append(parts[1])
        with pytest.raises(ConflictError, match="by now"):
            stale.append(parts[1])
        array.append(parts[2])
        array.resize((17, 25))
        array.append(np.full((17, 1), 9), axis=1)
        array.set_attributes({"stain": "OsO4"})
        for wrong in ((17, 10), (17,), (2**41, 26)):
            with pytest.raises(InvalidArgumentError):
                array.resize(wrong)
    committed = client.open_array(f"{name}/log")
    expected = np.zeros((17, 26), np.uint8)
    expected[:, :20], expected[:, 25] = np.concatenate(parts), 9
    np.testing.assert_array_equal(committed[...], expected)
    assert committed.attributes == {"stain": "OsO4", "voxel_size_nm": [40, 4, 4]}
    assert committed.voxel_size_nm == (40, 4, 4)
    store = obstore.store.S3Store(
        bucket.bucket,
        prefix=committed.url.partition(f"{bucket.bucket}/")[2],
        endpoint=bucket.endpoint,
        access_key_id=bucket.access_key,
        secret_access_key=bucket.secret_key.get_secret_value(),
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    plain = zarr.open_array(zarr.storage.ObjectStore(store, read_only=True), mode="r")
    np.testing.assert_array_equal(plain[...], expected)
    session = client.session(name)
    with pytest.raises(NotFoundError, match="never changes"):
        session["log"].resize((18, 26))
    session.abort()
