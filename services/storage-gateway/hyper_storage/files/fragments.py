"""What a session has added so far: fragments of a manifest, in the bucket, none in etcd.

Each `AddFiles` writes one object `sessions/{id}/fragments/{time}-{unique}`; the order of the keys
is the order of adding. Nobody changes or removes a fragment while its session lives.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from hyper_servicekit.objects import ObjectStore
from hyper_storage.access import session_prefix
from hyper_storage.files.entries import Entry, decode_page, encode_page
from hyper_storage.files.merge import overlay

_SESSIONS_KEPT = 64


class Fragments:
    """Adds and reads the fragments of sessions.

    Args:
        store: the bucket.
        readers: fragments that are read at once.
    """

    def __init__(self, store: ObjectStore, *, readers: int) -> None:
        self._store = store
        self._slots = asyncio.Semaphore(readers)
        self._overlays: OrderedDict[str, tuple[tuple[str, ...], list[Entry]]] = OrderedDict()

    async def add(
        self, session: str, entries: Sequence[Entry], *, now_ns: int, unique: str
    ) -> None:
        """Record files of a session; durable on return."""
        data = await asyncio.to_thread(encode_page, entries)
        await self._store.put(f"{_prefix(session)}{now_ns:020d}-{unique}", data)

    async def overlay(self, session: str) -> list[Entry]:
        """All files that a session has added, in order of path; not to be changed."""
        keys = tuple([info.key async for info in self._store.list(_prefix(session))])
        known_keys, known = self._overlays.get(session, ((), []))
        if keys == known_keys:
            return known
        if keys[: len(known_keys)] == known_keys:
            fresh = await self._read(keys[len(known_keys) :])
            merged = await asyncio.to_thread(overlay, [known, *fresh])
        else:
            merged = await asyncio.to_thread(overlay, await self._read(keys))
        self._overlays[session] = (keys, merged)
        self._overlays.move_to_end(session)
        while len(self._overlays) > _SESSIONS_KEPT:
            self._overlays.popitem(last=False)
        return merged

    async def _read(self, keys: Sequence[str]) -> list[list[Entry]]:
        async def one(key: str) -> list[Entry]:
            async with self._slots:
                return await asyncio.to_thread(decode_page, await self._store.get(key))

        return list(await asyncio.gather(*(one(key) for key in keys)))


def _prefix(session: str) -> str:
    return f"{session_prefix(session)}fragments/"
