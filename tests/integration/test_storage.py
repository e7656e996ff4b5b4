"""Datasets, files and arrays against a real etcd, a real S3 server and a real gateway."""

from __future__ import annotations

import multiprocessing
import secrets
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import minio
import numpy as np
import obstore.store
import pytest
import zarr
import zarr.storage

from hyper._files import TransferProgress
from hyper.client import Client
from hyper.config import STORAGE
from hyper.datasets import Dataset, list_datasets, list_versions
from hyper.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    HyperError,
    InvalidArgumentError,
    NotFoundError,
)
from hyper.names import parse_address
from hyper_servicekit.config import S3Settings
from hyperapi.storage.v1 import dataset_service_pb2 as api
from hyperapi.storage.v1.dataset_service_pb2_grpc import DatasetServiceStub, LogServiceStub
from tests.support.gateway import run_gateway, storage_client
from tests.support.servers import EtcdServer, S3Server


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> S3Settings:
    return s3_server.settings(f"storage-{secrets.token_hex(8)}")


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


def _dataset(client: Client, address: str) -> Dataset:
    opened = client.open(address)
    assert isinstance(opened, Dataset)
    return opened


def _reason(error: pytest.ExceptionInfo[HyperError]) -> str:
    return error.value.reason


def _call(client: Client, method: str, request: object) -> object:
    return client.call(STORAGE, DatasetServiceStub, method, request)  # type: ignore[arg-type]


def test_files_round_trip(client: Client, name: str, tmp_path: Path) -> None:
    files = {f"a/{i:04d}.txt": f"file {i}".encode() * (i % 50) for i in range(300)}
    with client.session(name) as session:
        assert session.write_many(files.items()) == len(files)
        session.write("large.bin", bytes(range(256)) * 70_000)
    dataset = _dataset(client, name)
    assert (dataset.version, dataset.file_count) == (1, 301)
    assert [info.path for info in dataset.files("a/")] == sorted(files)
    assert {info.path: data for info, data in dataset.read_many(dataset.files("a/"))} == files
    for path, content in list(files.items())[::17]:
        assert dataset.read(path) == content
    assert dataset.read_range("large.bin", 1000, 1300) == (bytes(range(256)) * 7)[1000:1300]
    target = dataset.download("large.bin", tmp_path)
    assert target.stat().st_size == 256 * 70_000
    objects = {info.object for info in dataset.files("a/")}
    assert len(objects) == 1  # packed
    with pytest.raises(NotFoundError):
        dataset.read("a/none")


def test_an_object_is_no_text_to_s3(client: Client, bucket: S3Settings, name: str) -> None:
    """SeaweedFS gzips what it takes for text, and unzips it whole to read a part."""
    with client.session(name) as session:
        session.write("large.txt", b"words and words\n" * 100_000)
    (info,) = _dataset(client, name).files()
    s3 = minio.Minio(
        bucket.endpoint.removeprefix("http://"), bucket.access_key,
        bucket.secret_key.get_secret_value(), secure=False, region="us-east-1",
    )  # fmt: skip
    every = [each.object_name or "" for each in s3.list_objects(bucket.bucket, recursive=True)]
    (key,) = [each for each in every if each.endswith(info.object)]
    assert s3.stat_object(bucket.bucket, key).content_type == "application/octet-stream"


def test_transfers_tell_how_far_they_are(client: Client, name: str, tmp_path: Path) -> None:
    small = [(f"{i}.txt", b"x" * 100) for i in range(50)]
    large = bytes(18 * 2**20)
    up: list[TransferProgress] = []
    with client.session(name) as session:
        session.write_many([*small, ("large.bin", large), ("empty", b"")], on_progress=up.append)
    assert up == sorted(up, key=lambda each: (each.files, each.bytes)) and len(up) > 1
    assert (up[-1].files, up[-1].bytes) == (52, len(large) + 5000)
    down: list[TransferProgress] = []
    _dataset(client, name).download("large.bin", tmp_path, on_progress=down.append)
    assert [each.bytes for each in down] == sorted(each.bytes for each in down)
    assert {each.total_bytes for each in down} == {len(large)}
    assert (down[0].files, down[-1].files, down[-1].bytes) == (0, 1, len(large))
    empty: list[TransferProgress] = []
    _dataset(client, name).download("empty", tmp_path, on_progress=empty.append)
    assert empty[-1] == TransferProgress(1, 0, 0)


