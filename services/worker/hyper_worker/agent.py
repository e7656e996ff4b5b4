"""The agent: takes attempts from a scheduler, runs them, reports how they end.

All decisions are the core's (`hyper_worker.core`); this carries them out and feeds back what
happened. The connection may break at any moment: tasks go on, reports wait for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import grpc
import grpc.aio
import psutil

from hyper.errors import HyperError, UnavailableError, from_rpc_error
from hyper_servicekit.logs import get_logger
from hyper_worker import convert, metrics
from hyper_worker.connection import Connection
from hyper_worker.core.backoff import Backoff
from hyper_worker.core.machine import Machine
from hyper_worker.core.model import (
    Command,
    Ended,
    Event,
    Exit,
    Job,
    Key,
    Kill,
    Launch,
    Leaving,
    Status,
    Terminate,
    Ticked,
)
from hyper_worker.folders import Folders
from hyper_worker.logs import LogStream, Shipper
from hyper_worker.runner.base import Execution, Runner
from hyperapi.worker.v1 import agent_service_pb2 as wire

log = get_logger(__name__)

_FAILURE_LOG_S = 2.0  # a failure is reported once its log can be read, or after this long

_BACKOFF_MAX_S = 5.0
_WARN_EVERY = 20  # failures to connect in a row


@dataclass(frozen=True, slots=True)
class Identity:
    """What Hello says of the machine."""

    worker: str
    slots: int
    labels: Mapping[str, str]

    def hello(self) -> wire.Hello:
        """The message, without the attempts that run."""
        return wire.Hello(
            worker=self.worker,
            slots=self.slots,
            cpus=psutil.cpu_count() or 1,
            memory_bytes=psutil.virtual_memory().total,
            gpus=len(list(Path("/dev").glob("nvidia[0-9]*"))),
            labels=dict(self.labels),
            version=_version(),
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """The agent's patience."""

    welcome_s: float = 10.0
    gather_s: float = 0.005
    leave_reports_s: float = 3.0


