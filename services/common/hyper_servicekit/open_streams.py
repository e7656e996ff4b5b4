"""Streams end with the token that opened them: when it expires, or is revoked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeVar

from hyper.errors import UnauthenticatedError
from hyper_servicekit.authorize import Authorizer
from hyper_servicekit.tokens import Claims

T = TypeVar("T")
_EVERY_S = 1.0


@dataclass(slots=True, eq=False)
class _Open:
    """One stream.

    Args:
        claims: of its caller.
        task: that serves it.
        waits: for its handler's next response: only then is there somebody to tell.
        refusal: why it ends.
        cancels: how often its task was told: a wait that ends at that moment may miss it.
    """

    claims: Claims
    task: asyncio.Task[Any] | None
    waits: bool = False
    refusal: UnauthenticatedError | None = None
    cancels: int = 0


class OpenStreams:
    """Looks at all open streams of a service about once a second, however many there are."""

    def __init__(self, authorizer: Authorizer, every_s: float = _EVERY_S) -> None:
        self._authorizer, self._every_s = authorizer, every_s
        self._open: set[_Open] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def allowed(self, responses: AsyncIterator[T], claims: Claims) -> AsyncIterator[T]:
        """The responses of a handler for as long as their caller may have them.

        Raises:
            UnauthenticatedError: no more.
        """
        stream = _Open(claims, asyncio.current_task())
        self._open.add(stream)
        if self._timer is None:
            self._wait()
        try:
            while True:
                try:
                    response = await self._next(responses, stream)
                except StopAsyncIteration:
                    return
                self._authorizer.still(claims)
                yield response
        finally:
            self._open.discard(stream)

    async def _next(self, responses: AsyncIterator[T], stream: _Open) -> T:
        """As `asyncio.timeout` does it: our own cancellation becomes an error, no other does."""
        before = 0 if stream.task is None else stream.task.cancelling()
        stream.waits = True
        try:
            return await anext(responses)
        except asyncio.CancelledError:
            if stream.refusal is None or stream.task is None:
                raise
            for _ in range(stream.cancels):
                stream.task.uncancel()
            if stream.task.cancelling() > before:
                raise
            raise stream.refusal from None
        finally:
            stream.waits = False

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._look)

    def _look(self) -> None:
        for stream in self._open:
            if not stream.waits or stream.task is None:
                continue
            try:
                self._authorizer.still(stream.claims)
            except UnauthenticatedError as error:
                stream.refusal = error
                stream.cancels += stream.task.cancel()
        self._timer = None
        if self._open:
            self._wait()
