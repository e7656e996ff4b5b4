"""Committing a session: immutable objects first, then one etcd transaction makes them visible.

1. The session is sealed: an `AddFiles` that has not been acknowledged yet will be refused, so what
   was acknowledged is exactly what the fragments hold.
2. `zarr.json` of its arrays, the root manifest and, where many files changed, their pages are
   written. They lie under new or content-derived keys: nobody sees them, and a crash here leaves
   the old version.
3. One transaction on the head's revision puts head, version entry, session and answered request.
   Commits to one dataset that come together share it: each gets a version of its own.
4. Lost the race: the changes are rebased on the new head from where the blobs already are. A path
   or array that both changed is a conflict.

A commit that fails leaves the session open. One whose gateway was killed leaves it sealed: repeat
the commit, or abort.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from prometheus_client import Counter

from hyper.errors import ConflictError, HyperError, NotFoundError
from hyper_servicekit.clock import Clock
from hyper_servicekit.etcd import Compare, Op
from hyper_servicekit.failpoints import declare
from hyper_servicekit.logs import get_logger
from hyper_servicekit.objects import ObjectStore
from hyper_storage.access import array_prefix
from hyper_storage.arrays.overlay import Overlay
from hyper_storage.catalog import Catalog, Request, Stored
from hyper_storage.files.entries import Entry, is_gone
from hyper_storage.files.fragments import Fragments
from hyper_storage.files.merge import (
    Keep,
    array_conflicts,
    file_conflicts,
    merge,
    merged_pages,
    plan,
)
from hyper_storage.files.root import NO_CHANGES, ArrayRef, Changes, PageRef, Root
from hyper_storage.manifests import Manifests
from hyper_storage.quotas import Counted, Quotas
from hyper_storage.records import Head, SessionRecord, SessionState, VersionEntry
from hyper_storage.resources import DatasetName, SessionName
from hyper_storage.sessions import NANO, Sealed, Sessions, closed
from hyper_storage.views import Views

log = get_logger(__name__)
_CONFLICTS_NAMED = 5
_TOGETHER = 32  # commits in one transaction: etcd takes 128 operations, a commit needs three
COMMITS = Counter("hyper_storage_commits_total", "Commits that ended.", ("outcome",))
REBASES = Counter("hyper_storage_rebases_total", "Commits that lost a race and were rebased.")
_SEALED = declare("storage.commit.sealed")
_ARRAYS_PUBLISHED = declare("storage.commit.arrays_published")
_OBJECTS_WRITTEN = declare("storage.commit.objects_written")
_VISIBLE = declare("storage.commit.visible")


@dataclass(frozen=True, slots=True)
class Edit:
    """Shards that a session wrote over an array of its base, and the array's new record."""

    prefix: str
    record: str
    shards: frozenset[str]


@dataclass(eq=False, slots=True)
class _Ticket:
    """One commit that waits for its turn."""

    name: SessionName
    stored: Stored[SessionRecord]
    files: Sequence[Entry]
    edits: Mapping[str, Edit]
    message: str
    request: Request
    done: asyncio.Future[VersionEntry] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def succeed(self, entry: VersionEntry) -> None:
        """Its version is visible."""
        if not self.done.done():
            self.done.set_result(entry)

    def fail(self, error: Exception) -> None:
        """It has no version."""
        if not self.done.done():
            self.done.set_exception(error)


