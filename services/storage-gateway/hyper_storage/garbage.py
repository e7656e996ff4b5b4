"""Garbage collection: what no version and no session that is alive needs, found by mark and sweep.

Marked are the manifests, blobs and arrays of every version of every dataset, and all that belongs
to a session that is not aborted. Sessions are read before versions: one that commits meanwhile is
in the first reading or its version is in the second. Everything else that is older than the grace
is garbage; what a session writes that begins after the marking is younger.

Manifests are named by their contents, so a commit may put one again that is garbage this moment.
They are therefore deleted in short slices under a lock that commits and `CreateArray` look at in
their transactions (`Catalog.guard`), after marking again, and one that was put again is younger.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from hyper_servicekit.clock import Clock
from hyper_servicekit.etcd import Lease
from hyper_servicekit.logs import get_logger
from hyper_servicekit.objects import ObjectInfo, ObjectStore
from hyper_storage.access import array_prefix, blob_prefix, session_prefix
from hyper_storage.catalog import Catalog
from hyper_storage.manifests import Manifests, object_of
from hyper_storage.records import SessionRecord, SessionState

log = get_logger(__name__)
_KINDS = ("blobs/", "arrays/", "sessions/", "manifests/")
_MANIFESTS = "manifests/"
_SLICE = 500
_AT_ONCE = 16
_REPORT_EVERY = 1000
_LOCK_TTL_S = 20.0
_LOCK_LEFT_S = 8.0  # no deletion begins later than this before the lock may go


@dataclass(frozen=True, slots=True)
class Totals:
    """What was found so far."""

    kept_objects: int = 0
    kept_bytes: int = 0
    garbage_objects: int = 0
    garbage_bytes: int = 0
    applied: bool = False
    done: bool = False

    def keep(self, info: ObjectInfo) -> Totals:
        """One more object that stays."""
        return replace(
            self, kept_objects=self.kept_objects + 1, kept_bytes=self.kept_bytes + info.size
        )

    def drop(self, info: ObjectInfo) -> Totals:
        """One more object that goes."""
        return replace(
            self,
            garbage_objects=self.garbage_objects + 1,
            garbage_bytes=self.garbage_bytes + info.size,
        )


@dataclass(slots=True)
class _Marks:
    """What is needed."""

    keys: set[str] = field(default_factory=set)  # manifests and blobs
    folders: set[str] = field(default_factory=set)  # the first two parts of keys below them
    roots: set[str] = field(default_factory=set)  # already read, by reference

    def needs(self, key: str) -> bool:
        """Whether an object must stay."""
        return key in self.keys or "/".join(key.split("/", 2)[:2]) in self.folders


class Collector:
    """Finds and deletes garbage."""

    def __init__(
        self, catalog: Catalog, manifests: Manifests, store: ObjectStore, clock: Clock
    ) -> None:
        self._catalog = catalog
        self._manifests = manifests
        self._store = store
        self._clock = clock

    async def collect(self, *, apply: bool, grace_s: float) -> AsyncIterator[Totals]:
        """Totals from time to time; the last ones are the result."""
        cutoff = datetime.fromtimestamp(self._clock.now(), UTC) - timedelta(seconds=grace_s)
        marks = _Marks()
        await self._mark(marks)
        totals = Totals(applied=apply)
        for kind in _KINDS:
            garbage: list[ObjectInfo] = []
            async for info in self._store.list(kind):
                if info.modified >= cutoff or marks.needs(info.key):
                    totals = totals.keep(info)
                else:
                    totals = totals.drop(info)
                    garbage.append(info)
                if apply and len(garbage) >= _SLICE:
                    await self._delete(kind, garbage, marks, cutoff)
                    garbage = []
                if (totals.kept_objects + totals.garbage_objects) % _REPORT_EVERY == 0:
                    yield totals
            if apply and garbage:
                await self._delete(kind, garbage, marks, cutoff)
        if apply:
            for dataset_id in (await self._catalog.every_root()).orphans:
                await self._catalog.delete_versions(dataset_id)
            log.info("garbage collected", objects=totals.garbage_objects, size=totals.garbage_bytes)
        yield replace(totals, done=True)

    async def _mark(self, marks: _Marks) -> None:
        """Add what is needed now; repeated, it reads only what is new."""
        sessions = [stored.value for stored in await self._catalog.sessions()]
        committed = await self._catalog.every_root()
        roots = committed.roots
        for record in sessions:
            if _is_alive(record, committed.datasets):
                _mark_session(record, marks)
                roots.add(record.base_root)
        for ref in roots - marks.roots - {""}:
            await self._mark_root(ref, marks)

    async def _mark_root(self, ref: str, marks: _Marks) -> None:
        root = await self._manifests.root(ref)
        marks.keys |= {entry.object for entry in root.changes.entries}
        for page in root.pages:
            key = f"{_MANIFESTS}{page.digest}"
            if key not in marks.keys:
                marks.keys |= (await self._manifests.page(page)).objects()
                marks.keys.add(key)
        for array in root.arrays.values():
            marks.keys.add(f"{_MANIFESTS}{array.record}")
            marks.folders.add(_folder(array.prefix))
            if array.overlay:
                marks.keys.add(f"{_MANIFESTS}{array.overlay}")
                overlay = await self._manifests.overlay(array.overlay)
                marks.folders |= {_folder(prefix) for prefix in overlay.prefixes}
        marks.keys.add(f"{_MANIFESTS}{object_of(ref)}")
        marks.roots.add(ref)

    async def _delete(
        self, kind: str, garbage: Sequence[ObjectInfo], marks: _Marks, cutoff: datetime
    ) -> None:
        if kind != _MANIFESTS:
            await self._delete_all([info.key for info in garbage])
            return
        async with self._catalog.collecting(_LOCK_TTL_S) as lease:
            if lease is None:
                log.info("manifests are being collected by another gateway")
                return
            await self._mark(marks)
            for at in range(0, len(garbage), _AT_ONCE):
                if lease.remaining_s < _LOCK_LEFT_S:
                    log.info("manifests left for the next collection", objects=len(garbage) - at)
                    return
                part = [i.key for i in garbage[at : at + _AT_ONCE] if not marks.needs(i.key)]
                await asyncio.gather(*(self._delete_old(key, cutoff, lease) for key in part))

    async def _delete_old(self, key: str, cutoff: datetime, lease: Lease) -> None:
        found = await self._store.head(key)
        if found is not None and found.modified < cutoff and lease.remaining_s > _LOCK_LEFT_S / 2:
            await self._store.delete(key)
            self._manifests.forget(key.removeprefix(_MANIFESTS))

    async def _delete_all(self, keys: Sequence[str]) -> None:
        for at in range(0, len(keys), _AT_ONCE):
            await asyncio.gather(*map(self._store.delete, keys[at : at + _AT_ONCE]))


def _is_alive(record: SessionRecord, datasets: set[str]) -> bool:
    """Whether a session is used: one that is committed can be read as long as its dataset."""
    if record.state is SessionState.COMMITTED:
        return record.dataset_id in datasets
    return record.state is not SessionState.ABORTED


def _mark_session(record: SessionRecord, marks: _Marks) -> None:
    marks.folders |= {_folder(blob_prefix(record.id)), _folder(session_prefix(record.id))}
    for made in record.arrays.values():
        if made is not None:
            marks.folders.add(_folder(array_prefix(made.id)))
            marks.keys |= {f"{_MANIFESTS}{digest}" for digest in (made.record, made.overlay)}


def _folder(prefix: str) -> str:
    return "/".join(prefix.split("/", 2)[:2])