def test_versions_are_immutable_and_listed_newest_first(client: Client, name: str) -> None:
    for number in range(1, 4):
        with client.session(name) as session:
            session.write("x", f"{number}")
            session.commit(f"number {number}")
    assert [v.message for v in list_versions(client, name)] == ["number 3", "number 2", "number 1"]
    assert _dataset(client, f"{name}@1").read("x") == b"1"
    assert _dataset(client, name).read("x") == b"3"
    tenant, dataset = name.split("/")
    assert f"tenants/{tenant}/datasets/{dataset}" in [d.name for d in list_datasets(client, tenant)]
    with pytest.raises(NotFoundError):
        client.open(f"{name}@4")


def test_lists_come_in_pages(client: Client, name: str) -> None:
    with client.session(name) as session:
        session.write_many((f"{i:03d}", b"x") for i in range(25))
    parent = _dataset(client, name).name
    seen: list[str] = []
    request = api.ListFilesRequest(parent=parent, page_size=10)
    while True:
        response = client.call(STORAGE, DatasetServiceStub, "ListFiles", request)
        seen += [file.path for file in response.files]
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    assert seen == [f"{i:03d}" for i in range(25)]
    with pytest.raises(InvalidArgumentError):
        _call(client, "ListFiles", api.ListFilesRequest(parent=parent, page_token="%%%"))


def test_files_are_found_by_exact_path_in_one_call(client: Client, name: str) -> None:
    with client.session(name) as session:
        session.write_many((f"a/{i}", f"{i}".encode()) for i in range(5))
    session = client.session(name)
    session.write_many([("a/1", b"new"), ("a/12", b"12")])
    parts = [session, _dataset(client, name)]
    for part, expected in zip(parts, ([b"new", b"12", b"4"], [b"1", b"4"]), strict=True):
        request = api.GetFilesRequest(parent=part.name, paths=["a/1", "a/12", "a/4", "a", "b"])
        response = client.call(STORAGE, DatasetServiceStub, "GetFiles", request)
        paths = [file.path for file in response.files]
        assert list(response.urls) == []
        assert [data for _, data in part.read_many(paths)] == expected
    with pytest.raises(NotFoundError, match="a/12"):
        list(parts[1].read_many(["a/1", "a/12"]))
    assert not session.exists("a")
    session.abort()


