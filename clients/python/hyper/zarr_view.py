"""Any array as the keys and values of a plain Zarr v3 hierarchy.

An array of Hyper may be sharded, edited, or lie elsewhere in another format; seen through here it
is one chunk a key, uncompressed, so that every Zarr reader takes it. The bytes are fetched, checked
and decoded by the SDK as for any other read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hyper._files import Tree
    from hyper.arrays import Array

METADATA = "zarr.json"


def array_document(array: Array) -> dict[str, Any]:
    """Zarr v3 metadata: a regular grid of the array's chunks, little-endian bytes."""
    stored = array.metadata
    document: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": stored["data_type"],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [_bytes_codec(array.dtype)],
        "fill_value": stored.get("fill_value", 0),
        "attributes": {**array.attributes, **_voxel_size(array)},
    }
    names = stored.get("dimension_names")
    if names:
        document["dimension_names"] = names
    return document


def group_document(tree: Tree) -> dict[str, Any]:
    """Zarr v3 metadata of a dataset: a group, with its arrays' metadata consolidated."""
    members = {name: array_document(tree[name]) for name in tree.arrays()}
    for name in list(members):
        parts = name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            members.setdefault("/".join(parts[:depth]), _group())
    return {
        **_group(),
        "consolidated_metadata": {
            "kind": "inline", "must_understand": False, "metadata": members,
        },
    }  # fmt: skip


def chunk(array: Array, key: str) -> bytes | None:
    """The value of a key "c/0/1/2" ("c" where there is no axis); None if it is none of the array.

    A chunk at the end is padded with the fill value.
    """
    index = _index(key, array.ndim)
    if index is None:
        return None
    box = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, array.chunks, strict=True))
    if any(part.start >= n for part, n in zip(box, array.shape, strict=True)):
        return None
    found = np.asarray(array[box])
    if found.shape != array.chunks:
        whole = np.full(array.chunks, array.fill_value, array.dtype)
        whole[tuple(slice(n) for n in found.shape)] = found
        found = whole
    return np.ascontiguousarray(found, array.dtype.newbyteorder("<")).tobytes()


def has_chunk(array: Array, key: str) -> bool:
    """Whether `key` is one of the array's chunks; told from its shape, whatever their number."""
    index = _index(key, array.ndim)
    return index is not None and all(i < n for i, n in zip(index, _counts(array), strict=True))


def children(array: Array, key: str) -> tuple[range, bool] | None:
    """What is directly below "c", "c/0", ...: its numbers, and whether they are chunks.

    None where nothing is below it.
    """
    if not array.ndim or key.split("/")[0] != "c":
        return None
    counts = _counts(array)
    depth = key.count("/")
    if depth >= array.ndim or not all(counts):
        return None
    index = _index(key, depth)
    if index is None or any(i >= n for i, n in zip(index, counts[:depth], strict=True)):
        return None
    return range(counts[depth]), depth == array.ndim - 1


def chunk_bytes(array: Array) -> int:
    """The size of every chunk's value."""
    return int(np.prod(array.chunks, dtype=object)) * array.dtype.itemsize


def chunk_keys(array: Array) -> Iterator[str]:
    """Every key of a chunk."""
    for index in _indices(_counts(array)):
        yield "/".join(("c", *map(str, index)))


def encode(document: dict[str, Any]) -> bytes:
    """Metadata as they are stored."""
    return json.dumps(document).encode()


def _counts(array: Array) -> list[int]:
    """Chunks along each axis."""
    return [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]


def _indices(counts: list[int]) -> Iterator[tuple[int, ...]]:
    """As `numpy.ndindex`, which takes seconds to begin where there are very many."""
    if not counts:
        yield ()
        return
    for first in range(counts[0]):
        for rest in _indices(counts[1:]):
            yield first, *rest


def _index(key: str, ndim: int) -> tuple[int, ...] | None:
    head, *parts = key.split("/")
    if head != "c" or len(parts) != ndim:
        return None
    if not all(part.isascii() and part.isdecimal() and part == str(int(part)) for part in parts):
        return None
    return tuple(map(int, parts))


def _bytes_codec(dtype: np.dtype[Any]) -> dict[str, Any]:
    if dtype.itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def _voxel_size(array: Array) -> dict[str, Any]:
    size = array.voxel_size_nm
    return {} if size is None else {"voxel_size_nm": list(size)}


def _group() -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": {}}
