"""Everything the scheduler knows. Changed by `step` alone; nothing here decides."""

from __future__ import annotations

import hashlib
import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from hyper_scheduler.core.model import Attempt, Experiment, Hardware, Recipe, Sampling, TaskId
from hyper_scheduler.core.pages import PAGE_TASKS, Page, PageKey, Record, Status, Trial
from hyper_scheduler.core.parameters import count
from hyper_scheduler.core.taskset import TaskSet

SLOT = 512  # a slot is shared in this many parts
PREFETCH_S = 0.5  # of short work waits at a worker for each slot
NOMINAL = 1.1  # kernel and firmware keep up to a tenth of the memory that a machine is sold with
SUSPECT = 3  # a task whose attempts lost their worker so often in a row runs alone


class RunState(StrEnum):
    """Of a workflow or of one of its experiments."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen without a retry."""
        return self not in (RunState.PENDING, RunState.RUNNING)


class TaskState(StrEnum):
    """Of one task, as people see it."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class ExperimentRun:
    """An experiment under way. Tasks from `cursor` on without record or bit were never touched."""

    spec: Experiment
    total: int
    state: RunState = RunState.PENDING
    pages: dict[int, Page] = field(default_factory=dict)
    cursor: int = 0
    again: list[int] = field(default_factory=list)  # heap of tasks that ran before
    open: TaskSet = field(default_factory=TaskSet)  # tasks that others had to precede
    suspects: list[int] = field(default_factory=list)  # heap of tasks that must run alone
    gangs: TaskSet = field(default_factory=TaskSet)  # gangs that may start
    feeds: tuple[str, ...] = ()  # experiments that follow this one task by task
    expanding: bool = False  # its items are on their way
    known: int = 0  # the generation of the head that says how many tasks its items make
    suggesting: int = -1  # the task whose parameters are on their way
    best: tuple[float, int] | None = None  # value of the objective, task
    rungs: list[list[float]] = field(default_factory=list)  # sorted, the better last
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    lost: int = 0
    start_time: float = 0.0
    end_time: float = 0.0
    message: str = ""
    durable: bool = False  # that it succeeded; those that depend on it start then
    mean_s: float = 0.0  # what a task has taken lately; 0: not known
    kind: str = ""  # tasks of the same program, for the metrics
    write: Callable[[int], str] | None = None  # parameters as JSON, made when first needed
    held: dict[str, int] = field(default_factory=dict)  # at each worker, if `spec.workers` limits
    slots: int = 0  # that these take, each begun one whole
    begun: dict[str, None] = field(default_factory=dict)  # workers whose slot takes more

    @staticmethod
    def fresh(spec: Experiment) -> ExperimentRun:
        """Before anything has run."""
        run = ExperimentRun(spec, 0)
        run.expand(spec)
        return run

    def expand(self, spec: Experiment) -> None:
        """All values of its parameters are known, unless `spec.items` names some."""
        self.spec, self.total, self.write = spec, count(spec) * spec.gang, None
        self.kind = task_kind(spec)
        self.rewind()

    def rewind(self) -> None:
        """Nothing that ran before, and nothing that follows others, waits yet."""
        follows = bool(self.spec.each) or self.spec.gang > 1
        self.cursor = self.total if follows else 0
        self.again, self.suspects = [], []
        self.open, self.gangs = TaskSet(), TaskSet()

    @property
    def units(self) -> int:
        """Its tasks, a gang counted once."""
        return self.total // self.spec.gang

    def gang_of(self, index: int) -> range:
        """The tasks that start and end together with this one."""
        first = index - index % self.spec.gang
        return range(first, first + self.spec.gang)

    def share(self, workers: int) -> int:
        """How much of a slot a task takes: short functions are given out many at a time.

        But no more than half of what each of so many workers has yet to expect, so that all end at
        about one time. Trials are not if what others have reached decides on them: it would be out
        of date.
        """
        spec = self.spec
        early = spec.objective is not None and spec.objective.asha is not None
        if not self.mean_s or not spec.function or spec.gang > 1 or spec.ranked or early:
            return SLOT
        if spec.sampling is Sampling.TPE:
            return SLOT
        left = self.total - self.succeeded - self.failed - self.running
        even = left // (2 * max(1, min(workers, spec.workers or workers)))
        tasks = max(1, min(SLOT, int(PREFETCH_S / self.mean_s), even))
        return SLOT >> (tasks.bit_length() - 1)

    def take(self, worker: str, share: int) -> None:
        """So much of a slot of the worker; less than 0: back."""
        before = self.held.pop(worker, 0)
        after = before + share
        self.slots += -(-after // SLOT) - -(-before // SLOT)
        self.begun.pop(worker, None)
        if after:
            self.held[worker] = after
        if after % SLOT:
            self.begun[worker] = None

    def page(self, index: int) -> Page:
        """The page that holds task `index`; made when first needed."""
        number = index // PAGE_TASKS
        page = self.pages.get(number)
        if page is None:
            page = self.pages[number] = Page()
        return page

    def record(self, index: int) -> Record | None:
        """What is known of a task that is neither done nor untouched."""
        page = self.pages.get(index // PAGE_TASKS)
        return None if page is None else page.records.get(index)

    def is_done(self, index: int) -> bool:
        """Whether task `index` has succeeded."""
        page = self.pages.get(index // PAGE_TASKS)
        return page is not None and page.is_done(index)

    def task_state(self, index: int) -> TaskState:
        """The state of task `index`."""
        if self.is_done(index):
            return TaskState.SUCCEEDED
        record = self.record(index)
        if record is not None and record.status in (Status.RUNNING, Status.HELD):
            return TaskState.RUNNING
        if record is not None and record.status is Status.FAILED:
            return TaskState.FAILED
        return TaskState.CANCELLED if self.state.ended else TaskState.PENDING

    def trial(self, index: int) -> Trial | None:
        """What a task has said of its objective."""
        page = self.pages.get(index // PAGE_TASKS)
        return None if page is None else page.trials.get(index)

    def wait_again(self, index: int, record: Record) -> None:
        """A task that ran before waits for its next attempt."""
        if self.spec.gang == 1:
            heapq.heappush(self.suspects if record.crashes >= SUSPECT else self.again, index)

    def suspect(self) -> int | None:
        """The next task that must run alone."""
        while self.suspects:
            record = self.record(self.suspects[0])
            if record is not None and record.status is Status.PENDING:
                return self.suspects[0]
            heapq.heappop(self.suspects)
        return None

    def peek(self) -> int | None:
        """The next task to run, those that ran before first; None when none waits."""
        index = self._first()
        if index is None or self.spec.sampling is not Sampling.TPE:
            return index
        trial = self.trial(index)
        return index if trial is not None and trial.durable else None

    def unknown(self) -> int | None:
        """The next task to run, if nobody has chosen its parameters yet."""
        if self.spec.sampling is not Sampling.TPE or self.suggesting >= 0:
            return None
        index = self._first()
        return index if index is not None and self.trial(index) is None else None

    def _first(self) -> int | None:
        while self.again:
            record = self.record(self.again[0])
            if record is not None and record.status is Status.PENDING:
                return self.again[0]
            heapq.heappop(self.again)  # a late report settled it meanwhile
        while (index := self.open.first()) is not None:
            if not self.is_done(index) and self.record(index) is None:
                return index
            self.open.discard(index)
        while self.cursor < self.total:
            page = self.pages.get(self.cursor // PAGE_TASKS)
            if page is None:
                return self.cursor
            if page.done_count == PAGE_TASKS:
                self.cursor = (self.cursor // PAGE_TASKS + 1) * PAGE_TASKS
            elif page.is_done(self.cursor) or self.cursor in page.records:
                self.cursor += 1
            else:
                return self.cursor
        return None


@dataclass(slots=True)
class WorkflowRun:
    """A workflow; `stopping` is what it will have become once nothing of it runs."""

    name: str
    recipe: Recipe
    recipe_yaml: str
    experiments: dict[str, ExperimentRun]  # in topological order
    create_time: float
    state: RunState = RunState.RUNNING
    stopping: RunState | None = None
    paused: bool = False  # nothing new starts
    message: str = ""
    end_time: float = 0.0
    generation: int = 1  # counts changes to the head; the etag
    durable: RunState = RunState.RUNNING  # what a reader may be told
    begun: int = 1  # the generation that was submitted or retried
    stored: int = 0  # the newest generation that is durable; nothing starts before `begun` is
    turn: int = 0  # which experiment is served next

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.name.split("/", 2)[1]

    @property
    def running(self) -> int:
        """Attempts that a worker holds."""
        return sum(each.running for each in self.experiments.values())


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a worker has."""

    slots: int
    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    version: str = ""
    offer: str = ""  # what it was launched as; "": it was not launched by this cluster
    host: str = ""  # where other workers reach it
    ports: tuple[int, ...] = ()  # for gangs

    @property
    def for_tasks_bytes(self) -> int:
        """Memory that tasks may ask for: what a launched machine was sold with."""
        return int(self.memory_bytes * NOMINAL) if self.offer else self.memory_bytes

    @property
    def zone(self) -> tuple[str, str, str]:
        """Its failure domain; clouds and regions give their zones the same names."""
        labels = dict(self.labels)
        return labels.get("cloud", ""), labels.get("region", ""), labels.get("zone", "")