def test_a_read_is_one_call(client: Client, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = client.session(name)
    for number in range(3):
        session.write(f"{number}", b"x")
    calls: list[str] = []
    call = client.call

    def counted(service: str, stub: object, method: str, *args: object, **named: object) -> object:
        calls.append(method)
        return call(service, stub, method, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "call", counted)
    assert client.attach(session.name).read("1") == b"x"
    assert calls == ["GetSession", "GetFiles"]
    session.abort()


def test_array_opens_in_plain_zarr(client: Client, name: str, bucket: S3Settings) -> None:
    expected = np.random.default_rng(0).integers(0, 255, (5, 300, 200), dtype=np.uint8)
    with client.session(name) as session:
        array = session.create_array(
            "raw", expected.shape, "uint8", voxel_size_nm=(40, 4, 4), attributes={"who": "me"}
        )
        for z in range(5):
            array[z] = expected[z]
    committed = client.open_array(f"{name}/raw")
    assert committed.voxel_size_nm == (40, 4, 4)
    assert committed.attributes == {"who": "me", "voxel_size_nm": [40, 4, 4]}
    np.testing.assert_array_equal(committed[...], expected)
    scheme, _, rest = committed.url.partition("://")
    bucket_name, _, prefix = rest.partition("/")
    assert scheme == "s3" and bucket_name == bucket.bucket
    plain = zarr.open_array(_object_store(bucket, prefix), mode="r")
    np.testing.assert_array_equal(plain[...], expected)
    assert plain.attrs["who"] == "me"
    assert plain.metadata.dimension_names == ("z", "y", "x")


def _object_store(bucket: S3Settings, prefix: str) -> zarr.storage.ObjectStore:
    return zarr.storage.ObjectStore(
        obstore.store.S3Store(
            bucket.bucket,
            prefix=prefix,
            endpoint=bucket.endpoint,
            region=bucket.region,
            access_key_id=bucket.access_key,
            secret_access_key=bucket.secret_key.get_secret_value(),
            client_options={"allow_http": True},
        ),
        read_only=True,
    )


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "uint32", "int64", "float16", "float32", "complex64"]
)
@pytest.mark.parametrize("compressor", ["zstd", None])
def test_dtypes_and_slices(client: Client, name: str, dtype: str, compressor: str | None) -> None:
    rng = np.random.default_rng(1)
    with client.session(name) as session:
        array = session.create_array(
            "a", (7, 33, 50), dtype, chunks=(2, 8, 10), shards=(4, 16, 20), compressor=compressor,
            fill_value=1,
        )  # fmt: skip
        model = np.ones((7, 33, 50), dtype)
        for key in (np.s_[0:4, 0:16, 0:20], np.s_[2:7, 5:33, 11:50], np.s_[6], np.s_[..., 3]):
            block = (rng.random(model[key].shape) * 100).astype(dtype)
            model[key] = block
            array[key] = block
            np.testing.assert_array_equal(array[...], model)
        array[1:6:2, ::-3] = 0
        model[1:6:2, ::-3] = 0
    committed = client.open_array(f"{name}/a")
    for key in (np.s_[:], np.s_[3, ::-1, 4:9], np.s_[-1, -1, -1], np.s_[2:2], np.s_[::2, 1:30:7]):
        np.testing.assert_array_equal(committed[key], model[key])
    assert committed[3, 4, 5] == model[3, 4, 5]
    with pytest.raises(IndexError):
        committed[7]
    with pytest.raises(InvalidArgumentError):
        committed[0] = 1


def test_a_value_must_fit(client: Client, name: str) -> None:
    with client.session(name) as session:
        array = session.create_array("a", (4, 4), "uint8")
        with pytest.raises(InvalidArgumentError) as error:
            array[0:2] = np.zeros((3, 4))
        assert _reason(error) == "SHAPE_MISMATCH"
        session.abort()


def test_session_is_read_by_name_before_commit_and_by_nobody_else(
    client: Client, name: str
) -> None:
    session = client.session(name)
    array = session.create_array("a", (2, 64, 64), "uint16")
    array[0] = 7
    session.write("notes.txt", "hello")
    other = client.attach(session.name)
    assert other["a"][0, 0, 0] == 7
    assert other["a"][1].max() == 0
    assert other.read("notes.txt") == b"hello"
    with pytest.raises(FailedPreconditionError) as error:
        client.open(name)
    assert _reason(error) == "EMPTY_DATASET"
    other["a"][1] = 9
    version = session.commit("done")
    assert version.number == 1 and version.arrays == ("a",)
    assert client.open_array(f"{name}/a")[1].min() == 9
    assert other.read("notes.txt") == b"hello"  # who still holds the name reads on
    with pytest.raises(FailedPreconditionError) as error:
        other.write("late", b"x")
    assert _reason(error) == "SESSION_CLOSED"
    with pytest.raises(FailedPreconditionError):
        other.create_array("b", (1,), "uint8")


