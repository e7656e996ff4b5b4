"""What always holds between two events. Tests and the simulator check it; production does not."""

from __future__ import annotations

from collections.abc import Iterator

from hyper_scheduler.core.model import Attempt, Experiment, TaskId
from hyper_scheduler.core.pages import PAGE_TASKS, Status
from hyper_scheduler.core.state import (
    SLOT,
    SUSPECT,
    ExperimentRun,
    RunState,
    State,
    WorkerRun,
    WorkflowRun,
)
from hyper_scheduler.core.tasks import fits


def check_invariants(state: State) -> None:
    """Raise an AssertionError that names the first thing that is wrong."""
    held: dict[TaskId, tuple[str, Attempt]] = {}
    for worker in state.workers.values():
        _check_worker(state, worker)
        for task, attempt in worker.running.items():
            assert task not in held, f"{task.name} is held by {held[task]} and {worker.name}"
            held[task] = (worker.name, attempt)
    running: dict[TaskId, tuple[str, Attempt]] = {}
    for workflow in state.workflows.values():
        for task, entry in _check_workflow(state, workflow):
            running[task] = entry
    _check_tenants(state)
    _check_barren(state)
    kept = {name for names in state.kept.values() for name in names}
    ended = {each.name for each in state.workflows.values() if each.durable.ended}
    assert kept == ended, f"not those that have durably ended are kept: {kept ^ ended}"
    assert not state.discarding.keys() & state.workflows.keys(), "forgotten ones are there"
    assert running == held, "records and workers disagree on what runs"
    assert not state.unsettled, "a step has left something unsettled"


def _check_barren(state: State) -> None:
    """Where a task is not looked for a place, there is none."""
    reserved = state.reserved
    for need in state.barren:
        spec = Experiment("", hardware=need.hardware, labels=dict(need.labels))
        for name in state.ready.keys() - state.gained.keys():
            kept = reserved is not None and name in reserved.workers
            if not (kept and reserved is not None and reserved.priority >= need.priority):
                assert not fits(state.workers[name], spec, need.share), f"{name} has room: {need}"


def _check_tenants(state: State) -> None:
    used: dict[str, int] = {}
    for worker in state.workers.values():
        for task in worker.running:
            workflow = state.workflows[task.workflow]
            record = workflow.experiments[task.experiment].page(task.index).records[task.index]
            used[workflow.tenant] = used.get(workflow.tenant, 0) + record.share
    known = {name: use.used for name, use in state.tenants.items() if use.used}
    assert known == used, "tenants use other slots than their tasks do"


def _check_worker(state: State, worker: WorkerRun) -> None:
    name = worker.name
    free = worker.alone is None and worker.load < worker.capacity.slots * SLOT
    if worker.alone is not None:
        run = state.workflows[worker.alone.workflow].experiments[worker.alone.experiment]
        mine = {worker.alone._replace(index=i) for i in run.gang_of(worker.alone.index)}
        assert worker.running and worker.running.keys() <= mine, f"worker {name}: not alone"
    assert worker.ports.keys() <= worker.running.keys(), f"worker {name}: ports of the unknown"
    ready = bool(worker.session) and not worker.draining and free
    assert (name in state.ready) == ready, f"worker {name}: ready is {not ready}"
    assert worker.doubtful.keys() <= worker.running.keys(), f"worker {name}: doubts the unknown"
    load, cpus, memory, gpus = 0, 0.0, 0.0, 0.0
    for task in worker.running:
        run = state.workflows[task.workflow].experiments[task.experiment]
        need, share = run.spec.hardware, run.page(task.index).records[task.index].share
        part, load = share / SLOT, load + share
        cpus, memory = cpus + need.cpus * part, memory + need.memory_bytes * part
        gpus += need.gpus * part
    assert worker.load == load, name
    assert abs(worker.cpus_used - cpus) < 1e-6, name
    assert abs(worker.memory_used - memory) < 1.0, name
    assert abs(worker.gpus_used - gpus) < 1e-6, name
    assert name not in state.lost, f"worker {name} lives and is lost"


def _check_workflow(
    state: State, workflow: WorkflowRun
) -> Iterator[tuple[TaskId, tuple[str, Attempt]]]:
    name = workflow.name
    active = not workflow.state.ended and workflow.stopping is None
    assert (name in state.active) == active, f"{name}: active is {not active}"
    if workflow.state.ended:
        assert workflow.running == 0, f"{name} has ended and runs"
        assert all(run.state.ended for run in workflow.experiments.values()), name
    else:
        assert not workflow.durable.ended, f"{name} was shown as ended"
    for run in workflow.experiments.values():
        _check_experiment(workflow, run)
        if run.state is RunState.RUNNING and not run.failed:
            _check_line(state, workflow, run)
        for page in run.pages.values():
            for index, record in page.records.items():
                if record.status is Status.RUNNING:
                    assert record.attempt is not None
                    task = TaskId(name, run.spec.name, index)
                    yield task, (record.worker, record.attempt)


