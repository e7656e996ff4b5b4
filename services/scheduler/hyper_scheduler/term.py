"""One leadership: the loop that feeds events to the core and carries out its commands."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import assert_never

from hyper.errors import (
    ConflictError,
    FailedPreconditionError,
    HyperError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from hyper_scheduler import convert, metrics
from hyper_scheduler.config import SchedulerSettings
from hyper_scheduler.core import commands as c
from hyper_scheduler.core import events as e
from hyper_scheduler.core.restore import restore
from hyper_scheduler.core.state import Limits, RunState, State
from hyper_scheduler.core.step import CHECK_S, step
from hyper_scheduler.items import items_of
from hyper_scheduler.links import Links, Way
from hyper_scheduler.store import DeposedError, Store, transactions
from hyper_scheduler.suggest import suggest
from hyper_scheduler.task_tokens import TaskTokens
from hyper_servicekit import tracing
from hyper_servicekit.clock import Clock
from hyper_servicekit.etcd import Compare, Leadership
from hyper_servicekit.logs import get_logger
from hyperapi.worker.v1 import agent_service_pb2 as agent

log = get_logger(__name__)

_RETRY_S = 0.2
_DISCARD_RETRY_S = 10.0
_TRACED_KEPT = 10_000  # workflows that were told of, so that none is twice
_BURST = 64  # events worked off before other tasks get their turn
_UNANSWERED = 256  # workers that were given tasks and have not been heard since
_MAX_GARBAGE = 10_000
_REFUSALS: dict[str, tuple[type[HyperError], str]] = {
    "not_found": (NotFoundError, "NOT_FOUND"),
    "finished": (FailedPreconditionError, "WORKFLOW_FINISHED"),
    "conflict": (ConflictError, "CONFLICT"),
    "invalid": (InvalidArgumentError, "INVALID_REQUEST"),
    "quota": (ResourceExhaustedError, "QUOTA_EXCEEDED"),
}
Change = e.Submit | e.Cancel | e.Retry | e.Pause | e.DrainWorker


class _TermEndedError(Exception):
    """Ends the term's task group."""


@dataclass(slots=True)
class _Inbox:
    """Events in order. Those from outside wait for room; the loop's own never do."""

    room: asyncio.Semaphore
    events: deque[tuple[e.Event, bool]]
    arrived: asyncio.Event

    async def put(self, event: e.Event) -> None:
        await self.room.acquire()
        self.events.append((event, True))
        self.arrived.set()

    def put_now(self, event: e.Event) -> None:
        self.events.append((event, False))
        self.arrived.set()

    async def get(self) -> e.Event:
        while not self.events:
            self.arrived.clear()
            await self.arrived.wait()
        event, counted = self.events.popleft()
        if counted:
            self.room.release()
        return event


