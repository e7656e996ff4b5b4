"""Publishing: an edited or registered array becomes a plain one that any Zarr v3 reader opens."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from hyper._s3 import threads
from hyper.config import STORAGE
from hyper.errors import DataLossError, InvalidArgumentError
from hyperapi.storage.v1 import array_service_pb2 as api
from hyperapi.storage.v1.array_service_pb2_grpc import ArrayServiceStub

if TYPE_CHECKING:
    from hyper.arrays import Array
    from hyper.client import Client
    from hyper.sessions import Session

_COPIES_AT_ONCE = 4
Advance = Callable[[int], object]


def _nothing(count: int) -> None:
    """Nobody watches."""


def publish(
    session: Session, source: Array, name: str, *, advance: Advance = _nothing, force: bool = False
) -> Array:
    """Make array `name` of the session a plain copy of `source`; the commit makes it visible.

    Shards are copied as they are stored, only those that exist; a registered array is decoded and
    written in shards of ours. An array of that name in the session's base is replaced.

    Args:
        session: of any dataset.
        source: of a version.
        name: of the copy.
        advance: is told of every shard that was copied.
        force: copy an array that is plain already, too.

    Raises:
        InvalidArgumentError: `source` is plain already; its `url` can be opened as it is.
    """
    if source.url and not force:
        raise InvalidArgumentError(
            f"{source.name} is plain Zarr already: {source.url} can be opened as it is"
        )
    if name in session.arrays():
        session.delete_array(name)
    if source.sharded and not source.registered:
        return _copy_shards(session, source, name, advance)
    target = _like(session, source, name)
    steps = [range(0, n, s) for n, s in zip(target.shape, target.shards, strict=True)]
    for corner in itertools.product(*steps):
        box = tuple(
            slice(at, min(at + s, n))
            for at, s, n in zip(corner, target.shards, target.shape, strict=True)
        )
        target[box] = source[box]
        advance(1)
    return target


def _copy_shards(session: Session, source: Array, name: str, advance: Advance) -> Array:
    target = _like(session, source, name, shards=source.shards, chunks=source.chunks)
    same = source.stored_like(target)
    running: deque[Future[None]] = deque()

    def copy(key: str) -> None:
        shard = key.partition("/c/")[2]
        if not same:
            box = source.box_of(tuple(map(int, shard.split("/"))))
            target[box] = source[box]
            return
        data = source.remote.get(key)
        if data is None:
            raise DataLossError(f"{source.name}: shard {shard} is lost; see `hyper scrub`")
        target.remote.put(f"{target.prefix}/c/{shard}", data)

    try:
        for key in list_shards(source.client, source):
            if not same:
                copy(key)  # decodes and encodes in threads of its own
                advance(1)
                continue
            if len(running) >= _COPIES_AT_ONCE:
                running.popleft().result()
                advance(1)
            running.append(threads().submit(copy, key))
        while running:
            running.popleft().result()
            advance(1)
    finally:
        for future in running:
            future.cancel()
    return target


def _like(session: Session, source: Array, name: str, **layout: Any) -> Array:
    document = source.metadata
    codecs = document["codecs"][0].get("configuration", {}).get("codecs", [])
    plain = source.sharded and not any(codec["name"] == "zstd" for codec in codecs)
    attributes = {k: v for k, v in source.attributes.items() if k != "voxel_size_nm"}
    return session.create_array(
        name,
        source.shape,
        source.dtype,
        fill_value=source.fill_value,
        voxel_size_nm=source.voxel_size_nm,
        attributes=attributes,
        compressor=None if plain else "zstd",
        dimension_names=document.get("dimension_names", ()),
        **layout,
    )


def list_shards(client: Client, array: Array) -> Iterator[str]:
    """The keys of an array's shards that exist, in no order; not of a registered one."""
    request = api.ListShardsRequest(name=array.name)
    for part in client.stream(STORAGE, ArrayServiceStub, "ListShards", request):
        yield from part.objects
