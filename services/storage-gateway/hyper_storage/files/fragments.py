"""What a session has added so far: fragments of a manifest, in the bucket, none in etcd.

Each `AddFiles` writes one object `sessions/{id}/fragments/{time}-{unique}`; the order of the keys
is the order of adding. Nobody changes or removes a fragment while its session lives, so a gateway
reads each once and keeps what it says. One small key a session in etcd, the mark, counts them: a
gateway whose count is the mark's has them all and asks S3 nothing; one that lags by one takes the
key from the mark; only one that lags further lists the bucket.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

from prometheus_client import Counter

from hyper_servicekit.failpoints import declare
from hyper_servicekit.objects import ObjectStore
from hyper_storage.access import session_prefix
from hyper_storage.files.entries import Entries, Entry, decode_page, encode_page

_SESSIONS_KEPT = 4096
_ROW_BITS = 24  # files of a fragment: far more than a call may add
_ROWS = 2**_ROW_BITS - 1
_WAITING_KEPT = 1024
_STORED = declare("storage.files.stored")
_COUNTED = declare("storage.files.counted")
LISTS = Counter("hyper_storage_fragment_lists_total", "Listings of a session's fragments in S3.")
READS = Counter("hyper_storage_fragment_reads_total", "Fragments read from S3.")


@dataclass(frozen=True, slots=True)
class Mark:
    """How many fragments of a session were acknowledged.

    Args:
        created: revision of its creation; another one is another count.
        count: acknowledged since then.
        newest: unique part of the last one's key.
    """

    created: int
    count: int
    newest: str


@dataclass(slots=True)
class _Known:
    """What one session's fragments say."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    mark: Mark | None = None
    seen: set[str] = field(default_factory=set)
    keys: list[str] = field(default_factory=list)  # in the order of learning, as are:
    fragments: list[Entries] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)  # see `_place`
    ordered: _Sorted | None = None
    waiting: dict[int, tuple[Mark, str, Entries]] = field(default_factory=dict)

    def take(self, key: str, entries: Entries) -> None:
        """Learn a fragment; of two that hold a path the later key counts."""
        if key in self.seen:
            return
        number = len(self.keys)
        self.seen.add(key)
        self.keys.append(key)
        self.fragments.append(entries)
        self.ordered = None
        for row, path in enumerate(entries.paths):
            before = self.files.get(path)
            if before is None or self.keys[before >> _ROW_BITS] < key:
                self.files[path] = _place(number, row)

    def entry(self, path: str) -> Entry:
        """What was added last under a path."""
        return _at(self.fragments, self.files[path])

    def catch_up(self) -> None:
        """Take what this gateway added itself, as far as the count has no gap."""
        while self.mark is not None:
            found = self.waiting.pop(self.mark.count + 1, None)
            if found is None or found[0].created != self.mark.created:
                return
            self.mark = found[0]
            self.take(found[1], found[2])

    async def sorted_files(self) -> Sequence[Entry]:
        """Every file known now, in order of path."""
        if self.ordered is not None:
            return self.ordered
        taken, paths, places = len(self.keys), list(self.files), list(self.files.values())
        in_order = await asyncio.to_thread(_in_order, paths, places)
        ordered = _Sorted(self.fragments, in_order)
        if len(self.keys) == taken:  # none was learnt while a thread was sorting
            self.ordered = ordered
        return ordered


class _Sorted(Sequence[Entry]):
    """Entries of fragments in order of path; later fragments do not change it."""

    def __init__(self, fragments: Sequence[Entries], places: array[int]) -> None:
        self._fragments = fragments
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> Entry: ...

    @overload
    def __getitem__(self, at: slice) -> _Sorted: ...

    def __getitem__(self, at: int | slice) -> Entry | _Sorted:
        if isinstance(at, slice):
            return _Sorted(self._fragments, self._places[at])
        place: int = self._places[at]
        return _at(self._fragments, place)

    def __iter__(self) -> Iterator[Entry]:
        return (_at(self._fragments, place) for place in self._places)