@dataclass(slots=True)
class WorkerRun:
    """An agent process; `session` is its stream, 0 while it has none."""

    name: str
    capacity: Capacity
    session: int
    last_seen: float
    connect_time: float
    draining: bool = False
    running: dict[TaskId, Attempt] = field(default_factory=dict)
    load: int = 0  # the sum of what they take of slots
    doubtful: dict[TaskId, float] = field(default_factory=dict)  # until when a report may come
    alone: TaskId | None = None  # the task, or first of a gang, that has it for itself
    ports: dict[TaskId, int] = field(default_factory=dict)  # in use, by the first task of a gang
    cpus_used: float = 0.0
    memory_used: float = 0.0
    gpus_used: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """A change that was asked for, kept so that a repeat gets the first answer."""

    request_id: str
    kind: str
    name: str


@dataclass(slots=True)
class Pending:
    """What the next commit will make durable, and who waits for it."""

    pages: dict[PageKey, None] = field(default_factory=dict)
    heads: dict[str, None] = field(default_factory=dict)
    recipes: dict[str, None] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    drained: dict[str, bool] = field(default_factory=dict)  # worker -> is draining
    bitmaps: dict[PageKey, int] = field(default_factory=dict)  # of pages others wait for
    trials: list[Trial] = field(default_factory=list)  # whose parameters are in these pages
    acks: dict[str, tuple[int, int]] = field(default_factory=dict)  # worker -> session, sequence
    since: float | None = None  # of the oldest change
    urgent: bool = False  # somebody waits for an answer
    results: int = 0
    lines: dict[PageKey, list[str]] = field(default_factory=dict)  # results on their way
    succeeded: list[tuple[str, str]] = field(default_factory=list)  # experiments in these heads
    generations: dict[str, tuple[int, RunState]] = field(default_factory=dict)  # of these heads
    dropped: list[str] = field(default_factory=list)  # requests that are not remembered any more
    forgotten: list[str] = field(default_factory=list)  # workflows whose keys go
    discarded: list[str] = field(default_factory=list)  # of which no result is left either

    @property
    def dirty(self) -> bool:
        """Whether there is anything to write."""
        changed = self.pages or self.heads or self.requests or self.drained
        return bool(changed or self.forgotten or self.discarded)


