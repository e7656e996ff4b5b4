"""Which task goes to which worker next.

Higher priority first; within a priority the tenant that is furthest behind its weighted share of
slot-seconds; a tenant's workflows in turn; within one, its experiments in turn;
within an experiment in order of index. Workers with a free slot are taken in turn. What needs
several slots at once, or a worker for itself, and finds no place reserves workers: they get
nothing more of the same or lower priority until it fits.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hyper_scheduler.core.commands import Command, Start
from hyper_scheduler.core.gangs import next_gang
from hyper_scheduler.core.model import Attempt, Experiment, Hardware, TaskId
from hyper_scheduler.core.state import (
    SLOT,
    SUSPECT,
    ExperimentRun,
    Need,
    Reservation,
    RunState,
    State,
    TenantUse,
    WorkerRun,
    WorkflowRun,
)
from hyper_scheduler.core.tasks import (
    assign,
    fits,
    hold,
    places_when_empty,
    room,
    set_alone,
    settle_assigned,
)
from hyper_scheduler.core.trials import ask_for_parameters


def dispatch(state: State, now: float) -> list[Command]:
    """Give out as much as fits, and as the shell can send; one batch a worker."""
    on_the_way = 0 if state.committing is None else state.committing.results
    if state.pending.results + on_the_way > state.limits.results:
        return []
    if not state.wake or state.room <= 0:
        return []
    state.wake = False
    if not state.ready:
        return []
    names = [
        name for name in state.active if name not in state.held and not state.workflows[name].paused
    ]
    _check_reservation(state, set(names))
    turn = _Turn(state, now, OrderedDict(state.gained))
    state.gained = {}
    _arrivals(state, {state.workflows[name].tenant for name in names})
    levels: dict[int, dict[str, deque[str]]] = {}
    for name in names:
        workflow = state.workflows[name]
        level = levels.setdefault(workflow.recipe.priority, {})
        level.setdefault(workflow.tenant, deque()).append(name)
    for priority in sorted(levels, reverse=True):
        turn.priority = priority
        _serve_level(turn, levels[priority])
    state.barren = turn.barren
    starts: list[Command] = [
        Start(name, state.workers[name].session, tuple(tasks))
        for name, tasks in turn.batches.items()
    ]
    return starts + turn.suggestions


@dataclass(slots=True)
class _Turn:
    """One round of giving out."""

    state: State
    now: float
    gained: OrderedDict[str, None]  # workers with more room than at the last round
    barren: dict[Need, None] = field(default_factory=dict)  # needs that no worker meets any more
    priority: int = 0
    batches: dict[str, list[tuple[TaskId, Attempt]]] = field(default_factory=dict)
    suggestions: list[Command] = field(default_factory=list)

    def give(self, worker: WorkerRun, tasks: list[tuple[TaskId, Attempt]]) -> None:
        """Tasks that the worker holds from now on."""
        self.batches.setdefault(worker.name, []).extend(tasks)

    def ready(
        self, task: TaskId | None = None, among: Mapping[str, None] | None = None
    ) -> Iterator[WorkerRun]:
        """Workers with a free slot that are not reserved for something other than `task`."""
        reserved = self.state.reserved
        for name in self.state.ready if among is None else among:
            if among is not None and name not in self.state.ready:
                continue
            if (
                reserved is not None and name in reserved.workers
                and reserved.task != task and reserved.priority >= self.priority
            ):  # fmt: skip
                continue
            yield self.state.workers[name]

    def place(self, spec: Experiment, share: int) -> WorkerRun | None:
        """The next worker with room for `share` of a slot.

        What no worker had room for is looked for only where there is more room since: thousands
        of idle workers are not asked again and again for what they do not have.
        """
        need = Need(self.priority, spec.hardware, tuple(spec.labels.items()), share)
        if need in self.barren:
            return None
        workers = self.ready(among=self.gained if need in self.state.barren else None)
        found = next((each for each in workers if fits(each, spec, share)), None)
        if found is None:
            self.barren[need] = None
        return found

    def begun(self, run: ExperimentRun, share: int) -> WorkerRun | None:
        """A worker whose slot is the experiment's and takes more, when no other slot may be."""
        workers = (each for each in self.ready(among=run.begun) if each.capacity.slots == 1)
        return next((each for each in workers if fits(each, run.spec, share)), None)


