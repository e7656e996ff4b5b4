"""One leader at a time, and proof of it for every write the leader makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from hyper.errors import ResourceExhaustedError, UnavailableError
from hyper_servicekit.etcd.client import Etcd
from hyper_servicekit.etcd.errors import LeaseLostError
from hyper_servicekit.etcd.lease import Lease
from hyper_servicekit.etcd.values import Change, Compare, KeyValue, Op, Snapshot
from hyper_servicekit.logs import get_logger
from hyper_servicekit.owned import owned

log = get_logger(__name__)
_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Leadership:
    """Held inside `Election.lead`.

    Put `fence` into every transaction: once another leads, or the lease is gone, it fails.
    `epoch` grows from leader to leader. Stop acting when `lost` is set.
    """

    key: str
    epoch: int
    lost: asyncio.Event

    @property
    def fence(self) -> Compare:
        """The leader key is still the one that this leadership created."""
        return Compare.create_revision(self.key, self.epoch)


class Election:
    """Contends for `key`, which holds the leader's `value` under a lease of `ttl_s`."""

    def __init__(self, etcd: Etcd, key: str, value: bytes, ttl_s: float) -> None:
        self._etcd, self._key, self._value, self._ttl_s = etcd, key, value, ttl_s

    @asynccontextmanager
    async def lead(self) -> AsyncIterator[Leadership]:
        """Wait until this contender leads, then run the body; afterwards step down at once.

        An etcd that is unreachable or out of space is waited for. The body is not interrupted
        when the leadership is lost: it watches `Leadership.lost`.
        """
        async with AsyncExitStack() as stack:
            lease, won = await self._contend(stack)
            leadership = Leadership(self._key, won.create_revision, lease.lost)
            log.info("leads", key=self._key, epoch=leadership.epoch)
            async with owned(self._watch_own_key(leadership), "leader-key"):
                yield leadership

    async def leader(self) -> KeyValue | None:
        """Who leads now, if anyone."""
        return await self._etcd.get(self._key)

    async def _contend(self, stack: AsyncExitStack) -> tuple[Lease, KeyValue]:
        """Win, sooner or later; the lease is kept until `stack` closes."""
        while True:
            try:
                await self._wait_until_free()
                async with AsyncExitStack() as attempt:
                    lease = await self._etcd.grant(self._ttl_s)
                    await attempt.enter_async_context(lease.keep())
                    won = await self._claim(lease)
                    if won is not None:
                        stack.push_async_exit(attempt.pop_all())
                        return lease, won
            except (UnavailableError, LeaseLostError, ResourceExhaustedError) as error:
                log.warning("election interrupted", key=self._key, error=str(error))
                await asyncio.sleep(_RETRY_S)

    async def _claim(self, lease: Lease) -> KeyValue | None:
        """Create the leader key; None if another has. A lost reply is settled by reading back."""
        while True:
            try:
                result = await self._etcd.transact(
                    [Compare.missing(self._key)],
                    [Op.put(self._key, self._value, lease.id), Op.get(self._key)],
                    [Op.get(self._key)],
                )
            except UnavailableError:
                if lease.lost.is_set():
                    raise
                continue  # the call itself has waited; if it did win, the answer shows our lease
            holder = result.responses[-1]
            mine = isinstance(holder, KeyValue) and holder.lease == lease.id
            return holder if mine and isinstance(holder, KeyValue) else None

    async def _wait_until_free(self) -> None:
        async with self._etcd.watching(self._key) as events:
            async for event in events:
                match event:
                    case Snapshot() if all(item.key != self._key for item in event.items):
                        return
                    case Change(key=self._key, value=None):
                        return

    async def _watch_own_key(self, leadership: Leadership) -> None:
        """Somebody may delete the key by hand: that ends the leadership, too."""
        while True:
            try:
                async with self._etcd.watching(self._key) as events:
                    async for event in events:
                        gone = isinstance(event, Change) and event.value is None
                        if isinstance(event, Snapshot):
                            gone = all(item.key != self._key for item in event.items)
                        if gone:
                            leadership.lost.set()
                            return
            except UnavailableError:
                await asyncio.sleep(_RETRY_S)
