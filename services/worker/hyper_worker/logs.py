"""Output of tasks on its way to the log store, without ever holding a task up.

Each attempt has a `LogStream`. What it takes in goes out in parts of at most 1 MiB, when there
is so much, half a second after the first byte, and at the end. Short logs that end before that go
whole, and with others of their experiment: those that end within a fifth of a second of others.
While the store is away parts wait in a bounded spool; what does not fit is counted, and the log
says so where it is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from google.protobuf.message import Message

from hyper.client import Client
from hyper.config import STORAGE
from hyper.errors import (
    DataLossError,
    DeadlineError,
    HyperError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)
from hyper_servicekit.logs import get_logger
from hyper_worker import metrics
from hyper_worker.core.backoff import Backoff
from hyper_worker.core.model import Key, Source
from hyper_worker.spool import Budget, Spool
from hyperapi.storage.v1.dataset_service_pb2 import (
    AppendLogRequest,
    AppendLogsRequest,
    LogSource,
)
from hyperapi.storage.v1.dataset_service_pb2_grpc import LogServiceStub

log = get_logger(__name__)

PART_BYTES = 1 << 20
CONCURRENT_PARTS = 4
WHOLE_BYTES = 16 << 10  # a log that goes with others
_WHOLE_LOGS = 50  # at once: a whole MiB is not reached
_GATHER_S = 0.005
_WHOLE_EVERY_S = 0.2  # whole logs go no more often, unless somebody may wait for one
_CALL_TIMEOUT_S = 10.0
_ROOM_BYTES = 64 << 10  # that must be free again before output is taken in after a drop
_AWAY = (UnavailableError, DeadlineError, ResourceExhaustedError)
_TRANSIENT = (*_AWAY, InternalError, DataLossError)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an attempt's output."""

    key: Key
    offset: int
    data: bytes
    last: bool
    source: Source = Source.PROGRAM


class Store(Protocol):
    """Where logs go; blocks, so it is called from threads."""

    def part(self, part: Part) -> None:
        """Take a part."""

    def whole(self, parts: Sequence[Part]) -> None:
        """Take whole logs of tasks of one experiment."""


