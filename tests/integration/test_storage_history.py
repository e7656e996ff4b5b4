"""Tags, differences, deletion, garbage collection and scrubbing, against real servers."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hyper.cli import main
from hyper.client import Client
from hyper.datasets import delete_dataset
from hyper.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from hyper.history import (
    Difference,
    Garbage,
    collect_garbage,
    delete_tag,
    diff,
    list_tags,
    scrub,
    set_tag,
)
from hyper_servicekit.config import S3Settings
from hyper_servicekit.etcd import Etcd, Op
from hyper_servicekit.objects import S3Store
from hyper_storage.catalog import Catalog
from tests.support.gateway import run_gateway, storage_client
from tests.support.servers import EtcdServer, S3Server


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> S3Settings:
    return s3_server.settings(f"history-{secrets.token_hex(8)}")


@pytest.fixture(scope="module")
def client(
    etcd_server: EtcdServer, bucket: S3Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("gateway")
    prefix = f"/test-{secrets.token_hex(8)}"
    small = {
        "HYPER_STORAGE__PAGE_ENTRIES": "16",
        "HYPER_STORAGE__ROOT_ENTRIES": "4",
        "HYPER_STORAGE__GC_GRACE_MIN_S": "0",
    }
    with (
        run_gateway(folder, etcd_server.endpoint, bucket, prefix, small) as gateway,
        storage_client(gateway.address) as client,
    ):
        yield client


@pytest.fixture
def name() -> str:
    return f"lab/set-{secrets.token_hex(6)}"


def commit(
    client: Client, name: str, files: dict[str, bytes], *, gone: tuple[str, ...] = ()
) -> int:
    with client.session(name) as session:
        session.write_many(files.items())
        session.delete(*gone)
        return session.commit().number


def keys(bucket: S3Settings, prefix: str = "") -> set[str]:
    async def listed() -> set[str]:
        async with S3Store(bucket) as store:
            return {info.key async for info in store.list(prefix)}

    return asyncio.run(listed())


def collected(client: Client, *, apply: bool) -> Garbage:
    return list(collect_garbage(client, apply=apply, grace_s=0))[-1]


def test_a_tag_names_a_version(client: Client, name: str) -> None:
    for number in range(1, 4):
        commit(client, name, {"x": b"%d" % number})
    set_tag(client, name, "paper", 1)
    set_tag(client, name, "best", 2)
    assert client.open_dataset(f"{name}@paper").read("x") == b"1"
    set_tag(client, name, "paper", 3)
    assert client.open_dataset(f"{name}@paper").version == 3
    assert list_tags(client, name) == {"best": 2, "paper": 3}
    delete_tag(client, name, "best")
    with pytest.raises(NotFoundError, match="best"):
        client.open(f"{name}@best")
    with pytest.raises(NotFoundError, match="best"):
        delete_tag(client, name, "best")
    with pytest.raises(NotFoundError):
        set_tag(client, name, "late", 9)
    for wrong in ("head", "7", "a/b", ".."):
        with pytest.raises(InvalidArgumentError):
            set_tag(client, name, wrong, 1)


def test_differences_of_versions(client: Client, name: str) -> None:
    many = {f"f/{i:03d}": b"%d" % i for i in range(100)}
    commit(client, name, many)
    with client.session(name) as session:
        session.write_many([("f/050", b"other"), ("f/0505", b"new")])
        session.delete("f/007")
        session.create_array("raw", (4, 4), "uint8")[...] = 1
    expected = [
        Difference("added", "array", "raw"),
        Difference("removed", "file", "f/007", 1, None),
        Difference("modified", "file", "f/050", 2, 5),
        Difference("added", "file", "f/0505", None, 3),
    ]
    assert list(diff(client, f"{name}@1", name)) == expected
    assert list(diff(client, f"{name}@1", name, prefix="f/05")) == expected[2:]
    assert [d.change for d in diff(client, name, f"{name}@1")] == [
        "removed", "added", "modified", "removed",
    ]  # fmt: skip
    assert list(diff(client, name, name)) == []


def test_files_are_deleted_in_a_session(client: Client, name: str) -> None:
    commit(client, name, {f"{i:02d}": b"x" for i in range(40)})
    session = client.session(name)
    session.write("new", b"1")
    session.delete("00", "39", "new")
    session.delete("00")  # again: it is gone, which is what was asked for
    with pytest.raises(NotFoundError, match="none"):
        session.delete("01", "none")
    assert not session.exists("00")
    assert session.exists("01")
    assert [info.path for info in session.files()] == [f"{i:02d}" for i in range(1, 39)]
    session.write("00", b"back")
    assert session.read("00") == b"back"
    session.commit()
    dataset = client.open_dataset(name)
    assert dataset.file_count == 39
    assert dataset.read("00") == b"back"
    assert client.open_dataset(f"{name}@1").file_count == 40
    commit(client, name, {}, gone=tuple(info.path for info in dataset.files()))
    assert list(client.open_dataset(name).files()) == []


def test_deleting_what_another_commit_changed_is_a_conflict(client: Client, name: str) -> None:
    commit(client, name, {"x": b"1", "y": b"1"})
    mine, other = client.session(name), client.session(name)
    mine.delete("x")
    other.write("x", b"2")
    other.commit()
    with pytest.raises(ConflictError, match="'x'"):
        mine.commit()
    mine.abort()
    assert client.open_dataset(name).read("x") == b"2"


def test_garbage_is_what_nobody_needs(client: Client, name: str, bucket: S3Settings) -> None:
    data = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    collected(client, apply=True)
    with client.session(name) as session:
        session.write_many((f"{i}", b"kept") for i in range(40))
        session.create_array("a", data.shape, "uint8")[...] = data
    live = client.session(name)
    live.write("live", b"live")
    live_array = live.create_array("b", data.shape, "uint8")
    live_array[...] = data
    assert collected(client, apply=False).garbage_objects <= 1  # the fragment of the first one
    needed = keys(bucket)
    aborted = client.session(name)
    aborted.write("aborted", bytes(1000))
    aborted.create_array("c", data.shape, "uint8")[...] = data
    aborted.abort()
    commit(client, f"{name}-gone", {"gone": bytes(2000)})
    delete_dataset(client, f"{name}-gone", request_id=secrets.token_hex(8))
    before = keys(bucket)
    found = collected(client, apply=False)
    assert found.garbage_bytes > 3000
    assert keys(bucket) == before  # a dry run
    assert collected(client, apply=True) == Garbage(
        found.kept_objects, found.kept_bytes, found.garbage_objects, found.garbage_bytes, True
    )
    after = keys(bucket)
    assert before - after >= {key for key in before - needed if key.startswith("blobs/")}
    assert len(after) == found.kept_objects
    assert collected(client, apply=False).garbage_objects == 0
    np.testing.assert_array_equal(live_array[...], data)
    live.commit()
    dataset = client.open_dataset(name)
    assert (dataset.read("live"), dataset.read("39")) == (b"live", b"kept")
    for array in ("a", "b"):
        np.testing.assert_array_equal(dataset[array][...], data)
    assert client.open_dataset(f"{name}@1").read("0") == b"kept"


def test_young_objects_stay(client: Client, name: str) -> None:
    session = client.session(name)
    session.write("x", b"1")
    session.abort()
    assert list(collect_garbage(client, grace_s=3600))[-1].garbage_objects == 0
    assert collected(client, apply=False).garbage_objects >= 1


async def test_commits_and_the_deletion_of_manifests_exclude_each_other(
    etcd_server: EtcdServer, etcd_prefix: str
) -> None:
    async with Etcd([etcd_server.endpoint]) as etcd:
        catalog = Catalog(etcd, etcd_prefix, memory_s=60)
        before = await catalog.guard()
        async with catalog.collecting(10) as lease:
            assert lease is not None
            with pytest.raises(UnavailableError):
                await catalog.guard()
            assert not await catalog.change(before, [Op.put(f"{etcd_prefix}/x", b"1")])
            async with catalog.collecting(10) as second:
                assert second is None
            with pytest.raises(UnavailableError):
                await catalog.guard()  # the second one did not free the first one's lock
        assert not await catalog.change(before, [Op.put(f"{etcd_prefix}/x", b"1")])
        assert await catalog.change(await catalog.guard(), [Op.put(f"{etcd_prefix}/x", b"1")])


def test_scrub_finds_flipped_bits(client: Client, name: str, bucket: S3Settings) -> None:
    with client.session(name) as session:
        session.write_many((f"{i}", bytes([i]) * 1000) for i in range(10))
        array = session.create_array(
            "a", (64, 64), "uint8", chunks=(16, 16), shards=(32, 32), compressor=None
        )
        array[...] = 7
    dataset = client.open_dataset(name)
    assert [c.problem for c in scrub(dataset)] == [""] * 14
    info = dataset.file("3")
    shard = f"{array._message.prefix}/c/1/0"

    async def flip() -> None:
        async with S3Store(bucket) as store:
            for key, at in ((info.object, info.offset + 500), (shard, 300)):
                stored = bytearray(await store.get(key))
                stored[at] ^= 4
                await store.put(key, bytes(stored))

    asyncio.run(flip())
    damaged = [c for c in scrub(client.open_dataset(name)) if c.problem]
    assert [(c.kind, c.name) for c in damaged] == [("file", "3"), ("shard", "a/1.0")]


def test_the_commands(
    client: Client,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HYPER_ENDPOINT", "127.0.0.1:1")

    def run(*arguments: str) -> object:
        assert main.run([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    commit(client, name, {"x": b"1"})
    commit(client, name, {"y": b"2"})
    assert run("tag", f"{name}@1", "first") == {"tag": "first", "version": 1}
    assert run("tag", name) == {"first": 1}
    assert run("diff", f"{name}@first", name) == [
        {"change": "added", "kind": "file", "name": "y", "before": None, "after": 1}
    ]
    found = run("gc")
    assert isinstance(found, dict)
    assert found["applied"] is False
    assert run("scrub", name) == {"version": 2, "checked": 2, "bytes": 2, "damaged": []}
    target = tmp_path / "out"
    assert main.run(["cp", f"hyper://{name}@first", str(target)]) == 0
    assert [path.name for path in target.iterdir()] == ["x"]
    assert main.run(["tag", name, "first", "--delete"]) == 0
    assert main.run(["gc", "--grace-s", "-1"]) == 2
