"""A task's life: given to a worker, reported, lost, and what that does to everything around it."""

from __future__ import annotations

from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as _quoted

from hyper_scheduler.core.events import Outcome, Report
from hyper_scheduler.core.model import Attempt, Experiment, Hardware, Spot, TaskId
from hyper_scheduler.core.pages import PAGE_TASKS, Blame, PageKey, Record, Status
from hyper_scheduler.core.poison import is_poison, verdict
from hyper_scheduler.core.state import (
    SLOT,
    ExperimentRun,
    RunState,
    State,
    TenantUse,
    WorkerRun,
    WorkflowRun,
)
from hyper_scheduler.core.trials import stopped_line, take_result

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
    if worker.alone is not None or worker.load + share > have.slots * SLOT:
        return False
    part = share / SLOT
    if need.cpus and worker.cpus_used + need.cpus * part > have.cpus + 1e-6:
        return False
    if (
        need.memory_bytes
        and worker.memory_used + need.memory_bytes * part > have.for_tasks_bytes + 1
    ):
        return False
    if need.gpus and worker.gpus_used + need.gpus * part > have.gpus + 1e-6:
        return False
    kind = need.gpu or need.instance_type or need.clouds or need.spot is Spot.NEVER or spec.labels
    return not (kind and wrong_labels(worker, spec))


def wrong_labels(worker: WorkerRun, spec: Experiment) -> bool:
    """Whether the worker is not of the kind that the experiment asks for."""
    labels, need = dict(worker.capacity.labels), spec.hardware
    if need.gpu and labels.get("gpu", need.gpu).lower() != need.gpu.lower():
        return True
    if need.instance_type and labels.get("instance_type", need.instance_type) != need.instance_type:
        return True
    if need.spot is Spot.NEVER and labels.get("spot") == "true":
        return True  # launched for another experiment
    if need.clouds and labels.get("cloud", need.clouds[0]) not in need.clouds:
        return True
    return any(labels.get(key) != value for key, value in spec.labels.items())


def room(worker: WorkerRun, spec: Experiment, share: int) -> int:
    """How many tasks of `share` of a slot there is room for at a worker that `fits` one."""
    need, have, part = spec.hardware, worker.capacity, share / SLOT
    pairs = (
        (need.cpus, have.cpus - worker.cpus_used),
        (need.memory_bytes, have.for_tasks_bytes - worker.memory_used),
        (need.gpus, have.gpus - worker.gpus_used),
    )
    slots = (have.slots * SLOT - worker.load) // share
    rooms = (int((left + 1e-6) / (each * part)) for each, left in pairs if each)
    return max(1, min((slots, *rooms)))


def places_when_empty(worker: WorkerRun, spec: Experiment) -> int:
    """How many tasks of the experiment the worker could run at once if it ran nothing else."""
    need, have = spec.hardware, worker.capacity
    if wrong_labels(worker, spec):
        return 0
    memory = (need.memory_bytes, have.for_tasks_bytes)
    pairs = ((need.cpus, have.cpus), memory, (need.gpus, have.gpus))
    rooms = (int((there + 1e-6) / each) for each, there in pairs if each)
    return min((have.slots, *rooms))


def refresh_ready(state: State, worker: WorkerRun) -> None:
    """Put the worker into the queue of those with a free slot, or take it out."""
    free = worker.alone is None and worker.load < worker.capacity.slots * SLOT
    if worker.session and not worker.draining and free:
        state.gained[worker.name] = None
        if worker.name not in state.ready:
            state.ready[worker.name] = None
            state.wake = True
    else:
        state.ready.pop(worker.name, None)


def assign(state: State, task: TaskId, attempt: Attempt, worker: WorkerRun, now: float) -> None:
    """The worker holds the task from now on."""
    workflow = state.workflows[task.workflow]
    run = workflow.experiments[task.experiment]
    share = run.share(len(state.workers))
    hold(run, task, attempt, worker, share, now)
    settle_assigned(state, workflow, run, worker, (task,), share, now)


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
    record.share, record.alone = share, False
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


