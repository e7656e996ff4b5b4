"""A zarr store on a dataset, an array, or what is edited in a session.

```python
import xarray, zarr
from hyper.zarr_store import open_store

zarr.open_array(open_store("lab/brain/aligned"))[0]
xarray.open_zarr(open_store("lab/brain"))
```

It reads; writing goes through sessions (`hyper.Client.session`). The same arrays are under
`hyper://` for whatever takes an fsspec address (`hyper.filesystem`).
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import TYPE_CHECKING

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)

from hyper import zarr_view
from hyper._files import Tree
from hyper.arrays import Array
from hyper.client import Client, default_client
from hyper.errors import InvalidArgumentError

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype


_KEYS_AT_ONCE = 1000  # of a listing; who asks whether there is any key takes the first


class HyperStore(Store):  # type: ignore[misc]  # zarr is not followed
    """Keys and values of one dataset version, session, or array.

    Args:
        source: what they are read from.
    """

    def __init__(self, source: Tree | Array) -> None:
        super().__init__(read_only=True)
        self._source = source
        self._arrays: dict[str, Array] = {}
        self._names: builtins.list[str] | None = None  # `list` is a method here

    def __eq__(self, value: object) -> bool:
        return isinstance(value, HyperStore) and value._source.name == self._source.name

    def __hash__(self) -> int:
        return hash(self._source.name)

    def __repr__(self) -> str:
        return f"<HyperStore {self._source.name}>"

    @property
    def supports_writes(self) -> bool:
        """False: sessions write."""
        return False

    @property
    def supports_deletes(self) -> bool:
        """False: sessions delete."""
        return False

    @property
    def supports_listing(self) -> bool:
        """True."""
        return True

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The value of a key, or a part of it; None if there is no such key."""
        data = await asyncio.to_thread(self._read, key)
        if data is None:
            return None
        match byte_range:
            case RangeByteRequest(start, end):
                data = data[start:end]
            case OffsetByteRequest(offset):
                data = data[offset:]
            case SuffixByteRequest(suffix):
                data = data[-suffix:] if suffix else b""
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> builtins.list[Buffer | None]:
        """Several values or parts of them."""
        return list(await asyncio.gather(*(self.get(k, prototype, r) for k, r in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such a key; no chunk is read."""
        return await asyncio.to_thread(self._has, key)

    async def set(self, key: str, value: Buffer) -> None:
        """Refused."""
        raise _read_only(self._source.name)

    async def delete(self, key: str) -> None:
        """Refused."""
        raise _read_only(self._source.name)

    async def list(self) -> AsyncIterator[str]:
        """Every key."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins with `prefix`."""
        found = (key for key in self._keys() if key.startswith(prefix))
        while some := await asyncio.to_thread(lambda: list(islice(found, _KEYS_AT_ONCE))):
            for key in some:
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """What is directly under `prefix`."""
        below = f"{prefix.rstrip('/')}/" if prefix else ""
        found: dict[str, None] = {}
        for key in await asyncio.to_thread(lambda: list(self._keys(chunks=False))):
            if key.startswith(below):
                found[key[len(below) :].partition("/")[0]] = None
        for name in found:
            yield name

    def _keys(self, *, chunks: bool = True) -> Iterable[str]:
        if isinstance(self._source, Array):
            yield zarr_view.METADATA
            yield from zarr_view.chunk_keys(self._source) if chunks else ("c",)
            return
        yield zarr_view.METADATA
        for name in self._array_names():
            yield f"{name}/{zarr_view.METADATA}"
            keys = zarr_view.chunk_keys(self._array(name)) if chunks else ("c",)
            yield from (f"{name}/{key}" for key in keys)

    def _array_names(self) -> builtins.list[str]:
        if self._names is None:
            assert isinstance(self._source, Tree)
            self._names = self._source.arrays()
        return self._names

    def _array(self, name: str) -> Array:
        if name not in self._arrays:
            assert isinstance(self._source, Tree)
            self._arrays[name] = self._source[name]
        return self._arrays[name]

    def _split(self, key: str) -> tuple[Array, str] | None:
        """The array that a key belongs to, and the key within it."""
        if isinstance(self._source, Array):
            return self._source, key
        for name in self._array_names():
            if key.startswith(f"{name}/"):
                return self._array(name), key[len(name) + 1 :]
        return None

    def _read(self, key: str) -> bytes | None:
        if key == zarr_view.METADATA and isinstance(self._source, Tree):
            return zarr_view.encode(zarr_view.group_document(self._source))
        found = self._split(key)
        if found is None:
            return self._group(key)
        array, rest = found
        if rest == zarr_view.METADATA:
            return zarr_view.encode(zarr_view.array_document(array))
        return zarr_view.chunk(array, rest)

    def _group(self, key: str) -> bytes | None:
        """Metadata of a group between the dataset and its arrays."""
        folder, _, last = key.rpartition("/")
        names = self._array_names()
        if folder and last == zarr_view.METADATA and any(n.startswith(f"{folder}/") for n in names):
            return zarr_view.encode({"zarr_format": 3, "node_type": "group", "attributes": {}})
        return None

    def _has(self, key: str) -> bool:
        found = self._split(key)
        if found is not None and found[1] != zarr_view.METADATA:
            return zarr_view.has_chunk(*found)
        return self._read(key) is not None


def open_store(address: str, client: Client | None = None) -> HyperStore:
    """The store of `tenant/name[@version][/array]`, on `client` or the default one.

    Raises:
        NotFoundError: there is no such dataset or array.
    """
    return HyperStore((client or default_client()).open(address))


def _read_only(name: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{name} is read-only as a zarr store: write it in a session (`hyper.Client.session`)"
    )
