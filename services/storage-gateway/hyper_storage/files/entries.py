"""One file of a manifest, and the bytes of a page of them.

A page is zlib-compressed JSON in columns, so that a page of 65,536 files decodes in a tenth of a
second and shares each object's key. It is stored under the SHA-256 of its bytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FORMAT = 1
_SHA256_BYTES = 32


class Entry(NamedTuple):
    """A file: a range of an immutable object. (A tuple, since pages hold 65,536 of them.)"""

    path: str
    size_bytes: int
    object: str
    offset: int
    sha256: bytes
    crc32c: int
    modified_ns: int


def gone(path: str, now_ns: int) -> Entry:
    """What stands in a fragment for a file that is deleted."""
    return Entry(path, -1, "", 0, bytes(_SHA256_BYTES), 0, now_ns)


def is_gone(entry: Entry) -> bool:
    """Whether the entry says that its path is deleted."""
    return entry.size_bytes < 0


def source_of(object_key: str) -> str:
    """The session that wrote a blob: the second part of `blobs/{session}/...`."""
    return object_key.split("/", 2)[1]


def sources(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The sessions whose blobs the entries lie in."""
    return tuple(sorted({source_of(key) for key in {entry.object for entry in entries} if key}))


def to_columns(entries: Sequence[Entry]) -> dict[str, Any]:
    """Entries as JSON; the same ones give the same."""
    objects = sorted({entry.object for entry in entries})
    index = {key: number for number, key in enumerate(objects)}
    return {
        "objects": objects,
        "path": [entry.path for entry in entries],
        "size_bytes": [entry.size_bytes for entry in entries],
        "object": [index[entry.object] for entry in entries],
        "offset": [entry.offset for entry in entries],
        "sha256": b"".join(entry.sha256 for entry in entries).hex(),
        "crc32c": [entry.crc32c for entry in entries],
        "modified_ns": [entry.modified_ns for entry in entries],
    }


def from_columns(columns: Mapping[str, Any]) -> list[Entry]:
    """The entries that `to_columns` was given."""
    objects = columns["objects"]
    digests = bytes.fromhex(columns["sha256"])
    return [
        Entry(path, size, objects[number], offset, digests[at : at + _SHA256_BYTES], crc, modified)
        for path, size, number, offset, at, crc, modified in zip(
            columns["path"],
            columns["size_bytes"],
            columns["object"],
            columns["offset"],
            range(0, len(digests), _SHA256_BYTES),
            columns["crc32c"],
            columns["modified_ns"],
            strict=True,
        )
    ]


def encode_page(entries: Sequence[Entry]) -> bytes:
    """The bytes of a page; the same entries give the same bytes."""
    columns = {"format": FORMAT, **to_columns(entries)}
    return zlib.compress(json.dumps(columns, separators=(",", ":")).encode(), 1)


def decode_page(data: bytes) -> list[Entry]:
    """The entries of a page, in its order."""
    columns = json.loads(zlib.decompress(data))
    if columns["format"] != FORMAT:
        raise ValueError(f"manifest page of format {columns['format']}; this gateway is too old")
    return from_columns(columns)