def test_an_array_of_the_base_is_replaced_not_written(client: Client, name: str) -> None:
    with client.session(name) as first:
        first.create_array("a", (4, 4), "uint8")[...] = 1
    session = client.session(name)
    old = session["a"]
    assert old.url == client.open_array(f"{name}/a").url
    with pytest.raises(InvalidArgumentError, match="delete_array"):
        old[...] = 2
    with pytest.raises(AlreadyExistsError):
        session.create_array("a", (2, 2), "uint8")
    session.delete_array("a")
    new = session.create_array("a", (2, 2), "uint8")
    assert new.url == "" == session["a"].url
    session["a"][...] = 3
    session.commit()
    assert client.open_array(f"{name}@1/a").shape == (4, 4)
    assert client.open_array(f"{name}@2/a")[...].tolist() == [[3, 3], [3, 3]]


def test_abort_leaves_nothing_to_see(client: Client, name: str) -> None:
    with pytest.raises(RuntimeError), client.session(name) as session:
        session.write("x", b"1")
        raise RuntimeError("the job failed")
    with pytest.raises(FailedPreconditionError) as error:
        session.commit()
    assert _reason(error) == "SESSION_CLOSED"
    session.abort()  # again is fine
    with pytest.raises(FailedPreconditionError):
        session.read("x")
    with pytest.raises(FailedPreconditionError) as error:
        client.open(name)
    assert _reason(error) == "EMPTY_DATASET"


def test_commit_is_idempotent(client: Client, name: str) -> None:
    session = client.session(name)
    session.write("x", b"1")
    first = session.commit("one", request_id="commit-1")
    assert session.commit("one", request_id="commit-1") == first
    with pytest.raises(FailedPreconditionError) as error:
        session.commit("one", request_id="commit-2")
    assert _reason(error) == "SESSION_CLOSED"
    with pytest.raises(FailedPreconditionError):
        session.abort()
    other = client.session(name)
    with pytest.raises(InvalidArgumentError):
        other.commit("two", request_id="commit-1")


def test_work_that_is_done_again_is_committed_once(client: Client, name: str) -> None:
    one, late = client.session(name), client.session(name)
    one.write("out", b"one")
    late.write("out", b"late")
    first = one.commit("one", request_id="work-1", once=True)
    assert late.commit("late", request_id="work-1", once=True) == first
    assert _dataset(client, name).read("out") == b"one"
    late.abort()  # it was left open
    with pytest.raises(InvalidArgumentError):
        client.session(name).commit("another way", request_id="work-1")


def test_work_that_ends_everywhere_at_once_is_committed_once(client: Client, name: str) -> None:
    for turn in range(5):
        sessions = [client.session(name) for _ in range(6)]
        for number, session in enumerate(sessions):
            session.write(f"out-{turn}", f"{number}")
        with ThreadPoolExecutor(6) as pool:
            versions = set(
                pool.map(
                    lambda each: each.commit("x", request_id=f"both-{turn}", once=True).number,  # noqa: B023
                    sessions,
                )
            )
        assert versions == {turn + 1}
    assert _dataset(client, name).version == 5


def test_losing_commit_is_rebased(client: Client, name: str) -> None:
    with client.session(name) as session:
        session.write_many((f"f{i:02d}", b"old") for i in range(20))
    one, two = client.session(name), client.session(name)
    one.write("f03", b"one")
    two.write("f04", b"two")
    two.write("new/two", b"two")
    array = two.create_array("a", (4, 4), "uint8")
    array[...] = 5
    assert one.commit().number == 2
    assert two.commit().number == 3
    dataset = _dataset(client, name)
    assert dataset.read("f03") == b"one"
    assert dataset.read("f04") == dataset.read("new/two") == b"two"
    assert dataset.read("f05") == b"old"
    assert dataset.file_count == 21
    assert dataset["a"][0, 0] == 5