def _serve_level(turn: _Turn, waiting: dict[str, deque[str]]) -> None:
    """Workflows of one priority: the tenant that is furthest behind its share comes first."""
    state = turn.state
    while waiting and state.ready:
        if len(turn.batches) >= state.room:
            state.wake = True
            return
        tenant = min(waiting, key=lambda name: _ahead(state, name))
        name = waiting[tenant].popleft()
        if not at_quota(state, tenant) and _serve(turn, state.workflows[name]):
            state.active.pop(name)
            state.active[name] = None  # to the end of its turn
            waiting[tenant].append(name)
        elif not waiting[tenant]:
            del waiting[tenant]


def _ahead(state: State, tenant: str) -> float:
    """What a tenant has had, and has now for a second to come, over its weight."""
    use = state.tenants[tenant]
    return use.had + use.used / SLOT / state.limits.quota(tenant).weight


def at_quota(state: State, tenant: str, slots: int = 1) -> bool:
    """Whether the tenant may not have so many slots more."""
    most = state.limits.quota(tenant).slots
    return bool(most) and state.tenants[tenant].used + (slots - 1) * SLOT >= most * SLOT


def count_use(state: State, now: float) -> None:
    """Add up slot-seconds since the last time; before anything changes who uses what."""
    passed_s = max(0.0, now - state.shared_at)
    state.shared_at = now
    for name, use in state.tenants.items():
        if use.used:
            use.had += use.used / SLOT * passed_s / state.limits.quota(name).weight


def _arrivals(state: State, active: set[str]) -> None:
    """Who comes anew starts where the others are; who has gone is forgotten."""
    for name, use in list(state.tenants.items()):
        if not use.used and name not in active:
            del state.tenants[name]
    floor = min((use.had for use in state.tenants.values() if use.active), default=0.0)
    for name in active:
        use = state.tenants.setdefault(name, TenantUse())
        if not use.active:
            use.had = max(use.had, floor)
    for name, use in state.tenants.items():
        use.active = name in active


def _serve(turn: _Turn, workflow: WorkflowRun) -> bool:
    """Start something of the workflow, if that can be: a task, a gang, a slot's worth of tasks."""
    runs = [each for each in workflow.experiments.values() if each.state is RunState.RUNNING]
    for run in runs:
        if run.suspects and not run.spec.items and _give_alone(turn, workflow, run):
            return True
    for step in range(len(runs)):
        run = runs[(workflow.turn + step) % len(runs)]
        limit = run.spec.workers - run.slots if run.spec.workers else _NO_LIMIT
        if (limit < run.spec.gang and not run.begun) or run.spec.items:
            continue
        if run.spec.gang > 1:
            given = _give_gang(turn, workflow, run)
        else:
            given = _give_tasks(turn, workflow, run, limit)
        if given:
            workflow.turn = (workflow.turn + step + 1) % len(runs)
            return True
    return False


