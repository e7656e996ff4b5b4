"""The clock that tests move, and tasks that end with their block."""

from __future__ import annotations

import asyncio

import pytest

from hyper_servicekit.clock import Clock, ManualClock, SystemClock
from hyper_servicekit.owned import owned


async def test_sleepers_wake_in_order_at_their_own_time() -> None:
    clock = ManualClock(100.0)
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, *naps: float) -> None:
        for nap in naps:
            await clock.sleep(nap)
            woken.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper("a", 5, 5))
        group.create_task(sleeper("b", 7))
        group.create_task(sleeper("c", 0, 20))
        await clock.advance(4)
        assert woken == [("c", 100.0)]
        await clock.advance(8)
        assert woken[1:] == [("a", 105.0), ("b", 107.0), ("a", 110.0)]
        assert clock.now() == 112.0
        await clock.advance(8)
        assert woken[4:] == [("c", 120.0)]


async def test_a_cancelled_sleeper_is_passed_over() -> None:
    clock = ManualClock()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await clock.sleep(1)
    await clock.advance(2)


async def test_the_machine_s_clock() -> None:
    clock: Clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0)
    assert clock.monotonic() >= before
    assert clock.now() > 1_600_000_000


async def test_owned_ends_with_the_block() -> None:
    ended = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(KeyError, match="mine"):
        async with owned(forever(), "forever"):
            await asyncio.sleep(0)
            raise KeyError("mine")
    assert ended.is_set()


async def test_an_owned_task_s_failure_comes_out_after_a_good_block() -> None:
    async def fail() -> None:
        raise ValueError("of the task")

    with pytest.raises(ValueError, match="of the task"):
        async with owned(fail(), "fail"):
            await asyncio.sleep(0)
    with pytest.raises(KeyError):
        async with owned(fail(), "fail"):
            await asyncio.sleep(0)
            raise KeyError("of the block goes first")


async def test_a_finished_owned_task_is_fine() -> None:
    async def finish() -> None:
        return

    async with owned(finish(), "finish"):
        await asyncio.sleep(0)