def test_same_path_changed_by_both_is_a_conflict(client: Client, name: str) -> None:
    one, two = client.session(name), client.session(name)
    one.write("same", b"one")
    two.write("same", b"two")
    two.write("other", b"two")
    one.commit()
    with pytest.raises(ConflictError, match="same") as error:
        two.commit()
    assert _reason(error) == "CONFLICT"
    assert [info.path for info in _dataset(client, name).files()] == ["same"]
    two.write("third", b"the session is open again")
    two.abort()


def test_same_array_made_by_both_is_a_conflict(client: Client, name: str) -> None:
    one, two = client.session(name), client.session(name)
    one.create_array("a", (4,), "uint8")
    two.create_array("a", (4,), "uint8")
    one.commit()
    with pytest.raises(ConflictError):
        two.commit()


def test_arrays_are_made_once_and_deleted(client: Client, name: str) -> None:
    with client.session(name) as session:
        session.create_array("group/a", (4,), "uint8")
        session.create_array("b", (4,), "uint8")
        with pytest.raises(AlreadyExistsError):
            session.create_array("b", (4,), "uint8")
        session.delete_array("b")
        with pytest.raises(NotFoundError):
            session.delete_array("b")
        first = session.create_array("b", (8,), "uint8", request_id="make-b")
        again = session.create_array("b", (8,), "uint8", request_id="make-b")
        assert first.name == again.name
    with client.session(name) as session:
        with pytest.raises(AlreadyExistsError):
            session.create_array("b", (4,), "uint8")
        session.delete_array("b")
        session.create_array("b", (16,), "uint8")
        session.delete_array("group/a")
    dataset = _dataset(client, name)
    assert dataset.arrays() == ["b"]
    assert dataset["b"].shape == (16,)
    assert _dataset(client, f"{name}@1").arrays() == ["b", "group/a"]


@pytest.mark.parametrize(
    "path", ["../up", "/abs", "a//b", "a/../b", "a\\b", "", "nul\0", "a/./b", "x" * 2000]
)
def test_bad_paths_are_refused(client: Client, name: str, path: str) -> None:
    session = client.session(name)
    with pytest.raises(InvalidArgumentError) as error:
        session.write(path, b"x")
    assert _reason(error) == "INVALID_NAME"
    file = api.AddFilesRequest(session=session.name).files.add(
        path=path, sha256=bytes(32), object=f"blobs/{session.name.split('/')[-1]}/x"
    )
    with pytest.raises(InvalidArgumentError) as error:
        _call(client, "AddFiles", api.AddFilesRequest(session=session.name, files=[file]))
    assert _reason(error) == "INVALID_NAME"
    session.abort()


@pytest.mark.parametrize("bad", ["..", "a/..", "../b", "", "a b", "x" * 300, "/".join("abcdefghi")])
def test_bad_array_names_are_refused(client: Client, name: str, bad: str) -> None:
    session = client.session(name)
    with pytest.raises(InvalidArgumentError) as error:
        session.create_array(bad, (4,), "uint8")
    assert _reason(error) == "INVALID_NAME"
    session.abort()


@pytest.mark.parametrize("bad", ["lab", "../x", "lab/..", "lab/a@0", "lab/a@.x", "lab/a b"])
def test_bad_addresses_are_refused(client: Client, bad: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        client.open(bad)
    assert _reason(error) == "INVALID_NAME"


@pytest.mark.parametrize(
    ("shape", "chunks", "shards", "dtype"),
    [
        ((0, 4), None, None, "uint8"),
        ((-1,), None, None, "uint8"),
        ((2**41,), None, None, "uint8"),
        ((2**70,), None, None, "uint8"),
        ((2**40, 2**40), (1, 1), (1, 1), "uint8"),
        ((), None, None, "uint8"),
        ((4, 4), (3, 4), (4, 4), "uint8"),
        ((4, 4), (0, 4), (4, 4), "uint8"),
        ((4, 4), (4,), (4, 4), "uint8"),
        ((2**20, 2**20), (2**20, 2**20), (2**20, 2**20), "uint8"),
        ((1,) * 20, None, None, "uint8"),
        ((4,), None, None, "datetime64[s]"),
        ((4,), None, None, "S5"),
    ],
)
def test_bad_shapes_are_refused(
    client: Client,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...] | None,
    shards: tuple[int, ...] | None,
    dtype: str,
) -> None:
    session = client.session(name)
    with pytest.raises(InvalidArgumentError):
        session.create_array("a", shape, dtype, chunks=chunks, shards=shards)
    assert session.arrays() == []
    session.abort()


