"""The catalog in etcd: heads, version entries, sessions and answered requests.

Every change is one transaction, and the request id that asked for it is stored in the same one, so
that a repeat finds the first answer. Request ids and closed sessions hang on a lease shared by many
and go when it expires.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hyper.errors import ConflictError, InvalidArgumentError, UnavailableError
from hyper_servicekit.etcd import Compare, Etcd, KeyValue, Lease, LeaseLostError, Op
from hyper_storage.files.fragments import Mark
from hyper_storage.records import (
    Head,
    RequestRecord,
    SessionRecord,
    TagRecord,
    Usage,
    VersionEntry,
    decode_head,
    decode_request,
    decode_session,
    decode_tag,
    decode_usage,
    decode_version,
)
from hyper_storage.resources import DatasetName

T = TypeVar("T")
VERSIONS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Stored(Generic[T]):
    """A value and the revision of its last change."""

    value: T
    revision: int


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks for a change: `id` "" is never remembered."""

    tenant: str
    id: str
    call: str


@dataclass(frozen=True, slots=True)
class EveryRoot:
    """What is committed.

    Args:
        roots: hashes of the root of every version.
        datasets: ids of the datasets.
        orphans: ids of deleted datasets that have left versions behind.
    """

    roots: set[str]
    datasets: set[str]
    orphans: set[str]


