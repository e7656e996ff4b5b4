"""Output of tasks on its way to the log store, without ever holding a task up.

Each attempt has a `LogStream`. What it takes in goes out in parts of at most 1 MiB, when there
is so much, half a second after the first byte, and at the end. While the store is away parts
wait in a bounded spool; what does not fit is counted, and the log says so where it is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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
from hyperapi.storage.v1.dataset_service_pb2 import AppendLogRequest, LogSource
from hyperapi.storage.v1.dataset_service_pb2_grpc import LogServiceStub

log = get_logger(__name__)

PART_BYTES = 1 << 20
CONCURRENT_PARTS = 4
_CALL_TIMEOUT_S = 10.0
_ROOM_BYTES = 64 << 10  # that must be free again before output is taken in after a drop
_TRANSIENT = (
    UnavailableError, DeadlineError, ResourceExhaustedError, InternalError, DataLossError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an attempt's output."""

    key: Key
    offset: int
    data: bytes
    last: bool
    source: Source = Source.PROGRAM


Send = Callable[[Part], None]


def send_with(client: Client) -> Send:
    """Ship parts through the storage gateway; blocks, so it is called from a thread."""

    def send(part: Part) -> None:
        request = AppendLogRequest(
            task=part.key.task,
            epoch=part.key.epoch,
            number=part.key.number,
            offset=part.offset,
            data=part.data,
            last=part.last,
            source=LogSource.Value(f"LOG_SOURCE_{part.source}"),
        )
        client.call(STORAGE, LogServiceStub, "AppendLog", request, timeout_s=_CALL_TIMEOUT_S)

    return send


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
        self.closed = False
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

    def close(self) -> None:
        """No more will come."""
        if self.closed:
            return
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
        send: delivers one part, blocking.
        folder: for output that does not fit into memory.
        flush_s: output is shipped at least so often.
        spool_bytes: kept for all attempts while the store is away.
        memory_bytes: of one attempt's output in memory.
    """

    def __init__(
        self, send: Send, *, folder: Path, flush_s: float, spool_bytes: int, memory_bytes: int
    ) -> None:
        self._send, self._folder = send, folder
        self._flush_s, self._memory_bytes = flush_s, memory_bytes
        self._budget = Budget(spool_bytes)
        self._threads = ThreadPoolExecutor(CONCURRENT_PARTS, thread_name_prefix="logs")
        self._turns = asyncio.Semaphore(CONCURRENT_PARTS)
        self._fresh: asyncio.Queue[LogStream] = asyncio.Queue()
        self._streams: set[LogStream] = set()
        self._backoff = Backoff(first_s=0.2, max_s=10.0)
        self._hurry = asyncio.Event()

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
            while True:
                group.create_task(self._ship(await self._fresh.get()))

    async def flush(self, timeout_s: float) -> None:
        """Ship what there is, for at most `timeout_s`; then say what is lost."""
        self._hurry.set()
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
        await self._deliver(Part(stream.key, stream.offset, data, last, stream.source))
        stream.offset += len(data)
        stream.spool.drop(len(data))
        metrics.LOG_BYTES.inc(len(data))
        metrics.LOG_SPOOLED_BYTES.set(self._budget.used_bytes)
        return not last

    async def _deliver(self, part: Part) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            try:
                async with self._turns:
                    return await loop.run_in_executor(self._threads, self._send, part)
            except _TRANSIENT as error:
                failures += 1
                if failures == 1:
                    log.warning("log store away", task=part.key.task, detail=str(error))
                pause_s = self._backoff.delay_s(failures, random.random())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), pause_s)
                    await asyncio.sleep(min(pause_s, 0.2))
