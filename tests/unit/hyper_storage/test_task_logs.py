"""Logs of tasks over a store in memory and a clock moved by hand."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hyper.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from hyper_servicekit.clock import ManualClock
from hyper_servicekit.objects import MemoryStore
from hyper_storage.log_packs import BLOCK, PACK_LOGS, Attempt, Whole
from hyper_storage.task_logs import MAX_PART_BYTES, Part, TaskLogs

TASK = "tenants/t/workflows/w/experiments/e/tasks/0"
FIRST, SECOND = Attempt(1, 1), Attempt(1, 2)


def _logs(clock: ManualClock | None = None, followers: int = 2) -> TaskLogs:
    return TaskLogs(MemoryStore(), clock or ManualClock(), poll_s=1.0, followers=followers)


async def _read(logs: TaskLogs, attempt: Attempt | None = None, offset: int = 0) -> bytes:
    return b"".join([part.data async for part in logs.read(TASK, attempt, offset, follow=False)])


async def test_parts_join_in_order_of_offset() -> None:
    logs = _logs()
    await logs.append(TASK, FIRST, 3, b"def", last=False)
    assert await _read(logs) == b""  # the first part is still on its way
    await logs.append(TASK, FIRST, 0, b"abc", last=False)
    assert await _read(logs) == b"abcdef"
    assert await _read(logs, offset=2) == b"cdef"
    assert await _read(logs, offset=99) == b""


async def test_the_end_of_a_long_log_is_read_alone() -> None:
    class Counting(MemoryStore):
        read = 0

        async def get(self, *args: Any, **kwargs: Any) -> bytes:
            self.read += 1
            return await super().get(*args, **kwargs)

    store = Counting()
    logs = TaskLogs(store, ManualClock(), poll_s=1.0, followers=1)
    for number in range(50):
        await logs.append(TASK, FIRST, 10 * number, b"0123456789", last=number == 49)

    async def tail(count: int) -> list[Part]:
        store.read = 0
        return [part async for part in logs.read(TASK, None, 0, follow=False, tail=count)]

    parts = await tail(13)
    assert [(part.offset, part.data) for part in parts] == [(487, b"789"), (490, b"0123456789")]
    assert store.read == 2  # not the 48 before them
    assert len(await tail(9_999)) == 50
    followed = [part async for part in logs.read(TASK, FIRST, 0, follow=True, tail=4)]
    assert [(part.offset, part.data) for part in followed] == [(496, b"6789")]


async def test_overlapping_parts_are_cut() -> None:
    logs = _logs()
    await logs.append(TASK, FIRST, 0, b"abcd", last=False)
    await logs.append(TASK, FIRST, 2, b"cdef", last=False)
    assert await _read(logs) == b"abcdef"


async def test_newest_attempt_is_the_default() -> None:
    logs = _logs()
    with pytest.raises(NotFoundError):
        await _read(logs)
    await logs.append(TASK, FIRST, 0, b"one", last=True)
    await logs.append(TASK, SECOND, 0, b"two", last=False)
    assert await _read(logs) == b"two"
    assert await _read(logs, FIRST) == b"one"
    await logs.append(TASK, Attempt(10, 1), 0, b"later epoch", last=False)
    assert await _read(logs) == b"later epoch"


async def test_followers_wait_for_the_end() -> None:
    clock = ManualClock()
    logs = _logs(clock)
    seen: list[Part] = []

    async def follow() -> None:
        async for part in logs.read(TASK, None, 0, follow=True):
            seen.append(part)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(follow())
        await clock.advance(1)
        assert not seen
        await logs.append(TASK, FIRST, 0, b"abc", last=False)
        await clock.advance(1)
        assert [part.data for part in seen] == [b"abc"]
        await logs.append(TASK, FIRST, 3, b"", last=True)
        await clock.advance(1)
        await task
    assert seen == [Part(FIRST, 0, b"abc")]


async def test_followers_are_bounded() -> None:
    clock = ManualClock()
    logs = _logs(clock, followers=1)
    await logs.append(TASK, FIRST, 0, b"abc", last=False)
    first = logs.read(TASK, None, 0, follow=True)
    await anext(first)
    with pytest.raises(ResourceExhaustedError):
        await anext(logs.read(TASK, None, 0, follow=True))
    await first.aclose()  # type: ignore[attr-defined]
    assert (await anext(logs.read(TASK, None, 0, follow=True))).data == b"abc"


async def test_parts_are_bounded() -> None:
    with pytest.raises(InvalidArgumentError):
        await _logs().append(TASK, FIRST, 0, b"x" * (2**20 + 1), last=False)


EXPERIMENT = TASK.rpartition("/tasks/")[0]


def _named(index: int) -> str:
    return f"{EXPERIMENT}/tasks/{index}"


async def _all(logs: TaskLogs, index: int, **how: Any) -> list[Part]:
    how = {"attempt": None, "offset": 0, "follow": False} | how
    return [part async for part in logs.read(_named(index), **how)]


async def test_whole_logs_share_objects_and_are_found_one_by_one() -> None:
    store = MemoryStore()
    logs = TaskLogs(store, ManualClock(), poll_s=1.0, followers=1)
    indices = [*range(0, 3 * BLOCK, 7), 10**9]
    whole = [Whole(index, FIRST, f"log of {index}".encode()) for index in indices]
    await logs.append_whole(EXPERIMENT, whole)
    packs = [info.key async for info in store.list()]
    assert len(packs) == sum(-(-len(range(0, BLOCK, 7)) // PACK_LOGS) for _ in range(3)) + 1
    assert max(map(len, packs)) < 700  # of 1,024 that S3 takes
    for index in indices:
        assert await _all(logs, index) == [Part(FIRST, 0, f"log of {index}".encode())]
        assert await _all(logs, index, attempt=FIRST, follow=True, offset=4) == [
            Part(FIRST, 4, f"of {index}".encode())
        ]
    for index in (1, 7 * BLOCK):
        with pytest.raises(NotFoundError):
            await _all(logs, index)
    await logs.append_whole(EXPERIMENT, whole)
    assert [info.key async for info in store.list()] == packs


async def test_the_newest_attempt_is_found_wherever_it_is() -> None:
    logs = _logs()
    await logs.append_whole(EXPERIMENT, [Whole(0, FIRST, b"one"), Whole(0, SECOND, b"two")])
    assert await _read(logs) == b"two"
    assert await _read(logs, FIRST) == b"one"
    await logs.append(TASK, Attempt(2, 1), 0, b"three", last=True)
    assert await _read(logs) == b"three"
    await logs.append_whole(EXPERIMENT, [Whole(0, Attempt(3, 1), b"four")])
    assert await _read(logs) == b"four"
    assert [part.data for part in await _all(logs, 0, tail=2)] == [b"ur"]
    assert [part.data for part in await _all(logs, 0, tail=99)] == [b"four"]


async def test_of_a_whole_log_that_is_too_old_nothing_is_read() -> None:
    logs = _logs()
    await logs.append_whole(EXPERIMENT, [Whole(0, FIRST, b"one")])
    now = datetime.now(UTC)
    assert await _all(logs, 0, since=now + timedelta(hours=1), follow=True) == []
    assert len(await _all(logs, 0, since=now - timedelta(hours=1))) == 1


async def test_whole_logs_are_bounded() -> None:
    half = b"x" * (MAX_PART_BYTES // 2)
    some = [Whole(0, FIRST, half), Whole(1, FIRST, half), Whole(2, FIRST, b"x")]
    await _logs().append_whole(EXPERIMENT, some[:2])
    with pytest.raises(InvalidArgumentError):
        await _logs().append_whole(EXPERIMENT, some)