class Catalog:
    """Reads and changes of the catalog; `prefix` is the cluster's prefix in etcd."""

    def __init__(self, etcd: Etcd, prefix: str, *, memory_s: float) -> None:
        self._etcd = etcd
        self._prefix = f"{prefix}/storage"
        self._memory_s = memory_s
        self._lease_id = 0
        self._lease_until_s = 0.0
        self._lease_lock = asyncio.Lock()

    # Keys

    def head_key(self, dataset: DatasetName) -> str:
        """Where a dataset's head is."""
        return f"{self._prefix}/heads/{dataset.tenant}/{dataset.dataset}"

    def versions_prefix(self, dataset_id: str) -> str:
        """Where a dataset's version entries are."""
        return f"{self._prefix}/versions/{dataset_id}/"

    def version_key(self, dataset_id: str, number: int) -> str:
        """Where one version entry is."""
        return f"{self.versions_prefix(dataset_id)}{number:016x}"

    def session_key(self, session: str) -> str:
        """Where a session is."""
        return f"{self._prefix}/sessions/{session}"

    def tags_prefix(self, dataset_id: str) -> str:
        """Where a dataset's tags are."""
        return f"{self._prefix}/tags/{dataset_id}/"

    def _stores_prefix(self, tenant: str) -> str:
        return f"{self._prefix}/stores/{tenant}/"

    @property
    def gc_epoch_key(self) -> str:
        """Changed whenever manifests begin to be deleted."""
        return f"{self._prefix}/gc/epoch"

    @property
    def gc_lock_key(self) -> str:
        """There while manifests are deleted."""
        return f"{self._prefix}/gc/lock"

    def _shard_key(self, session: str, shard: str) -> str:
        return f"{self._prefix}/shards/{session}/{shard}"

    def _mark_key(self, session: str) -> str:
        return f"{self._prefix}/fragments/{session}"

    def _request_key(self, request: Request) -> str:
        return f"{self._prefix}/requests/{request.tenant}/{request.id}"

    # Reads

    async def head(self, dataset: DatasetName) -> Stored[Head] | None:
        """The dataset's head, or None if there is no such dataset."""
        found = await self._etcd.get(self.head_key(dataset))
        return None if found is None else Stored(decode_head(found.value), found.mod_revision)

    async def heads(self, tenant: str | None) -> list[tuple[DatasetName, Head]]:
        """All datasets of a tenant, or of all (None), with their heads, in order of name."""
        root = f"{self._prefix}/heads/"
        found, _ = await self._etcd.get_prefix(root if tenant is None else f"{root}{tenant}/")
        named = [(item.key.removeprefix(root).split("/"), item.value) for item in found]
        return [(DatasetName(*parts), decode_head(value)) for parts, value in named]

    async def version(self, dataset_id: str, number: int) -> VersionEntry | None:
        """One version entry."""
        found = await self._etcd.get(self.version_key(dataset_id, number))
        return None if found is None else decode_version(found.value)

    async def versions(self, dataset_id: str, numbers: Sequence[int]) -> list[VersionEntry]:
        """The entries of `numbers` (at most 100) that exist, in that order."""
        gets = [Op.get(self.version_key(dataset_id, number)) for number in numbers]
        answer = await self._etcd.transact([], gets)
        return [decode_version(got.value) for got in answer.responses if isinstance(got, KeyValue)]

    async def tag(self, dataset_id: str, tag: str) -> TagRecord | None:
        """One tag."""
        found = await self._etcd.get(f"{self.tags_prefix(dataset_id)}{tag}")
        return None if found is None else decode_tag(found.value)

    async def tags(self, dataset_id: str) -> list[tuple[str, TagRecord]]:
        """A dataset's tags, in order of name."""
        prefix = self.tags_prefix(dataset_id)
        found, _ = await self._etcd.get_prefix(prefix)
        return [(item.key.removeprefix(prefix), decode_tag(item.value)) for item in found]

    async def store(self, tenant: str, name: str) -> bytes | None:
        """What is known of a tenant's store elsewhere."""
        found = await self._etcd.get(f"{self._stores_prefix(tenant)}{name}")
        return None if found is None else found.value

    async def stores(self, tenant: str) -> list[tuple[str, bytes]]:
        """A tenant's stores, in order of name."""
        prefix = self._stores_prefix(tenant)
        found, _ = await self._etcd.get_prefix(prefix)
        return [(item.key.removeprefix(prefix), item.value) for item in found]

    async def put_store(self, tenant: str, name: str, record: bytes) -> None:
        """Name a store, or replace what is known of it."""
        await self._etcd.transact([], [Op.put(f"{self._stores_prefix(tenant)}{name}", record)])

    async def delete_store(self, tenant: str, name: str) -> None:
        """Forget a store; fine if there is none."""
        await self._etcd.transact([], [Op.delete(f"{self._stores_prefix(tenant)}{name}")])

    def usage_key(self, tenant: str) -> str:
        """Where it stands what a tenant with a quota uses."""
        return f"{self._prefix}/usage/{tenant}"

    async def usage(self, tenant: str) -> tuple[Usage, int]:
        """What a tenant uses, and the revision of that."""
        found = await self._etcd.get(self.usage_key(tenant))
        return (Usage(), 0) if found is None else (decode_usage(found.value), found.mod_revision)

    async def every_root(self) -> EveryRoot:
        """The roots of all versions of all datasets."""
        prefix = f"{self._prefix}/versions/"
        found, _ = await self._etcd.get_prefix(prefix)  # before the heads: none of them is newer
        heads, _ = await self._etcd.get_prefix(f"{self._prefix}/heads/")
        known = {decode_head(item.value) for item in heads}
        ids, roots = {head.id for head in known}, {head.root for head in known}
        orphans = set()
        for item in found:
            dataset_id = item.key.removeprefix(prefix).partition("/")[0]
            if dataset_id in ids:
                roots.add(decode_version(item.value).root)
            else:
                orphans.add(dataset_id)
        return EveryRoot(roots, ids, orphans)

    async def guard(self) -> list[Compare]:
        """Conditions under which no manifest that is put after this call has been deleted.

        Raises:
            UnavailableError: manifests are being deleted right now.
        """
        answer = await self._etcd.transact(
            [], [Op.get(self.gc_epoch_key), Op.get(self.gc_lock_key)]
        )
        epoch, lock = answer.responses
        if lock is not None:
            raise UnavailableError("garbage is being collected this moment; try again")
        revision = epoch.mod_revision if isinstance(epoch, KeyValue) else 0
        return [
            Compare.mod_revision(self.gc_epoch_key, revision),
            Compare.missing(self.gc_lock_key),
        ]

    @asynccontextmanager
    async def collecting(self, ttl_s: float) -> AsyncIterator[Lease | None]:
        """Keep commits out while manifests are deleted; None if someone else is doing so."""
        lease = await self._etcd.grant(ttl_s)
        try:
            done = await self._etcd.transact(
                [Compare.missing(self.gc_lock_key)],
                [
                    Op.put(self.gc_epoch_key, b"{}"),
                    Op.put(self.gc_lock_key, b"{}", lease=lease.id),
                ],
            )
            yield lease if done.succeeded else None
        finally:
            await lease.revoke()

    async def session(self, session: str) -> Stored[SessionRecord] | None:
        """A session, or None."""
        found = await self._etcd.get(self.session_key(session))
        return None if found is None else Stored(decode_session(found.value), found.mod_revision)

    async def sessions(self) -> list[Stored[SessionRecord]]:
        """All sessions, closed ones too for as long as they are remembered."""
        found, _ = await self._etcd.get_prefix(f"{self._prefix}/sessions/")
        return [Stored(decode_session(item.value), item.mod_revision) for item in found]

    async def answer(self, request: Request) -> Mapping[str, Any] | None:
        """What this request was answered before, if it was."""
        if not request.id:
            return None
        found = await self._etcd.get(self._request_key(request))
        if found is None:
            return None
        record: RequestRecord = decode_request(found.value)
        if record.call != request.call:
            raise InvalidArgumentError(
                f"request_id {request.id} was used for another call; make a new one for each",
                field="request_id",
            )
        return record.answer

    async def mark(self, session: str) -> Mark | None:
        """How many fragments of a session were acknowledged, where that is remembered."""
        found = await self._etcd.get(self._mark_key(session))
        return None if found is None else _mark(found)

    # Changes

    async def count_fragment(self, session: str, name: str) -> Mark:
        """Count one more fragment of a session."""
        key = self._mark_key(session)
        put = Op.put(key, name.encode(), lease=await self.lease())
        try:
            answer = await self._etcd.transact([], [put, Op.get(key)])
        except LeaseLostError as error:
            raise self._lease_lost() from error
        found = answer.responses[1]
        if not isinstance(found, KeyValue):
            raise UnavailableError("etcd lost what it has just stored; try again")
        return _mark(found)

    async def change(
        self,
        compares: Sequence[Compare],
        operations: Sequence[Op],
        *,
        request: Request | None = None,
        answer: Mapping[str, Any] | None = None,
    ) -> bool:
        """One transaction; False if a condition did not hold or the request is answered already."""
        conditions, changes = list(compares), list(operations)
        if request is not None:
            more = await self.remembering(request, answer or {})
            conditions += more[0]
            changes += more[1]
        try:
            return (await self._etcd.transact(conditions, changes)).succeeded
        except LeaseLostError as error:
            raise self._lease_lost() from error

    async def remembering(
        self, request: Request, answer: Mapping[str, Any]
    ) -> tuple[list[Compare], list[Op]]:
        """What a transaction needs to store a request's answer, and to fail if it has one."""
        if not request.id:
            return [], []
        key = self._request_key(request)
        record = RequestRecord(request.call, answer)
        put = Op.put(key, record.encode(), lease=await self.lease())
        return [Compare.missing(key)], [put]

    def _lease_lost(self) -> UnavailableError:
        self._lease_until_s = 0.0
        return UnavailableError(
            "etcd has dropped this gateway's lease; try again", reason="ETCD_UNREACHABLE"
        )

    async def put_session(
        self,
        before: Stored[SessionRecord],
        after: SessionRecord,
        *,
        closed: bool = False,
        request: Request | None = None,
        answer: Mapping[str, Any] | None = None,
        guard: Sequence[Compare] = (),
    ) -> bool:
        """Replace a session that nobody else has changed; False if someone has."""
        key = self.session_key(after.id)
        lease = await self.lease() if closed else 0
        return await self.change(
            [Compare.mod_revision(key, before.revision), *guard],
            [Op.put(key, after.encode(), lease=lease)],
            request=request,
            answer=answer,
        )

    async def seal_session(
        self, before: Stored[SessionRecord], after: SessionRecord, request: Request
    ) -> tuple[Stored[SessionRecord], Mark | None] | None:
        """Replace a session that nobody else has changed, and count its fragments.

        None if someone has changed it, or `request` has its answer.
        """
        key = self.session_key(after.id)
        compares = [Compare.mod_revision(key, before.revision)]
        if request.id:
            compares.append(Compare.missing(self._request_key(request)))
        operations = [Op.put(key, after.encode()), Op.get(self._mark_key(after.id))]
        done = await self._etcd.transact(compares, operations)
        if not done.succeeded:
            return None
        found = done.responses[1]
        mark = _mark(found) if isinstance(found, KeyValue) else None
        return Stored(after, done.revision), mark

    async def lease_shards(
        self, session: str, shards: Sequence[str], owner: str, ttl_s: float
    ) -> None:
        """Reserve all of `shards` for `owner`, or none.

        Raises:
            ConflictError: another owner holds one.
        """
        keys = [self._shard_key(session, shard) for shard in shards]
        lease = await self._etcd.grant(ttl_s)
        try:
            done = await self._etcd.transact(
                [Compare.missing(key) for key in keys],
                [Op.put(key, owner.encode(), lease=lease.id) for key in keys],
                [Op.get(key) for key in keys],
            )
        except LeaseLostError as error:
            raise UnavailableError(
                "etcd has dropped the lease; try again", reason="ETCD_UNREACHABLE"
            ) from error
        if done.succeeded:
            return
        await lease.revoke()
        held = [found for found in done.responses if isinstance(found, KeyValue)]
        if len(held) == len(keys) and all(found.value == owner.encode() for found in held):
            return  # a repeat after a lost reply
        shard = next(
            shard
            for shard, found in zip(shards, done.responses, strict=True)
            if isinstance(found, KeyValue)
        )
        raise ConflictError(
            f"someone else is changing a part of shard {shard}; wait, or let each writer have "
            "whole shards",
            metadata={"object": shard},
        )

    async def release_shards(self, session: str, shards: Sequence[str], owner: str) -> None:
        """Give back those of `shards` that `owner` holds."""
        keys = [self._shard_key(session, shard) for shard in shards]
        mine = [Compare.value(key, owner.encode()) for key in keys]
        if (await self._etcd.transact(mine, [Op.delete(key) for key in keys])).succeeded:
            return
        for key, compare in zip(keys, mine, strict=True):
            await self._etcd.transact([compare], [Op.delete(key)])

    async def delete_versions(self, dataset_id: str) -> None:
        """Remove every version entry and tag of a dataset that has no head any more."""
        await self._etcd.delete_prefix(self.versions_prefix(dataset_id))
        await self._etcd.delete_prefix(self.tags_prefix(dataset_id))

    async def lease(self) -> int:
        """The lease of what is remembered for a while: lives for one to two times `memory_s`."""
        loop = asyncio.get_running_loop()
        async with self._lease_lock:
            if loop.time() >= self._lease_until_s:
                granted_at = loop.time()
                self._lease_id = (await self._etcd.grant(2 * self._memory_s)).id
                self._lease_until_s = granted_at + self._memory_s
            return self._lease_id


def _mark(found: KeyValue) -> Mark:
    return Mark(found.create_revision, found.version, found.value.decode())
