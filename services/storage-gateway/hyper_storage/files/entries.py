"""One file of a manifest, many in little memory, and the bytes of a page of them.

A page is zlib-compressed JSON in columns, so that a page of 65,536 files decodes in a tenth of a
second and shares each object's key. It is stored under the SHA-256 of its bytes. In memory they
are columns too: 140 bytes a file with its path, a third of what as many `Entry`s take.
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

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


class Entries(Sequence[Entry]):
    """Entries that never change, column by column; each `Entry` is made when it is asked for."""

    __slots__ = (
        "_crcs", "_digests", "_modified", "_numbers", "_objects", "_offsets", "_sizes", "paths",
    )  # fmt: skip

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self.paths: list[str] = columns["path"]
        self._objects: list[str] = columns["objects"]
        self._digests = bytes.fromhex(columns["sha256"])
        self._sizes = array("q", columns["size_bytes"])
        self._numbers = array("I", columns["object"])
        self._offsets = array("q", columns["offset"])
        self._crcs = array("I", columns["crc32c"])
        self._modified = array("q", columns["modified_ns"])
        lengths = {len(self.paths), len(self._digests) // _SHA256_BYTES}
        lengths |= {len(self._sizes), len(self._numbers), len(self._offsets)}
        if lengths | {len(self._crcs), len(self._modified)} != {len(self.paths)}:
            raise ValueError("columns of a manifest page differ in length")

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Entries:
        """These entries; themselves if they are columns already."""
        return entries if isinstance(entries, Entries) else cls(to_columns(entries))

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, at: int) -> Entry: ...

    @overload
    def __getitem__(self, at: slice) -> list[Entry]: ...

    def __getitem__(self, at: int | slice) -> Entry | list[Entry]:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self.paths)))]
        path = self.paths[at]
        if at < 0:
            at += len(self.paths)
        return Entry(
            path,
            self._sizes[at],
            self._objects[self._numbers[at]],
            self._offsets[at],
            self._digests[at * _SHA256_BYTES : (at + 1) * _SHA256_BYTES],
            self._crcs[at],
            self._modified[at],
        )

    def __iter__(self) -> Iterator[Entry]:
        return map(self.__getitem__, range(len(self.paths)))

    def objects(self) -> set[str]:
        """The keys of the objects that they lie in."""
        return set(self._objects)

    def file_bytes(self) -> int:
        """The sizes of all together."""
        return sum(self._sizes)

    def columns(self) -> dict[str, Any]:
        """What they were made of."""
        return {
            "objects": self._objects,
            "path": self.paths,
            "size_bytes": self._sizes.tolist(),
            "object": self._numbers.tolist(),
            "offset": self._offsets.tolist(),
            "sha256": self._digests.hex(),
            "crc32c": self._crcs.tolist(),
            "modified_ns": self._modified.tolist(),
        }


def gone(path: str, now_ns: int) -> Entry:
    """What stands in a fragment for a file that is deleted."""
    return Entry(path, -1, "", 0, bytes(_SHA256_BYTES), 0, now_ns)


def is_gone(entry: Entry) -> bool:
    """Whether the entry says that its path is deleted."""
    return entry.size_bytes < 0


def source_of(object_key: str) -> str:
    """The session that wrote a blob: the second part of `blobs/{session}/...`."""
    return object_key.split("/", 2)[1]


def sources(objects: Iterable[str]) -> tuple[str, ...]:
    """The sessions whose blobs these are."""
    return tuple(sorted({source_of(key) for key in objects if key}))


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


def encode_page(entries: Entries) -> bytes:
    """The bytes of a page; the same entries give the same bytes."""
    columns = {"format": FORMAT, **entries.columns()}
    return zlib.compress(json.dumps(columns, separators=(",", ":")).encode(), 1)


def decode_page(data: bytes) -> Entries:
    """The entries of a page, in its order."""
    columns = json.loads(zlib.decompress(data))
    if columns["format"] != FORMAT:
        raise ValueError(f"manifest page of format {columns['format']}; this gateway is too old")
    return Entries(columns)
