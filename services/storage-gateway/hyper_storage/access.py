"""Which objects a version or session may read and write (pure).

Keys, all below the bucket's prefix:

    blobs/{session}/{name}                  packed files, written once by one session
    arrays/{array}/v1/zarr.json             written by the gateway at commit
    arrays/{array}/v1/c/{i}/{j}/...         shards, written by presigned URLs
    sessions/{session}/...  manifests/...   the gateway's own; never signed
    logs/...  logs-...                      the log service's own; never signed
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

from hyper.errors import InvalidArgumentError

_BLOB = re.compile(r"blobs/([0-9a-f]{32})/[A-Za-z0-9_-]{1,128}\Z")
_SHARD = re.compile(
    r"(arrays/[0-9a-f]{32}/v[1-9][0-9]{0,17})/c((?:/(?:0|[1-9][0-9]{0,12})){1,32})\Z"
)
_METADATA = re.compile(r"(arrays/[0-9a-f]{32}/v[1-9][0-9]{0,17})/zarr\.json\Z")


def blob_prefix(session: str) -> str:
    """Where a session's packed files go."""
    return f"blobs/{session}/"


def session_prefix(session: str) -> str:
    """The gateway's own objects of a session."""
    return f"sessions/{session}/"


def array_prefix(array_id: str) -> str:
    """Where a new array's objects go."""
    return f"arrays/{array_id}/v1"


@dataclass(frozen=True, slots=True)
class Readable:
    """What may be read.

    Args:
        sources: sessions whose blobs are referenced.
        prefixes: of arrays.
    """

    sources: Set[str]
    prefixes: Set[str]

    def check(self, key: str) -> None:
        """Raise unless `key` is one of the parent's objects."""
        if match := _BLOB.match(key):
            allowed = match[1] in self.sources
        elif match := _SHARD.match(key) or _METADATA.match(key):
            allowed = match[1] in self.prefixes
        else:
            allowed = False
        if not allowed:
            raise _refused(key, "read")


@dataclass(frozen=True, slots=True)
class Writable:
    """What may be written: a session's own blobs, and the shards of the arrays it made.

    Args:
        session: its id.
        grids: shards along each axis, by array prefix.
        base: sessions whose blobs the base version refers to; the session may refer to them too,
            never write them.
    """

    session: str
    grids: Mapping[str, tuple[int, ...]]
    base: Set[str] = frozenset()

    def with_base(self, base: Set[str]) -> Writable:
        """The same, for references instead of writes."""
        return replace(self, base=base)

    def check(self, key: str) -> None:
        """Raise unless `key` is one that the session may write, or refer to."""
        if not self.allows(key):
            raise _refused(key, "written")

    def allows(self, key: str) -> bool:
        """Whether `check` would pass."""
        if match := _BLOB.match(key):
            return match[1] == self.session or match[1] in self.base
        if match := _SHARD.match(key):
            grid = self.grids.get(match[1], ())
            index = [int(part) for part in match[2][1:].split("/")]
            return len(index) == len(grid) and all(i < n for i, n in zip(index, grid, strict=True))
        return False


def _refused(key: str, verb: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"object {key[:120]!r} does not belong to this version or session and cannot be {verb} "
        "through it",
        field="object",
        metadata={"object": key[:200]},
    )
