"""A task's life: given to a worker, reported, lost, and what that does to everything around it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as _quoted

from hyper_scheduler.core.events import Outcome, Report
from hyper_scheduler.core.model import Attempt, Experiment, Hardware, TaskId
from hyper_scheduler.core.pages import PAGE_TASKS, PageKey, Record, Status
from hyper_scheduler.core.state import (
    SLOT,
    ExperimentRun,
    RunState,
    State,
    TenantUse,
    WorkerRun,
    WorkflowRun,
)

MAX_MESSAGE = 1024


def touch(state: State, task: TaskId, now: float) -> None:
    """The task's page must be written, its workflow settled and shown."""
    pending = state.pending
    pending.pages[PageKey(task.workflow, task.experiment, task.index // PAGE_TASKS)] = None
    if pending.since is None:
        pending.since = now
    state.unsettled[task.workflow] = None
    state.touched[task.workflow] = None


def touch_head(state: State, workflow: str, now: float) -> None:
    """The workflow's head must be written."""
    state.pending.heads[workflow] = None
    if state.pending.since is None:
        state.pending.since = now
    state.touched[workflow] = None


def count_move(state: State, to: str, count: int = 1) -> None:
    """For the metrics."""
    state.moved[to] = state.moved.get(to, 0) + count


def fits(worker: WorkerRun, spec: Experiment, share: int = SLOT) -> bool:
    """Whether the worker could take one more task of the experiment now."""
    need, have = spec.hardware, worker.capacity
    if worker.load + share > have.slots * SLOT:
        return False
    part = share / SLOT
    if need.cpus and worker.cpus_used + need.cpus * part > have.cpus + 1e-6:
        return False
    if need.memory_bytes and worker.memory_used + need.memory_bytes * part > have.memory_bytes + 1:
        return False
    if need.gpus and worker.gpus_used + need.gpus * part > have.gpus + 1e-6:
        return False
    labels = dict(have.labels)
    if need.gpu and labels.get("gpu", need.gpu) != need.gpu:
        return False
    return all(labels.get(key) == value for key, value in spec.labels.items())


def refresh_ready(state: State, worker: WorkerRun) -> None:
    """Put the worker into the queue of those with a free slot, or take it out."""
    free = worker.load < worker.capacity.slots * SLOT
    if worker.session and not worker.draining and free:
        if worker.name not in state.ready:
            state.ready[worker.name] = None
            state.wake = True
    else:
        state.ready.pop(worker.name, None)


def assign(state: State, task: TaskId, attempt: Attempt, worker: WorkerRun, now: float) -> None:
    """The worker holds the task from now on."""
    workflow = state.workflows[task.workflow]
    run = workflow.experiments[task.experiment]
    hold(run, task, attempt, worker, run.share, now)
    settle_assigned(state, workflow, run, worker, (task,), run.share, now)


def hold(
    run: ExperimentRun, task: TaskId, attempt: Attempt, worker: WorkerRun, share: int, now: float
) -> None:
    """The task's part of `assign`."""
    page = run.page(task.index)
    record = page.records.get(task.index)
    if record is None:
        record = page.records[task.index] = Record(Status.RUNNING)
    record.status, record.attempt, record.worker = Status.RUNNING, attempt, worker.name
    record.start_time, record.end_time, record.reported = now, 0.0, False
    record.share = share
    worker.running[task] = attempt


def settle_assigned(
    state: State, workflow: WorkflowRun, run: ExperimentRun, worker: WorkerRun,
    tasks: Sequence[TaskId], share: int, now: float,
) -> None:  # fmt: skip
    """What `assign` does to everything around tasks that one worker now holds."""
    run.running += len(tasks)
    take_share(state, workflow, run.spec.name, worker, share * len(tasks))
    refresh_ready(state, worker)
    for number in {task.index // PAGE_TASKS for task in tasks}:
        touch(state, TaskId(workflow.name, run.spec.name, number * PAGE_TASKS), now)
    count_move(state, "running", len(tasks))


def _occupy(state: State, task: TaskId, worker: WorkerRun, record: Record, share: int) -> None:
    """The task takes `share` of a slot."""
    record.share = share
    take_share(state, state.workflows[task.workflow], task.experiment, worker, share)


def take_share(
    state: State, workflow: WorkflowRun, experiment: str, worker: WorkerRun, share: int
) -> None:
    """A part of a slot of the worker, with the hardware that goes with it; less than 0: back."""
    worker.load += share
    _use(worker, workflow.experiments[experiment].spec.hardware, share / SLOT)
    tenant = workflow.tenant
    use = state.tenants.get(tenant)
    if use is None:
        use = state.tenants[tenant] = TenantUse()
    use.used += share


def _use(worker: WorkerRun, need: Hardware, part: float) -> None:
    if need.cpus or need.memory_bytes or need.gpus:
        worker.cpus_used += need.cpus * part
        worker.memory_used += need.memory_bytes * part
        worker.gpus_used += need.gpus * part


def release(state: State, task: TaskId, record: Record) -> None:
    """The worker no longer holds the task; the record's new status is the caller's business."""
    run = state.workflows[task.workflow].experiments[task.experiment]
    run.running -= 1
    state.wake = True
    worker = state.workers[record.worker]
    del worker.running[task]
    worker.doubtful.pop(task, None)
    workflow = state.workflows[task.workflow]
    take_share(state, workflow, task.experiment, worker, -record.share)
    refresh_ready(state, worker)


def fill_slots(state: State, worker: WorkerRun) -> None:
    """The worker has given tasks back, so that what it keeps takes long: a slot each."""
    for task in worker.running:
        workflow = state.workflows[task.workflow]
        record = workflow.experiments[task.experiment].page(task.index).records[task.index]
        take_share(state, workflow, task.experiment, worker, -record.share)
        _occupy(state, task, worker, record, SLOT)
    refresh_ready(state, worker)


def lose(state: State, task: TaskId, now: float) -> None:
    """A running attempt ended with its node: run again, without counting a failure."""
    run = state.workflows[task.workflow].experiments[task.experiment]
    record = run.page(task.index).records[task.index]
    release(state, task, record)
    _count_loss(state, run, task, record, now)


def _count_loss(state: State, run: ExperimentRun, task: TaskId, record: Record, now: float) -> None:
    record.losses += 1
    run.lost += 1
    touch_head(state, task.workflow, now)
    count_move(state, "lost")
    _run_again(state, run, task, record, now)


def _run_again(state: State, run: ExperimentRun, task: TaskId, record: Record, now: float) -> None:
    record.status, record.end_time = Status.PENDING, now
    heapq.heappush(run.again, task.index)
    touch(state, task, now)
    state.wake = True


def is_current(state: State, task: TaskId, attempt: Attempt) -> bool:
    """Whether this attempt is one that a worker should be running."""
    run = state.experiment(task)
    record = None if run is None else run.record(task.index)
    return record is not None and record.status is Status.RUNNING and record.attempt == attempt


def adoptable(state: State, task: TaskId, attempt: Attempt) -> bool:
    """Whether a worker that says it runs this attempt may go on with it.

    So it is for the newest attempt known, and for one that an earlier scheduler gave out
    without living to write it down.
    """
    run = state.experiment(task)
    if run is None or run.state.ended or run.is_done(task.index):
        return False
    workflow = state.workflows[task.workflow]
    if workflow.stopping is not None or run.state is not RunState.RUNNING:
        return False
    record = run.record(task.index)
    if record is None or record.attempt is None:
        return attempt.epoch < state.epoch
    if record.status is Status.FAILED:
        return False
    if attempt == record.attempt:
        return record.status is Status.PENDING and not record.reported
    return attempt > record.attempt and attempt.epoch < state.epoch


def adopt(state: State, task: TaskId, attempt: Attempt, worker: WorkerRun, now: float) -> None:
    """The worker goes on with an `adoptable` attempt."""
    record = state.workflows[task.workflow].experiments[task.experiment].record(task.index)
    if record is not None and record.status is Status.RUNNING:
        release(state, task, record)  # an older attempt; what it reports will be too late
    assign(state, task, attempt, worker, now)


def take_report(state: State, report: Report, now: float) -> bool:
    """Work in one report of an attempt that has ended; False when it came too late to matter."""
    task, attempt = report.task, report.attempt
    run = state.experiment(task)
    if run is None or run.is_done(task.index) or state.workflows[task.workflow].state.ended:
        return False
    record = run.record(task.index)
    newest = None if record is None else record.attempt
    if newest != attempt:
        if attempt.epoch >= state.epoch or (newest is not None and attempt < newest):
            return False  # superseded, or never given out
        record = _unwritten(state, run, task, attempt, now)
        fresh = True
    else:
        fresh = record is not None and record.status is Status.RUNNING
    assert record is not None  # newest == attempt, or just made
    if not fresh and (record.reported or report.outcome is not Outcome.SUCCEEDED):
        return False  # what this attempt has come to is known already
    if record.status is Status.RUNNING:
        release(state, task, record)
    _conclude(state, run, report, record, now)
    return True


def _unwritten(
    state: State, run: ExperimentRun, task: TaskId, attempt: Attempt, now: float
) -> Record:
    """A record for an attempt that an earlier scheduler gave out without writing it down."""
    page = run.page(task.index)
    record = page.records.get(task.index)
    if record is not None and record.status is Status.RUNNING:
        release(state, task, record)
    if record is None:
        record = page.records[task.index] = Record(Status.PENDING)
    record.status, record.attempt, record.start_time = Status.PENDING, attempt, now
    record.reported = False
    return record


def _conclude(state: State, run: ExperimentRun, report: Report, record: Record, now: float) -> None:
    task = report.task
    record.reported = True
    match report.outcome:
        case Outcome.SUCCEEDED:
            run.page(task.index).set_done(task.index, _line(report, record, now))
            run.succeeded += 1
            wall_s = max(report.wall_s, 1e-6)
            mean_s = run.mean_s or wall_s
            new = 0.5 if wall_s < mean_s else 0.1  # the first call may have paid for imports
            run.mean_s = mean_s + new * (wall_s - mean_s)
            state.pending.results += 1
            touch(state, task, now)
        case Outcome.FAILED:
            record.failures += 1
            record.message = report.message[:MAX_MESSAGE]
            if record.failures <= run.spec.retries:
                _run_again(state, run, task, record, now)
            else:
                record.status, record.end_time = Status.FAILED, now
                run.failed += 1
                touch(state, task, now)
        case Outcome.PREEMPTED:
            _count_loss(state, run, task, record, now)
        case Outcome.STOPPED | Outcome.RUNNING | Outcome.RETURNED:
            _run_again(state, run, task, record, now)
    count_move(state, report.outcome.value)


def _line(report: Report, record: Record, now: float) -> str:
    """One line of a result object."""
    epoch, number = report.attempt
    return (
        f'{{"i":{report.task.index},"attempt":[{epoch},{number}],"worker":{_quoted(record.worker)},'
        f'"failures":{record.failures},"losses":{record.losses},'
        f'"start":{record.start_time!r},"end":{now!r},'
        f'"wall_s":{report.wall_s!r},"cpu_s":{report.cpu_s!r},'
        f'"peak_rss_bytes":{report.peak_rss_bytes},"result":{_quoted(report.result_json)}}}'
    )
