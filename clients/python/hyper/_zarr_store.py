"""A zarr store over presigned URLs: one array of a version or session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)

from hyper._s3 import Remote, threads

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

METADATA = "zarr.json"
_TAILS_KEPT_BYTES = 16 * 2**20


class PresignedStore(Store):  # type: ignore[misc]  # zarr's types are not followed
    """Shards come by byte ranges, and go as whole objects.

    Args:
        remote: the version or session.
        prefix: of the array's keys.
        zarr_json: its metadata.
        overwrites: says of a shard that the coming write replaces all of it, so that what it held
            need not be read.
        keep_tails: remember shard indexes; only where objects never change.
    """

    supports_writes = True
    supports_deletes = True
    supports_listing = False

    def __init__(
        self,
        remote: Remote,
        prefix: str,
        zarr_json: bytes,
        *,
        read_only: bool,
        overwrites: Callable[[str], bool] | None = None,
        keep_tails: bool = False,
    ) -> None:
        super().__init__(read_only=read_only)
        self._remote = remote
        self._prefix = prefix
        self._zarr_json = zarr_json
        self._overwrites = overwrites
        self.may_put: Callable[[], None] | None = None  # raises where a write comes too late
        self._tails: dict[tuple[str, int], bytes | None] | None = {} if keep_tails else None
        self._tail_bytes = 0

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PresignedStore)
            and other._remote is self._remote
            and other._prefix == self._prefix
        )

    __hash__ = None  # type: ignore[assignment]  # as of every zarr store: compared, not hashed

    def forget_tails(self) -> None:
        """Read shard indexes anew: one may have been damaged on its way."""
        if self._tails is not None:
            self._tails = {}
            self._tail_bytes = 0

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Bytes of an object, or None."""
        if key == METADATA:
            return prototype.buffer.from_bytes(self._zarr_json)
        if self._overwrites is not None and self._overwrites(key):
            return None
        data = await self._fetch(key, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def _fetch(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        whole = f"{self._prefix}/{key}"
        match byte_range:
            case None:
                get = partial(self._remote.get, whole)
            case RangeByteRequest(start=start, end=end):
                get = partial(self._remote.get, whole, start, end)
            case OffsetByteRequest(offset=offset):
                get = partial(self._remote.get, whole, offset)
            case SuffixByteRequest(suffix=suffix):
                return await self._tail(whole, suffix)
            case _:
                raise TypeError(f"unknown byte range {byte_range!r}")
        return await asyncio.get_running_loop().run_in_executor(threads(), get)

    async def _tail(self, whole: str, length: int) -> bytes | None:
        """The end of a shard, where its index is."""
        tails = self._tails
        if tails is not None and (whole, length) in tails:
            return tails[whole, length]
        get = partial(self._remote.get, whole, last=length)
        data = await asyncio.get_running_loop().run_in_executor(threads(), get)
        if tails is not None:
            self._tail_bytes += length
            if self._tail_bytes > _TAILS_KEPT_BYTES:
                tails.clear()
                self._tail_bytes = length
            tails[whole, length] = data
        return data

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several ranges at once."""
        return list(
            await asyncio.gather(*(self.get(key, prototype, wanted) for key, wanted in key_ranges))
        )

    async def set(self, key: str, value: Buffer) -> None:
        """Store a whole object."""
        self._check_writable()
        if self.may_put is not None:
            self.may_put()
        put = partial(self._remote.put, f"{self._prefix}/{key}", value.as_numpy_array().data)
        await asyncio.get_running_loop().run_in_executor(threads(), put)

    async def exists(self, key: str) -> bool:
        """Whether the object is there."""
        if key == METADATA:
            return True
        found = await self._fetch(key, RangeByteRequest(0, 1))
        return found is not None

    async def delete(self, key: str) -> None:
        """Never needed: empty chunks are written like others."""
        raise NotImplementedError(f"{key}: objects of an array are not deleted")

    async def list(self) -> AsyncIterator[str]:
        """Not possible by presigned URLs."""
        nothing: tuple[str, ...] = ()
        for key in nothing:
            yield key
        raise NotImplementedError("presigned URLs cannot list")

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Not possible by presigned URLs."""
        return self.list()

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Not possible by presigned URLs."""
        return self.list()
