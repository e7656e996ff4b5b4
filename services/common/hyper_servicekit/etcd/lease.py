"""A lease that knows by itself when it must count as lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
from aetcd import rpc

from hyper_servicekit.etcd.login import Metadata
from hyper_servicekit.logs import get_logger
from hyper_servicekit.owned import owned

if TYPE_CHECKING:
    from hyper_servicekit.etcd.client import Etcd

log = get_logger(__name__)
_RETRY_S = 0.2
_HAS_LEADER = (("hasleader", "true"),)  # a member cut off from its cluster must say so


class Lease:
    """Granted by `Etcd.grant`; keep it alive with `async with lease.keep()`.

    The server counts a time-to-live from the moment it handles a keepalive, which is after we
    sent it. So `lost` is set when `ttl_s` have passed here since the last acknowledged keepalive
    was *sent*: never later than the server lets go, however the network fails in between.
    """

    def __init__(self, etcd: Etcd, stub: Any, lease_id: int, ttl_s: float, asked_at: float) -> None:
        self.id = lease_id
        self.ttl_s = ttl_s
        self.lost = asyncio.Event()
        self._etcd, self._stub = etcd, stub
        self._timer: asyncio.TimerHandle | None = None
        self._extend(asked_at, ttl_s)

    @property
    def remaining_s(self) -> float:
        """How long the lease surely lives on; right even while the loop is too busy for timers."""
        left = self._deadline - asyncio.get_running_loop().time()
        return 0.0 if self.lost.is_set() else max(0.0, left)

    @asynccontextmanager
    async def keep(self) -> AsyncIterator[Self]:
        """Send keepalives while the body runs; afterwards revoke the lease and its keys."""
        try:
            async with owned(self._keep(), f"lease-{self.id:x}"):
                yield self
        finally:
            await self.revoke()

    async def revoke(self) -> None:
        """Give the lease back: its keys go at once. Unreachable etcd: they go by expiry."""
        if self._timer is not None:
            self._timer.cancel()
        if self.lost.is_set():
            return
        self.lost.set()
        try:
            timeout_s = min(2.0, self._etcd.timeout_s)
            shown = await self._etcd.shown(timeout_s)
            await self._stub.LeaseRevoke(
                rpc.LeaseRevokeRequest(ID=self.id), timeout=timeout_s, metadata=shown
            )
        except grpc.aio.AioRpcError as error:
            log.debug("lease not revoked", lease=self.id, code=error.code().name)

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.lost.is_set():
            await asyncio.sleep(max(0.0, self._deadline - self.ttl_s * 2 / 3 - loop.time()))
            while not self.lost.is_set():
                sent_at = loop.time()
                ttl_s = await self._ask(min(self.ttl_s / 3, max(0.01, self.remaining_s)))
                if ttl_s is None:
                    await asyncio.sleep(min(_RETRY_S, self.ttl_s / 10))
                    continue
                if ttl_s <= 0:  # expired or revoked on the server
                    self.lost.set()
                else:
                    self._extend(sent_at, ttl_s)
                break

    async def _ask(self, timeout_s: float) -> float | None:
        """One keepalive on a stream of its own (any member answers); None: no answer."""
        call = None
        shown: Metadata = ()
        try:
            shown = await self._etcd.shown(timeout_s)
            call = self._stub.LeaseKeepAlive(
                timeout=timeout_s, wait_for_ready=True, metadata=_HAS_LEADER + shown
            )
            await call.write(rpc.LeaseKeepAliveRequest(ID=self.id))
            await call.done_writing()
            answer = await call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            log.warning("lease keepalive failed", lease=self.id, error=type(error).__name__)
            self._etcd.refused(shown)
            return None
        finally:
            if call is not None:
                call.cancel()
        return None if answer is grpc.aio.EOF else float(answer.TTL)

    def _extend(self, sent_at: float, ttl_s: float) -> None:
        if self.lost.is_set():
            return
        if self._timer is not None:
            self._timer.cancel()
        self.ttl_s = ttl_s
        self._deadline = sent_at + ttl_s
        self._timer = asyncio.get_running_loop().call_at(self._deadline, self._expire)

    def _expire(self) -> None:
        log.warning("lease lost", lease=self.id, ttl_s=self.ttl_s)
        self.lost.set()
