"""Copies of a cluster's state: `python -m hyper_servicekit.backup save FOLDER`.

FOLDER gets `etcd.db`, a snapshot of etcd at one revision, then the objects: whatever the snapshot
names was stored before it and is never changed, so services may run meanwhile. What they delete
before it was copied is left out, and counted: garbage whose grace has passed, and results of
workflows that were forgotten just then. Saving again into a folder copies what is new. `restore`
puts the objects into a bucket; the snapshot becomes a data folder of etcd by `etcdctl snapshot
restore`, which keeps its revisions: epochs of schedulers never go back.

Settings are the storage gateway's (HYPER_STORAGE__ETCD_ENDPOINTS, HYPER_STORAGE__S3__...).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hyper.errors import DataLossError, FailedPreconditionError, HyperError, NotFoundError
from hyper.names import check_path
from hyper_servicekit.config import (
    S3Settings,
    ServiceSettings,
    load_settings,
    settings_config,
)
from hyper_servicekit.etcd import Etcd
from hyper_servicekit.objects import ObjectInfo, ObjectStore, S3Store
from hyper_servicekit.server import only_cause

SNAPSHOT = "etcd.db"
OBJECTS = "objects"
MANIFEST = "manifest.json"
_AT_ONCE = 8
_PART_BYTES = 16 << 20  # of an object, in memory at a time


class BackupSettings(ServiceSettings):
    """Where the state is."""

    model_config = settings_config("STORAGE")

    s3: S3Settings


@dataclass(frozen=True, slots=True)
class Saved:
    """What a backup holds.

    Args:
        time_s: Unix time of the snapshot.
        objects: how many there are.
        bytes: of objects.
        copied: objects that were not in the folder before.
        gone: objects that were deleted before they could be copied.
    """

    time_s: float
    objects: int
    bytes: int
    copied: int
    gone: int = 0


async def save(etcd: Etcd, store: ObjectStore, folder: Path) -> Saved:
    """Copy everything into `folder`; its manifest is written last, and is not there before."""
    await asyncio.to_thread(_begin, folder)
    begun = time.time()
    partial = folder / f"{SNAPSHOT}.partial"
    with partial.open("wb") as file:
        async for part in etcd.snapshot():
            await asyncio.to_thread(file.write, part)
    partial.replace(folder / SNAPSHOT)
    found, size, copied, gone = 0, 0, 0, 0
    waiting: set[asyncio.Task[None]] = set()

    async def copy(item: ObjectInfo, target: Path) -> None:
        nonlocal found, size, copied, gone
        try:
            await _copy(store, item, target)
        except NotFoundError:
            found, size, copied, gone = found - 1, size - item.size, copied - 1, gone + 1

    async with asyncio.TaskGroup() as group:
        async for item in store.list():
            found, size = found + 1, size + item.size
            target = folder / OBJECTS / check_path(item.key)
            if target.exists() and target.stat().st_size == item.size:
                continue
            copied += 1
            while len(waiting) >= _AT_ONCE:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            waiting.add(group.create_task(copy(item, target)))
    saved = Saved(begun, found, size, copied, gone)
    (folder / MANIFEST).write_text(json.dumps(asdict(saved)) + "\n")
    return saved


async def restore(store: ObjectStore, folder: Path) -> int:
    """Put the objects of a complete backup into a bucket; returns how many.

    Raises:
        FailedPreconditionError: the folder holds no complete backup.
    """
    if not (folder / MANIFEST).exists():
        raise FailedPreconditionError(f"{folder} holds no complete backup: {MANIFEST} is missing")
    sizes = {
        path: path.stat().st_size
        for path in (folder / OBJECTS).rglob("*")
        if path.is_file() and not path.name.endswith(".partial")
    }
    turns = asyncio.Semaphore(_AT_ONCE)

    async def put(path: Path, size: int) -> None:
        async with turns:
            with path.open("rb") as file:
                key = path.relative_to(folder / OBJECTS).as_posix()
                await store.put_file(key, file, size)

    async with asyncio.TaskGroup() as group:
        for path, size in sizes.items():
            group.create_task(put(path, size))
    return len(sizes)


def _begin(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)


async def _copy(store: ObjectStore, item: ObjectInfo, target: Path) -> None:
    """Part by part: objects may be larger than memory.

    Raises:
        NotFoundError: it has been deleted.
        DataLossError: it is shorter than the store says.
    """
    await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as file:
            for start in range(0, max(item.size, 1), _PART_BYTES):
                part = await store.get(item.key, start, min(start + _PART_BYTES, item.size))
                await asyncio.to_thread(file.write, part)
            copied = file.tell()
        if copied != item.size:
            raise DataLossError(f"{item.key}: {copied} of {item.size} bytes could be read")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def main() -> int:
    """Save or restore, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("action", choices=("save", "restore"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    settings = load_settings(BackupSettings, [])

    async def run() -> str:
        async with S3Store(settings.s3) as store:
            if given.action == "restore":
                count = await restore(store, given.folder)
                return (
                    f"{count} objects restored; etcd: `etcdctl snapshot restore "
                    f"{given.folder / SNAPSHOT} --data-dir NEW`, and start it with that folder"
                )
            async with Etcd.of(settings) as etcd:
                saved = await save(etcd, store, given.folder)
                gone = f"; {saved.gone} were deleted meanwhile" if saved.gone else ""
                return (
                    f"{saved.objects} objects, {saved.bytes} bytes, {saved.copied} of them "
                    f"new{gone}"
                )

    try:
        print(asyncio.run(run()))
    except (HyperError, OSError, ExceptionGroup) as error:
        print(f"error: {only_cause(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