def _check_experiment(workflow: WorkflowRun, run: ExperimentRun) -> None:
    where = f"{workflow.name}/{run.spec.name}"
    counts = dict.fromkeys(Status, 0)
    done = 0
    for number, page in run.pages.items():
        assert int.from_bytes(page.done).bit_count() == page.done_count, f"{where}: page {number}"
        done += page.done_count
        for index, record in page.records.items():
            counts[record.status] += 1
            assert index // PAGE_TASKS == number and 0 <= index < run.total, f"{where}: {index}"
            assert not page.is_done(index), f"{where}: task {index} is done and has a record"
            if record.status is Status.FAILED:
                assert record.failures or record.lone_crashes, f"{where}: task {index} gave up"
            if record.status is Status.HELD:
                assert run.spec.gang > 1, f"{where}: task {index} is held and has no gang"
    assert (run.succeeded, run.failed) == (done, counts[Status.FAILED]), f"{where}: counts"
    assert run.running == counts[Status.RUNNING], f"{where}: running"
    if run.spec.workers:
        _check_held(run, where)
    assert run.succeeded + run.failed + run.running <= run.total, where
    if run.state is RunState.SUCCEEDED:
        assert run.succeeded == run.total, f"{where} succeeded without all its tasks"
    if run.state is RunState.PENDING:
        assert not run.running, f"{where} runs before its turn"


def _check_held(run: ExperimentRun, where: str) -> None:
    """What limits an experiment is counted as it is held."""
    held: dict[str, int] = {}
    for page in run.pages.values():
        for record in page.records.values():
            if record.status is Status.RUNNING:
                held[record.worker] = held.get(record.worker, 0) + record.share
    assert run.held == held, f"{where}: held"
    assert run.slots == sum(-(-each // SLOT) for each in held.values()), f"{where}: slots"
    assert run.begun.keys() == {name for name, each in held.items() if each % SLOT}, where


def _check_line(state: State, workflow: WorkflowRun, run: ExperimentRun) -> None:
    """Everything that can run is in line for it."""
    where = f"{workflow.name}/{run.spec.name}"
    if run.spec.gang > 1:
        for unit in range(run.units):
            _check_gang(state, workflow, run, unit)
        return
    again, suspects = set(run.again), set(run.suspects)
    for page in run.pages.values():
        for index, record in page.records.items():
            if record.status is Status.PENDING:
                line = suspects if record.crashes >= SUSPECT else again
                assert index in line, f"{where}: task {index} would never run again"
    for index in range(run.total if run.spec.each else 0):
        if run.record(index) is None and not run.is_done(index):
            free = _precedes(workflow, run, index)
            assert not free or index in run.open, f"{where}: task {index} would never run"


def _precedes(workflow: WorkflowRun, run: ExperimentRun, unit: int) -> bool:
    """Whether everything that a task or gang follows is durably done."""
    for name in run.spec.each:
        before = workflow.experiments[name]
        for index in before.gang_of(unit * before.spec.gang):
            page = before.pages.get(index // PAGE_TASKS)
            if page is None or not page.durable >> (index % PAGE_TASKS) & 1:
                return False
    return True


def _check_gang(state: State, workflow: WorkflowRun, run: ExperimentRun, unit: int) -> None:
    indices = run.gang_of(unit * run.spec.gang)
    first = TaskId(workflow.name, run.spec.name, indices[0])
    where = f"{workflow.name}/{run.spec.name}: gang {unit}"
    done = [run.is_done(index) for index in indices]
    assert all(done) or not any(done), f"{where} is done in part"
    if all(done) or first in state.broken or workflow.stopping is not None:
        return
    records = [run.record(index) for index in indices]
    alive = [r for r in records if r is not None and r.status in (Status.RUNNING, Status.HELD)]
    running = [record for record in alive if record.status is Status.RUNNING]
    if not running:
        assert not alive, f"{where} is held and nothing of it runs"
        assert unit in run.gangs or not _precedes(workflow, run, unit), f"{where} never runs"
    elif len(alive) == len(records):
        starts = {
            (record.attempt.epoch, record.attempt.number - rank)
            for rank, record in enumerate(records)
            if record is not None and record.attempt is not None
        }
        held = any(record.status is Status.HELD for record in alive)
        assert len(starts) == 1 or not held, f"{where} is held in part"