def test_a_huge_sparse_array_opens_at_once(client: Client, name: str) -> None:
    with client.session(name) as session:
        array = session.create_array("brain", (7_600, 92_000, 187_000), "uint8")
        array[5_000, 40_000:40_010, 90_000:90_010] = 3
    brain = client.open_array(f"{name}/brain")
    assert brain[5_000, 40_005, 90_005] == 3
    assert brain[4_999, 40_005, 90_000:90_020].max() == 0


def test_only_own_objects_are_signed(client: Client, name: str) -> None:
    with client.session(name) as session:
        session.write("secret", b"x")
        session.create_array("a", (10, 10), "uint8", chunks=(5, 5), shards=(5, 5))
    victim = _dataset(client, name)
    secret = victim.file("secret").object
    prefix = victim["a"]._message.prefix
    mine = client.session(f"{name}-2")
    array = mine.create_array("a", (10, 10), "uint8", chunks=(5, 5), shards=(5, 5))
    own = array._message.prefix
    get, put = api.METHOD_GET, api.METHOD_PUT
    refused = [
        (get, secret),
        (get, f"{prefix}/c/0/0"),
        (get, f"{prefix}/zarr.json"),
        (get, "manifests/" + victim._message.root),
        (get, f"{own}/../../x"),
        (put, secret),
        (put, f"{prefix}/c/0/0"),
        (put, f"{own}/zarr.json"),
        (put, f"{own}/c/2/0"),
        (put, f"{own}/c/0"),
        (put, f"{own}/c/00/0"),
        (put, f"sessions/{mine.name.split('/')[-1]}/fragments/x"),
    ]
    for method, key in refused:
        request = api.SignUrlsRequest(parent=mine.name, method=method, objects=[key])
        with pytest.raises(InvalidArgumentError):
            _call(client, "SignUrls", request)
    with pytest.raises(InvalidArgumentError):
        request = api.ReadObjectRequest(parent=mine.name, object=secret)
        list(client.stream(STORAGE, DatasetServiceStub, "ReadObject", request))
    with pytest.raises(InvalidArgumentError):  # a version is never written
        _call(
            client,
            "SignUrls",
            api.SignUrlsRequest(parent=victim.name, method=put, objects=[f"{prefix}/c/0/0"]),
        )
    file = api.AddFilesRequest().files.add(path="stolen", sha256=bytes(32), object=secret)
    with pytest.raises(InvalidArgumentError):
        _call(client, "AddFiles", api.AddFilesRequest(session=mine.name, files=[file]))
    mine.abort()


def test_signed_url_covers_one_object_and_method(client: Client, name: str) -> None:
    session = client.session(name)
    array = session.create_array("a", (10, 10), "uint8")
    key = f"{array._message.prefix}/c/0/0"
    request = api.SignUrlsRequest(parent=session.name, method=api.METHOD_PUT, objects=[key])
    response = client.call(STORAGE, DatasetServiceStub, "SignUrls", request)
    assert response.lifetime.seconds <= 900
    url = response.urls[0]
    with pytest.raises(urllib.request.HTTPError) as error:
        urllib.request.urlopen(url, timeout=10)
    assert error.value.code == 403
    error.value.close()
    with pytest.raises(urllib.request.HTTPError) as error:
        put = urllib.request.Request(url.replace("/c/0/0", "/zarr.json"), b"x", method="PUT")
        urllib.request.urlopen(put, timeout=10)
    assert error.value.code == 403
    error.value.close()
    session.abort()