class Gateway:
    """Ships logs through the storage gateway."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def part(self, part: Part) -> None:
        """See `Store`."""
        request = AppendLogRequest(
            task=part.key.task,
            epoch=part.key.epoch,
            number=part.key.number,
            offset=part.offset,
            data=part.data,
            last=part.last,
            source=LogSource.Value(f"LOG_SOURCE_{part.source}"),
        )
        self._call("AppendLog", request)

    def whole(self, parts: Sequence[Part]) -> None:
        """See `Store`."""
        request = AppendLogsRequest(parent=parts[0].key.experiment)
        for part in parts:
            key, index = part.key, int(part.key.task.rpartition("/")[2])
            request.logs.add(task_index=index, epoch=key.epoch, number=key.number, data=part.data)
        self._call("AppendLogs", request)

    def _call(self, method: str, request: Message) -> None:
        self._client.call(STORAGE, LogServiceStub, method, request, timeout_s=_CALL_TIMEOUT_S)


class LogStream:
    """The output of one attempt."""

    def __init__(
        self,
        key: Key,
        spool: Spool,
        first_byte: Callable[[LogStream], None],
        source: Source = Source.PROGRAM,
    ) -> None:
        self.key, self.spool, self.source = key, spool, source
        self.offset = 0
        self.closed = self.soon = False
        self.shipped = asyncio.Event()
        self.more = asyncio.Event()  # bytes, or the end
        self.due = asyncio.Event()  # a whole part, or the end
        self._dropped_bytes = 0
        self._begun = False
        self._first_byte = first_byte

    def write(self, data: bytes) -> None:
        """Append; never blocks, never fails."""
        if self.closed or not data:
            return
        if self._dropped_bytes and self.spool.room_bytes >= _ROOM_BYTES:
            self._note_dropped()
        taken = 0 if self._dropped_bytes else self.spool.append(data)
        self._dropped_bytes += len(data) - taken
        metrics.LOG_DROPPED_BYTES.inc(len(data) - taken)
        self.more.set()
        if len(self.spool) >= PART_BYTES:
            self.due.set()
        if not self._begun:
            self._begun = True
            self._first_byte(self)

    def close(self, *, soon: bool = False) -> None:
        """No more will come; `soon`: somebody may wait for it."""
        if self.closed:
            return
        self.soon = soon
        if self._dropped_bytes:
            self._note_dropped()
        self.closed = True
        self.more.set()
        self.due.set()
        if not self._begun:
            self.shipped.set()

    def _note_dropped(self) -> None:
        """Say in the log how much is missing here."""
        note = (
            f"\n[hyper: {self._dropped_bytes} bytes of output are missing here: "
            "the log store did not take it in fast enough]\n"
        ).encode()
        self.spool.append(note, force=True)
        self._dropped_bytes = 0


class Shipper:
    """Ships the logs of all attempts; `run` in a task of its own.

    Args:
        store: takes them in.
        folder: for output that does not fit into memory.
        flush_s: output is shipped at least so often.
        spool_bytes: kept for all attempts while the store is away.
        memory_bytes: of one attempt's output in memory.
    """

    def __init__(
        self, store: Store, *, folder: Path, flush_s: float, spool_bytes: int, memory_bytes: int
    ) -> None:
        self._store, self._folder = store, folder
        self._flush_s, self._memory_bytes = flush_s, memory_bytes
        self._budget = Budget(spool_bytes)
        self._threads = ThreadPoolExecutor(CONCURRENT_PARTS, thread_name_prefix="logs")
        self._turns = asyncio.Semaphore(CONCURRENT_PARTS)
        self._fresh: asyncio.Queue[LogStream] = asyncio.Queue()
        self._streams: set[LogStream] = set()
        self._backoff = Backoff(first_s=0.2, max_s=10.0)
        self._hurry = asyncio.Event()
        self._soon = asyncio.Event()
        self._whole: asyncio.Queue[tuple[Part, asyncio.Future[bool]]] = asyncio.Queue()

    def open(self, key: Key, source: Source = Source.PROGRAM) -> LogStream:
        """The stream of an attempt that starts."""
        spool = Spool(self._folder, self._memory_bytes, self._budget)
        return LogStream(key, spool, self._first_byte, source)

    def _first_byte(self, stream: LogStream) -> None:
        self._streams.add(stream)
        self._fresh.put_nowait(stream)

    async def run(self) -> None:
        """Ship until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ship_whole())
            while True:
                group.create_task(self._ship(await self._fresh.get()))

    @property
    def busy(self) -> bool:
        """Whether logs are on their way."""
        return bool(self._streams)

    def soon(self) -> None:
        """Somebody may wait for logs that have been closed."""
        self._soon.set()

    async def flush(self, timeout_s: float) -> None:
        """Ship what there is, for at most `timeout_s`; then say what is lost."""
        self._hurry.set()
        self.soon()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for stream in list(self._streams):
                    await stream.shipped.wait()
        for stream in self._streams:
            log.warning("log not shipped", task=stream.key.task, bytes=len(stream.spool))

    def close(self) -> None:
        """Free the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ship(self, stream: LogStream) -> None:
        try:
            while await self._ship_part(stream):
                pass
        except HyperError as error:
            metrics.LOG_DROPPED_BYTES.inc(len(stream.spool))
            log.error("log refused", task=stream.key.task, detail=str(error))
            stream.closed = True
        finally:
            stream.spool.close()
            self._streams.discard(stream)
            stream.shipped.set()

    async def _ship_part(self, stream: LogStream) -> bool:
        """Wait until a part is due and ship it; returns whether more can come."""
        await stream.more.wait()
        if not stream.closed and len(stream.spool) < PART_BYTES:
            stream.due.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stream.due.wait(), self._flush_s)
        data = stream.spool.peek(PART_BYTES)
        last = stream.closed and len(data) == len(stream.spool)
        if not stream.closed and len(data) == len(stream.spool):
            stream.more.clear()
        part = Part(stream.key, stream.offset, data, last, stream.source)
        program = stream.source is Source.PROGRAM
        if last and program and not part.offset and len(data) <= WHOLE_BYTES:
            together: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._whole.put_nowait((part, together))
            if stream.soon:
                self._soon.set()
            alone = not await together
        else:
            alone = True
        if alone:
            await self._deliver(part.key.task, lambda: self._store.part(part))
        stream.offset += len(data)
        stream.spool.drop(len(data))
        metrics.LOG_BYTES.inc(len(data))
        metrics.LOG_SPOOLED_BYTES.set(self._budget.used_bytes)
        return not last

    async def _ship_whole(self) -> None:
        """Whole logs: those of an experiment that are there together."""
        loop = asyncio.get_running_loop()
        shipped_at = -_WHOLE_EVERY_S
        while True:
            waiting = [await self._whole.get()]
            await asyncio.sleep(_GATHER_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(shipped_at + _WHOLE_EVERY_S):
                    await self._soon.wait()
            self._soon.clear()
            shipped_at = loop.time()
            while not self._whole.empty():
                waiting.append(self._whole.get_nowait())
            logs: dict[str, dict[Part, asyncio.Future[bool]]] = {}
            for part, shipped in waiting:
                logs.setdefault(part.key.experiment, {})[part] = shipped
            async with asyncio.TaskGroup() as group:
                for each in logs.values():
                    parts = list(each)
                    for start in range(0, len(parts), _WHOLE_LOGS):
                        some = {part: each[part] for part in parts[start : start + _WHOLE_LOGS]}
                        group.create_task(self._ship_together(some))

    async def _ship_together(self, logs: Mapping[Part, asyncio.Future[bool]]) -> None:
        parts, taken = list(logs), True
        try:
            await self._deliver(parts[0].key.task, lambda: self._store.whole(parts), _AWAY)
        except HyperError as error:  # one of them is refused, or the gateway is older than this
            log.debug("logs go one by one", task=parts[0].key.task, detail=str(error))
            taken = False
        for shipped in logs.values():
            if not shipped.done():
                shipped.set_result(taken)

    async def _deliver(
        self,
        task: str,
        send: Callable[[], None],
        transient: tuple[type[HyperError], ...] = _TRANSIENT,
    ) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            try:
                async with self._turns:
                    return await loop.run_in_executor(self._threads, send)
            except transient as error:
                failures += 1
                if failures == 1:
                    log.warning("log store away", task=task, detail=str(error))
                pause_s = self._backoff.delay_s(failures, random.random())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), pause_s)
                    await asyncio.sleep(min(pause_s, 0.2))
