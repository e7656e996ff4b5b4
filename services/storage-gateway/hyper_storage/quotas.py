"""Quotas: how many bytes a tenant may keep, reserved when a session begins, settled at its commit.

A tenant with a quota has one small record in etcd: bytes that each open session has reserved, and
bytes that commits have added to each dataset. A commit replaces the reservation by what the session
really wrote, in the transaction that makes the version visible. Tenants without a quota have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hyper.errors import ConflictError, HyperError, ResourceExhaustedError
from hyper_servicekit.etcd import Compare, Op
from hyper_servicekit.objects import ObjectStore
from hyper_storage.access import array_prefix, blob_prefix
from hyper_storage.catalog import Catalog
from hyper_storage.records import SessionRecord, SessionState, Usage

_ATTEMPTS = 50
_EVERYONE = "*"


@dataclass(frozen=True, slots=True)
class Counted:
    """How commits are counted: conditions and changes of their transaction, and who is refused."""

    compares: Sequence[Compare] = ()
    changes: Sequence[Op] = ()
    refused: Mapping[str, HyperError] = field(default_factory=dict)


class Quotas:
    """Holds tenants to their quotas.

    Args:
        catalog: with their usage.
        store: the bucket.
        limits: bytes, by tenant; "*" for all others.
        reserve_bytes: of a session that does not say how much it will write.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: ObjectStore,
        limits: Mapping[str, int],
        *,
        reserve_bytes: int,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._limits = limits
        self._reserve_bytes = reserve_bytes

    def limit(self, tenant: str) -> int | None:
        """A tenant's quota in bytes; None for as much as there is."""
        return self._limits.get(tenant, self._limits.get(_EVERYONE))

    async def reserve(self, record: SessionRecord, asked_bytes: int) -> None:
        """Reserve what a session may write.

        Raises:
            ResourceExhaustedError: QUOTA_EXCEEDED; nothing is reserved.
        """
        limit = self.limit(record.tenant)
        if limit is None:
            return
        wanted = asked_bytes or min(self._reserve_bytes, limit)
        key = self._catalog.usage_key(record.tenant)
        for _ in range(_ATTEMPTS):
            usage, revision = await self._catalog.usage(record.tenant)
            if record.id in usage.sessions:
                return
            if usage.total_bytes + wanted > limit:
                usage = await self._without_the_gone(record.tenant, usage)
            if usage.total_bytes + wanted > limit:
                raise exceeded(record.tenant, limit, usage.total_bytes, wanted)
            after = replace(usage, sessions={**usage.sessions, record.id: wanted})
            if await self._catalog.change(
                [Compare.mod_revision(key, revision)], [Op.put(key, after.encode())]
            ):
                return
        raise _busy(record.tenant)

    async def settle(self, records: Sequence[SessionRecord]) -> Counted:
        """What the transaction of some commits must hold, for their bytes to be counted.

        All are of one tenant. Refused is who wrote more than it reserved, and than is left.
        """
        limit = self.limit(records[0].tenant) if records else None
        if limit is None:
            return Counted()
        tenant = records[0].tenant
        usage, revision = await self._catalog.usage(tenant)
        refused: dict[str, HyperError] = {}
        for record in records:
            written = await self._written_bytes(record)
            reserved = usage.sessions.get(record.id, 0)
            if written > reserved and usage.total_bytes - reserved + written > limit:
                usage = await self._without_the_gone(tenant, usage)
                used = usage.total_bytes - reserved
                if used + written > limit:
                    refused[record.id] = exceeded(tenant, limit, used, written)
                    continue
            others = {id_: size for id_, size in usage.sessions.items() if id_ != record.id}
            before = usage.datasets.get(record.dataset_id, 0)
            usage = Usage(others, {**usage.datasets, record.dataset_id: before + written})
        key = self._catalog.usage_key(tenant)
        return Counted(
            [Compare.mod_revision(key, revision)], [Op.put(key, usage.encode())], refused
        )

    async def forget(self, tenant: str, dataset_id: str) -> None:
        """A dataset was deleted: its bytes are the tenant's again."""
        if self.limit(tenant) is None:
            return
        key = self._catalog.usage_key(tenant)
        for _ in range(_ATTEMPTS):
            usage, revision = await self._catalog.usage(tenant)
            if dataset_id not in usage.datasets:
                return
            kept = {id_: size for id_, size in usage.datasets.items() if id_ != dataset_id}
            after = replace(usage, datasets=kept)
            if await self._catalog.change(
                [Compare.mod_revision(key, revision)], [Op.put(key, after.encode())]
            ):
                return
        raise _busy(tenant)

    async def _written_bytes(self, record: SessionRecord) -> int:
        made = [m for m in record.arrays.values() if m is not None and not m.overlay]
        prefixes = [blob_prefix(record.id), *(f"{array_prefix(m.id)}/" for m in made)]
        total = 0
        for prefix in prefixes:
            async for info in self._store.list(prefix):
                total += info.size
        return total

    async def _without_the_gone(self, tenant: str, usage: Usage) -> Usage:
        """Reservations of sessions that were aborted are free."""
        kept = {}
        for session, size in usage.sessions.items():
            found = await self._catalog.session(session)
            if found is not None and found.value.state in (SessionState.OPEN, SessionState.SEALED):
                kept[session] = size
        return replace(usage, sessions=kept)


def exceeded(tenant: str, limit: int, used: int, wanted: int) -> ResourceExhaustedError:
    """A tenant wants more than it has left."""
    return ResourceExhaustedError(
        f"tenant {tenant} may keep {limit} bytes, {used} are used or reserved, and {wanted} more "
        "are asked for; delete datasets, or end other sessions",
        reason="QUOTA_EXCEEDED",
        metadata={"limit": str(limit), "used": str(used)},
    )


def _busy(tenant: str) -> ConflictError:
    return ConflictError(f"tenant {tenant} begins too many sessions at once; try again")
