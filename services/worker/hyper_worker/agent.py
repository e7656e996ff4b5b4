"""The agent: takes attempts from a scheduler, runs them, reports how they end.

All decisions are the core's (`hyper_worker.core`); this carries them out and feeds back what
happened. The connection may break at any moment: tasks go on, reports wait for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import grpc
import grpc.aio
import psutil

from hyper import _transport
from hyper._wire_errors import from_rpc_error
from hyper.errors import HyperError, UnauthenticatedError, UnavailableError
from hyper_servicekit import tracing
from hyper_servicekit.logs import get_logger
from hyper_worker import convert, metrics
from hyper_worker.connection import Connection
from hyper_worker.core.backoff import Backoff
from hyper_worker.core.machine import Machine
from hyper_worker.core.model import (
    Assigned,
    Command,
    EndedAll,
    Event,
    Exit,
    Job,
    Key,
    Kill,
    Launch,
    Leaving,
    Returned,
    Source,
    Status,
    Terminate,
    Ticked,
    describe_exit,
)
from hyper_worker.logs import LogStream, Shipper
from hyper_worker.node import Node, Sample
from hyper_worker.ports import Ports, own_address
from hyper_worker.runner.base import Execution, Output, Runner
from hyper_worker.runner.place import Place
from hyper_worker.runner.template import TemplateError
from hyper_worker.staging.stage import Stage
from hyper_worker.voice import Metrics, Voice
from hyperapi.scheduler.v1 import workflow_pb2
from hyperapi.worker.v1 import agent_service_pb2 as wire

log = get_logger(__name__)

_FAILURE_LOG_S = 2.0  # a failure is reported once its log can be read, or after this long

_METRICS_MAX = 1_000  # reports that wait for the connection
_PORTS_MAX = 16
_USAGE_AFTER_S = 1.0  # a shorter task has no series
_BACKOFF_MAX_S = 5.0
_WARN_EVERY = 20  # failures to connect in a row


@dataclass(frozen=True, slots=True)
class Identity:
    """What Hello says of the machine."""

    worker: str
    slots: int
    labels: Mapping[str, str]
    gpus: int = 0

    def hello(self) -> wire.Hello:
        """The message, without the attempts that run."""
        return wire.Hello(
            worker=self.worker,
            slots=self.slots,
            cpus=psutil.cpu_count() or 1,
            memory_bytes=psutil.virtual_memory().total,
            gpus=self.gpus,
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
        runners: by kind: "command", "function" and "container".
        stage: what is around a task.
        node: samples this machine.
        shipper: takes their logs.
        fetch_image: pulls an image ahead of the attempts that wait for a slot.
        timing: how long it waits for what.
    """

    def __init__(
        self,
        identity: Identity,
        resolve: Callable[[], tuple[str, ...]],
        runners: Mapping[str, Runner],
        stage: Stage,
        node: Node,
        shipper: Shipper,
        fetch_image: Callable[[str], Awaitable[None]],
        timing: Timing = Timing(),
    ) -> None:
        self._identity, self._resolve, self._runners = identity, resolve, runners
        self._stage, self._shipper, self._timing = stage, shipper, timing
        self._node = node
        self._machine = Machine(identity.slots)
        self._fetch_image = fetch_image
        self._images: asyncio.Queue[str] = asyncio.Queue()
        self._asked: asyncio.Queue[wire.Exec] = asyncio.Queue()
        self._started: dict[Key, float] = {}
        self._executions: dict[Key, Execution] = {}
        self._early: dict[Key, type[Terminate] | type[Kill]] = {}
        self._connection: Connection | None = None
        self._leader: tuple[str, ...] | None = None
        self._failures = 0
        self._token = ""  # what the scheduler has given us
        self._backoff = Backoff(max_s=_BACKOFF_MAX_S)
        self._changed = asyncio.Event()
        self._deadline_moved = asyncio.Event()
        self._launches: asyncio.Queue[tuple[Job, ...]] = asyncio.Queue()
        self._streams: dict[Key, LogStream] = {}
        self._voices: dict[Key, Voice] = {}
        self._metrics: dict[tuple[Key, int], Metrics] = {}  # by step: the newest counts
        self._ports: Ports  # while it works
        self._sides: dict[tuple[Key, Source], LogStream] = {}
        self._failing: set[Key] = set()  # ended; their logs are being shipped
        self._failures_to_report: asyncio.Queue[tuple[Key, Exit, LogStream]] = asyncio.Queue()
        self.welcomed_once = asyncio.Event()
        metrics.SLOTS.set(identity.slots)

    async def run(self) -> None:
        """Work until cancelled."""
        ports = Ports(min(self._identity.slots, _PORTS_MAX))
        with contextlib.closing(ports) as self._ports:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._shipper.run())
                group.create_task(self._keep_time())
                group.create_task(self._stay_connected())
                group.create_task(self._report_failures())
                group.create_task(self._answer_commands())
                group.create_task(self._fetch_images())
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
        message.host = own_address(self._resolve())
        message.ports.extend(self._ports.free)
        message.running.extend(map(convert.key_to_proto, self._machine.answered_for))
        return message

    def welcomed(self, welcome: wire.Welcome) -> None:
        """A scheduler has taken this worker in."""
        self._failures = 0
        lease_s = convert.seconds(welcome.lease)
        if lease_s > 0:  # a scheduler that comes back waits so long for its workers, no longer
            self._backoff = Backoff(max_s=min(_BACKOFF_MAX_S, lease_s / 3))
        if welcome.token:
            self._token = welcome.token
            _transport.show_token(self._token)
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

    def exec(self, request: wire.Exec) -> None:
        """Run a command beside an attempt; its result goes up when it is there."""
        self._asked.put_nowait(request)

    def _write_usage(self, samples: Iterable[Sample]) -> None:
        """A line into the usage log of each task that has run for a while."""
        keys = {key.task: key for key in self._executions}
        for each in samples:
            key = keys.get(each.task)
            if key is not None and each.seconds >= _USAGE_AFTER_S:
                self._side(key, Source.USAGE).write(each.line(time.time()))

    def _event(self, key: Key, event: str, **facts: object) -> None:
        """A line into the attempt's log of events."""
        line = {"t": round(time.time(), 3), "event": event, **facts}
        self._side(key, Source.OS).write(json.dumps(line).encode() + b"\n")

    def _side(self, key: Key, source: Source) -> LogStream:
        """A log of ours beside the program's."""
        stream = self._sides.get((key, source))
        if stream is None:
            stream = self._sides[key, source] = self._shipper.open(key, source)
        return stream

    def usage(self) -> workflow_pb2.NodeUsage:
        """What this machine and its tasks use now."""
        running: dict[int, tuple[str, float]] = {}
        for key, execution in self._executions.items():  # a bundle's first stands for it
            if execution.pid:
                running.setdefault(execution.pid, (key.task, self._started.get(key, 0.0)))
        samples = self._node.tasks((task, pid, at) for pid, (task, at) in running.items())
        self._write_usage(samples)
        return self._node.look(samples)

    async def _fetch_images(self) -> None:
        while True:
            await self._fetch_image(await self._images.get())

    async def _answer_commands(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._answer_command(await self._asked.get()))

    async def _answer_command(self, request: wire.Exec) -> None:
        result = wire.ExecResult(id=request.id)
        execution = self._executions.get(convert.key_from_proto(request.key))
        try:
            if execution is None:
                raise ValueError("the attempt does not run here")
            timeout_s = convert.seconds(request.timeout)
            ran = await execution.exec(tuple(request.arguments), timeout_s)
        except (ValueError, OSError) as error:
            result.message = str(error)
        else:
            result.exit_code, result.output = ran.exit_code, ran.output
            result.truncated = ran.truncated
        if self._connection is not None:
            self._connection.send(wire.ConnectRequest(exec=result))

    def drain(self, reason: str) -> None:
        """The scheduler gives out nothing more; what runs here goes on."""
        metrics.DRAINING.set(1)
        log.info("draining", reason=reason, running=len(self._machine.live))

    def busy(self) -> bool:
        """More work waits here than has a slot."""
        return self._machine.waiting > 0

    def next_batch(self) -> tuple[int, tuple[Status, ...]] | None:
        """Reports to send now."""
        return self._machine.reports.next_batch()

    def next_metrics(self) -> list[wire.MetricReport]:
        """What attempts have said of themselves since the last time."""
        told = [convert.metrics_to_proto(key, each) for (key, _), each in self._metrics.items()]
        self._metrics.clear()
        return told

    def dispatch(self, event: Event) -> None:
        """Let the core decide and carry out what it says."""
        before = self._machine.reports.waiting
        if isinstance(event, Assigned):
            for image in {job.image for job in event.jobs if job.image}:
                self._images.put_nowait(image)
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
            case Launch(jobs):
                self._launches.put_nowait(jobs)
            case Terminate(key):
                log.info("terminating", task=key.task, attempt=f"{key.epoch}.{key.number}")
                asyncio.get_running_loop().call_soon(self._signal, key, Terminate)
            case Kill(key):
                log.warning("killing", task=key.task, attempt=f"{key.epoch}.{key.number}")
                asyncio.get_running_loop().call_soon(self._signal, key, Kill)

    def _signal(self, key: Key, kind: type[Terminate] | type[Kill]) -> None:
        if not self._machine.runs(key) or key in self._failing:
            return  # it has ended meanwhile
        self._event(key, "signal", name="SIGKILL" if kind is Kill else "SIGTERM")
        execution = self._executions.get(key)
        if execution is None:
            self._early[key] = kind  # it is being started
        elif kind is Kill:
            execution.kill(key)
        else:
            execution.terminate(key)

    # Attempts

    async def _carry_out(self, jobs: tuple[Job, ...]) -> None:
        """Run attempts from their folder to their reports."""
        kind = "function" if jobs[0].function else "command"
        keys = [job.key for job in jobs]
        start = time.monotonic()
        if jobs[0].rank == 0 and not jobs[0].port:  # a gang of one
            jobs = (convert.alone(jobs[0], self._ports.another()),)
        self._ports.lend(jobs[0].port)
        permanent = False
        try:
            await self._run(kind, jobs)
        except (OSError, ValueError, HyperError) as error:
            message = f"cannot start: {error}"
            permanent = isinstance(error, TemplateError)
        except Exception as error:
            log.error("attempt failed unexpectedly", task=keys[0].task, exc_info=error)
            message = f"internal error of the worker: {error!r}; its log has the stack"
        else:
            return
        finally:
            self._ports.take_back(jobs[0].port)
            for key in keys:
                self._executions.pop(key, None)
                self._started.pop(key, None)
                self._early.pop(key, None)
        left = [key for key in keys if self._machine.runs(key) and key not in self._failing]
        for key in left:
            self.output(key).write(f"[hyper: {message}]\n".encode(errors="replace"))
        wall_s = time.monotonic() - start
        exit_ = Exit(exit_code=126, message=message, wall_s=wall_s, permanent=permanent)
        self.ended([(key, exit_) for key in left])

    async def _run(self, kind: str, jobs: tuple[Job, ...]) -> None:
        job = jobs[0]
        runner = self._runner(kind, job)
        if kind == "command":
            await self._follow(self._stage.begin(job, runner, self), jobs)
            return
        with self._stage.gpus.holding(job.around.needs.gpus, job.key.task) as gpus:
            place = Place(self._stage.scratch, self._stage.scratch, gpus=gpus)
            if not job.workdir and not job.around.setup:
                await self._follow(await runner.start(jobs, place, self), jobs)
                return
            code = await self._stage.code(job, self._runners["command"], self)
            try:
                place = Place(code.work, code.work, site=code.site, gpus=gpus)
                await self._follow(await runner.start(jobs, place, self), jobs)
            finally:
                code.lease.release()

    def _runner(self, kind: str, job: Job) -> Runner:
        if not job.image:
            return self._runners[kind]
        if kind == "function":
            raise ValueError("a function runs in the worker's own environment: remove `image`")
        return self._runners["container"]

    async def _follow(self, execution: Execution, jobs: tuple[Job, ...]) -> None:
        """Wait for started attempts, and let signals reach them meanwhile."""
        for each in jobs:
            self._executions[each.key] = execution
            self._started[each.key] = time.monotonic()
            if (early := self._early.pop(each.key, None)) is not None:
                self._signal(each.key, early)
        await execution.wait()

    # Sink of the runners

    def output(self, key: Key) -> Output:
        """The log of an attempt that has something to say."""
        voice = self._voices.get(key)
        if voice is None:
            stream = self._streams[key] = self._shipper.open(key)
            voice = Voice(stream, lambda metrics: self._told(key, metrics))
            self._voices[key] = voice
        return voice

    def _told(self, key: Key, metrics: Metrics) -> None:
        """An attempt has said how it does; the oldest is dropped where too many wait."""
        self._metrics.pop((key, metrics.step), None)
        self._metrics[key, metrics.step] = metrics
        if len(self._metrics) > _METRICS_MAX:
            del self._metrics[next(iter(self._metrics))]
        if self._connection is not None:
            self._connection.wake(urgent=True)  # it may be stopped early

    def ended(self, ends: list[tuple[Key, Exit]]) -> None:
        """Attempts have ended: a failure is reported when its log can be read."""
        now: list[tuple[Key, Exit]] = []
        last = self._last({key for key, _ in ends})
        for key, exit_ in ends:
            if exit_.exit_code != 0 or exit_.message:
                reason = exit_.message or describe_exit(exit_.exit_code)
                if full := self._node.full_disk():
                    self._event(key, "disk full", reason=full)
                    exit_ = replace(exit_, message=f"{reason}; {full}")
                self._event(key, "ended", exit_code=exit_.exit_code, reason=reason)
            for source in Source:
                side = self._sides.pop((key, source), None)
                if side is not None:
                    side.close()
            stream = self._streams.pop(key, None)
            voice = self._voices.pop(key, None)
            if voice is not None:
                exit_ = _with_result(exit_, voice)
            if stream is not None:
                failed = exit_.exit_code != 0 or bool(exit_.message)
                stream.close(soon=failed or key.experiment in last)
                if failed:
                    self._failing.add(key)
                    self._failures_to_report.put_nowait((key, exit_, stream))
                    continue
            now.append((key, exit_))
        if now:
            self._report(now)

    def _last(self, ending: set[Key]) -> set[str]:
        """Experiments that have nothing more here: their logs need not wait for others."""
        if not self._shipper.busy:
            return set()
        more = {key.experiment for key in self._machine.live if key not in ending}
        last = {key.experiment for key in ending} - more
        if last:
            self._shipper.soon()
        return last

    def returned(self, keys: list[Key]) -> None:
        """Attempts of a bundle were not started."""
        for key in keys:
            self._executions.pop(key, None)
        asyncio.get_running_loop().call_soon(self.dispatch, Returned(tuple(keys)))

    def _report(self, ends: list[tuple[Key, Exit]]) -> None:
        for key, exit_ in ends:
            kind = "function" if exit_.returned else "command"
            metrics.SECONDS.labels(kind).observe(exit_.wall_s)
            metrics.CPU_SECONDS.labels(kind).inc(exit_.cpu_s)
            metrics.PEAK_RSS.labels(kind).observe(exit_.peak_rss_bytes)
            _trace(self._identity.worker, key, exit_)
            self._executions.pop(key, None)
        self.dispatch(EndedAll(tuple(ends)))

    async def _report_failures(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._report_failure(*await self._failures_to_report.get()))

    async def _report_failure(self, key: Key, exit_: Exit, stream: LogStream) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stream.shipped.wait(), _FAILURE_LOG_S)
        self._failing.discard(key)
        self._report([(key, exit_)])

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
            shown = ""
            try:
                shown = _transport.token()
                addresses = self._leader or self._resolve()
                self._leader = None
                self._connection = Connection(
                    addresses,
                    self,
                    welcome_timeout_s=self._timing.welcome_s,
                    gather_s=self._timing.gather_s,
                )
                await self._connection.run()
                log.info("the connection has ended")
            except grpc.RpcError as error:
                self._lost(from_rpc_error(error, peer="the scheduler"), shown)
            except HyperError as error:
                self._lost(error, shown)
            finally:
                self._connection = None
                metrics.CONNECTED.set(0)
                self._changed.set()
            self._failures += 1
            await asyncio.sleep(self._backoff.delay_s(self._failures, random.random()))

    def _lost(self, error: HyperError, shown: str) -> None:
        if isinstance(error, UnauthenticatedError) and shown == _transport.token():
            # After a change of keys what we were given is good no more: what we joined with may be.
            _transport.show_token("" if shown == self._token else self._token)
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


def _trace(worker: str, key: Key, exit_: Exit) -> None:
    """Tell of an attempt that has ended, if traces are asked for."""
    traces = tracing.current()
    if traces is None:
        return
    end_ns = time.time_ns()
    failure = exit_.message or (describe_exit(exit_.exit_code) if exit_.exit_code else "")
    facts = {"hyper.worker": worker, "hyper.cpu_s": exit_.cpu_s,
             "hyper.peak_rss_bytes": exit_.peak_rss_bytes}  # fmt: skip
    traces.attempt(
        key.task, key.attempt, end_ns - int(exit_.wall_s * 1e9), end_ns, facts,
        failure,
    )  # fmt: skip


def _with_result(exit_: Exit, voice: Voice) -> Exit:
    """The end of an attempt that may have printed its result; what a function returns is first."""
    voice.close()
    if exit_.exit_code != 0 or exit_.message or exit_.result_json:
        return exit_
    if voice.problem:
        return replace(exit_, exit_code=1, message=voice.problem)
    return replace(exit_, result_json=voice.result_json)


def _version() -> str:
    try:
        return version("hyper-dl")
    except PackageNotFoundError:
        return "0"
