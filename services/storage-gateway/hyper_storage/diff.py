"""What differs between two versions: their pages, less those that they share (pure).

Pages are named by their contents, so a page that both have holds the same files in both, and paths
are unique in a version: nothing on a shared page can differ but what either root has changed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from hyper_storage.files.entries import Entry
from hyper_storage.files.listing import ReadPage, found_at, listed
from hyper_storage.files.root import PageRef, Root


class Kind(StrEnum):
    """What became of a name."""

    ADDED = "added"
    REMOVED = "removed"
    MODIFIED = "modified"


class Difference(NamedTuple):
    """One file that differs."""

    kind: Kind
    before: Entry | None
    after: Entry | None


def array_differences(base: Root, target: Root) -> list[tuple[Kind, str]]:
    """The arrays that differ, in order of name."""
    found = []
    for name in sorted(base.arrays.keys() | target.arrays.keys()):
        before, after = base.arrays.get(name), target.arrays.get(name)
        if before != after:
            found.append((_kind(before is not None, after is not None), name))
    return found


async def file_differences(
    base: Root, target: Root, read: ReadPage, *, prefix: str, after: str
) -> AsyncIterator[Difference]:
    """The files under `prefix` that differ and whose paths come after `after`, in order of path."""
    shared = {page.digest for page in base.pages} & {page.digest for page in target.pages}
    changes = (*base.changes.entries, *target.changes.entries)
    changed = sorted({entry.path for entry in changes})

    async def differing(page: PageRef) -> Sequence[Entry]:
        if page.digest not in shared:
            return await read(page)
        first, stop = bisect_left(changed, page.first), bisect_right(changed, page.last)
        if first == stop:
            return ()
        entries = await read(page)
        found = (found_at(entries, path) for path in changed[first:stop])
        return [entry for entry in found if entry is not None]

    def files(root: Root) -> AsyncIterator[Entry]:
        layers = (root.changes.entries,)
        return aiter(listed(root.pages, layers, differing, prefix=prefix, after=after))

    old, new = files(base), files(target)
    before, now = await anext(old, None), await anext(new, None)
    while before is not None or now is not None:
        if now is None or (before is not None and before.path < now.path):
            yield Difference(Kind.REMOVED, before, None)
            before = await anext(old, None)
        elif before is None or now.path < before.path:
            yield Difference(Kind.ADDED, None, now)
            now = await anext(new, None)
        else:
            if (before.sha256, before.size_bytes) != (now.sha256, now.size_bytes):
                yield Difference(Kind.MODIFIED, before, now)
            before, now = await anext(old, None), await anext(new, None)


def _kind(before: bool, after: bool) -> Kind:
    if before and after:
        return Kind.MODIFIED
    return Kind.REMOVED if before else Kind.ADDED