def set_alone(
    state: State, run: ExperimentRun, task: TaskId, worker: WorkerRun, owner: TaskId
) -> None:
    """The worker that holds the task gets nothing but what belongs to `owner`."""
    run.page(task.index).records[task.index].alone = True
    worker.alone = owner
    refresh_ready(state, worker)


def _occupy(state: State, task: TaskId, worker: WorkerRun, record: Record, share: int) -> None:
    """The task takes `share` of a slot."""
    record.share = share
    take_share(state, state.workflows[task.workflow], task.experiment, worker, share)


def take_share(
    state: State, workflow: WorkflowRun, experiment: str, worker: WorkerRun, share: int
) -> None:
    """A part of a slot of the worker, with the hardware that goes with it; less than 0: back."""
    worker.load += share
    run = workflow.experiments[experiment]
    _use(worker, run.spec.hardware, share / SLOT)
    if run.spec.workers:
        run.take(worker.name, share)
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
    worker.ports.pop(task, None)
    if not worker.running:
        worker.alone = None
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


def lose(state: State, task: TaskId, now: float, *, seen: float | None = None) -> None:
    """A running attempt ended with its node: run again, without counting a failure.

    Args:
        seen: when its worker was heard last, if it is the worker that is gone.
    """
    run = state.workflows[task.workflow].experiments[task.experiment]
    record = run.page(task.index).records[task.index]
    release(state, task, record)
    if seen is not None:
        record.crashes += 1
        if record.alone:
            record.lone_crashes += 1
            record.lone_s += max(1.0, seen - record.start_time)
    _count_loss(state, run, task, record, now)


def _count_work(state: State, run: ExperimentRun, worker: str, wall_s: float) -> None:
    """How fast machines of each offer are, and what was lost with them, is told to the shell."""
    there = state.workers.get(worker)
    if there is not None and there.capacity.offer:
        sums = state.worked.setdefault((run.kind, there.capacity.offer), [0.0, 0.0])
        sums[0] += 1
        sums[1] += wall_s


def _count_data(state: State, run: ExperimentRun, worker: str) -> None:
    """What an attempt moves between a launched machine and storage, as its recipe says."""
    size, there = run.spec.hardware.data_bytes, state.workers.get(worker)
    if size and there is not None and there.capacity.offer:
        state.carried[worker] = state.carried.get(worker, 0) + size


def _count_rework(
    state: State, run: ExperimentRun, record: Record, now: float, *, announced: bool
) -> None:
    """Seconds of a launched machine's work that must be done again."""
    there = state.workers.get(record.worker)
    if there is None or not there.capacity.offer:
        return
    lost_s = max(0.0, now - record.start_time)
    if run.spec.around.checkpoint_every_s:
        # the worker saves it once more when its machine is taken away with a notice
        lost_s = 0.0 if announced else min(lost_s, run.spec.around.checkpoint_every_s)
    elif record.share < SLOT and run.mean_s:
        lost_s = min(lost_s, run.mean_s)  # it was one of many that waited for their turn
    state.rework_s[record.worker] = state.rework_s.get(record.worker, 0.0) + lost_s


def _count_loss(
    state: State, run: ExperimentRun, task: TaskId, record: Record, now: float,
    *, announced: bool = False,
) -> None:  # fmt: skip
    record.losses += 1
    run.lost += 1
    _count_data(state, run, record.worker)
    _count_rework(state, run, record, now, announced=announced)
    touch_head(state, task.workflow, now)
    count_move(state, "lost")
    trial = run.trial(task.index)
    if trial is not None and trial.stopped:
        _finish(state, run, task, record, stopped_line(run, task, record, trial, now), now)
        return
    if run.spec.gang > 1:
        record.blame = Blame.LOST
    elif give_up_poison(state, run, task, record, now):
        return
    run_again(state, run, task, record, now)


def run_again(state: State, run: ExperimentRun, task: TaskId, record: Record, now: float) -> None:
    """The task waits for its next attempt."""
    record.status, record.end_time = Status.PENDING, now
    if run.spec.gang > 1:
        look_at_gang(state, run, task)
    else:
        run.wait_again(task.index, record)
    touch(state, task, now)
    state.wake = True


def _give_up(state: State, run: ExperimentRun, task: TaskId, record: Record, now: float) -> None:
    record.status, record.end_time = Status.FAILED, now
    run.failed += 1
    touch(state, task, now)


