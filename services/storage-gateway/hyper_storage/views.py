"""What a version or a session shows: the same questions, the same answers' shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hyper.errors import FailedPreconditionError, NotFoundError
from hyper_storage.access import Readable, array_prefix
from hyper_storage.catalog import Catalog
from hyper_storage.files.entries import Entry, is_gone
from hyper_storage.files.fragments import Fragments
from hyper_storage.files.listing import found_at, listed
from hyper_storage.files.merge import page_of
from hyper_storage.files.root import ArrayRef, Root
from hyper_storage.manifests import Manifests
from hyper_storage.records import Head, SessionRecord, VersionEntry
from hyper_storage.resources import DatasetName, Parent, SessionName, VersionName
from hyper_storage.sessions import Sessions

_RECORDS_AT_ONCE = 16
_LAST = "\U0010ffff"  # sorts behind every character of a path


@dataclass(frozen=True, slots=True)
class View:
    """A version, or a session on top of its base.

    Args:
        name: its resource name; a version's has its number.
        root: of the version, or of the session's base.
        session: None for a version.
        entry: None for a session.
    """

    name: Parent
    root: Root
    session: SessionRecord | None = None
    entry: VersionEntry | None = None

    @property
    def arrays(self) -> dict[str, ArrayRef]:
        """Every array, by name."""
        merged = dict(self.root.arrays)
        for name, made in (self.session.arrays if self.session else {}).items():
            if made is None:
                merged.pop(name, None)
            else:
                merged[name] = ArrayRef(array_prefix(made.id), made.record, made.overlay)
        return merged

    @property
    def readable(self) -> Readable:
        """Which objects can be read through it."""
        sources = set(self.root.sources)
        if self.session is not None:
            sources.add(self.session.id)
        prefixes = {ref.prefix for ref in self.arrays.values()}
        return Readable(sources, prefixes | self.edited.keys())

    @property
    def edited(self) -> dict[str, ArrayRef]:
        """Arrays of the base that the session edits, by prefix."""
        made = (self.session.arrays if self.session else {}).items()
        refs = [self.root.arrays[name] for name, m in made if m is not None and m.edits]
        return {ref.prefix: ref for ref in refs}

    def array(self, name: str) -> ArrayRef:
        """One array."""
        found = self.arrays.get(name)
        if found is None:
            raise NotFoundError(
                f"{self.name} has no array {name!r}; see `hyper ls`", metadata={"array": name}
            )
        return found


class Views:
    """Opens views."""

    def __init__(
        self, catalog: Catalog, sessions: Sessions, manifests: Manifests, fragments: Fragments
    ) -> None:
        self._catalog = catalog
        self._sessions = sessions
        self._manifests = manifests
        self._fragments = fragments

    async def head(self, dataset: DatasetName) -> Head:
        """The dataset's head."""
        found = await self._catalog.head(dataset)
        if found is None:
            raise NotFoundError(
                f"no dataset {dataset.tenant}/{dataset.dataset}; see `hyper ls {dataset.tenant}`",
                metadata={"dataset": str(dataset)},
            )
        return found.value

    async def version(self, name: VersionName) -> VersionEntry:
        """A version's entry."""
        head = await self.head(name.dataset)
        label = f"{name.dataset.tenant}/{name.dataset.dataset}"
        if name.number is None and head.number == 0:
            raise FailedPreconditionError(
                f"{label} has no committed version yet; commit a session first",
                reason="EMPTY_DATASET",
            )
        number = name.number or (await self._tagged(name, head) if name.tag else head.number)
        entry = await self._catalog.version(head.id, number) if number <= head.number else None
        if entry is None:
            raise NotFoundError(f"{label} has no version {number}; see `hyper versions {label}`")
        return entry

    async def _tagged(self, name: VersionName, head: Head) -> int:
        found = await self._catalog.tag(head.id, name.tag)
        if found is None:
            raise NotFoundError(
                f"{name.dataset.tenant}/{name.dataset.dataset} has no tag {name.tag!r}; see "
                "`hyper tag`",
                metadata={"tag": name.tag},
            )
        return found.number

    async def open(self, name: Parent) -> View:
        """What `name` shows now."""
        if isinstance(name, SessionName):
            record = await self._sessions.readable(name)
            return View(name, await self._manifests.root(record.base_root), session=record)
        entry = await self.version(name)
        exact = VersionName(name.dataset, entry.number)
        return View(exact, await self._manifests.root(entry.root), entry=entry)

    async def zarr(self, ref: ArrayRef) -> bytes:
        """The `zarr.json` of an array."""
        return await self._manifests.record(ref.record)

    async def grid(self, ref: ArrayRef) -> tuple[int, ...]:
        """Shards along each axis of an array."""
        document = json.loads(await self.zarr(ref))
        shards: Sequence[int] = document["chunk_grid"]["configuration"]["chunk_shape"]
        return tuple(-(-n // s) for n, s in zip(document["shape"], shards, strict=True))

    async def own_grids(
        self, record: SessionRecord, keys: Iterable[str]
    ) -> dict[str, tuple[int, ...]]:
        """Shards along each axis of the session's own arrays that `keys` lie in, by prefix."""
        wanted = {key.partition("/c/")[0] for key in keys}
        made = (m for m in record.arrays.values() if m is not None and not m.overlay)
        refs = [ArrayRef(array_prefix(m.id), m.record) for m in made]
        refs = [ref for ref in refs if ref.prefix in wanted]
        slots = asyncio.Semaphore(_RECORDS_AT_ONCE)

        async def one(ref: ArrayRef) -> tuple[int, ...]:
            async with slots:
                return await self.grid(ref)

        grids = await asyncio.gather(*map(one, refs))
        return {ref.prefix: grid for ref, grid in zip(refs, grids, strict=True)}

    async def files(self, view: View, *, prefix: str, after: str) -> AsyncIterator[Entry]:
        """The files under `prefix` whose paths come after `after`, in order of path."""
        own = await self._fragments.overlay(view.session.id) if view.session else []
        root, read = view.root, self._manifests.page
        layers = (root.changes.entries, own)
        async for entry in listed(root.pages, layers, read, prefix=prefix, after=after):
            yield entry

    async def folder(
        self, view: View, *, prefix: str, after: str
    ) -> AsyncIterator[tuple[str, Entry | str]]:
        """What is directly under the folder `prefix`: files, and names of folders.

        Each comes with the path behind which the listing goes on: a folder's is behind all that
        lies in it, so that its files are never looked at.
        """
        while True:
            async for entry in self.files(view, prefix=prefix, after=after):
                name, deeper, _ = entry.path[len(prefix) :].partition("/")
                if deeper:
                    after = f"{prefix}{name}/{_LAST}"
                    yield after, name
                    break
                yield entry.path, entry
            else:
                return

    async def find(self, view: View, paths: Sequence[str]) -> dict[str, Entry]:
        """Those of `paths` that a view shows."""
        own = await self._fragments.find(view.session.id, paths) if view.session else {}
        base = await self.find_files(view.root, [path for path in paths if path not in own])
        return {**base, **{path: entry for path, entry in own.items() if not is_gone(entry)}}

    async def find_files(self, root: Root, paths: Sequence[str]) -> Mapping[str, Entry]:
        """Those of `paths` that a root has."""
        found: dict[str, Entry] = {}
        wanted: dict[str, set[str]] = {}
        pages = {}
        for path in paths:
            change = found_at(root.changes.entries, path)
            if change is not None:
                if not is_gone(change):
                    found[path] = change
                continue
            page = page_of(root.pages, path)
            if page is not None:
                wanted.setdefault(page.digest, set()).add(path)
                pages[page.digest] = page
        for digest, on_page in wanted.items():
            page_entries = await self._manifests.page(pages[digest])
            for path in on_page:
                if (entry := found_at(page_entries, path)) is not None:
                    found[path] = entry
        return found