@dataclass(frozen=True, slots=True)
class Quota:
    """What one tenant may have; 0: no bound."""

    weight: float = 1.0  # its share of the slots where several want them
    workflows: int = 0  # that have not ended
    tasks: int = 0  # of these workflows
    slots: int = 0  # in use at once


@dataclass(slots=True)
class TenantUse:
    """What a tenant has of the slots now, and what it has had since it came."""

    used: int = 0  # in parts of a slot
    had: float = 0.0  # slot-seconds over its weight
    active: bool = False  # has something to give out


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds and delays."""

    tenants: Mapping[str, Quota] = field(default_factory=dict)
    other_tenants: Quota = Quota()  # those not named in `tenants`

    tasks: int = 100_000_000  # of a workflow
    lease_s: float = 6.0  # silent for longer: the node counts as lost
    gather_s: float = 0.05  # completions are gathered for this long
    requests: int = 100_000  # answers remembered
    results: int = 50_000  # results that may wait to be written before dispatch pauses
    workers_lost: int = 1_000  # remembered for people to see
    kept_s: float = 0.0  # an ended workflow is forgotten after this; here and below 0: never
    kept_workflows: int = 0  # ended ones, of all tenants
    kept_pages: int = 0  # of these
    kept_least_s: float = 600.0  # none of them goes sooner because there are too many

    def quota(self, tenant: str) -> Quota:
        """What a tenant may have."""
        return self.tenants.get(tenant, self.other_tenants)


class Need(NamedTuple):
    """What a place for a task must have; many experiments have the same."""

    priority: int
    hardware: Hardware
    labels: tuple[tuple[str, str], ...]
    share: int  # of a slot


@dataclass(frozen=True, slots=True)
class Reservation:
    """Workers that get nothing more until a gang, or a task that must run alone, has its place."""

    task: TaskId  # the first of the gang
    workers: frozenset[str]
    priority: int


@dataclass(slots=True)
class State:
    """All of it."""

    epoch: int
    limits: Limits = Limits()
    number: int = 0  # of the last attempt given out
    workflows: dict[str, WorkflowRun] = field(default_factory=dict)
    active: dict[str, None] = field(default_factory=dict)  # workflows with tasks to give out
    workers: dict[str, WorkerRun] = field(default_factory=dict)
    # Workers with a free slot, in turn. A plain dict's front is slow once much was taken off it.
    ready: OrderedDict[str, None] = field(default_factory=OrderedDict)
    gained: dict[str, None] = field(default_factory=dict)  # of these: with more room than before
    barren: dict[Need, None] = field(default_factory=dict)  # none of the others has room for it
    lost: dict[str, WorkerRun] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    pending: Pending = field(default_factory=Pending)
    committing: Pending | None = None
    commits: int = 0
    segments: int = 0
    drained: dict[str, None] = field(default_factory=dict)
    expected: dict[str, None] = field(default_factory=dict)  # workers an earlier leader knew
    held: dict[str, None] = field(default_factory=dict)  # workflows that wait for these to come
    kept: dict[str, dict[str, int]] = field(default_factory=dict)  # ended: tenant -> name -> pages
    discarding: dict[str, None] = field(default_factory=dict)  # forgotten, results still there
    left_over: list[str] = field(default_factory=list)  # of these, by an earlier leader
    hold_until: float = 0.0  # at most
    tenants: dict[str, TenantUse] = field(default_factory=dict)  # that use or want something
    shared_at: float = 0.0  # up to when their use has been counted
    reserved: Reservation | None = None
    broken: dict[TaskId, None] = field(default_factory=dict)  # first tasks of gangs to look at
    superseded: list[tuple[str, TaskId, Attempt]] = field(default_factory=list)  # to be stopped
    worker_s: float = 0.0  # how long workers have been watched together
    workers_crashed: int = 0  # of them, without notice
    wake: bool = False  # dispatch may have something to do
    room: int = 1 << 62  # batches that may be given out now; the shell says so before each event
    checked_at: float = 0.0  # when leases and deadlines were looked at
    unsettled: dict[str, None] = field(default_factory=dict)  # workflows that may go on or end
    touched: dict[str, None] = field(default_factory=dict)  # workflows whose watchers should look
    moved: dict[str, int] = field(default_factory=dict)  # tasks by the state they came to
    worked: dict[tuple[str, str], list[float]] = field(default_factory=dict)  # count, seconds
    rework_s: dict[str, float] = field(default_factory=dict)  # lost with machines, by worker
    carried: dict[str, int] = field(default_factory=dict)  # bytes of attempts' data, by worker

    over_budget: Mapping[str, str] = field(default_factory=dict)  # workflow -> what that means
    placement: Mapping[str, str] = field(default_factory=dict)  # workflow -> why no machine comes

    def experiment(self, task: TaskId) -> ExperimentRun | None:
        """The experiment of a task that exists."""
        workflow = self.workflows.get(task.workflow)
        run = None if workflow is None else workflow.experiments.get(task.experiment)
        return run if run is not None and 0 <= task.index < run.total else None

    def next_attempt(self) -> Attempt:
        """Never given out before."""
        self.number += 1
        return Attempt(self.epoch, self.number)


def task_kind(spec: Experiment) -> str:
    """Which program tasks run: the same in every workflow."""
    if spec.function:
        return spec.function
    return "command-" + hashlib.sha256(f"{spec.image}\0{spec.command}".encode()).hexdigest()[:12]


def experiment_runs(recipe: Recipe) -> dict[str, ExperimentRun]:
    """All experiments of a recipe before anything has run."""
    runs = {each.name: ExperimentRun.fresh(each) for each in recipe.experiments}
    for run in runs.values():
        for name in run.spec.each:
            runs[name].feeds += (run.spec.name,)
    return runs
