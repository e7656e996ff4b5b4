"""A dataset as a folder, by a real FUSE mount: read, written, killed."""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hyper.client import Client
from hyper.cluster.ports import HeldPorts
from hyper.errors import FailedPreconditionError, NotFoundError
from hyper.mount import libfuse
from hyper.mount.process import Options, _detach, _state_file, mount, order, umount
from hyper_servicekit.config import S3Settings
from tests.support.gateway import Gateway, run_gateway, storage_client
from tests.support.servers import EtcdServer

pytestmark = pytest.mark.timeout(60)
MB = 2**20


@dataclass(frozen=True, slots=True)
class Place:
    client: Client
    gateway: Gateway
    folder: Path

    def mount(self, address: str, **options: Any) -> Path:
        folder = self.folder / f"mount-{secrets.token_hex(4)}"
        folder.mkdir()
        return self.mount_at(folder, address, **options)

    def mount_at(self, folder: Path, address: str, **options: Any) -> Path:
        options.setdefault("cache", str(self.folder / "cache"))
        mount(Options(address=address, folder=str(folder), **options))
        return folder

    def kill(self, folder: Path) -> None:
        """SIGKILL, and the dead mount taken away."""
        pid = int(json.loads(_state_file(folder.resolve()).read_text())["pid"])
        os.kill(pid, signal.SIGKILL)
        _until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))
        _detach(folder)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _until(done: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def _servers(
    etcd_server: EtcdServer, s3_server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, Gateway]]:
    try:
        libfuse.load()
    except FailedPreconditionError as error:
        pytest.skip(str(error))
    settings: S3Settings = s3_server.settings(f"mount-{secrets.token_hex(6)}")
    prefix = f"/test-{secrets.token_hex(8)}"
    with HeldPorts() as held:
        again = {"HYPER_STORAGE__LISTEN": f"127.0.0.1:{held.one()}"}  # after a restart too
    with (
        run_gateway(
            tmp_path_factory.mktemp("g"), etcd_server.endpoint, settings, prefix, again
        ) as gateway,
        storage_client(gateway.address) as client,
    ):
        yield client, gateway


@pytest.fixture
def place(
    _servers: tuple[Client, Gateway], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    monkeypatch.setenv("HYPER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HYPER_ENDPOINT", "127.0.0.1:1")
    monkeypatch.setenv("HYPER_STORAGE_ENDPOINT", _servers[1].address)
    where = Place(*_servers, tmp_path)
    yield where
    for folder in tmp_path.glob("mount-*"):
        if os.path.ismount(folder):
            where.kill(folder)


@pytest.fixture
def name() -> str:
    return f"lab/set-{secrets.token_hex(6)}"


def _content(client: Client, name: str) -> dict[str, bytes]:
    dataset = client.open_dataset(name)
    return {info.path: dataset.read(info.path) for info in dataset.files()}


def test_a_version_is_read_as_files(place: Place, name: str) -> None:
    files = {f"a/{i % 7}/{i:03d}": secrets.token_bytes(i * 37) for i in range(120)}
    files["large"] = secrets.token_bytes(18 * MB + 5)
    files["übrig/ä b"] = b"name"
    with place.client.session(name) as session:
        session.write_many(files.items())
    folder = place.mount(name)
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert found == files
    assert (folder / "a" / "0").is_dir()
    assert not (folder / "none").exists()
    assert (folder / "large").stat().st_size == len(files["large"])
    with (
        (folder / "large").open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as m,
    ):
        assert m[5 * MB - 3 : 5 * MB + 9] == files["large"][5 * MB - 3 : 5 * MB + 9]
    with pytest.raises(OSError) as error:
        (folder / "new").write_bytes(b"x")
    assert error.value.errno == errno.EROFS
    umount(folder)
    assert not os.path.ismount(folder)


def test_many_readers_at_once_and_a_gateway_that_restarts(place: Place, name: str) -> None:
    files = {f"{i:03d}": secrets.token_bytes(20_000) for i in range(60)}
    large = secrets.token_bytes(24 * MB)
    with place.client.session(name) as session:
        session.write_many(files.items())
        session.write("large", large)
    folder = place.mount(name, disk_bytes=8 * MB, memory_bytes=8 * MB)  # less than is read

    def look(seed: int) -> None:
        picks = random.Random(seed)
        with (folder / "large").open("rb") as file:
            for _ in range(25):
                path = picks.choice(sorted(files))
                assert (folder / path).read_bytes() == files[path]
                at = picks.randrange(len(large))
                file.seek(at)
                assert file.read(70_000) == large[at : at + 70_000]

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(look, seed) for seed in range(12)]
        place.gateway.kill()
        place.gateway.start()
        for reader in readers:
            reader.result()


