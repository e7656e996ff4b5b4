"""What always holds between two events. Tests and the simulator check it; production does not."""

from __future__ import annotations

from collections.abc import Iterator

from hyper_scheduler.core.model import Attempt, TaskId
from hyper_scheduler.core.pages import PAGE_TASKS, Status
from hyper_scheduler.core.state import SLOT, ExperimentRun, RunState, State, WorkerRun, WorkflowRun


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
    assert running == held, "records and workers disagree on what runs"
    assert not state.unsettled, "a step has left something unsettled"


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
    free = worker.load < worker.capacity.slots * SLOT
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
                assert record.failures > run.spec.retries, f"{where}: task {index} gave up early"
    assert (run.succeeded, run.failed) == (done, counts[Status.FAILED]), f"{where}: counts"
    assert run.running == counts[Status.RUNNING], f"{where}: running"
    assert run.succeeded + run.failed + run.running <= run.total, where
    if run.state is RunState.SUCCEEDED:
        assert run.succeeded == run.total, f"{where} succeeded without all its tasks"
    if run.state is RunState.PENDING:
        assert not run.running, f"{where} runs before its turn"
    waiting = set(run.again)
    for page in run.pages.values():
        for index, record in page.records.items():
            if record.status is Status.PENDING:
                assert index in waiting, f"{where}: task {index} would never run again"