class Agent:
    """One worker's life.

    Args:
        identity: who it is.
        resolve: the scheduler's addresses; asked anew for every connection.
        runners: by kind, "command" and "function".
        folders: where tasks run.
        shipper: takes their logs.
        timing: how long it waits for what.
    """

    def __init__(
        self,
        identity: Identity,
        resolve: Callable[[], tuple[str, ...]],
        runners: Mapping[str, Runner],
        folders: Folders,
        shipper: Shipper,
        timing: Timing = Timing(),
    ) -> None:
        self._identity, self._resolve, self._runners = identity, resolve, runners
        self._folders, self._shipper, self._timing = folders, shipper, timing
        self._machine = Machine(identity.slots)
        self._executions: dict[Key, Execution] = {}
        self._early: dict[Key, type[Terminate] | type[Kill]] = {}
        self._connection: Connection | None = None
        self._leader: tuple[str, ...] | None = None
        self._failures = 0
        self._backoff = Backoff(max_s=_BACKOFF_MAX_S)
        self._changed = asyncio.Event()
        self._deadline_moved = asyncio.Event()
        self._launches: asyncio.Queue[Job] = asyncio.Queue()
        self.welcomed_once = asyncio.Event()
        metrics.SLOTS.set(identity.slots)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._shipper.run())
            group.create_task(self._keep_time())
            group.create_task(self._stay_connected())
            while True:
                group.create_task(self._carry_out(await self._launches.get()))

    async def leave(self, grace_s: float) -> None:
        """The machine goes away: end what runs within `grace_s`, report it as preempted."""
        log.info("leaving", running=len(self._machine.running), grace_s=grace_s)
        self.dispatch(Leaving(grace_s))
        while not self._machine.idle:
            await self._next_change()
        end = time.monotonic() + self._timing.leave_reports_s
        await self._shipper.flush(self._timing.leave_reports_s)
        while not self._machine.reports.empty and self._connection is not None:
            try:
                async with asyncio.timeout(end - time.monotonic()):
                    await self._next_change()
            except TimeoutError:
                break
        if waiting := self._machine.reports.waiting:
            log.warning("left with reports not acknowledged", reports=waiting)

    # Owner of a connection

    def hello(self) -> wire.Hello:
        """Who this is and what runs here."""
        self._machine.reports.reconnected()
        message = self._identity.hello()
        message.running.extend(map(convert.key_to_proto, self._machine.answered_for))
        return message

    def welcomed(self, welcome: wire.Welcome) -> None:
        """A scheduler has taken this worker in."""
        self._failures = 0
        lease_s = convert.seconds(welcome.lease)
        if lease_s > 0:  # a scheduler that comes back waits so long for its workers, no longer
            self._backoff = Backoff(max_s=min(_BACKOFF_MAX_S, lease_s / 3))
        metrics.CONNECTIONS.inc()
        metrics.CONNECTED.set(1)
        self.welcomed_once.set()
        log.info(
            "welcomed",
            epoch=welcome.epoch,
            lease_s=lease_s,
            running=len(self._machine.live),
            reports=self._machine.reports.waiting,
        )

    def drain(self, reason: str) -> None:
        """The scheduler gives out nothing more; what runs here goes on."""
        metrics.DRAINING.set(1)
        log.info("draining", reason=reason, running=len(self._machine.live))

    def next_batch(self) -> tuple[int, tuple[Status, ...]] | None:
        """Reports to send now."""
        return self._machine.reports.next_batch()

    def dispatch(self, event: Event) -> None:
        """Let the core decide and carry out what it says."""
        before = self._machine.reports.waiting
        for command in self._machine.handle(event, time.monotonic()):
            self._perform(command)
        if self._machine.reports.waiting > before and self._connection is not None:
            self._connection.wake()
        for outcome, count in self._machine.finished.items():
            metrics.FINISHED.labels(outcome.lower()).inc(count)
        self._machine.finished.clear()
        metrics.RUNNING.set(len(self._machine.running))
        metrics.UNACKNOWLEDGED.set(self._machine.reports.waiting)
        self._changed.set()
        self._deadline_moved.set()

    def _perform(self, command: Command) -> None:
        match command:
            case Launch(job):
                self._launches.put_nowait(job)
            case Terminate(key):
                log.info("terminating", task=key.task, attempt=f"{key.epoch}.{key.number}")
                self._signal(key, Terminate)
            case Kill(key):
                log.warning("killing", task=key.task, attempt=f"{key.epoch}.{key.number}")
                self._signal(key, Kill)

    def _signal(self, key: Key, kind: type[Terminate] | type[Kill]) -> None:
        execution = self._executions.get(key)
        if execution is None:
            self._early[key] = kind  # it is being started
        elif kind is Kill:
            execution.kill()
        else:
            execution.terminate()

    # Attempts

    async def _carry_out(self, job: Job) -> None:
        """Run one attempt from its folder to its report."""
        key = job.key
        kind = "function" if job.function else "command"
        stream = self._shipper.open(key)
        exit_ = await self._run(job, kind, stream)
        stream.close()
        failed = exit_.exit_code != 0 or bool(exit_.message)
        if failed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stream.shipped.wait(), _FAILURE_LOG_S)
        metrics.SECONDS.labels(kind).observe(exit_.wall_s)
        metrics.CPU_SECONDS.labels(kind).inc(exit_.cpu_s)
        metrics.PEAK_RSS.labels(kind).observe(exit_.peak_rss_bytes)
        log.debug("attempt ended", task=key.task, exit_code=exit_.exit_code, detail=exit_.message)
        self.dispatch(Ended(key, exit_))

    async def _run(self, job: Job, kind: str, stream: LogStream) -> Exit:
        start = time.monotonic()
        try:
            if job.image:
                raise ValueError(
                    f"this worker runs no containers, and the task asks for image {job.image!r}"
                )
            folder = await self._folders.prepare(job)
            try:
                execution = await self._runners[kind].start(job, folder, stream)
                self._executions[job.key] = execution
                if (early := self._early.pop(job.key, None)) is not None:
                    self._signal(job.key, early)
                return await execution.wait()
            finally:
                self._executions.pop(job.key, None)
                self._early.pop(job.key, None)
                await self._folders.remove(job, folder)
        except (OSError, ValueError, HyperError) as error:
            message = f"cannot start: {error}"
        except Exception as error:
            log.error("attempt failed unexpectedly", task=job.key.task, exc_info=error)
            message = f"internal error of the worker: {error!r}; its log has the stack"
        stream.write(f"[hyper: {message}]\n".encode(errors="replace"))
        return Exit(exit_code=126, message=message, wall_s=time.monotonic() - start)

    async def _keep_time(self) -> None:
        """Tell the core when a deadline has come."""
        while True:
            self._deadline_moved.clear()
            deadline = self._machine.next_deadline()
            left_s = None if deadline is None else max(deadline - time.monotonic(), 0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._deadline_moved.wait(), left_s)
                continue
            self.dispatch(Ticked())

    async def _next_change(self) -> None:
        """Wait until the core has taken in one more event, or the connection has changed."""
        self._changed.clear()
        await self._changed.wait()

    # The connection

    async def _stay_connected(self) -> None:
        """Dial again whenever the connection is lost, with back-off."""
        while True:
            try:
                addresses = self._leader or self._resolve()
                self._leader = None
                self._connection = Connection(
                    addresses,
                    self,
                    welcome_timeout_s=self._timing.welcome_s,
                    gather_s=self._timing.gather_s,
                )
                await self._connection.run()
                log.info("the scheduler ended the connection")
            except grpc.RpcError as error:
                self._lost(from_rpc_error(error, peer="the scheduler"))
            except HyperError as error:
                self._lost(error)
            finally:
                self._connection = None
                metrics.CONNECTED.set(0)
                self._changed.set()
            self._failures += 1
            await asyncio.sleep(self._backoff.delay_s(self._failures, random.random()))

    def _lost(self, error: HyperError) -> None:
        leader = error.metadata.get("leader")
        if isinstance(error, UnavailableError) and error.reason == "NOT_LEADER" and leader:
            self._leader = (leader,)
        tell = log.warning if self._failures % _WARN_EVERY == 0 else log.debug
        tell(
            "no connection to the scheduler",
            detail=str(error),
            running=len(self._machine.live),
            reports=self._machine.reports.waiting,
        )


def _version() -> str:
    try:
        return version("hyper-dl")
    except PackageNotFoundError:
        return "0"
