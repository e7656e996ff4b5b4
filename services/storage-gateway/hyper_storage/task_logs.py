"""Logs of tasks: parts as objects, so that any replica takes and serves them.

logs/{task}/{epoch}-{number}/{offset}   one part; numbers padded, so that keys sort
logs/{task}/{epoch}-{number}/end        the log is complete; holds its size

What the worker says beside the program's output lies under logs-os/ and logs-usage/ in the same
way. Short logs come whole and many at a time: these are in packs (`log_packs`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from hyper.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from hyper_servicekit.clock import Clock
from hyper_servicekit.objects import ObjectStore
from hyper_storage import log_packs
from hyper_storage.log_packs import Attempt

MAX_PART_BYTES = 2**20
_END = "end"


def root(task: str, source: str = "") -> str:
    """Where the logs of a task's attempts are: of its program, or of a source beside it."""
    return f"logs-{source}/{task}/" if source else f"logs/{task}/"


def prefix_of(attempt: Attempt, task: str, source: str = "") -> str:
    """Where an attempt's parts are."""
    return f"{root(task, source)}{attempt.epoch:020d}-{attempt.number:010d}/"


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a log from `offset` on."""

    attempt: Attempt
    offset: int
    data: bytes


class TaskLogs:
    """Appends to logs and reads them.

    Args:
        store: the bucket.
        clock: for the pauses of a follower.
        poll_s: between looks at a growing log.
        followers: how many may follow at once.
    """

    def __init__(self, store: ObjectStore, clock: Clock, *, poll_s: float, followers: int) -> None:
        self._store = store
        self._clock = clock
        self._poll_s = poll_s
        self._followers = followers
        self._following = 0

    async def append(
        self, task: str, attempt: Attempt, offset: int, data: bytes, *, last: bool, source: str = ""
    ) -> None:
        """Store one part. The same offset again changes nothing."""
        if len(data) > MAX_PART_BYTES:
            raise InvalidArgumentError("a part of a log has at most 1 MiB", field="data")
        prefix = prefix_of(attempt, task, source)
        key = f"{prefix}{offset:020d}"
        if data and await self._store.head(key) is None:
            await self._store.put(key, data)
        if last:
            await self._store.put(prefix + _END, str(offset + len(data)).encode())

    async def append_whole(self, experiment: str, logs: Sequence[log_packs.Whole]) -> None:
        """Store whole logs of tasks of one experiment. The same again changes nothing."""
        if sum(len(each.data) for each in logs) > MAX_PART_BYTES:
            raise InvalidArgumentError("logs have at most 1 MiB together", field="logs")
        for key, data in log_packs.packs(experiment, logs):
            await self._store.put(key, data)

    async def read(
        self,
        task: str,
        attempt: Attempt | None,
        offset: int,
        *,
        follow: bool,
        source: str = "",
        since: datetime | None = None,
        tail: int = 0,
    ) -> AsyncIterator[Part]:
        """The log from `offset` on; with `follow` until it is complete.

        Args:
            task: resource name.
            attempt: the newest, if None.
            offset: bytes that are left out.
            follow: wait for more.
            source: "" for the program's output, "os" or "usage".
            since: parts that were stored before are left out.
            tail: bytes before the end that is there at first, and no more; 0: all.
        """
        if follow:
            if self._following >= self._followers:
                raise ResourceExhaustedError(
                    f"{self._followers} logs are followed already; try again later", retry_after_s=5
                )
            self._following += 1
        try:
            chosen = attempt or await self._newest(task, source, wait=follow)
            async for part in self._parts(task, chosen, offset, follow, source, since, tail):
                yield part
        finally:
            self._following -= follow

    async def _parts(
        self,
        task: str,
        attempt: Attempt,
        offset: int,
        follow: bool,
        source: str,
        since: datetime | None,
        tail: int,
    ) -> AsyncIterator[Part]:
        prefix = prefix_of(attempt, task, source)
        while True:
            listed = [info async for info in self._store.list(prefix)]
            if not listed and not source:
                packed = await log_packs.of_task(self._store, task)
                whole = next((each for each in packed if each.attempt == attempt), None)
                if whole is not None:
                    start = max(offset, len(whole.data) - tail) if tail else offset
                    late = since is None or whole.stored is None or whole.stored >= since
                    if late and start < len(whole.data):
                        yield Part(attempt, start, whole.data[start:])
                    return
            if since is not None:
                for info in listed:
                    start_text = info.key.removeprefix(prefix)
                    if start_text.isdecimal() and info.modified < since:
                        offset = max(offset, int(start_text) + info.size)
            found = [(info.key, info.size) for info in listed]
            if tail:
                starts = [(key.removeprefix(prefix), size) for key, size in found]
                ends = [int(text) + size for text, size in starts if text.isdecimal()]
                offset = max([offset, *(end - tail for end in ends)])
                tail = 0
            complete = any(key == prefix + _END for key, _ in found)
            for key, size in found:
                start_text = key.removeprefix(prefix)
                if not start_text.isdecimal():
                    continue
                start = int(start_text)
                if start > offset and not complete:
                    break  # the part before it is still on its way
                if start + size <= offset:
                    continue
                data = await self._store.get(key)
                skipped = max(0, offset - start)
                yield Part(attempt, start + skipped, data[skipped:])
                offset = start + size
            if complete or not follow:
                return
            await self._clock.sleep(self._poll_s)

    async def _newest(self, task: str, source: str, *, wait: bool) -> Attempt:
        prefix = root(task, source)
        while True:
            names = {
                info.key.removeprefix(prefix).partition("/")[0]
                async for info in self._store.list(prefix)
            }
            parts = (name.partition("-") for name in names)
            attempts = [Attempt(int(epoch), int(number)) for epoch, _, number in parts]
            if not source:
                attempts += [each.attempt for each in await log_packs.of_task(self._store, task)]
            if attempts:
                return max(attempts)
            if not wait:
                raise NotFoundError(
                    f"{task} has no log: it has not started, or has printed nothing yet"
                )
            await self._clock.sleep(self._poll_s)
