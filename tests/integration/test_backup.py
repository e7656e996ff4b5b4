"""The drill: a copy while work is going on, everything lost, everything there again."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hyper.cluster.programs import WHEEL, find_etcd
from hyper.datasets import Dataset
from hyper.errors import FailedPreconditionError
from hyper.status import RunState
from hyper_servicekit import backup
from hyper_servicekit.backup import MANIFEST, OBJECTS, SNAPSHOT, restore, save
from hyper_servicekit.config import S3Settings
from hyper_servicekit.etcd import Etcd
from hyper_servicekit.objects import MemoryStore, ObjectInfo, S3Store
from tests.support.servers import EtcdServer, S3Server, run_etcd
from tests.support.services import run_services

FAST = {"HEARTBEAT_S": "0.3", "LEASE_S": "2", "LEADER_TTL_S": "2"}


def recipe(count: int, command: str) -> dict[str, object]:
    return {"version": 1, "name": "t", "experiments": {"t": {
        "command": command, "parameters": {"i": {"range": [0, count]}}}}}  # fmt: skip


def restored_by_etcdctl(snapshot: Path, data: Path) -> None:
    """Make a data folder of the snapshot, with the wheel's own program."""
    etcdctl = find_etcd(source=WHEEL).path.with_name("etcdctl")
    etcdctl.chmod(0o755)
    subprocess.run(
        [etcdctl, "snapshot", "restore", snapshot, "--data-dir", data], check=True,
        capture_output=True, env={"ETCDCTL_API": "3"},
    )  # fmt: skip


async def save_twice(endpoint: str, s3: S3Settings, folder: Path) -> None:
    async with Etcd([endpoint]) as etcd, S3Store(s3) as store:
        saved = await save(etcd, store, folder)
        assert saved.objects == saved.copied > 0
        again = await save(etcd, store, folder)
        assert again.copied < saved.copied


async def restored(s3: S3Settings, folder: Path) -> None:
    async with S3Store(s3) as store:
        assert await restore(store, folder) > 0


@pytest.mark.timeout(180)
def test_a_cluster_comes_back_from_its_backup(s3_server: S3Server, tmp_path: Path) -> None:
    first, second = (s3_server.settings(f"test-{secrets.token_hex(8)}") for _ in range(2))
    saved = tmp_path / "backup"
    program = find_etcd(source=WHEEL)
    for name in ("etcd", "new", "services", "again"):
        (tmp_path / name).mkdir()
    content = secrets.token_bytes(3 << 20)
    with (
        run_etcd(tmp_path / "etcd", program) as etcd,
        run_services(
            tmp_path / "services", etcd, first, "/drill", workers=1, scheduler_settings=FAST
        ) as services,
        services.client() as client,
    ):
        with client.session("lab/data") as session:
            session.write("a.bin", content)
        done = client.submit(recipe(3, "echo done"))
        assert done.wait().state is RunState.SUCCEEDED
        going = client.submit(recipe(40, "sleep 0.3"))
        while going.refresh().tasks.succeeded < 2:
            time.sleep(0.05)
        asyncio.run(save_twice(etcd.endpoint, first, saved))
        with client.session("lab/data") as session:
            session.write("later.bin", b"after the backup")
    # All is lost but the folder.
    restored_by_etcdctl(saved / SNAPSHOT, tmp_path / "new" / "data")
    asyncio.run(restored(second, saved))
    with (
        run_etcd(tmp_path / "new", program) as etcd,
        run_services(
            tmp_path / "again", etcd, second, "/drill", workers=1, scheduler_settings=FAST
        ) as services,
        services.client(patience_s=60) as client,
    ):
        opened = client.open("lab/data")
        assert isinstance(opened, Dataset)
        assert opened.read("a.bin") == content
        assert [each.path for each in opened.files()] == ["a.bin"]
        assert client.workflow(done.name).state is RunState.SUCCEEDED
        assert client.workflow(going.name).wait().state is RunState.SUCCEEDED
        with client.session("lab/data") as session:
            session.write("new.bin", b"works again")


class Shrinking(MemoryStore):
    """Deletes an object as soon as it was listed, and never reads a large one whole."""

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        async for item in super().list(prefix):
            if item.key.startswith("going/"):
                await self.delete(item.key)
            yield item

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        assert start is not None and stop is not None and stop - start <= 1000
        return await super().get(key, start, stop)


async def test_objects_may_go_while_they_are_saved_and_are_read_in_parts(
    etcd_server: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_PART_BYTES", 1000)
    store = Shrinking()
    kept = {"a/large": secrets.token_bytes(2500), "a/empty": b"", "z/even": bytes(2000)}
    for key, data in {**kept, "going/1": b"x", "going/2": b"y"}.items():
        await store.put(key, data)
    async with Etcd([etcd_server.endpoint]) as etcd:
        saved = await save(etcd, store, tmp_path)
    assert (saved.objects, saved.bytes, saved.copied, saved.gone) == (3, 4500, 3, 2)
    found = {p.relative_to(tmp_path / OBJECTS).as_posix(): p.read_bytes()
             for p in (tmp_path / OBJECTS).rglob("*") if p.is_file()}  # fmt: skip
    assert found == kept


async def test_what_is_no_backup_is_not_restored(tmp_path: Path) -> None:
    (tmp_path / OBJECTS).mkdir()
    (tmp_path / OBJECTS / "a").write_bytes(b"1")
    store = MemoryStore()
    with pytest.raises(FailedPreconditionError, match=MANIFEST):
        await restore(store, tmp_path)
    assert [item async for item in store.list()] == []