class Committer:
    """Turns sessions into versions.

    Args:
        page_entries: files on one page at most.
        root_entries: changes of files that a root holds itself at most.
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
        quotas: Quotas,
        *,
        page_entries: int,
        root_entries: int,
        attempts: int,
    ) -> None:
        self._catalog = catalog
        self._sessions = sessions
        self._views = views
        self._manifests = manifests
        self._fragments = fragments
        self._store = store
        self._clock = clock
        self._quotas = quotas
        self._page_entries = page_entries
        self._root_entries = root_entries
        self._attempts = attempts
        self._lines: dict[DatasetName, deque[_Ticket]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def commit(self, name: SessionName, message: str, request: Request) -> VersionEntry:
        """Make the session's changes one new version; a repeated request gets the first answer."""
        try:
            sealed = await self._sessions.seal(name, request)
        except HyperError:
            if (answered := await self._answered(name, request)) is not None:
                return answered
            raise
        try:
            return await self._commit(name, sealed, message, request)
        except HyperError as error:
            COMMITS.labels("failed").inc()
            await self._reopen(name, error)
            raise

    async def _commit(
        self, name: SessionName, sealed: Sealed, message: str, request: Request
    ) -> VersionEntry:
        await _SEALED.reach()
        stored = sealed.stored
        files = await self._fragments.overlay(stored.value.id, sealed.mark)
        await self._publish_arrays(stored.value)
        edits = await self._edits(stored.value)
        await _ARRAYS_PUBLISHED.reach()
        ticket = _Ticket(name, stored, files, edits, message, request)
        line = self._lines.setdefault(name.dataset, deque())
        line.append(ticket)
        if len(line) == 1:
            task = asyncio.create_task(self._serve(name.dataset, line))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(ticket.done)

    async def _serve(self, dataset: DatasetName, line: deque[_Ticket]) -> None:
        """Commit what waits for one dataset, many at once, until nothing does.

        A task of its own: the call that began it may be cancelled, the others' commits may not.
        """
        while line:
            group = _group(line)
            try:
                await self._commit_group(dataset, group)
            except Exception as error:  # noqa: BLE001  (it is raised in each call that waits)
                for ticket in group:
                    ticket.fail(error)
            for _ in group:
                line.popleft()
        self._lines.pop(dataset, None)

    async def _commit_group(self, dataset: DatasetName, group: list[_Ticket]) -> None:
        """One transaction, a version for each; who conflicts is told, the others go on."""
        for attempt in range(self._attempts):
            head = await self._catalog.head(dataset)
            for ticket in group:
                if head is None or head.value.id != ticket.stored.value.dataset_id:
                    ticket.fail(_deleted(ticket.name))
            if head is None:
                return
            guard = await self._catalog.guard()
            group = [ticket for ticket in group if not ticket.done.done()]
            group, counted = await self._count(group)
            planned = await self._plan(head.value, group)
            if not planned:
                return
            if len(planned) < len(group):
                _, counted = await self._count([ticket for ticket, _ in planned])
            await _OBJECTS_WRITTEN.reach()
            if await self._make_visible(head, planned, guard, counted):
                await _VISIBLE.reach()
                self._succeed(planned, attempt)
                return
            group = [ticket for ticket, _ in planned]
            for ticket in group:
                await self._look_again(ticket)
            group = [ticket for ticket in group if not ticket.done.done()]
            if not group:
                return
            REBASES.inc()
        for ticket in group:
            ticket.fail(
                ConflictError(
                    f"{dataset} is committed to faster than session {ticket.name.session} can "
                    "follow; commit it again"
                )
            )

    async def _plan(
        self, head: Head, group: Sequence[_Ticket]
    ) -> list[tuple[_Ticket, VersionEntry]]:
        """Each one's version on top of the one before; all their manifests are stored."""
        root = await self._manifests.root(head.root)
        rebased: list[tuple[_Ticket, Root]] = []
        for ticket in group:
            moved = bool(rebased) or head.root != ticket.stored.value.base_root
            try:
                root = await self._rebase(ticket, root, moved=moved)
            except HyperError as error:
                await self._fail_unless_answered(ticket, error)
                continue
            rebased.append((ticket, root))
        refs = await self._manifests.put_roots([root for _, root in rebased]) if rebased else []
        return [
            (ticket, self._describe(number, ref, root, ticket.message))
            for number, (ref, (ticket, root)) in enumerate(
                zip(refs, rebased, strict=True), head.number + 1
            )
        ]

    def _succeed(self, planned: Sequence[tuple[_Ticket, VersionEntry]], rebases: int) -> None:
        for ticket, entry in planned:
            COMMITS.labels("committed").inc()
            log.info(
                "version committed", dataset=str(ticket.name.dataset), version=entry.number,
                session=ticket.name.session, files=len(ticket.files), rebases=rebases,
            )  # fmt: skip
            self._fragments.drop(ticket.stored.value.id)
            ticket.succeed(entry)

    async def _look_again(self, ticket: _Ticket) -> None:
        """After a transaction that failed: was it this session that changed, or the head alone?"""
        name = ticket.name
        answered = await self._answered(name, ticket.request)
        if answered is not None:
            ticket.succeed(answered)
            return
        current = await self._catalog.session(name.session)
        if current is not None and current.value.state is SessionState.OPEN:
            ticket.fail(
                ConflictError(f"session {name} was committed twice at once; commit it again")
            )
        elif current is None or current.value.state is not SessionState.SEALED:
            ticket.fail(closed(name, current.value if current else ticket.stored.value))
        else:
            ticket.stored = current

    async def _fail_unless_answered(self, ticket: _Ticket, error: HyperError) -> None:
        """What a commit conflicts with may be the same work, done by another session."""
        answered = await self._answered(ticket.name, ticket.request)
        if answered is None:
            ticket.fail(error)
        else:
            ticket.succeed(answered)

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
            if made is not None and not made.edits and not made.overlay:
                zarr = await self._manifests.record(made.record)
                await self._store.put(f"{array_prefix(made.id)}/zarr.json", zarr)

    async def _edits(self, record: SessionRecord) -> dict[str, Edit]:
        """What the session wrote over arrays of its base, as the bucket shows it."""
        edits: dict[str, Edit] = {}
        for name, made in record.arrays.items():
            if made is None or not made.edits:
                continue
            folder = f"{array_prefix(made.id)}/c/"
            found = self._store.list(folder)
            shards = frozenset([info.key.removeprefix(folder) async for info in found])
            edits[name] = Edit(array_prefix(made.id), made.record, shards)
        return edits

    async def _count(self, group: list[_Ticket]) -> tuple[list[_Ticket], Counted]:
        """Those of a group that keep to their tenant's quota, and how they are counted."""
        counted = await self._quotas.settle([ticket.stored.value for ticket in group])
        for ticket in group:
            if (refused := counted.refused.get(ticket.stored.value.id)) is not None:
                ticket.fail(refused)
        return [ticket for ticket in group if not ticket.done.done()], counted

    async def _rebase(self, ticket: _Ticket, target: Root, *, moved: bool) -> Root:
        """The root `target` with the session's changes on it; `moved`: it may not be its base."""
        record, files = ticket.stored.value, ticket.files
        base = await self._manifests.root(record.base_root)
        arrays = dict(target.arrays)
        conflicts: list[str] = []
        for name, edit in ticket.edits.items():
            before, now = base.arrays[name], target.arrays.get(name)
            edited = None if now is None else await self._edited(edit, before, now)
            if edited is None:
                conflicts.append(name)
            else:
                arrays[name] = edited
        if moved:
            await self._refuse_conflicts(record, files, conflicts, (base, target))
        for name, made in record.arrays.items():
            if made is None:
                arrays.pop(name, None)
            elif not made.edits:
                arrays[name] = ArrayRef(array_prefix(made.id), made.record, made.overlay)
        pages, changes = await self._with_files(target, files)
        return Root(pages, arrays, changes)

    async def _edited(self, edit: Edit, before: ArrayRef, now: ArrayRef) -> ArrayRef | None:
        """The array `now` with an edit of what it was `before`; None if both changed the same."""
        overlay = await self._overlay(now)
        if now != before:
            others = overlay.newer_than(await self._overlay(before))
            same_record = now.record == before.record == edit.record
            if others is None or not same_record or others & edit.shards:
                return None
        if not edit.shards and edit.record == now.record:
            return now
        after = overlay.with_layer(edit.prefix, edit.shards)
        return ArrayRef(edit.prefix, edit.record, await self._manifests.put_overlay(after))

    async def _overlay(self, ref: ArrayRef) -> Overlay:
        return await self._manifests.overlay(ref.overlay) if ref.overlay else Overlay(ref.prefix)

    async def _refuse_conflicts(
        self,
        record: SessionRecord,
        files: Sequence[Entry],
        edited: Sequence[str],
        roots: tuple[Root, Root],
    ) -> None:
        base, target = roots
        paths = await asyncio.to_thread(lambda: [entry.path for entry in files])
        made = [name for name, m in record.arrays.items() if m is None or not m.edits]
        both = [
            *edited,
            *array_conflicts(base, target, made),
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

    async def _with_files(
        self, target: Root, files: Sequence[Entry]
    ) -> tuple[tuple[PageRef, ...], Changes]:
        """The root's files with others over them: few in the root itself, many on pages."""
        if not files:
            return target.pages, target.changes
        if len(files) > self._root_entries:
            pages = target.pages
            for layer in (target.changes.entries, files):
                pages = await self._merge(pages, layer)
            return pages, NO_CHANGES
        together = merge(target.changes.entries, files)
        if len(together) > self._root_entries:
            return await self._merge(target.pages, together), NO_CHANGES
        paths = [entry.path for entry in files]
        before = (await self._views.find_files(target, paths)).values()
        after = [entry for entry in files if not is_gone(entry)]
        return target.pages, Changes(
            tuple(together),
            target.changes.files + len(after) - len(before),
            target.changes.file_bytes
            + sum(entry.size_bytes for entry in after)
            - sum(entry.size_bytes for entry in before),
        )

    async def _merge(self, pages: Sequence[PageRef], files: Sequence[Entry]) -> tuple[PageRef, ...]:
        merged: list[PageRef] = []
        steps = await asyncio.to_thread(lambda: plan(pages, [entry.path for entry in files]))
        for step in steps:
            if isinstance(step, Keep):
                merged.append(step.page)
                continue
            old = await self._manifests.page(step.page) if step.page is not None else ()
            changes = files[step.start : step.stop]
            filled = merged_pages(old, changes, self._page_entries)
            while (page := await asyncio.to_thread(next, filled, None)) is not None:
                merged.append(await self._manifests.put_page(page))
        return tuple(merged)

    def _describe(self, number: int, ref: str, root: Root, message: str) -> VersionEntry:
        return VersionEntry(
            number=number,
            root=ref,
            message=message,
            created_ns=int(self._clock.now() * NANO),
            files=root.files,
            file_bytes=root.file_bytes,
            arrays=tuple(sorted(root.arrays)),
        )

    async def _make_visible(
        self,
        head: Stored[Head],
        planned: Sequence[tuple[_Ticket, VersionEntry]],
        guard: Sequence[Compare],
        counted: Counted,
    ) -> bool:
        """All of them, or none."""
        dataset, last = planned[-1][0].name.dataset, planned[-1][1]
        head_key = self._catalog.head_key(dataset)
        after = replace(head.value, number=last.number, root=last.root, updated_ns=last.created_ns)
        compares = [Compare.mod_revision(head_key, head.revision), *guard, *counted.compares]
        changes = [Op.put(head_key, after.encode()), *counted.changes]
        for ticket, entry in planned:
            key = self._catalog.session_key(ticket.name.session)
            done = replace(
                ticket.stored.value,
                state=SessionState.COMMITTED,
                committed=entry.number,
                commit_request=ticket.request.id,
            )
            answer = {"dataset_id": head.value.id, "number": entry.number}
            missing, remember = await self._catalog.remembering(ticket.request, answer)
            compares += [Compare.mod_revision(key, ticket.stored.revision), *missing]
            changes += [
                Op.put(self._catalog.version_key(head.value.id, entry.number), entry.encode()),
                Op.put(key, done.encode(), lease=await self._catalog.lease()),
                *remember,
            ]
        return await self._catalog.change(compares, changes)

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


def _group(line: Iterable[_Ticket]) -> list[_Ticket]:
    """The next commits of a line; of those with one request id the first, the others wait."""
    group: list[_Ticket] = []
    asked: set[str] = set()
    for ticket in islice(line, _TOGETHER):
        if ticket.request.id in asked:
            break
        group.append(ticket)
        if ticket.request.id:
            asked.add(ticket.request.id)
    return group


def _deleted(name: SessionName) -> NotFoundError:
    return NotFoundError(
        f"{name.dataset} was deleted after session {name.session} began; write it anew"
    )
