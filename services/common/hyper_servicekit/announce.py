"""Finding services: each one announces itself in etcd under a lease.

`{etcd_prefix}/services/{service}/{instance}` holds `{"address": ..., "metrics_address": ...}`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from hyper.errors import HyperError
from hyper_servicekit.etcd import Etcd, KeyValue
from hyper_servicekit.logs import get_logger
from hyper_servicekit.owned import owned

log = get_logger(__name__)
_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Announced:
    """One replica of a service, as it announced itself."""

    service: str
    instance: str
    address: str
    metrics_address: str


class Announcing(Protocol):
    """The part of `hyper_servicekit.server.Running` that announcing needs."""

    service: str
    instance: str
    address: str
    metrics_address: str
    etcd_prefix: str
    stack: AsyncExitStack
    on_bound: list[Callable[[], Awaitable[None]]]
    on_drain: list[Callable[[], Awaitable[None]]]


def services_prefix(etcd_prefix: str, service: str | None = None) -> str:
    """The prefix of the keys of all services, or of one service's replicas."""
    return f"{etcd_prefix}/services/" + (f"{service}/" if service else "")


def parse_announced(item: KeyValue) -> Announced | None:
    """What a key under `services_prefix` says; None if it is not an announcement."""
    service, _, instance = item.key.rpartition("/services/")[2].partition("/")
    try:
        facts = json.loads(item.value)
        return Announced(service, instance, str(facts["address"]), str(facts["metrics_address"]))
    except (ValueError, KeyError, TypeError):
        log.warning("not an announcement", key=item.key)
        return None


async def announced(etcd: Etcd, etcd_prefix: str, service: str | None = None) -> list[Announced]:
    """The replicas that are announced now, by service and instance."""
    items, _ = await etcd.get_prefix(services_prefix(etcd_prefix, service))
    return [found for item in items if (found := parse_announced(item)) is not None]


async def announce(
    running: Announcing, etcd: Etcd, *, prefix: str | None = None, ttl_s: float = 10.0
) -> None:
    """Have this process announced from the moment it is bound until it drains.

    Call it in `build`, after `etcd` was entered on `running.stack`. A lost lease is replaced; on
    drain the key goes at once, after a kill within `ttl_s`. An etcd that cannot be reached at
    the start fails the start.
    """
    announcement = _Announcement(running, etcd, prefix or running.etcd_prefix, ttl_s)
    running.on_bound.append(announcement.begin)
    running.on_drain.append(announcement.withdraw)


class _Announcement:
    def __init__(self, running: Announcing, etcd: Etcd, prefix: str, ttl_s: float) -> None:
        self._running, self._etcd, self._ttl_s = running, etcd, ttl_s
        self._key = services_prefix(prefix, running.service) + running.instance
        self._own = AsyncExitStack()

    async def begin(self) -> None:
        """Register, and stay registered; raises if the first attempt fails."""
        await self._running.stack.enter_async_context(self._own)
        first = asyncio.get_running_loop().create_future()
        await self._own.enter_async_context(owned(self._stay(first), "announce"))
        await first
        log.info("announced", key=self._key, address=self._running.address)

    async def withdraw(self) -> None:
        """Take the key back."""
        await self._own.aclose()

    async def _stay(self, first: asyncio.Future[None]) -> None:
        facts = {
            "address": self._running.address,
            "metrics_address": self._running.metrics_address,
        }
        while True:
            try:
                lease = await self._etcd.grant(self._ttl_s)
                async with lease.keep():  # around the put: whatever ends it, the key goes, too
                    await self._etcd.put(self._key, json.dumps(facts).encode(), lease=lease.id)
                    if not first.done():
                        first.set_result(None)
                    await lease.lost.wait()
                log.warning("announcement lost, announces again", key=self._key)
            except HyperError as error:
                if not first.done():
                    first.set_exception(error)
                    return
                log.warning("cannot announce", key=self._key, error=str(error))
                await asyncio.sleep(_RETRY_S)
            finally:
                first.cancel()  # where it is not done by now, nobody else would end the wait