def test_random_operations_as_on_a_local_file(place: Place, name: str, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    picks = random.Random(seed)
    with place.client.session(name) as session:
        session.write("f", b"0123456789" * 3000)
    folder = place.mount(name, write=True)
    local = tmp_path / "local"
    local.write_bytes(b"0123456789" * 3000)
    both = [folder / "f", local]

    def read(at: int, length: int) -> None:
        seen = []
        for path in both:
            with path.open("rb") as file:
                file.seek(at)
                seen.append(file.read(length))
        assert seen[0] == seen[1]

    def write(at: int, data: bytes) -> None:
        for path in both:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(data)

    def mapped(at: int, data: bytes) -> None:
        for path in both:
            if path.stat().st_size >= at + len(data):
                with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as m:
                    m[at : at + len(data)] = data

    for step in range(150):
        at, length = picks.randrange(60_000), picks.randrange(1, 20_000)
        match picks.randrange(8):
            case 0 | 1 | 2:
                read(at, length)
            case 3 | 4:
                write(at, picks.randbytes(length))
            case 5:
                for path in both:
                    os.truncate(path, at)
            case 6:
                mapped(at, picks.randbytes(length))
            case 7 if step % 3 == 0:
                order(folder, "commit")
            case _:
                for number, path in enumerate(both):
                    with path.open("ab") as file:
                        file.write(b"end")
                        os.fsync(file.fileno())
                    moved = path.with_name("g" if path.name in ("f", "local") else "f")
                    path.rename(moved)
                    both[number] = moved
        assert both[0].stat().st_size == both[1].stat().st_size
    expected = both[1].read_bytes()
    umount(folder)
    assert _content(place.client, name) == {both[0].name: expected}


def test_what_is_written_becomes_a_version(place: Place, name: str) -> None:
    with place.client.session(name) as session:
        session.write_many([("d/x", b"x" * 9000), ("d/e/y", b"y"), ("z", b"z")])
    folder = place.mount(name, write=True)
    (folder / "new").mkdir()
    (folder / "empty").mkdir()
    (folder / "new" / "file").write_bytes(b"1")
    (folder / "d").rename(folder / "moved")
    (folder / "z").unlink()
    with (folder / "new" / "open").open("w+b") as file:
        file.write(b"kept as long as it is open")
        file.flush()
        (folder / "new" / "open").unlink()
        file.seek(0)
        assert file.read() == b"kept as long as it is open"
    assert order(folder, "commit", message="first")["version"] == 2
    assert (folder / "empty").is_dir()
    expected = {"moved/x": b"x" * 9000, "moved/e/y": b"y", "new/file": b"1"}
    assert _content(place.client, name) == expected
    assert order(folder, "commit")["version"] is None  # nothing has changed
    (folder / "moved" / "x").write_bytes(b"short")
    shutil.copy(folder / "new" / "file", folder / "copy")
    assert umount(folder)["version"] == 3
    expected |= {"moved/x": b"short", "copy": b"1"}
    assert _content(place.client, name) == expected
    assert _content(place.client, f"{name}@1") == {"d/x": b"x" * 9000, "d/e/y": b"y", "z": b"z"}


def test_libraries_write_their_files(place: Place, name: str) -> None:
    torch = pytest.importorskip("torch")
    folder = place.mount(name, write=True)
    weights = {"w": torch.arange(100_000, dtype=torch.float32), "b": torch.ones(3)}
    torch.save(weights, folder / "net.pt")
    loaded = torch.load(folder / "net.pt", weights_only=True)
    assert torch.equal(loaded["w"], weights["w"])
    umount(folder)
    again = place.mount(name)
    assert torch.equal(torch.load(again / "net.pt", weights_only=True)["w"], weights["w"])


def test_hdf5_works_in_place(place: Place, name: str) -> None:
    h5py = pytest.importorskip("h5py")
    folder = place.mount(name, write=True)
    for number in range(3):
        with h5py.File(folder / "data.h5", "a") as file:
            file.create_dataset(f"set{number}", data=list(range(5000)), chunks=True)
        order(folder, "commit")
    umount(folder)
    with h5py.File(place.mount(name) / "data.h5", "r") as file:
        assert sorted(file) == ["set0", "set1", "set2"]
        assert file["set1"][4321] == 4321


def test_a_kill_loses_nothing_that_was_synced(place: Place, name: str) -> None:
    folder = place.mount(name, write=True)
    with (folder / "synced").open("wb") as file:
        file.write(b"durable" * 1000)
        file.flush()
        os.fsync(file.fileno())
    (folder / "lost").write_bytes(b"nobody has asked for this to be durable")
    place.kill(folder)
    with pytest.raises(FailedPreconditionError):
        place.client.open_dataset(name)
    place.mount_at(folder, name, write=True)
    assert (folder / "synced").read_bytes() == b"durable" * 1000
    assert not (folder / "lost").exists()
    assert _content(place.client, name) == {"synced": b"durable" * 1000}


def test_a_kill_loses_at_most_one_interval(place: Place, name: str) -> None:
    folder = place.mount(name, write=True, commit_every_s=0.2)
    (folder / "first").write_bytes(b"1")
    (folder / "second").write_bytes(b"2")

    def committed() -> bool:
        try:
            return _content(place.client, name) == {"first": b"1", "second": b"2"}
        except (FailedPreconditionError, NotFoundError):
            return False

    _until(committed)
    place.kill(folder)
    assert _content(place.client, name) == {"first": b"1", "second": b"2"}


def test_what_cannot_be_mounted_is_said(place: Place, name: str) -> None:
    folder = place.folder / "mount-none"
    folder.mkdir()
    with pytest.raises(FailedPreconditionError, match=r"cannot be mounted.*no dataset"):
        mount(Options(address=name, folder=str(folder), cache=str(place.folder / "cache")))
