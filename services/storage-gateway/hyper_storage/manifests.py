"""Manifests in the bucket: immutable, under the SHA-256 of their bytes, cached.

Four kinds share the space `manifests/`: roots, pages of files, records of arrays (an array's record
is its `zarr.json`), and overlays (where the shards of an edited or registered array lie).

Roots that are written together share one object. A reference to a root is its hash, followed by
`@{hash of that object}:{start}-{stop}` where it shares one.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

from hyper.errors import DataLossError
from hyper_servicekit.objects import ObjectStore
from hyper_storage.arrays.overlay import Overlay, decode_overlay, encode_overlay
from hyper_storage.files.entries import Entries, Entry, decode_page, encode_page, sources
from hyper_storage.files.root import EMPTY, PageRef, Root, decode_root, encode_root

V = TypeVar("V")
_ROOTS_KEPT = 256
_RECORDS_KEPT = 4096
_OVERLAYS_KEPT = 16  # of up to 2^18 shards each


def digest_of(ref: str) -> str:
    """The SHA-256 of the root that a reference names."""
    return ref.partition("@")[0]


def object_of(ref: str) -> str:
    """The hash that names the object in which the root of a reference lies."""
    return ref.partition("@")[2].partition(":")[0] or ref


class Manifests:
    """Reads and writes manifests.

    Args:
        store: the bucket.
        cache_entries: file entries of pages kept in memory, over all pages.
    """

    def __init__(self, store: ObjectStore, *, cache_entries: int) -> None:
        self._store = store
        self._cache_entries = cache_entries
        self._roots: OrderedDict[str, Root] = OrderedDict()
        self._records: OrderedDict[str, bytes] = OrderedDict()
        self._overlays: OrderedDict[str, Overlay] = OrderedDict()
        self._pages: OrderedDict[str, Entries] = OrderedDict()
        self._cached_entries = 0

    async def root(self, ref: str) -> Root:
        """The root that a reference names; "" is the empty one."""
        if not ref:
            return EMPTY
        known = self._roots.get(ref)
        if known is None:
            known = decode_root(await self._get(ref))
            _remember(self._roots, ref, known, _ROOTS_KEPT)
        return known

    async def record(self, digest: str) -> bytes:
        """The record of an array."""
        known = self._records.get(digest)
        if known is None:
            known = await self._get(digest)
            _remember(self._records, digest, known, _RECORDS_KEPT)
        return known

    async def overlay(self, digest: str) -> Overlay:
        """Where the shards of an array lie."""
        known = self._overlays.get(digest)
        if known is None:
            known = await asyncio.to_thread(decode_overlay, await self._get(digest))
            _remember(self._overlays, digest, known, _OVERLAYS_KEPT)
        return known

    async def put_overlay(self, overlay: Overlay) -> str:
        """Store an overlay; returns its hash."""
        data = await asyncio.to_thread(encode_overlay, overlay)
        digest = await self._put(data)
        _remember(self._overlays, digest, overlay, _OVERLAYS_KEPT)
        return digest

    async def page(self, page: PageRef) -> Entries:
        """The entries of a page, in order of path."""
        known = self._pages.get(page.digest)
        if known is not None:
            self._pages.move_to_end(page.digest)
            return known
        data = await self._get(page.digest)
        entries = await asyncio.to_thread(decode_page, data)
        self._keep_page(page.digest, entries)
        return entries

    def _keep_page(self, digest: str, entries: Entries) -> None:
        if digest not in self._pages:
            self._pages[digest] = entries
            self._cached_entries += len(entries)
            while self._cached_entries > self._cache_entries and self._pages:
                _, dropped = self._pages.popitem(last=False)
                self._cached_entries -= len(dropped)

    async def put_roots(self, roots: Sequence[Root]) -> list[str]:
        """Store roots, several in one object; returns their references."""
        parts = await asyncio.to_thread(lambda: [encode_root(root) for root in roots])
        digests = [hashlib.sha256(part).hexdigest() for part in parts]
        stored = await self._put(b"".join(parts))
        refs = digests
        if len(parts) > 1:
            ends = list(itertools.accumulate(map(len, parts), initial=0))
            refs = [
                f"{digest}@{stored}:{start}-{stop}"
                for digest, (start, stop) in zip(digests, itertools.pairwise(ends), strict=True)
            ]
        for ref, root in zip(refs, roots, strict=True):
            _remember(self._roots, ref, root, _ROOTS_KEPT)
        return refs

    async def put_record(self, record: bytes) -> str:
        """Store an array's record; returns its hash."""
        return await self._put(record)

    async def put_page(self, entries: Sequence[Entry]) -> PageRef:
        """Store a page of files, which are in order of path."""
        page = await asyncio.to_thread(Entries.of, entries)
        digest = await self._put(await asyncio.to_thread(encode_page, page))
        self._keep_page(digest, page)
        return PageRef(
            digest=digest,
            first=page.paths[0],
            last=page.paths[-1],
            count=len(page),
            file_bytes=page.file_bytes(),
            sources=sources(page.objects()),
        )

    def forget(self, digest: str) -> None:
        """A manifest was deleted from the bucket."""
        for ref in [ref for ref in self._roots if object_of(ref) == digest]:
            del self._roots[ref]
        self._records.pop(digest, None)
        self._overlays.pop(digest, None)
        dropped = self._pages.pop(digest, None)
        self._cached_entries -= len(dropped or ())

    async def _get(self, ref: str) -> bytes:
        key, (start, stop) = f"manifests/{object_of(ref)}", _range_of(ref)
        for _ in range(2):
            data = await self._store.get(key, start, stop)
            if hashlib.sha256(data).hexdigest() == digest_of(ref):
                return data
        raise DataLossError(
            f"manifest {ref} in the bucket does not match its hash; restore it from a backup",
            metadata={"object": key},
        )

    async def _put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        await self._store.put(f"manifests/{digest}", data)
        return digest


def _range_of(ref: str) -> tuple[int | None, int | None]:
    """Which bytes of the object are the root's."""
    start, _, stop = ref.partition(":")[2].partition("-")
    return (int(start), int(stop)) if stop else (None, None)


def _remember(cache: OrderedDict[str, V], key: str, value: V, limit: int) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > limit:
        cache.popitem(last=False)