def _give_tasks(turn: _Turn, workflow: WorkflowRun, run: ExperimentRun, limit: int) -> bool:
    """One task, or a slot's worth of short ones, to the next worker that has room."""
    state, share = turn.state, run.share(len(turn.state.workers))
    index, unknown = run.peek(), run.unknown()
    if index is None and unknown is None:
        return False
    if limit > 0:
        worker = turn.place(run.spec, share)
        if worker is not None and run.spec.workers and share < SLOT and worker.capacity.slots > 1:
            share = SLOT  # a worker with several runs in all of them what waits there
            worker = turn.place(run.spec, share)
    else:
        worker = turn.begun(run, share)
    if worker is None:
        return False
    if index is None and unknown is not None:
        turn.suggestions.append(ask_for_parameters(workflow, run, unknown))
        return False
    state.ready.pop(worker.name)  # to the end of the queue, if a slot stays free
    tasks: list[tuple[TaskId, Attempt]] = []
    free = worker.capacity.slots * SLOT - worker.load
    most = min(SLOT // share, free // share)
    if share < SLOT and run.spec.hardware != _NO_HARDWARE:
        most = min(most, room(worker, run.spec, share))
    while len(tasks) < most and (index := run.peek()) is not None:
        task = TaskId(workflow.name, run.spec.name, index)
        attempt = state.next_attempt()
        hold(run, task, attempt, worker, share, turn.now)
        tasks.append((task, attempt))
    held = [task for task, _ in tasks]
    settle_assigned(state, workflow, run, worker, held, share, turn.now)
    if worker.name not in state.ready:
        turn.gained.pop(worker.name, None)
    turn.give(worker, tasks)
    return True


def _give_alone(turn: _Turn, workflow: WorkflowRun, run: ExperimentRun) -> bool:
    """A task that is suspected of ending its worker, to one that runs nothing else."""
    index = run.suspect()
    if index is None:
        return False
    state, task = turn.state, TaskId(workflow.name, run.spec.name, index)
    empty = (each for each in turn.ready(task) if not each.running and fits(each, run.spec))
    worker = next(empty, None)
    if worker is None:
        _reserve(turn, run, task, 1)
        return False
    attempt = state.next_attempt()
    assign(state, task, attempt, worker, turn.now)
    set_alone(state, run, task, worker, task)
    turn.give(worker, [(task, attempt)])
    _unreserve(state, task)
    return True


def _give_gang(turn: _Turn, workflow: WorkflowRun, run: ExperimentRun) -> bool:
    """All of a gang or nothing: in one zone and on as few workers as can be."""
    unit = next_gang(run)
    if unit is None or at_quota(turn.state, workflow.tenant, run.spec.gang):
        return False
    indices = run.gang_of(unit * run.spec.gang)
    first = TaskId(workflow.name, run.spec.name, indices[0])
    known = [record for record in map(run.record, indices) if record is not None]
    alone = any(record.crashes >= SUSPECT for record in known)
    workers = [each for each in turn.ready(first) if not (alone and each.running)]
    places = _places(workers, run.spec, run.spec.gang)
    if places is None:
        _reserve(turn, run, first, run.spec.gang)
        return False
    state = turn.state
    for index, worker in zip(indices, places, strict=True):
        task, attempt = first._replace(index=index), state.next_attempt()
        assign(state, task, attempt, worker, turn.now)
        turn.give(worker, [(task, attempt)])
        if alone:
            set_alone(state, run, task, worker, first)
    taken = set(places[0].ports.values())
    free = [port for port in places[0].capacity.ports if port not in taken]
    if free:
        places[0].ports[first] = free[state.number % len(free)]
    run.gangs.discard(unit)
    _unreserve(state, first)
    return True


def _places(workers: list[WorkerRun], spec: Experiment, count: int) -> list[WorkerRun] | None:
    """A worker for each of `count` tasks at once; None if no zone has so many places."""
    zones: dict[tuple[str, str, str], list[tuple[WorkerRun, int]]] = {}
    for worker in workers:
        if fits(worker, spec):
            pair = (worker, room(worker, spec, SLOT))
            zones.setdefault(worker.capacity.zone, []).append(pair)
    for pairs in zones.values():
        if sum(places for _, places in pairs) >= count:
            pairs.sort(key=lambda pair: (-pair[1], dict(pair[0].capacity.labels).get("host", "")))
            return [worker for worker, places in pairs for _ in range(places)][:count]
    return None


def _reserve(turn: _Turn, run: ExperimentRun, task: TaskId, left: int) -> None:
    """Keep workers free for what finds no place: those of one zone that are soonest empty, as few
    as can be."""
    state = turn.state
    if state.reserved is not None and state.reserved.priority >= turn.priority:
        return  # one after the other
    usable = [each for each in state.workers.values() if each.session and not each.draining]
    usable.sort(key=lambda worker: (worker.load, worker.name))
    chosen: dict[tuple[str, str, str], list[str]] = {}
    lacking: dict[tuple[str, str, str], int] = {}
    for worker in usable:
        places, zone = places_when_empty(worker, run.spec), worker.capacity.zone
        if places:
            chosen.setdefault(zone, []).append(worker.name)
            lacking[zone] = lacking.get(zone, left) - places
            if lacking[zone] <= 0:
                _lift_reservation(state)  # of a lower priority
                state.reserved = Reservation(task, frozenset(chosen[zone]), turn.priority)
                return


def _unreserve(state: State, task: TaskId) -> None:
    if state.reserved is not None and state.reserved.task == task:
        _lift_reservation(state)


def _lift_reservation(state: State) -> None:
    if state.reserved is not None:
        state.gained |= dict.fromkeys(sorted(state.reserved.workers))
        state.reserved = None


def _check_reservation(state: State, active: set[str]) -> None:
    """Give up one whose task is gone, or whose workers are: it is made anew if need be."""
    reserved = state.reserved
    if reserved is None:
        return
    run = state.experiment(reserved.task)
    usable = all(
        name in state.workers and state.workers[name].session and not state.workers[name].draining
        for name in reserved.workers
    )
    waits = run is not None and (
        next_gang(run) == reserved.task.index // run.spec.gang
        if run.spec.gang > 1
        else run.suspect() == reserved.task.index
    )
    if not usable or not waits or reserved.task.workflow not in active:
        _lift_reservation(state)


_NO_HARDWARE = Hardware()
_NO_LIMIT = 1 << 62
