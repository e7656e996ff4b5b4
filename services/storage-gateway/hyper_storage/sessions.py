"""Sessions: many writers, one set of changes, kept alive by use.

A session is one small record in etcd. Use renews its expiry, but the record is written again only
after an eighth of its time to live has passed, so that a call costs a read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hyper.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    HyperError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from hyper_servicekit.clock import Clock
from hyper_servicekit.etcd import Compare, Op
from hyper_servicekit.logs import get_logger
from hyper_storage.catalog import Catalog, Request, Stored
from hyper_storage.files.fragments import Mark
from hyper_storage.records import Head, Made, SessionRecord, SessionState
from hyper_storage.resources import DatasetName, SessionName

log = get_logger(__name__)

ATTEMPTS = 20
_RENEW_FRACTION = 8
NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sealed:
    """A session that is being committed.

    Args:
        stored: as it is now.
        mark: how many fragments it had when it was sealed, where that is remembered.
    """

    stored: Stored[SessionRecord]
    mark: Mark | None


class Sessions:
    """Opens, finds, renews and closes sessions.

    Args:
        catalog: where they are.
        clock: for their expiry.
        new_id: gives 32 hex digits that nobody can guess.
        arrays_max: arrays that one session may make.
    """

    def __init__(
        self, catalog: Catalog, clock: Clock, new_id: Callable[[], str], *, arrays_max: int
    ) -> None:
        self._catalog = catalog
        self._clock = clock
        self._new_id = new_id
        self._arrays_max = arrays_max

    async def create(self, dataset: DatasetName, ttl_s: int, request: Request) -> SessionRecord:
        """A new session on the dataset's head; the dataset is made if it does not exist."""
        for _ in range(ATTEMPTS):
            if (answer := await self._catalog.answer(request)) is not None:
                return (await self._find(SessionName(dataset, answer["session"]))).value
            now = self._now_ns()
            found = await self._catalog.head(dataset)
            head = found.value if found else Head(self._new_id(), 0, "", now, now)
            record = SessionRecord(
                id=self._new_id(),
                tenant=dataset.tenant,
                dataset=dataset.dataset,
                dataset_id=head.id,
                base=head.number,
                base_root=head.root,
                state=SessionState.OPEN,
                ttl_s=ttl_s,
                created_ns=now,
                expires_ns=now + ttl_s * NANO,
            )
            key = self._catalog.head_key(dataset)
            changes = [Op.put(self._catalog.session_key(record.id), record.encode())]
            if found is None:
                changes.append(Op.put(key, head.encode()))
            done = await self._catalog.change(
                [Compare.mod_revision(key, found.revision if found else 0)],
                changes,
                request=request,
                answer={"session": record.id},
            )
            if done:
                return record
        raise _busy(str(dataset))

    async def get(self, name: SessionName) -> SessionRecord:
        """A session in any state, renewed if it is open."""
        return (await self._current(name)).value

    async def readable(self, name: SessionName) -> SessionRecord:
        """A session whose files and arrays can be read: open, or committed not long ago."""
        record = await self.get(name)
        if record.state is SessionState.ABORTED:
            raise closed(name, record)
        return record

    async def writable(self, name: SessionName) -> SessionRecord:
        """A session that takes changes."""
        return (await self._writable(name)).value

    async def check_open(self, name: SessionName) -> None:
        """Raise unless the session takes changes now; what was written before is in its commit."""
        stored = await self._find(name)
        if stored.value.state is not SessionState.OPEN:
            raise closed(name, stored.value)

    async def make_array(
        self,
        name: SessionName,
        array: str,
        made: Made,
        *,
        in_base: bool,
        request: Request,
        guard: Sequence[Compare] = (),
    ) -> Made:
        """Add an array to the session, or edit one of its base; if repeated, the first answer."""
        for _ in range(ATTEMPTS):
            if (answer := await self._catalog.answer(request)) is not None:
                return Made(**answer)
            stored = await self._writable(name)
            arrays = stored.value.arrays
            if made.edits and (array in arrays or not in_base):
                raise _not_editable(name, array, arrays)
            if not made.edits and (
                arrays.get(array) is not None or (in_base and array not in arrays)
            ):
                raise AlreadyExistsError(
                    f"{name} has an array {array!r} already; delete it first, or use another name"
                )
            if len(arrays) >= self._arrays_max:
                raise ResourceExhaustedError(
                    f"a session makes at most {self._arrays_max} arrays; commit this one first",
                    reason="QUOTA_EXCEEDED",
                )
            done = await self._catalog.put_session(
                stored,
                stored.value.with_array(array, made),
                request=request,
                answer=made._asdict(),
                guard=guard,
            )
            if done:
                return made
        raise _busy(str(name))

    async def own_array(self, name: SessionName, array: str) -> tuple[Made, Stored[SessionRecord]]:
        """An array that the session writes, and the session as it was then."""
        stored = await self._writable(name)
        made = stored.value.arrays.get(array)
        if made is None:
            raise NotFoundError(
                f"{name} has made no array {array!r}; one of an older version never changes: edit "
                "it in the session first"
            )
        return made, stored

    async def change_array(
        self,
        name: SessionName,
        array: str,
        change: tuple[Stored[SessionRecord], Made],
        *,
        request: Request,
        guard: Sequence[Compare],
    ) -> None:
        """Give an array another record, if its record is still the one that was seen."""
        seen, after = change
        before = seen.value.arrays[array]
        for _ in range(ATTEMPTS):
            if await self._catalog.answer(request) is not None:
                return
            stored = await self._writable(name)
            if stored.value.arrays.get(array) != before:
                raise ConflictError(f"{name}: array {array!r} was changed by someone else")
            record = stored.value.with_array(array, after)
            if await self._catalog.put_session(stored, record, request=request, guard=guard):
                return
        raise _busy(str(name))

    async def drop_array(
        self, name: SessionName, array: str, *, in_base: bool, request: Request
    ) -> None:
        """Remove an array that the session made, or delete one of its base."""
        for _ in range(ATTEMPTS):
            if await self._catalog.answer(request) is not None:
                return
            stored = await self._writable(name)
            arrays = stored.value.arrays
            if arrays.get(array) is None and (array in arrays or not in_base):
                raise NotFoundError(f"{name} has no array {array!r}")
            if in_base:
                after = stored.value.with_array(array, None)
            else:
                after = stored.value.without_array(array)
            if await self._catalog.put_session(stored, after, request=request):
                return
        raise _busy(str(name))

    async def seal(self, name: SessionName, request: Request) -> Sealed:
        """Begin a commit: the session takes no more changes. One that is sealed stays so.

        Raises:
            ConflictError: someone else changes it all the time, or the request has its answer.
        """
        for _ in range(ATTEMPTS):
            stored = await self._current(name)
            if stored.value.state is SessionState.SEALED:
                return Sealed(stored, await self._catalog.mark(name.session))
            if stored.value.state is not SessionState.OPEN:
                raise closed(name, stored.value)
            after = replace(stored.value, state=SessionState.SEALED)
            sealed = await self._catalog.seal_session(stored, after, request)
            if sealed is not None:
                return Sealed(*sealed)
            if await self._catalog.answer(request) is not None:
                raise ConflictError(f"{request.call} was answered already")
        raise _busy(str(name))

    async def reopen(self, stored: Stored[SessionRecord]) -> None:
        """A commit has failed for good: the session takes changes again."""
        opened = replace(stored.value, state=SessionState.OPEN)
        if not await self._catalog.put_session(stored, opened):
            log.info("session changed while its commit failed", session=stored.value.id)

    async def abort(self, name: SessionName, request: Request) -> None:
        """Close the session without a version; one that is aborted stays so."""
        for _ in range(ATTEMPTS):
            stored = await self._find(name)
            match stored.value.state:
                case SessionState.ABORTED:
                    return
                case SessionState.COMMITTED:
                    raise closed(name, stored.value)
                case SessionState.OPEN | SessionState.SEALED:
                    after = replace(stored.value, state=SessionState.ABORTED)
                    if await self._catalog.put_session(stored, after, closed=True, request=request):
                        return
                    if await self._catalog.answer(request) is not None:
                        return
        raise _busy(str(name))

    async def sweep(self) -> int:
        """Abort every open session that nobody has used for its time to live."""
        swept = 0
        for stored in await self._catalog.sessions():
            if self._expired(stored.value):
                swept += await self._expire(stored)
        if swept:
            log.info("unused sessions aborted", sessions=swept)
        return swept

    async def _writable(self, name: SessionName) -> Stored[SessionRecord]:
        stored = await self._current(name)
        if stored.value.state is not SessionState.OPEN:
            raise closed(name, stored.value)
        return stored

    async def _current(self, name: SessionName) -> Stored[SessionRecord]:
        """The session, expired or renewed as its last use demands."""
        for _ in range(ATTEMPTS):
            stored = await self._find(name)
            record = stored.value
            if self._expired(record):
                await self._expire(stored)
                continue
            left_ns = record.expires_ns - self._now_ns()
            fresh_ns = record.ttl_s * NANO * (_RENEW_FRACTION - 1) // _RENEW_FRACTION
            if record.state is not SessionState.OPEN or left_ns > fresh_ns:
                return stored
            renewed = replace(record, expires_ns=self._now_ns() + record.ttl_s * NANO)
            await self._catalog.put_session(stored, renewed)  # or someone else has just done so
        raise _busy(str(name))

    async def _find(self, name: SessionName) -> Stored[SessionRecord]:
        stored = await self._catalog.session(name.session)
        if stored is None or (stored.value.tenant, stored.value.dataset) != (
            name.dataset.tenant,
            name.dataset.dataset,
        ):
            raise NotFoundError(f"no session {name}; it was closed long ago, or never existed")
        return stored

    async def _expire(self, stored: Stored[SessionRecord]) -> bool:
        after = replace(stored.value, state=SessionState.ABORTED)
        return await self._catalog.put_session(stored, after, closed=True)

    def _expired(self, record: SessionRecord) -> bool:
        alive = record.state in (SessionState.OPEN, SessionState.SEALED)
        return alive and record.expires_ns <= self._now_ns()

    def _now_ns(self) -> int:
        return int(self._clock.now() * NANO)


