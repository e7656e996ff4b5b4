"""A writer killed at any of its steps, a gateway at any of its own, and a dict as the model.

After each kill a reader sees the old version or the new one, whole; and what nobody refers to is
gone after garbage collection.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hyper.client import Client
from hyper.datasets import delete_dataset
from hyper.errors import (
    ConflictError,
    FailedPreconditionError,
    HyperError,
    NotFoundError,
    UnavailableError,
)
from hyper.history import collect_garbage
from hyper.sessions import Session
from hyper_servicekit.config import S3Settings
from hyper_servicekit.objects import S3Store
from tests.support.gateway import run_gateway, storage_client
from tests.support.servers import EtcdServer, S3Server

pytestmark = pytest.mark.timeout(120)
_EAGER = {  # and versions of a handful of files have pages, and changes over them
    "HYPER_STORAGE__GC_GRACE_MIN_S": "0",
    "HYPER_STORAGE__ROOT_ENTRIES": "2",
}


@dataclass(frozen=True, slots=True)
class Place:
    client: Client
    address: str
    s3: S3Settings
    etcd: str
    prefix: str


@pytest.fixture(scope="module")
def place(
    etcd_server: EtcdServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    s3 = s3_server.settings(f"crash-{secrets.token_hex(8)}")
    prefix, folder = f"/test-{secrets.token_hex(8)}", tmp_path_factory.mktemp("gateway")
    with (
        run_gateway(folder, etcd_server.endpoint, s3, prefix, _EAGER) as gateway,
        storage_client(gateway.address) as client,
    ):
        yield Place(client, gateway.address, s3, etcd_server.endpoint, prefix)


def content(client: Client, name: str) -> dict[str, bytes]:
    dataset = client.open_dataset(name)
    return {info.path: data for info, data in dataset.read_many(dataset.files())}


def blobs(place: Place) -> set[str]:
    """Keys of all blobs in the bucket."""

    async def stored() -> set[str]:
        async with S3Store(place.s3) as store:
            return {info.key async for info in store.list("blobs/")}

    return asyncio.run(stored())


def unneeded(place: Place, names: list[str], others: set[str]) -> set[str]:
    """Blobs, but `others`, that no version of the datasets refers to, after a collection."""
    list(collect_garbage(place.client, apply=True, grace_s=0))
    needed = set()
    for name in names:
        for number in range(1, place.client.open_dataset(name).version + 1):
            dataset = place.client.open_dataset(f"{name}@{number}")
            needed |= {info.object for info in dataset.files()}
    return blobs(place) - others - needed


WRITER = textwrap.dedent("""
    import os, signal, sys
    import urllib3
    from hyper.client import Client

    name, fatal, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    steps = 0

    def deadly(call):
        def wrapped(*arguments, **named):
            global steps
            steps += 1
            mine = steps
            if mine == fatal and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            answer = call(*arguments, **named)
            if mine == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer
        return wrapped

    Client.call = deadly(Client.call)
    urllib3.PoolManager.request = deadly(urllib3.PoolManager.request)
    with Client("127.0.0.1:1", patience_s=10) as client:
        session = client.session(name)
        print(session.name, flush=True)
        session.write_many([("x", b"new"), ("big", bytes(17 * 2**20)), ("y", b"new")])
        session.delete("z")
        session.commit()
    print("done", flush=True)
