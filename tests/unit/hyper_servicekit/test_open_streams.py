"""Streams whose caller loses its right to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from hyper.errors import UnauthenticatedError
from hyper_servicekit.authorize import Authorizer
from hyper_servicekit.open_streams import OpenStreams
from hyper_servicekit.tokens import Claims

CLAIMS = Claims("lab", "me", 4e9, "id")


async def forever(closed: list[bool], *, misses: int = 0) -> AsyncIterator[int]:
    """One answer, then silence; the first `misses` cancellations are lost in it."""
    try:
        yield 1
        for _ in range(misses):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        await asyncio.Event().wait()
    finally:
        closed.append(True)


@pytest.mark.parametrize("misses", [0, 2])
async def test_a_silent_stream_is_ended_and_the_task_goes_on(misses: int) -> None:
    revoked: set[str] = set()
    streams = OpenStreams(Authorizer({"k1": "k" * 32}, revoked), every_s=0.01)
    closed: list[bool] = []
    got = []

    async def serve() -> int:
        with pytest.raises(UnauthenticatedError, match="revoked"):
            async for each in streams.allowed(forever(closed, misses=misses), CLAIMS):
                got.append(each)
                revoked.add(CLAIMS.id)
        await asyncio.sleep(0)  # what is left to do is done: the status, the metrics
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert await asyncio.wait_for(asyncio.create_task(serve()), 10) == 0
    assert (got, closed) == ([1], [True])


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    streams = OpenStreams(Authorizer({"k1": "k" * 32}), every_s=0.01)
    closed: list[bool] = []

    async def serve() -> None:
        async for _ in streams.allowed(forever(closed), CLAIMS):
            pass

    task = asyncio.create_task(serve())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == [True]


async def test_what_ends_by_itself_is_all_there_and_nothing_is_left_to_look_at() -> None:
    streams = OpenStreams(Authorizer({"k1": "k" * 32}), every_s=0.01)

    async def three() -> AsyncIterator[int]:
        for i in range(3):
            yield i

    assert [each async for each in streams.allowed(three(), CLAIMS)] == [0, 1, 2]
    await asyncio.sleep(0.05)
    assert streams._timer is None
