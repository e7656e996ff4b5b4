"""Files in order of path, from pages and the changes that lie over them."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

from hyper_storage.files.entries import Entry, is_gone
from hyper_storage.files.root import PageRef

ReadPage = Callable[[PageRef], Awaitable[Sequence[Entry]]]


async def listed(
    pages: Sequence[PageRef],
    layers: Sequence[Sequence[Entry]],
    read: ReadPage,
    *,
    prefix: str,
    after: str,
) -> AsyncIterator[Entry]:
    """The files under `prefix` whose paths come after `after`, in order of path.

    Of two layers (each in order of path) the later one counts, and any of them over the pages.
    """
    changes = _changes(layers, prefix, after)
    change = next(changes, None)
    for page in pages:
        if page.last <= after or page.last < prefix:
            continue
        if page.first > prefix and not page.first.startswith(prefix):
            break
        for entry in _under(await read(page), prefix, after):
            while change is not None and change.path < entry.path:
                if not is_gone(change):
                    yield change
                change = next(changes, None)
            if change is None or change.path != entry.path:
                yield entry
    while change is not None:
        if not is_gone(change):
            yield change
        change = next(changes, None)


def found_at(entries: Sequence[Entry], path: str) -> Entry | None:
    """The entry of a path among `entries`, which are in order of path."""
    at = bisect_left(entries, path, key=lambda entry: entry.path)
    return entries[at] if at < len(entries) and entries[at].path == path else None


def _changes(layers: Sequence[Sequence[Entry]], prefix: str, after: str) -> Iterator[Entry]:
    """What the layers say of each path, in order."""
    streams = [
        ((entry.path, -level, entry) for entry in _under(layer, prefix, after))
        for level, layer in enumerate(layers)
    ]
    last = None
    for path, _, entry in heapq.merge(*streams):
        if path != last:
            yield entry
        last = path


def _under(entries: Sequence[Entry], prefix: str, after: str) -> Iterator[Entry]:
    """Those of the sorted `entries` under `prefix` that come after the path `after`."""
    first = max(
        bisect_left(entries, prefix, key=lambda entry: entry.path),
        bisect_right(entries, after, key=lambda entry: entry.path),
    )
    for at in range(first, len(entries)):
        entry = entries[at]
        if not entry.path.startswith(prefix):
            return
        yield entry