def give_up_poison(
    state: State, run: ExperimentRun, task: TaskId, record: Record, now: float
) -> bool:
    """Set a task aside that ends its workers; whether it is one."""
    if not record.lone_crashes or not is_poison(state, record):
        return False
    record.message = verdict(record)
    _give_up(state, run, task, record, now)
    return True


def fail_or_again(
    state: State, run: ExperimentRun, task: TaskId, record: Record, now: float, *, permanent: bool
) -> None:
    """An attempt failed by itself."""
    record.failures += 1
    if permanent or record.failures > run.spec.retries:
        _give_up(state, run, task, record, now)
    else:
        run_again(state, run, task, record, now)


def look_at_gang(state: State, run: ExperimentRun, task: TaskId) -> None:
    """Something has happened to a task of a gang."""
    state.broken[task._replace(index=run.gang_of(task.index)[0])] = None


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
        _supersede(state, task, record)
    assign(state, task, attempt, worker, now)
    if worker.alone is not None:  # it was not as alone as an earlier leader thought
        worker.alone = None
        for other in worker.running:
            where = state.workflows[other.workflow].experiments[other.experiment]
            where.page(other.index).records[other.index].alone = False
        refresh_ready(state, worker)
    run = state.workflows[task.workflow].experiments[task.experiment]
    if run.spec.gang > 1:
        look_at_gang(state, run, task)


def _supersede(state: State, task: TaskId, record: Record) -> None:
    """A newer attempt has come to light: what an older one reports will be too late, so it ends."""
    assert record.attempt is not None  # it runs
    state.superseded.append((record.worker, task, record.attempt))
    release(state, task, record)


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
        _supersede(state, task, record)
    if record is None:
        record = page.records[task.index] = Record(Status.PENDING)
    record.status, record.attempt, record.start_time = Status.PENDING, attempt, now
    record.reported = False
    return record


def _conclude(state: State, run: ExperimentRun, report: Report, record: Record, now: float) -> None:
    task, outcome = report.task, report.outcome
    record.reported = True
    if outcome not in (Outcome.PREEMPTED, Outcome.RETURNED):
        record.crashes, record.lone_crashes, record.lone_s = 0, 0, 0.0
        _count_data(state, run, record.worker)  # of the others: as lost, or they began nothing
    count_move(state, outcome.value)
    trial = run.trial(task.index)
    if trial is not None and trial.stopped and outcome is not Outcome.SUCCEEDED:
        _finish(state, run, task, record, stopped_line(run, task, record, trial, now), now)
        return
    match outcome:
        case Outcome.SUCCEEDED:
            wall_s = max(report.wall_s, 1e-6)
            mean_s = run.mean_s or wall_s
            new = 0.5 if wall_s < mean_s else 0.1  # the first call may have paid for imports
            run.mean_s = mean_s + new * (wall_s - mean_s)
            _count_work(state, run, record.worker, wall_s)
            if run.spec.objective is not None:
                take_result(run, task.index, report.result_json)
            _finish(state, run, task, record, _line(report, record, now), now)
        case Outcome.FAILED:
            record.message = report.message[:MAX_MESSAGE]
            if run.spec.gang > 1:
                record.blame = Blame.PERMANENT if report.permanent else Blame.FAILED
                run_again(state, run, task, record, now)
            else:
                fail_or_again(state, run, task, record, now, permanent=report.permanent)
        case Outcome.PREEMPTED:
            _count_loss(state, run, task, record, now, announced=True)
        case Outcome.STOPPED | Outcome.RUNNING | Outcome.RETURNED:
            run_again(state, run, task, record, now)


def _finish(
    state: State, run: ExperimentRun, task: TaskId, record: Record, line: str, now: float
) -> None:
    """The task has succeeded; one of a gang is held until all of it has."""
    page = run.page(task.index)
    if run.spec.gang > 1:
        record.status, record.end_time = Status.HELD, now
        page.fresh.append(line)
        look_at_gang(state, run, task)
    else:
        page.set_done(task.index, line)
        run.succeeded += 1
    state.pending.results += 1
    touch(state, task, now)


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
