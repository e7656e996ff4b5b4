"""The scheduler: one event in, what to do out. Same state and event, same commands."""

from __future__ import annotations

from typing import assert_never

from hyper_scheduler.core.commands import (
    Changed,
    Command,
    Drain,
    Lost,
    Moved,
    Stop,
    Welcome,
    Worked,
)
from hyper_scheduler.core.commit import committed, flush
from hyper_scheduler.core.dispatch import count_use, dispatch
from hyper_scheduler.core.events import (
    Cancel,
    Committed,
    Discarded,
    DrainWorker,
    Event,
    Expanded,
    Goodbye,
    Heartbeat,
    Hello,
    Metrics,
    Outcome,
    Pause,
    Placed,
    Reports,
    Retry,
    Submit,
    Suggested,
    Tick,
)
from hyper_scheduler.core.gangs import settle_gangs
from hyper_scheduler.core.model import Attempt, TaskId
from hyper_scheduler.core.retention import discard_forgotten, discarded, forget_old
from hyper_scheduler.core.state import RunState, State, WorkerRun
from hyper_scheduler.core.tasks import (
    adopt,
    adoptable,
    fill_slots,
    is_current,
    look_at_gang,
    lose,
    refresh_ready,
    take_report,
    touch,
)
from hyper_scheduler.core.trials import take_metric
from hyper_scheduler.core.workflows import (
    cancel,
    drain_worker,
    expanded,
    pause,
    retry,
    settle,
    stop_workflow,
    submit,
    suggested,
)

CHECK_S = 0.25  # how often leases and deadlines are looked at
DEAF_S = 1.0  # looked at later than this, the scheduler cannot tell who was silent


def step(state: State, event: Event) -> list[Command]:
    """Change `state` by `event`; returns what the shell must do, in order."""
    count_use(state, event.now)
    commands = _handle(state, event)
    commands += _superseded(state)
    commands += settle_gangs(state, event.now)
    while state.unsettled:
        name = next(iter(state.unsettled))
        commands += settle(state, state.workflows[name], event.now)
        del state.unsettled[name]
    commands += dispatch(state, event.now)
    state.unsettled.clear()  # giving out tasks settles nothing
    commands += flush(state, event.now)
    commands += [Changed(name) for name in state.touched]
    commands += [Moved(to, count) for to, count in state.moved.items()]
    state.touched, state.moved = {}, {}
    return commands


def _superseded(state: State) -> list[Command]:
    """Stops of attempts of which newer ones run; a worker that is away is told when it comes."""
    found = [(state.workers[name], task, attempt) for name, task, attempt in state.superseded]
    state.superseded = []
    return [
        Stop(worker.name, worker.session, ((task, attempt),))
        for worker, task, attempt in found
        if worker.session
    ]


def _handle(state: State, event: Event) -> list[Command]:
    match event:
        case Submit():
            return submit(state, event)
        case Cancel():
            return cancel(state, event)
        case Retry():
            return retry(state, event)
        case Pause():
            return pause(state, event)
        case DrainWorker():
            commands = drain_worker(state, event)
            worker = state.workers.get(event.worker)
            if worker is not None and worker.session:
                commands.append(Drain(worker.name, worker.session, "asked to drain"))
            return commands
        case Hello():
            return _hello(state, event)
        case Goodbye():
            return _goodbye(state, event)
        case Heartbeat():
            _seen(state, event.worker, event.session, event.now)
            return []
        case Reports():
            return _reports(state, event)
        case Metrics():
            return _metrics(state, event)
        case Expanded():
            return expanded(state, event)
        case Suggested():
            return suggested(state, event)
        case Discarded():
            return discarded(state, event)
        case Placed():
            _placed(state, event)
            return []
        case Committed():
            return committed(state, event.number)
        case Tick():
            return _tick(state, event.now)
    assert_never(event)


def _seen(state: State, name: str, session: int, now: float) -> WorkerRun | None:
    """The worker, if the event came over the stream it holds now."""
    worker = state.workers.get(name)
    if worker is None or worker.session != session:
        return None
    worker.last_seen = max(worker.last_seen, now)
    return worker


def _hello(state: State, event: Hello) -> list[Command]:
    state.lost.pop(event.worker, None)
    worker = state.workers.get(event.worker)
    if worker is None:
        worker = WorkerRun(event.worker, event.capacity, event.session, event.now, event.now)
        worker.draining = event.worker in state.drained
        state.workers[event.worker] = worker
    worker.session, worker.capacity = event.session, event.capacity
    worker.last_seen = worker.connect_time = event.now
    commands: list[Command] = [Welcome(worker.name, worker.session)]
    if worker.draining:
        commands.append(Drain(worker.name, worker.session, "asked to drain"))
    stop: list[tuple[TaskId, Attempt]] = []
    listed = set(event.running)
    for task, attempt in event.running:
        if worker.running.get(task) == attempt:
            worker.doubtful.pop(task, None)
            if _unwanted(state, task):
                stop.append((task, attempt))
        elif adoptable(state, task, attempt):
            adopt(state, task, attempt, worker, event.now)
        else:
            stop.append((task, attempt))
    for task, attempt in worker.running.items():
        if (task, attempt) not in listed:  # it has ended, or the start was lost with the stream
            worker.doubtful.setdefault(task, event.now + state.limits.lease_s)
    if stop:
        commands.append(Stop(worker.name, worker.session, tuple(stop)))
    state.ready.pop(worker.name, None)
    refresh_ready(state, worker)
    _came(state, worker.name)
    return commands


