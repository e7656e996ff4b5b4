"""Committing a session: immutable objects first, then one etcd transaction makes them visible.

1. The session is sealed: an `AddFiles` that has not been acknowledged yet will be refused, so what
   was acknowledged is exactly what the fragments hold.
2. `zarr.json` of its arrays, changed pages of files and the root manifest are written. They lie
   under new or content-derived keys: nobody sees them, and a crash here leaves the old version.
3. One transaction on the head's revision puts head, version entry, session and answered request.
4. Lost the race: the changes are rebased on the new head from where the blobs already are. A path
   or array that both changed is a conflict.

A commit that fails leaves the session open. One whose gateway was killed leaves it sealed: repeat
the commit, or abort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prometheus_client import Counter

from hyper.errors import ConflictError, HyperError, NotFoundError
from hyper_servicekit.clock import Clock
from hyper_servicekit.etcd import Compare, Op
from hyper_servicekit.failpoints import declare
from hyper_servicekit.logs import get_logger
from hyper_servicekit.objects import ObjectStore
from hyper_storage.access import array_prefix
from hyper_storage.catalog import Catalog, Request, Stored
from hyper_storage.files.entries import Entry
from hyper_storage.files.fragments import Fragments
from hyper_storage.files.merge import (
    Keep,
    array_conflicts,
    file_conflicts,
    merge,
    plan,
    split,
)
from hyper_storage.files.root import ArrayRef, PageRef, Root
from hyper_storage.manifests import Manifests
from hyper_storage.records import Head, SessionRecord, SessionState, VersionEntry
from hyper_storage.resources import SessionName
from hyper_storage.sessions import NANO, Sessions, closed
from hyper_storage.views import Views

log = get_logger(__name__)
_CONFLICTS_NAMED = 5
COMMITS = Counter("hyper_storage_commits_total", "Commits that ended.", ("outcome",))
REBASES = Counter("hyper_storage_rebases_total", "Commits that lost a race and were rebased.")
_SEALED = declare("storage.commit.sealed")
_ARRAYS_PUBLISHED = declare("storage.commit.arrays_published")
_OBJECTS_WRITTEN = declare("storage.commit.objects_written")
_VISIBLE = declare("storage.commit.visible")


class Committer:
    """Turns sessions into versions.

    Args:
        page_entries: files on one page at most.
        attempts: rebases before giving up.
    """

    def __init__(
        self,
        catalog: Catalog,
        sessions: Sessions,
        views: Views,
        manifests: Manifests,
        fragments: Fragments,
        store: ObjectStore,
        clock: Clock,
        *,
        page_entries: int,
        attempts: int,
    ) -> None:
        self._catalog = catalog
        self._sessions = sessions
        self._views = views
        self._manifests = manifests
        self._fragments = fragments
        self._store = store
        self._clock = clock
        self._page_entries = page_entries
        self._attempts = attempts

    async def commit(self, name: SessionName, message: str, request: Request) -> VersionEntry:
        """Make the session's changes one new version; a repeated request gets the first answer."""
        if (answered := await self._answered(name, request)) is not None:
            return answered
        stored = await self._sessions.seal(name)
        try:
            return await self._commit(name, stored, message, request)
        except HyperError as error:
            COMMITS.labels("failed").inc()
            await self._reopen(name, error)
            raise

    async def _commit(
        self, name: SessionName, stored: Stored[SessionRecord], message: str, request: Request
    ) -> VersionEntry:
        await _SEALED.reach()
        files = await self._fragments.overlay(stored.value.id, listed=True)
        await self._publish_arrays(stored.value)
        await _ARRAYS_PUBLISHED.reach()
        for attempt in range(self._attempts):
            head = await self._catalog.head(name.dataset)
            if head is None or head.value.id != stored.value.dataset_id:
                raise NotFoundError(
                    f"{name.dataset} was deleted after session {name.session} began; write it anew"
                )
            guard = await self._catalog.guard()
            root = await self._rebase(stored.value, files, head.value)
            entry = await self._describe(head.value, root, message)
            await _OBJECTS_WRITTEN.reach()
            if await self._make_visible(name, stored, head, entry, request, guard):
                await _VISIBLE.reach()
                COMMITS.labels("committed").inc()
                log.info(
                    "version committed", dataset=str(name.dataset), version=entry.number,
                    session=name.session, files=len(files), rebases=attempt,
                )  # fmt: skip
                return entry
            if (answered := await self._answered(name, request)) is not None:
                return answered
            current = await self._catalog.session(name.session)
            if current is not None and current.value.state is SessionState.OPEN:
                raise ConflictError(f"session {name} was committed twice at once; commit it again")
            if current is None or current.value.state is not SessionState.SEALED:
                raise closed(name, current.value if current else stored.value)
            stored = current
            REBASES.inc()
        raise ConflictError(
            f"{name.dataset} is committed to faster than session {name.session} can follow; "
            "commit it again"
        )

    async def _answered(self, name: SessionName, request: Request) -> VersionEntry | None:
        answer = await self._catalog.answer(request)
        if answer is None:
            return None
        entry = await self._catalog.version(answer["dataset_id"], answer["number"])
        if entry is None:
            raise NotFoundError(f"version {answer['number']} of {name.dataset} was deleted")
        return entry

    async def _publish_arrays(self, record: SessionRecord) -> None:
        """Write `zarr.json` of the arrays that the session made, after all their shards."""
        for made in record.arrays.values():
            if made is not None:
                zarr = await self._manifests.record(made[1])
                await self._store.put(f"{array_prefix(made[0])}/zarr.json", zarr)

    async def _rebase(self, record: SessionRecord, files: Sequence[Entry], head: Head) -> Root:
        """The root of the head with the session's changes on it."""
        target = await self._manifests.root(head.root)
        if head.root != record.base_root:
            await self._refuse_conflicts(record, files, target)
        arrays = dict(target.arrays)
        for name, made in record.arrays.items():
            if made is None:
                arrays.pop(name, None)
            else:
                arrays[name] = ArrayRef(array_prefix(made[0]), made[1])
        return Root(await self._merge(target.pages, files), arrays)

    async def _refuse_conflicts(
        self, record: SessionRecord, files: Sequence[Entry], target: Root
    ) -> None:
        base = await self._manifests.root(record.base_root)
        paths = [entry.path for entry in files]
        both = [
            *array_conflicts(base, target, record.arrays),
            *file_conflicts(
                await self._views.find_files(base, paths),
                await self._views.find_files(target, paths),
                paths,
            ),
        ]
        if both:
            more = (
                f" and {len(both) - _CONFLICTS_NAMED} more" if len(both) > _CONFLICTS_NAMED else ""
            )
            names = ", ".join(map(repr, both[:_CONFLICTS_NAMED]))
            raise ConflictError(
                f"a commit that came first changed {names}{more} too; open a session on the new "
                "version and decide which to keep",
                metadata={"names": "\n".join(both[:_CONFLICTS_NAMED])[:1000]},
            )

    async def _merge(self, pages: Sequence[PageRef], files: Sequence[Entry]) -> tuple[PageRef, ...]:
        merged: list[PageRef] = []
        for step in plan(pages, [entry.path for entry in files]):
            if isinstance(step, Keep):
                merged.append(step.page)
                continue
            old = await self._manifests.page(step.page) if step.page is not None else []
            entries = merge(old, files[step.start : step.stop])
            for part in split(entries, self._page_entries):
                merged.append(await self._manifests.put_page(part))
        return tuple(merged)

    async def _describe(self, head: Head, root: Root, message: str) -> VersionEntry:
        return VersionEntry(
            number=head.number + 1,
            root=await self._manifests.put_root(root),
            message=message,
            created_ns=int(self._clock.now() * NANO),
            files=root.files,
            file_bytes=root.file_bytes,
            arrays=tuple(sorted(root.arrays)),
        )

    async def _make_visible(
        self,
        name: SessionName,
        stored: Stored[SessionRecord],
        head: Stored[Head],
        entry: VersionEntry,
        request: Request,
        guard: Sequence[Compare],
    ) -> bool:
        head_key = self._catalog.head_key(name.dataset)
        session_key = self._catalog.session_key(name.session)
        after = replace(
            head.value, number=entry.number, root=entry.root, updated_ns=entry.created_ns
        )
        done = replace(
            stored.value,
            state=SessionState.COMMITTED,
            committed=entry.number,
            commit_request=request.id,
        )
        return await self._catalog.change(
            [
                Compare.mod_revision(head_key, head.revision),
                Compare.mod_revision(session_key, stored.revision),
                *guard,
            ],
            [
                Op.put(head_key, after.encode()),
                Op.put(self._catalog.version_key(head.value.id, entry.number), entry.encode()),
                Op.put(session_key, done.encode(), lease=await self._catalog.lease()),
            ],
            request=request,
            answer={"dataset_id": head.value.id, "number": entry.number},
        )

    async def _reopen(self, name: SessionName, why: HyperError) -> None:
        """A commit that failed takes nothing away: the session can be changed, or committed again.

        Nothing is written to a session that is committed after all (a lost reply).
        """
        try:
            stored = await self._catalog.session(name.session)
            if stored is not None and stored.value.state is SessionState.SEALED:
                await self._sessions.reopen(stored)
        except HyperError as error:
            log.warning(
                "session stays sealed", session=name.session, commit=str(why), error=str(error)
            )