class Term:
    """From winning an election to losing the lead.

    Args:
        settings: bounds and delays.
        store: where state and results are.
        leadership: its fence goes with every write.
        clock: the time of every event.
    """

    def __init__(
        self, settings: SchedulerSettings, store: Store, leadership: Leadership, clock: Clock
    ) -> None:
        self._settings, self._store, self._clock = settings, store, clock
        self._leadership = leadership
        self._inbox = _Inbox(asyncio.Semaphore(settings.max_events), deque(), asyncio.Event())
        self._commits: asyncio.Queue[c.Commit] = asyncio.Queue()  # the core has one under way
        self._expansions: asyncio.Queue[c.Expand] = asyncio.Queue()  # an experiment has one
        self._suggestions: asyncio.Queue[c.Suggest] = asyncio.Queue()  # the same
        self._discards: asyncio.Queue[c.Discard] = asyncio.Queue()  # as many as are forgotten
        self._garbage: asyncio.Queue[str] = asyncio.Queue(_MAX_GARBAGE)
        self._asked: dict[str, list[asyncio.Future[str]]] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._traced: dict[str, float] = {}
        self._flush_timer: asyncio.TimerHandle | None = None
        keys = {key_id: key.get_secret_value() for key_id, key in settings.auth_keys.items()}
        self._way = Way(_UNANSWERED, clock.now, self._tick_now)
        tokens = TaskTokens(keys, settings.task_token_s)
        self.links = Links(settings.max_link_messages, tokens, self._way)
        self.state = State(leadership.epoch)
        self._companion: Callable[[], Awaitable[None]] | None = None
        self._on_worked: Callable[[c.Worked], None] = lambda _: None
        self.ended = False

    @property
    def fence(self) -> Compare:
        """Goes with every write of this leadership."""
        return self._leadership.fence

    @property
    def epoch(self) -> int:
        """Grows from leader to leader."""
        return self._leadership.epoch

    async def load(self) -> None:
        """Read the stored state; afterwards the term can take events."""
        stored = await self._store.load()
        limits = Limits(
            lease_s=self._settings.lease_s,
            gather_s=self._settings.gather_s,
            tenants={name: each.quota() for name, each in self._settings.tenants.items()},
            other_tenants=self._settings.other_tenants.quota(),
            kept_s=self._settings.kept_s,
            kept_workflows=self._settings.kept_workflows,
            kept_pages=self._settings.kept_pages,
            kept_least_s=self._settings.kept_least_s,
        )
        self.state = restore(
            stored.workflows, stored.requests, stored.drained, stored.forgotten,
            epoch=self.epoch, now=self._clock.now(), limits=limits,
        )  # fmt: skip
        log.info("state restored", epoch=self.epoch, workflows=len(self.state.workflows))

    def accompany(
        self, companion: Callable[[], Awaitable[None]], on_worked: Callable[[c.Worked], None]
    ) -> None:
        """Run something for as long as this leads, and tell it what machines have done."""
        self._companion, self._on_worked = companion, on_worked

    async def run(self) -> None:
        """Lead until the leadership is lost or the task is cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                parts = (
                    self._loop, self._tick, self._commit_all, self._sweep, self._expand_all,
                    self._suggest_all, self._discard_all,
                )  # fmt: skip
                for part in parts:
                    group.create_task(part(), name=f"term{part.__name__}")
                if self._companion is not None:
                    group.create_task(self._beside(self._companion), name="term-companion")
                await self._leadership.lost.wait()
                raise _TermEndedError
        except* _TermEndedError:
            log.warning("no longer leads", epoch=self.epoch)

    async def _beside(self, companion: Callable[[], Awaitable[None]]) -> None:
        try:
            await companion()
        except DeposedError:
            self._leadership.lost.set()
            raise _TermEndedError from None

    def end(self, error: HyperError) -> None:
        """Let everybody who waits know."""
        self.ended = True
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self.links.close_all(error)
        metrics.WORKERS.set(0)
        for futures in self._asked.values():
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.set()

    async def ask(self, change: Change) -> str:
        """Have a change made; returns the name of what was changed once that is durable."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting = self._asked.setdefault(change.request_id, [])
        waiting.append(future)
        try:
            await self._inbox.put(change)
            return await future
        finally:
            waiting.remove(future)
            if not waiting and self._asked.get(change.request_id) is waiting:
                del self._asked[change.request_id]

    async def tell(self, event: e.Hello | e.Heartbeat | e.Reports | e.Metrics | e.Placed) -> None:
        """An event from a worker, or from the autoscaler; waits while too many do."""
        await self._inbox.put(event)

    def tell_gone(self, worker: str, session: int) -> None:
        """A worker's stream has ended."""
        self._inbox.put_now(e.Goodbye(self._clock.now(), worker, session))

    def watch(self, workflow: str) -> asyncio.Event:
        """An event that is set whenever the workflow has changed; give it back to `unwatch`."""
        event = asyncio.Event()
        self._watchers.setdefault(workflow, set()).add(event)
        return event

    def unwatch(self, workflow: str, event: asyncio.Event) -> None:
        """The watcher is gone."""
        watchers = self._watchers.get(workflow, set())
        watchers.discard(event)
        if not watchers:
            self._watchers.pop(workflow, None)

    async def _loop(self) -> None:
        done = 0
        while True:
            event = await self._inbox.get()
            now = self._clock.now()
            metrics.LOOP_LAG.set(max(0.0, now - event.now))
            self.state.room = self._way.room()
            for command in step(self.state, event):
                self._carry_out(command, event)
            self._arm_flush()
            done += 1
            if done % _BURST == 0:
                await asyncio.sleep(0)

    def _arm_flush(self) -> None:
        """See that what waits to be written is looked at again in time."""
        state = self.state
        if self._flush_timer is None and state.committing is None and state.pending.dirty:
            loop = asyncio.get_running_loop()
            self._flush_timer = loop.call_later(state.limits.gather_s + 0.001, self._flush)

    def _flush(self) -> None:
        self._flush_timer = None
        self._tick_now()

    def _tick_now(self) -> None:
        self._inbox.put_now(e.Tick(self._clock.now()))

    async def _tick(self) -> None:
        while True:
            self._tick_now()
            await self._clock.sleep(CHECK_S)

    def _carry_out(self, command: c.Command, event: e.Event) -> None:
        match command:
            case c.Commit():
                self._commits.put_nowait(command)
            case c.Changed(workflow):
                for watcher in self._watchers.get(workflow, ()):
                    watcher.set()
                self._trace(workflow)
            case c.Moved(to, count):
                metrics.TASKS.labels(to).inc(count)
            case c.Worked():
                self._on_worked(command)
            case c.Expand():
                self._expansions.put_nowait(command)
            case c.Suggest():
                self._suggestions.put_nowait(command)
            case c.Discard():
                self._discards.put_nowait(command)
            case c.Reply(request):
                for future in self._asked.get(request.request_id, ()):
                    if not future.done():
                        future.set_result(request.name)
            case c.Refuse(request_id, kind, message):
                error, reason = _REFUSALS[kind]
                for future in self._asked.get(request_id, ()):
                    if not future.done():
                        future.set_exception(error(message, reason=reason))
            case c.Lost(worker, session, tasks):
                log.warning("worker lost", worker=worker, running=len(tasks))
                link = self.links.get(worker, session)
                if link is not None:
                    link.close()
            case _:
                self._send(command, event)

    def _trace(self, name: str) -> None:
        """Tell of a workflow that has ended, once, if traces are asked for."""
        traces, workflow = tracing.current(), self.state.workflows.get(name)
        if traces is None or workflow is None or not workflow.durable.ended:
            return
        if self._traced.get(name) == workflow.end_time:
            return
        self._traced[name] = workflow.end_time
        if len(self._traced) > _TRACED_KEPT:
            del self._traced[next(iter(self._traced))]
        failed = workflow.durable is not RunState.SUCCEEDED
        facts = {"hyper.state": workflow.durable.value, "hyper.recipe": workflow.recipe.name}
        traces.workflow(
            name, int(workflow.create_time * 1e9), int(workflow.end_time * 1e9), facts,
            (workflow.message or workflow.durable.value) if failed else "",
        )  # fmt: skip

    def _send(
        self, command: c.Welcome | c.Start | c.Stop | c.Ack | c.Drain, event: e.Event
    ) -> None:
        link = self.links.get(command.worker, command.session)
        if link is None:
            return  # the stream ended meanwhile: its Goodbye is on the way
        match command:
            case c.Welcome():
                link.send(
                    convert.welcome(self._settings.heartbeat_s, self._settings.lease_s, self.epoch)
                )
            case c.Start(tasks=tasks):
                link.send_tasks(self.state, tasks, event.now)
            case c.Stop(tasks=tasks):
                keys = [convert.task_key(task, attempt) for task, attempt in tasks]
                link.send(agent.ConnectResponse(stop=agent.StopBatch(keys=keys)))
            case c.Ack(sequence=sequence):
                link.send(agent.ConnectResponse(ack=agent.StatusAck(sequence=sequence)))
            case c.Drain(reason=reason):
                link.send(agent.ConnectResponse(drain=agent.Drain(reason=reason)))
            case _:
                assert_never(command)

    async def _commit_all(self) -> None:
        while True:
            commit = await self._commits.get()
            with metrics.COMMIT_SECONDS.time():
                await self._commit(commit)
            self._inbox.put_now(e.Committed(self._clock.now(), commit.number))
            for key in commit.garbage:
                if not self._garbage.full():
                    self._garbage.put_nowait(key)

    async def _commit(self, commit: c.Commit) -> None:
        """Write it, again and again while etcd or S3 cannot be reached."""
        batches = deque(transactions(commit.atoms))
        objects_written = not commit.objects
        while True:
            try:
                if not objects_written:
                    await self._store.write_objects(commit)
                    objects_written = True
                while batches:
                    await self._store.write(batches[0], self._leadership.fence)
                    batches.popleft()
                return
            except DeposedError:
                self._leadership.lost.set()
                raise _TermEndedError from None
            except HyperError as error:
                log.warning("commit waits", number=commit.number, error=str(error))
                await self._clock.sleep(_RETRY_S)

    async def _expand_all(self) -> None:
        """Read items of experiments, again and again while the object store is away."""
        while True:
            wanted = await self._expansions.get()
            workflow = self.state.workflows.get(wanted.workflow)
            if workflow is None:
                continue  # it has ended, and is forgotten
            sources = workflow.experiments[wanted.experiment].spec.items
            found: tuple[tuple[str, tuple[str, ...]], ...] = ()
            problem = ""
            while True:
                try:
                    found = tuple((await items_of(self._store, workflow, sources)).items())
                except InvalidArgumentError as error:
                    problem = error.message
                except HyperError as error:
                    log.warning("items wait", workflow=wanted.workflow, error=str(error))
                    await self._clock.sleep(_RETRY_S)
                    continue
                break
            event = e.Expanded(
                self._clock.now(), wanted.workflow, wanted.experiment, found, problem
            )  # fmt: skip
            self._inbox.put_now(event)

    async def _suggest_all(self) -> None:
        """Choose parameters, one task after the other."""
        while True:
            wanted = await self._suggestions.get()
            workflow = self.state.workflows.get(wanted.workflow)
            if workflow is None:
                continue  # it has ended, and is forgotten
            spec = workflow.experiments[wanted.experiment].spec
            text = problem = ""
            try:
                text = await asyncio.to_thread(suggest, spec, wanted.index, wanted.history)
            except Exception as error:
                log.error("no suggestion", workflow=wanted.workflow, exc_info=error)
                problem = f"{type(error).__name__}: {error}"
            event = e.Suggested(
                self._clock.now(), wanted.workflow, wanted.experiment, wanted.index, text, problem
            )  # fmt: skip
            self._inbox.put_now(event)

    async def _discard_all(self) -> None:
        """Delete results of forgotten workflows, again and again while the object store is away."""
        while True:
            name = (await self._discards.get()).workflow
            while True:
                try:
                    await self._store.discard_results(name)
                    break
                except HyperError as error:
                    log.warning("results not deleted", workflow=name, error=str(error))
                    await self._clock.sleep(_DISCARD_RETRY_S)
            log.info("workflow forgotten", workflow=name)
            self._inbox.put_now(e.Discarded(self._clock.now(), name))

    async def _sweep(self) -> None:
        """Delete result objects that were written anew; what stays behind costs only space."""
        while True:
            key = await self._garbage.get()
            try:
                await self._store.discard([key])
            except HyperError as error:
                log.info("object not deleted", key=key, error=str(error))
