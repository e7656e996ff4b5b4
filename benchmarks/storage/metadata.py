"""The row about opening what is large: a version of 100 million files, an array of 131 TB.

The manifests of the 100 million are the gateway's own, put into the bucket directly: a root that
lists all pages, and those of the pages that are then looked at. All files are one blob's.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import SecretStr

from benchmarks.storage.place import Place
from hyper.client import Client
from hyper.datasets import FileInfo
from hyper_servicekit.config import S3Settings
from hyper_servicekit.etcd import Etcd, Op
from hyper_servicekit.objects import S3Store
from hyper_storage.files.entries import Entry, source_of
from hyper_storage.files.root import PageRef, Root
from hyper_storage.manifests import Manifests
from hyper_storage.records import decode_head, decode_version

FILES, PAGE = 100_000_000, 65_536
ARRAY = (7_600, 92_000, 187_000)


def metadata_open_s(where: Place) -> dict[str, Any]:
    """Seconds to open each, by a client and a gateway that have not seen it; the slower counts."""
    files = FILES // 100 if where.quick else FILES
    name = where.name()
    with where.client.session(name) as session:
        session.write("seed", b"one blob for all of them")
    asyncio.run(_grow(where, name, where.dataset(name).file("seed"), files))
    pages = files // PAGE
    with where.client.session(f"{name}-array") as session:
        session.create_array("a", ARRAY, "uint8", fill_value=7)
    with Client(where.cluster.endpoint) as client:
        client.open_dataset(f"{name}-array")  # connected, as a program is that goes on working
        found = {
            "files_open_s": _seconds(lambda: client.open_dataset(name).file_count),
            "file_read_s": _seconds(lambda: client.open_dataset(name).read(_path(pages - 1, 77))),
            "folder_s": _seconds(lambda: client.open_dataset(name).list_folder(f"{0:06d}/")),
            "array_open_s": _seconds(lambda: client.open_array(f"{name}-array/a").shape),
            "voxel_s": _seconds(lambda: client.open_array(f"{name}-array/a")[4000, 50_000, 9]),
        }
        assert client.open_dataset(name).file_count == pages * PAGE
    return {"value": max(found["files_open_s"], found["array_open_s"]), "files": files, **found}


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _path(page: int, number: int) -> str:
    return f"{page:06d}/{number:05d}"


async def _grow(where: Place, name: str, seed: FileInfo, files: int) -> None:
    """Let the dataset's newest version be one of that many files."""
    keys = where.cluster.s3()
    settings = S3Settings(
        endpoint=keys["endpoint"], bucket=keys["bucket"], access_key=keys["access_key"],
        secret_key=SecretStr(keys["secret_key"]),
    )  # fmt: skip
    sources = (source_of(seed.object),)
    async with (
        S3Store(settings) as store,
        Etcd([where.cluster.address("etcd")]) as etcd,
    ):
        manifests = Manifests(store, cache_entries=0)
        pages: list[PageRef] = []
        for number in range(files // PAGE):
            if number in (0, files // PAGE - 1):
                pages.append(await manifests.put_page(_entries(number, seed)))
                continue
            digest = hashlib.sha256(str(number).encode()).hexdigest()  # of a page nobody asks for
            ends = _path(number, 0), _path(number, PAGE - 1)
            pages.append(PageRef(digest, *ends, PAGE, PAGE * seed.size_bytes, sources))
        root = Root(tuple(pages))
        (ref,) = await manifests.put_roots([root])
        items, _ = await etcd.get_prefix("/")
        (head,) = [item for item in items if item.key.endswith(f"/storage/heads/{name}")]
        known = decode_head(head.value)
        (entry,) = [item for item in items if f"/storage/versions/{known.id}/" in item.key]
        version = replace(
            decode_version(entry.value), root=ref, files=root.files, file_bytes=root.file_bytes
        )
        await etcd.transact(
            [],
            [
                Op.put(entry.key, version.encode()),
                Op.put(head.key, replace(known, root=ref).encode()),
            ],
        )


def _entries(page: int, seed: FileInfo) -> list[Entry]:
    digest, modified_ns = bytes.fromhex(seed.sha256), int(seed.modified.timestamp() * 1e9)
    where = seed.size_bytes, seed.object, seed.offset
    return [
        Entry(_path(page, number), *where, digest, seed.crc32c, modified_ns)
        for number in range(PAGE)
    ]