def test_reads_fall_back_to_the_gateway(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = np.random.default_rng(2).bytes(6_000_000)
    with client.session(name) as session:
        session.write("f", content)
        session.create_array("a", (64, 64), "uint8")[...] = 3
    dataset = _dataset(client, name)
    monkeypatch.setattr("hyper._s3.READ_ATTEMPTS", 1)
    remote = dataset._remote
    monkeypatch.setattr(type(remote), "_url", lambda *_: "http://127.0.0.1:1/nothing")
    assert dataset.read("f") == content
    assert dataset["a"][3, 4] == 3


def test_an_expired_url_is_signed_anew(client: Client, name: str) -> None:
    session = client.session(name)
    array = session.create_array("a", (8, 8), "uint8")
    array[...] = 3
    assert array[0, 0] == 3
    urls = array._remote._urls
    for key, (url, until) in list(urls.items()):
        urls[key] = (url.replace("X-Amz-Signature=", "X-Amz-Signature=0"), until)
    assert array[1, 1] == 3
    array[...] = 4
    assert array[2, 2] == 4
    session.abort()


def test_damaged_bytes_are_noticed(client: Client, name: str, bucket: S3Settings) -> None:
    with client.session(name) as session:
        session.write("f", b"some bytes")
        session.create_array("a", (64, 64), "uint8")[...] = np.arange(64, dtype=np.uint8)
    dataset = _dataset(client, name)
    array = dataset["a"]
    store = obstore.store.S3Store(
        bucket.bucket,
        prefix=bucket.prefix,
        endpoint=bucket.endpoint,
        region=bucket.region,
        access_key_id=bucket.access_key,
        secret_access_key=bucket.secret_key.get_secret_value(),
        client_options={"allow_http": True},
    )
    shard = f"{array._message.prefix}/c/0/0"
    for key, at in ((dataset.file("f").object, 3), (shard, 20)):
        damaged = bytearray(store.get(key).bytes())
        damaged[at] ^= 4
        store.put(key, bytes(damaged))
    with pytest.raises(HyperError) as error:
        dataset.read("f")
    assert _reason(error) == "CHECKSUM_MISMATCH"
    with pytest.raises(HyperError) as error:
        array[...]
    assert _reason(error) == "CHECKSUM_MISMATCH"


def _write_sections(endpoint: str, session: str, sections: list[int]) -> None:
    with storage_client(endpoint) as client:
        attached = client.attach(session)
        array = attached["a"]
        for z in sections:
            array[z] = z + 1
            attached.write(f"done/{z:03d}", str(z))


@pytest.mark.timeout(120)
def test_processes_write_disjoint_shards(client: Client, name: str) -> None:
    with client.session(name) as session:
        session.create_array("a", (12, 128, 128), "uint16")
        spawn = multiprocessing.get_context("spawn")
        endpoint = client.addresses(STORAGE)[0]
        workers = [
            spawn.Process(
                target=_write_sections, args=(endpoint, session.name, list(range(k, 12, 2)))
            )
            for k in range(2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(50)
            assert worker.exitcode == 0
    dataset = _dataset(client, name)
    assert dataset.file_count == 12
    written = dataset["a"][...]
    np.testing.assert_array_equal(written.min((1, 2)), np.arange(1, 13))
    np.testing.assert_array_equal(written.max((1, 2)), np.arange(1, 13))


def test_many_concurrent_commits_all_arrive(client: Client, name: str) -> None:
    sessions = [client.session(name) for _ in range(12)]
    for number, session in enumerate(sessions):
        session.write(f"f{number:02d}", str(number))
    with ThreadPoolExecutor(6) as pool:
        versions = list(pool.map(lambda s: s.commit().number, sessions))
    assert sorted(versions) == list(range(1, 13))
    assert _dataset(client, name).file_count == 12


def test_readers_see_whole_versions(client: Client, name: str) -> None:
    files = [f"part/{i}" for i in range(5)]
    with client.session(name) as session:
        session.write_many((path, b"0") for path in files)
    done = threading.Event()
    seen: list[set[bytes]] = []

    def watch() -> None:
        while not done.is_set():
            dataset = _dataset(client, name)
            seen.append({dataset.read_file(info) for info in dataset.files()})

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            for number in range(1, 9):
                with client.session(name) as session:
                    for path in files:
                        session.write(path, str(number))
        finally:
            done.set()
        watching.result()
    assert len(seen) > 1
    assert all(len(contents) == 1 for contents in seen)
    versions = [int(contents.pop()) for contents in seen]
    assert versions == sorted(versions)


def test_delete_dataset(client: Client, name: str) -> None:
    with client.session(name) as session:
        session.write("x", b"1")
    late = client.session(name)
    request = api.DeleteDatasetRequest(name=parse_address(name).dataset_name, request_id="gone-1")
    _call(client, "DeleteDataset", request)
    _call(client, "DeleteDataset", request)  # repeated: fine
    with pytest.raises(NotFoundError):
        client.open(name)
    with pytest.raises(NotFoundError):
        late.commit()
    with client.session(name) as session:
        session.write("y", b"2")
    assert [info.path for info in _dataset(client, name).files()] == ["y"]
    assert _dataset(client, name).version == 1


TASK = "tenants/t/workflows/w/experiments/e/tasks/7"


def _append(client: Client, task: str, number: int, offset: int, data: bytes, last: bool) -> None:
    request = api.AppendLogRequest(
        task=task, epoch=1, number=number, offset=offset, data=data, last=last
    )
    client.call(STORAGE, LogServiceStub, "AppendLog", request)


def _read_log(client: Client, task: str, **how: object) -> bytes:
    request = api.ReadLogRequest(task=task, **how)  # type: ignore[arg-type]
    parts = client.stream(STORAGE, LogServiceStub, "ReadLog", request)
    return b"".join(part.data for part in parts)


def test_logs_are_appended_followed_and_resumed(client: Client, name: str) -> None:
    task = TASK.replace("/w/", f"/w-{secrets.token_hex(4)}/")
    with pytest.raises(NotFoundError):
        _read_log(client, task)
    _append(client, task, 1, 0, b"first attempt", True)
    _append(client, task, 2, 0, b"hello ", False)
    _append(client, task, 2, 0, b"HELLO!", False)  # the same offset again replaces nothing
    assert _read_log(client, task) == b"hello "
    request = api.ReadLogRequest(task=task, follow=True, offset=2)
    parts = client.stream(STORAGE, LogServiceStub, "ReadLog", request)
    first = next(parts)
    assert (first.data, first.offset, first.number) == (b"llo ", 2, 2)
    _append(client, task, 2, 6, b"world", True)
    assert b"".join(part.data for part in parts) == b"world"
    assert _read_log(client, task, epoch=1, number=1) == b"first attempt"
    with pytest.raises(InvalidArgumentError):
        _read_log(client, "tenants/t/workflows/../experiments/e/tasks/1")


def test_unknown_names(client: Client) -> None:
    with pytest.raises(NotFoundError):
        client.open("lab/nothing-here")
    with pytest.raises(NotFoundError):
        client.attach(f"tenants/lab/datasets/x/sessions/{'0' * 32}")
    with pytest.raises(InvalidArgumentError):
        client.attach("tenants/lab/datasets/x/sessions/../y")
    channel = client.stub(STORAGE, DatasetServiceStub)
    with pytest.raises(grpc.RpcError) as error:
        channel.GetArray(api.GetArrayRequest(name="nonsense"), timeout=10)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