class Fragments:
    """Adds and reads the fragments of sessions.

    Args:
        store: the bucket.
        readers: fragments that are read at once.
        put_mark: counts one more fragment of a session; returns the mark.
        get_mark: a session's mark; None where it is not remembered (any more).
        cache_entries: files kept in memory, over all sessions.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        readers: int,
        put_mark: Callable[[str, str], Awaitable[Mark]],
        get_mark: Callable[[str], Awaitable[Mark | None]],
        cache_entries: int = 1_000_000,
    ) -> None:
        self._store = store
        self._slots = asyncio.Semaphore(readers)
        self._put_mark = put_mark
        self._get_mark = get_mark
        self._cache_entries = cache_entries
        self._sessions: OrderedDict[str, _Known] = OrderedDict()

    async def add(
        self,
        session: str,
        entries: Sequence[Entry],
        *,
        now_ns: int,
        unique: str,
        young: bool = False,
    ) -> None:
        """Record files of a session; durable on return.

        `young` says that the session's count cannot have been forgotten since it began: whoever
        then counts the first fragment has all there is.
        """
        columns = await asyncio.to_thread(Entries.of, entries)
        data = await asyncio.to_thread(encode_page, columns)
        name = f"{now_ns:020d}-{unique}"
        key = f"{_prefix(session)}{name}"
        await self._store.put(key, data)
        await _STORED.reach()
        mark = await self._put_mark(session, name)
        await _COUNTED.reach()
        known = self._sessions.get(session)
        if known is None and young and mark.count == 1:
            known = self._sessions[session] = _Known(mark=mark)
            known.take(key, columns)
            self._forget()
        elif known is not None:
            if len(known.waiting) >= _WAITING_KEPT:
                known.waiting.clear()
            known.waiting[mark.count] = (mark, key, columns)

    def drop(self, session: str) -> None:
        """A session has ended."""
        self._sessions.pop(session, None)

    async def overlay(self, session: str, mark: Mark | None = None) -> Sequence[Entry]:
        """All files that a session has added, in order of path.

        `mark` is the session's, where the caller has just read it.
        """
        return await (await self._refresh(session, mark)).sorted_files()

    async def find(self, session: str, paths: Sequence[str]) -> dict[str, Entry]:
        """Those of `paths` that a session has added."""
        known = await self._refresh(session)
        return {path: known.entry(path) for path in paths if path in known.files}

    async def _refresh(self, session: str, mark: Mark | None = None) -> _Known:
        mark = mark or await self._get_mark(session)
        known = self._sessions.setdefault(session, _Known())
        self._sessions.move_to_end(session)
        async with known.lock:
            known.catch_up()
            if mark is None or not _has(known.mark, mark):
                await self._learn(session, known, mark)
            known.catch_up()
        self._forget()
        return known

    async def _learn(self, session: str, known: _Known, mark: Mark | None) -> None:
        prefix = _prefix(session)
        last = known.mark
        next_one = (
            mark is not None
            and last is not None
            and (mark.created, mark.count) == (last.created, last.count + 1)
        )
        if next_one and mark is not None:
            fresh = {f"{prefix}{mark.newest}"} - known.seen
        else:
            LISTS.inc()
            fresh = {info.key async for info in self._store.list(prefix)} - known.seen
        for key, entries in await self._read(sorted(fresh)):
            known.take(key, entries)
        if mark is None or not _has(known.mark, mark):
            known.mark = mark

    async def _read(self, keys: Sequence[str]) -> list[tuple[str, Entries]]:
        async def one(key: str) -> tuple[str, Entries]:
            async with self._slots:
                READS.inc()
                return key, await asyncio.to_thread(decode_page, await self._store.get(key))

        return list(await asyncio.gather(*(one(key) for key in keys)))

    def _forget(self) -> None:
        """Drop the sessions unused for longest, as memory demands; never the newest one."""
        total = sum(len(known.files) for known in self._sessions.values())
        while len(self._sessions) > 1 and (
            len(self._sessions) > _SESSIONS_KEPT or total > self._cache_entries
        ):
            _, dropped = self._sessions.popitem(last=False)
            total -= len(dropped.files)


def _has(known: Mark | None, wanted: Mark) -> bool:
    """Whether what is known includes all that `wanted` counts."""
    return known is not None and known.created == wanted.created and known.count >= wanted.count


def _in_order(paths: Sequence[str], places: Sequence[int]) -> array[int]:
    order = sorted(range(len(paths)), key=paths.__getitem__)
    return array("Q", map(places.__getitem__, order))


def _place(fragment: int, row: int) -> int:
    """One number that says where an entry is."""
    return fragment << _ROW_BITS | row


def _at(fragments: Sequence[Entries], place: int) -> Entry:
    found: Entry = fragments[place >> _ROW_BITS][place & _ROWS]
    return found


def _prefix(session: str) -> str:
    return f"{session_prefix(session)}fragments/"
