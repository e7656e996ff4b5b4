"""Which task goes to which worker next.

Higher priority first; within a priority the tenant that is furthest behind its weighted share of
slot-seconds; a tenant's workflows in turn; within one, its experiments in turn;
within an experiment in order of index. Workers with a free slot are taken in turn.
"""

from __future__ import annotations

from collections import deque

from hyper_scheduler.core.commands import Command, Start
from hyper_scheduler.core.model import Attempt, Hardware, TaskId
from hyper_scheduler.core.state import (
    SLOT,
    ExperimentRun,
    RunState,
    State,
    TenantUse,
    WorkerRun,
    WorkflowRun,
)
from hyper_scheduler.core.tasks import fits, hold, settle_assigned


def dispatch(state: State, now: float) -> list[Command]:
    """Give out as much as fits; one batch a worker."""
    on_the_way = 0 if state.committing is None else state.committing.results
    if not state.wake or state.pending.results + on_the_way > state.limits.results:
        return []
    state.wake = False
    if not state.ready:
        return []
    batches: dict[str, list[tuple[TaskId, Attempt]]] = {}
    names = [
        name for name in state.active if name not in state.held and not state.workflows[name].paused
    ]
    _arrivals(state, {state.workflows[name].tenant for name in names})
    levels: dict[int, dict[str, deque[str]]] = {}
    for name in names:
        workflow = state.workflows[name]
        level = levels.setdefault(workflow.recipe.priority, {})
        level.setdefault(workflow.tenant, deque()).append(name)
    for priority in sorted(levels, reverse=True):
        _serve_level(state, levels[priority], batches, now)
    return [
        Start(name, state.workers[name].session, tuple(tasks)) for name, tasks in batches.items()
    ]


def _serve_level(
    state: State,
    waiting: dict[str, deque[str]],
    batches: dict[str, list[tuple[TaskId, Attempt]]],
    now: float,
) -> None:
    """Workflows of one priority: the tenant that is furthest behind its share comes first."""
    while waiting and state.ready:
        tenant = min(waiting, key=lambda name: _ahead(state, name))
        name = waiting[tenant].popleft()
        given = None if _at_quota(state, tenant) else _serve(state, state.workflows[name], now)
        if given is not None:
            worker, tasks = given
            batches.setdefault(worker.name, []).extend(tasks)
            state.active.pop(name)
            state.active[name] = None  # to the end of its turn
            waiting[tenant].append(name)
        elif not waiting[tenant]:
            del waiting[tenant]


def _ahead(state: State, tenant: str) -> float:
    """What a tenant has had, and has now for a second to come, over its weight."""
    use = state.tenants[tenant]
    return use.had + use.used / SLOT / state.limits.quota(tenant).weight


def _at_quota(state: State, tenant: str) -> bool:
    slots = state.limits.quota(tenant).slots
    return bool(slots) and state.tenants[tenant].used >= slots * SLOT


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


def _serve(
    state: State, workflow: WorkflowRun, now: float
) -> tuple[WorkerRun, list[tuple[TaskId, Attempt]]] | None:
    """Start one task of the workflow, or a slot's worth of short ones, if that can be."""
    runs = [each for each in workflow.experiments.values() if each.state is RunState.RUNNING]
    for step in range(len(runs)):
        run = runs[(workflow.turn + step) % len(runs)]
        limit = run.spec.workers - run.running if run.spec.workers else SLOT
        if limit <= 0 or run.peek() is None:
            continue
        share = run.share
        for name in state.ready:
            worker = state.workers[name]
            if fits(worker, run.spec, share):
                break
        else:
            continue
        state.ready.pop(name)  # to the end of the queue, if a slot stays free
        tasks: list[tuple[TaskId, Attempt]] = []
        free = worker.capacity.slots * SLOT - worker.load
        most = min(limit, SLOT // share, free // share)
        if share < SLOT and run.spec.hardware != _NO_HARDWARE:
            most = min(most, _room(worker, run, share))
        while len(tasks) < most and (index := run.peek()) is not None:
            task = TaskId(workflow.name, run.spec.name, index)
            attempt = state.next_attempt()
            hold(run, task, attempt, worker, share, now)
            tasks.append((task, attempt))
        held = [task for task, _ in tasks]
        settle_assigned(state, workflow, run, worker, held, share, now)
        workflow.turn = (workflow.turn + step + 1) % len(runs)
        return worker, tasks
    return None


_NO_HARDWARE = Hardware()


def _room(worker: WorkerRun, run: ExperimentRun, share: int) -> int:
    """How many tasks the worker's hardware has room for; it has for one."""
    need, have, part = run.spec.hardware, worker.capacity, share / SLOT
    pairs = (
        (need.cpus, have.cpus - worker.cpus_used),
        (need.memory_bytes, have.memory_bytes - worker.memory_used),
        (need.gpus, have.gpus - worker.gpus_used),
    )
    rooms = (int((left + 1e-6) / (each * part)) for each, left in pairs if each)
    return max(1, min(rooms, default=SLOT))