def _unwanted(state: State, task: TaskId) -> bool:
    """Whether a running attempt was told to stop, which its worker may not have heard."""
    workflow = state.workflows[task.workflow]
    run = workflow.experiments[task.experiment]
    if run.spec.gang > 1:
        look_at_gang(state, run, task)  # sends it again
    trial = run.trial(task.index)
    return workflow.stopping is not None or (trial is not None and trial.stopped)


def _came(state: State, worker: str) -> None:
    """One that an earlier leader knew is here or given up; the last of them ends the wait."""
    state.expected.pop(worker, None)
    if state.held and not state.expected:
        state.held, state.wake = {}, True


def _goodbye(state: State, event: Goodbye) -> list[Command]:
    worker = state.workers.get(event.worker)
    if worker is not None and worker.session == event.session:
        worker.session = 0
        refresh_ready(state, worker)
    return []


def _reports(state: State, event: Reports) -> list[Command]:
    worker = _seen(state, event.worker, event.session, event.now)
    if worker is None:
        return []
    stale: list[tuple[TaskId, Attempt]] = []
    for report in event.reports:
        if report.outcome is Outcome.RUNNING:
            if not is_current(state, report.task, report.attempt):
                stale.append((report.task, report.attempt))
            worker.doubtful.pop(report.task, None)
            continue
        if report.outcome is Outcome.PREEMPTED and not worker.draining:
            worker.draining = True  # its machine goes away
            refresh_ready(state, worker)
        take_report(state, report, event.now)
    if any(report.outcome is Outcome.RETURNED for report in event.reports):
        fill_slots(state, worker)
    state.pending.acks[worker.name] = (event.session, event.sequence)
    if not stale:
        return []
    return [Stop(worker.name, worker.session, tuple(stale))]


def _metrics(state: State, event: Metrics) -> list[Command]:
    worker = _seen(state, event.worker, event.session, event.now)
    if worker is None:
        return []
    stop: list[tuple[TaskId, Attempt]] = []
    for report in event.reports:
        run = state.experiment(report.task)
        if run is None or not is_current(state, report.task, report.attempt):
            continue
        written, stopped = take_metric(run, report)
        if written:
            touch(state, report.task, event.now)
        if stopped:
            stop.append((report.task, report.attempt))
    return [Stop(worker.name, worker.session, tuple(stop))] if stop else []


def _placed(state: State, event: Placed) -> None:
    pairs = ((state.over_budget, event.over_budget), (state.placement, event.notes))
    for before, after in pairs:
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name) and name in state.workflows:
                state.touched[name] = None
    state.over_budget, state.placement = event.over_budget, event.notes


def _tick(state: State, now: float) -> list[Command]:
    since = now - state.checked_at
    if 0.0 <= since < CHECK_S:
        return []
    state.checked_at = now
    if since > DEAF_S:  # this process stood still: what workers sent meanwhile waits in line
        for worker in state.workers.values():
            worker.last_seen += since - CHECK_S
            worker.doubtful = {task: at + since for task, at in worker.doubtful.items()}
        state.hold_until += since - CHECK_S
    watched = sum(bool(worker.session) for worker in state.workers.values())
    state.worker_s += watched * min(max(since, 0.0), DEAF_S)
    if state.held and now > state.hold_until:
        state.expected, state.held, state.wake = {}, {}, True
    commands: list[Command] = []
    for worker in list(state.workers.values()):
        if now - worker.last_seen > state.limits.lease_s:
            commands.append(_lose_worker(state, worker, now))
        elif worker.doubtful:
            for task in [task for task, until in worker.doubtful.items() if until < now]:
                lose(state, task, now)
    for name in list(state.active):
        workflow = state.workflows[name]
        deadline_s = workflow.recipe.deadline_s
        if deadline_s is not None and now - workflow.create_time > deadline_s:
            text = f"the deadline of {deadline_s:g} s has passed"
            commands += stop_workflow(state, workflow, RunState.FAILED, text, now)
    forget_old(state, now)
    if state.worked or state.rework_s or state.carried:
        done = tuple((key, count, seconds) for key, (count, seconds) in state.worked.items())
        lost, carried = tuple(state.rework_s.items()), tuple(state.carried.items())
        commands.append(Worked(done, lost, carried))
        state.worked, state.rework_s, state.carried = {}, {}, {}
    if state.left_over:
        commands += discard_forgotten(state, state.left_over)
        state.left_over = []
    return commands


def _lose_worker(state: State, worker: WorkerRun, now: float) -> Lost:
    tasks = tuple(worker.running)
    session, worker.session = worker.session, 0
    refresh_ready(state, worker)
    # one that was told to go, or that never came to this leader, says nothing about its tasks
    crashed = not worker.draining and worker.capacity.slots > 0
    state.workers_crashed += crashed
    for task in tasks:
        lose(state, task, now, seen=worker.last_seen if crashed else None)
    del state.workers[worker.name]
    _came(state, worker.name)
    if state.drained.pop(worker.name, True) is None:
        state.pending.drained[worker.name] = False
    state.lost[worker.name] = worker
    while len(state.lost) > state.limits.workers_lost:
        state.lost.pop(next(iter(state.lost)))
    return Lost(worker.name, session, tasks)
