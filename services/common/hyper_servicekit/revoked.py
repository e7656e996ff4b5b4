"""Tokens that are good no more: their ids in etcd, watched by every service.

`{etcd_prefix}/revoked/{id}`; a key goes with its lease, when the token has expired
in any case.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Protocol

from hyper.errors import HyperError
from hyper_servicekit.etcd import Etcd, Snapshot
from hyper_servicekit.logs import get_logger
from hyper_servicekit.owned import owned
from hyper_servicekit.tokens import LIFETIME_MAX_S

log = get_logger(__name__)
_RETRY_S = 0.5


class Revoking(Protocol):
    """The part of `hyper_servicekit.server.Running` that is needed here."""

    etcd_prefix: str
    stack: AsyncExitStack
    revoked: set[str]


def _folder(etcd_prefix: str) -> str:
    return f"{etcd_prefix}/revoked/"


async def revoke(etcd: Etcd, etcd_prefix: str, token: str) -> None:
    """Have every service refuse the token with this id; durable on return."""
    lease = await etcd.grant(LIFETIME_MAX_S)
    await etcd.put(_folder(etcd_prefix) + token, b"", lease=lease.id)


async def watch_revoked(running: Revoking, etcd: Etcd) -> None:
    """Keep `running.revoked` as etcd has it. Call it in `build`.

    The first listing is awaited. While etcd is away what was known stays.

    Raises:
        UnavailableError: etcd does not answer at the start.
    """
    folder = _folder(running.etcd_prefix)
    items, _ = await etcd.get_prefix(folder)
    running.revoked.update(item.key.removeprefix(folder) for item in items)

    async def follow() -> None:
        while True:
            try:
                async with etcd.watching(folder) as changes:
                    async for change in changes:
                        if isinstance(change, Snapshot):
                            running.revoked.clear()
                            running.revoked.update(
                                item.key.removeprefix(folder) for item in change.items
                            )
                        elif change.value is None:
                            running.revoked.discard(change.key.removeprefix(folder))
                        else:
                            running.revoked.add(change.key.removeprefix(folder))
            except HyperError as error:
                log.warning("revocations not watched", error=str(error))
            await asyncio.sleep(_RETRY_S)

    await running.stack.enter_async_context(owned(follow(), "revoked"))
