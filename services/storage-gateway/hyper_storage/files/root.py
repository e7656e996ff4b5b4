"""The root manifest: everything a version holds, named by one hash.

It lists the pages of files in order of path, and the arrays with the hash of each one's record. The
newest changes of files stand in the root itself, over the pages: a commit of a few files writes no
page, however many files there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from hyper_storage.files.entries import Entries, Entry, sources, to_columns

FORMAT = 1
_WITH_CHANGES = 2


@dataclass(frozen=True, slots=True)
class PageRef:
    """One page of files.

    Args:
        digest: SHA-256 of the page's bytes, in hex; the page's key.
        first: path of its first file.
        last: path of its last file.
        count: number of files.
        file_bytes: their sizes' sum.
        sources: the sessions whose blobs its files lie in.
    """

    digest: str
    first: str
    last: str
    count: int
    file_bytes: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """One array.

    Args:
        prefix: of its objects; of one with an overlay, what they are called by.
        record: hash of its `zarr.json`.
        overlay: hash of where its shards lie; "" for a plain array, all under `prefix`.
    """

    prefix: str
    record: str
    overlay: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """Files that a root holds itself, over those of its pages.

    Args:
        entries: in order of path; some say that a file is gone.
        files: how many more files there are by them, or fewer.
        file_bytes: how much more there is in them.
    """

    entries: tuple[Entry, ...] = ()
    files: int = 0
    file_bytes: int = 0


NO_CHANGES = Changes()


@dataclass(frozen=True, slots=True)
class Root:
    """What one version holds."""

    pages: tuple[PageRef, ...] = ()
    arrays: Mapping[str, ArrayRef] = field(default_factory=dict)
    changes: Changes = NO_CHANGES

    @property
    def files(self) -> int:
        """How many files."""
        return sum(page.count for page in self.pages) + self.changes.files

    @property
    def file_bytes(self) -> int:
        """Their sizes' sum."""
        return sum(page.file_bytes for page in self.pages) + self.changes.file_bytes

    @property
    def sources(self) -> frozenset[str]:
        """The sessions whose blobs the files lie in."""
        paged = frozenset(source for page in self.pages for source in page.sources)
        return paged.union(sources({entry.object for entry in self.changes.entries}))

    @property
    def prefixes(self) -> frozenset[str]:
        """Key prefixes of the arrays."""
        return frozenset(ref.prefix for ref in self.arrays.values())


EMPTY = Root()


def encode_root(root: Root) -> bytes:
    """The root's bytes; the same root gives the same bytes."""
    changes = root.changes
    document = {
        "format": _WITH_CHANGES if changes.entries else FORMAT,
        "pages": [
            [page.digest, page.first, page.last, page.count, page.file_bytes, page.sources]
            for page in root.pages
        ],
        "arrays": {
            name: [ref.prefix, ref.record, *([ref.overlay] if ref.overlay else [])]
            for name, ref in sorted(root.arrays.items())
        },
    }
    if changes.entries:
        document["changes"] = to_columns(changes.entries)
        document["changed"] = [changes.files, changes.file_bytes]
    return json.dumps(document, separators=(",", ":")).encode()


def decode_root(data: bytes) -> Root:
    """The root of these bytes."""
    document = json.loads(data)
    if document["format"] not in (FORMAT, _WITH_CHANGES):
        raise ValueError(f"root manifest of format {document['format']}; this gateway is too old")
    pages = tuple(
        PageRef(digest, first, last, count, size, tuple(origin))
        for digest, first, last, count, size, origin in document["pages"]
    )
    arrays = {name: ArrayRef(*facts) for name, facts in document["arrays"].items()}
    if "changes" not in document:
        return Root(pages, arrays)
    changes = Changes(tuple(Entries(document["changes"])), *document["changed"])
    return Root(pages, arrays, changes)
