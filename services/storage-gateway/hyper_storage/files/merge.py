"""Merging a session's files into a version's pages (pure).

Only the pages that a change falls on are read and written again; the others are shared. A change
between two pages goes to the one before it, so that appended files fill the last page.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hyper_storage.files.entries import Entry, is_gone
from hyper_storage.files.root import PageRef, Root


@dataclass(frozen=True, slots=True)
class Keep:
    """The page stays as it is."""

    page: PageRef


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The page (None: there is none yet) takes the changes [start, stop)."""

    page: PageRef | None
    start: int
    stop: int


Step = Keep | Rewrite


def plan(pages: Sequence[PageRef], paths: Sequence[str]) -> list[Step]:
    """What becomes of each page when files of the sorted `paths` are added."""
    if not pages:
        return [Rewrite(None, 0, len(paths))] if paths else []
    steps: list[Step] = []
    start = 0
    for number, page in enumerate(pages):
        if number + 1 == len(pages):
            stop = len(paths)
        else:
            stop = start
            limit = pages[number + 1].first
            while stop < len(paths) and paths[stop] < limit:
                stop += 1
        steps.append(Rewrite(page, start, stop) if stop > start else Keep(page))
        start = stop
    return steps


def merged_pages(
    old: Sequence[Entry], changes: Sequence[Entry], limit: int
) -> Iterator[Sequence[Entry]]:
    """The files of both on pages of at most `limit`; only so many at a time are in memory."""
    at = 0
    for start in range(0, len(changes), limit):
        stop = len(old)
        if start + limit < len(changes):
            stop = bisect_left(old, changes[start + limit].path, key=lambda entry: entry.path)
        entries = without_gone(merge(old[at:stop], changes[start : start + limit]))
        yield from split(entries, limit)
        at = stop


def merge(old: Sequence[Entry], changes: Sequence[Entry]) -> list[Entry]:
    """Both sorted by path, each path once; a change stands for the old entry of its path."""
    if not old:
        return list(changes)
    merged = {entry.path: entry for entry in old}
    merged.update((entry.path, entry) for entry in changes)
    return [merged[path] for path in sorted(merged)]


def without_gone(entries: Sequence[Entry]) -> list[Entry]:
    """Those that stand for a file."""
    return [entry for entry in entries if not is_gone(entry)]


def split(entries: Sequence[Entry], limit: int) -> list[Sequence[Entry]]:
    """Cut into as few equal pages of at most `limit` entries as it takes."""
    if not entries:
        return []
    pages = -(-len(entries) // limit)
    bounds = [len(entries) * number // pages for number in range(pages + 1)]
    return [entries[a:b] for a, b in pairwise(bounds)]


def page_of(pages: Sequence[PageRef], path: str) -> PageRef | None:
    """The page on which `path` is, if it is anywhere."""
    at = bisect_right(pages, path, key=lambda page: page.first) - 1
    return pages[at] if at >= 0 and path <= pages[at].last else None


def array_conflicts(base: Root, head: Root, changed: Iterable[str]) -> list[str]:
    """The names of `changed` that are not in `head` what they were in `base`."""
    return sorted(name for name in changed if base.arrays.get(name) != head.arrays.get(name))


def file_conflicts(
    base: Mapping[str, Entry], head: Mapping[str, Entry], changed: Iterable[str]
) -> list[str]:
    """The same for paths; the mappings need hold no others."""
    return sorted(path for path in changed if base.get(path) != head.get(path))