""")


def test_a_writer_killed_at_any_step_leaves_old_or_new(place: Place) -> None:
    old = {"x": b"old", "z": b"old"}
    new = {"x": b"new", "y": b"new", "big": bytes(17 * 2**20)}
    names, seen, others = [], set(), blobs(place)
    for step in itertools.count(1):
        name = f"lab/set-{secrets.token_hex(6)}"
        names.append(name)
        with place.client.session(name) as session:
            session.write_many(old.items())
        when = ("before", "after")[step % 2]
        done = subprocess.run(
            [sys.executable, "-c", WRITER, name, str(step), when],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        found = content(place.client, name)
        assert found in (old, new), (step, when)
        seen.add(found == new)
        lines = done.stdout.split()
        if found == old and lines:
            try:
                place.client.attach(lines[0]).abort()
            except FailedPreconditionError:
                pytest.fail(f"step {step}: the session is closed, but its version is not there")
        if lines and lines[-1] == "done":
            break
        assert done.returncode == -9, done.stderr
    assert step > 8 and seen == {True, False}
    assert unneeded(place, names, others) == set()


@pytest.mark.parametrize("point", ["storage.files.stored", "storage.files.counted"])
def test_a_gateway_killed_while_files_are_added_loses_none(
    place: Place, point: str, tmp_path: Path
) -> None:
    name = f"lab/set-{secrets.token_hex(6)}"
    session_name = place.client.session(name).name
    dying = {"HYPER_FAILPOINTS": f"{point}=crash"}
    with (
        run_gateway(tmp_path / "g", place.etcd, place.s3, place.prefix, dying) as bad,
        storage_client(bad.address, patience_s=0.5) as client,
        pytest.raises(UnavailableError),
    ):
        client.attach(session_name).write("x", b"1")
    session = place.client.attach(session_name)
    session.write("x", b"1")  # as a client does that got no answer
    session.write("y", b"2")
    session.commit()
    assert content(place.client, name) == {"x": b"1", "y": b"2"}
    delete_dataset(place.client, name, request_id=secrets.token_hex(16))
    list(collect_garbage(place.client, apply=True, grace_s=0))
    assert not [key for key in blobs(place) if session_name.rpartition("/")[2] in key]


def test_versions_committed_together_are_kept_and_read_by_another_gateway(
    place: Place, tmp_path: Path
) -> None:
    name = f"lab/set-{secrets.token_hex(6)}"
    sessions = [place.client.session(name) for _ in range(12)]
    for number, session in enumerate(sessions):
        session.write(f"f{number}", bytes([number]))
    with ThreadPoolExecutor(len(sessions)) as pool:
        numbers = list(pool.map(lambda session: session.commit().number, sessions))
    assert sorted(numbers) == list(range(1, 13))
    list(collect_garbage(place.client, apply=True, grace_s=0))
    with (
        run_gateway(tmp_path / "g", place.etcd, place.s3, place.prefix) as fresh,
        storage_client(fresh.address) as client,
    ):
        whole: dict[str, bytes] = {}
        for number, by in sorted(zip(numbers, range(12), strict=True)):
            whole[f"f{by}"] = bytes([by])
            assert content(client, f"{name}@{number}") == whole
            assert client.open_dataset(f"{name}@{number}").file_count == number


PATHS = st.sampled_from(["a", "b", "d/a", "d/e/f", "é x"])


class Files(RuleBasedStateMachine):
    """Versions and sessions against dicts."""

    place: Place

    @initialize()
    def begin(self) -> None:
        self.name = f"lab/set-{secrets.token_hex(6)}"
        self.versions: list[dict[str, bytes]] = [{}]
        self.open: list[tuple[Session, int, dict[str, bytes | None]]] = []

    @precondition(lambda self: len(self.open) < 3)
    @rule()
    def session(self) -> None:
        session = self.place.client.session(self.name)
        assert session.base == len(self.versions) - 1
        self.open.append((session, session.base, {}))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2), files=st.dictionaries(PATHS, st.binary(max_size=40), min_size=1))
    def write(self, which: int, files: dict[str, bytes]) -> None:
        session, _, changes = self.open[which % len(self.open)]
        session.write_many(files.items())
        changes.update(files)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2), path=PATHS)
    def delete(self, which: int, path: str) -> None:
        session, base, changes = self.open[which % len(self.open)]
        if path in self._shown(base, changes):
            session.delete(path)
            changes[path] = None
        elif path not in changes:
            with pytest.raises(NotFoundError):
                session.delete(path)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2), old=PATHS, new=PATHS)
    def rename(self, which: int, old: str, new: str) -> None:
        session, base, changes = self.open[which % len(self.open)]
        shown = self._shown(base, changes)
        if old in shown and old != new:
            info = session.file(old)
            session.refer([_renamed(info, new)])
            session.delete(old)
            changes[new], changes[old] = shown[old], None

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2))
    def commit(self, which: int) -> None:
        session, base, changes = self.open.pop(which % len(self.open))
        head, was = self.versions[-1], self.versions[base]
        theirs = {p for p in head.keys() | was.keys() if head.get(p) != was.get(p)}
        try:
            number = session.commit().number
        except ConflictError:
            assert theirs & changes.keys()
            session.abort()
            return
        assert number == len(self.versions)
        self.versions.append(self._shown(len(self.versions) - 1, changes))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2))
    def abort(self, which: int) -> None:
        self.open.pop(which % len(self.open))[0].abort()

    @rule()
    def collect(self) -> None:
        list(collect_garbage(self.place.client, apply=True, grace_s=0))

    def _shown(self, base: int, changes: dict[str, bytes | None]) -> dict[str, bytes]:
        merged: dict[str, bytes | None] = {**self.versions[base], **changes}
        return {path: data for path, data in merged.items() if data is not None}

    @invariant()
    def sessions_show_their_changes(self) -> None:
        for session, base, changes in getattr(self, "open", []):
            found = {info.path: data for info, data in session.read_many(session.files())}
            assert found == self._shown(base, changes)

    def teardown(self) -> None:
        for number, model in enumerate(getattr(self, "versions", [])[1:], 1):
            assert content(self.place.client, f"{self.name}@{number}") == model
        for session, _, _ in getattr(self, "open", []):
            session.abort()


def _renamed(info: Any, path: str) -> Any:
    from dataclasses import replace

    return replace(info, path=path)


def test_versions_are_what_a_dict_would_be(place: Place) -> None:
    machine = type("Placed", (Files,), {"place": place})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # hypothesis does not say
        machine,
        settings=settings(
            max_examples=8, stateful_step_count=15, deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def test_a_flipped_bit_is_noticed(place: Place) -> None:
    name = f"lab/set-{secrets.token_hex(6)}"
    with place.client.session(name) as session:
        session.write_many([("a", b"a" * 1000), ("b", b"b" * 1000)])
        session.write("large", secrets.token_bytes(17 * 2**20))
    dataset = place.client.open_dataset(name)
    for path in ("a", "large"):
        _flip(place, dataset.file(path))
    for path in ("a", "large"):
        with pytest.raises(HyperError, match="damaged"):
            dataset.read(path)
    with pytest.raises(HyperError, match="damaged"):
        list(dataset.read_many(dataset.files()))
    assert dataset.read("b") == b"b" * 1000


def _flip(place: Place, info: Any) -> None:
    async def flip() -> None:
        async with S3Store(place.s3) as store:
            data = bytearray(await store.get(info.object))
            data[info.offset + info.size_bytes // 2] ^= 4
            await store.put(info.object, bytes(data))

    asyncio.run(flip())