def closed(name: SessionName, record: SessionRecord) -> FailedPreconditionError:
    """The error of a session that takes no changes."""
    match record.state:
        case SessionState.COMMITTED:
            what = f"was committed as version {record.committed}; open a new session to change more"
        case SessionState.ABORTED:
            what = "was aborted, or lay unused for too long; open a new session"
        case _:
            what = "is being committed and takes no more changes; repeat the commit, or abort it"
    return FailedPreconditionError(
        f"session {name} {what}", reason="SESSION_CLOSED", metadata={"state": str(record.state)}
    )


def ttl_of(seconds: float, default_s: int, max_s: int) -> int:
    """A session's time to live from what was asked for (0: the default)."""
    if seconds == 0:
        return default_s
    if not 1 <= seconds <= max_s:
        raise InvalidArgumentError(f"ttl must be from 1 to {max_s} s, not {seconds:g}", field="ttl")
    return int(seconds)


def _not_editable(name: SessionName, array: str, arrays: Mapping[str, Made | None]) -> HyperError:
    made = arrays.get(array)
    if made is not None:
        return AlreadyExistsError(f"{name} writes {array!r} already")
    return NotFoundError(f"{name} is based on no array {array!r}; make one instead")


def _busy(name: str) -> ConflictError:
    return ConflictError(f"{name} is being changed by too many at once; try again")
