"""What is stored -> a state to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyper_scheduler.core.following import begin
from hyper_scheduler.core.model import Recipe, TaskId
from hyper_scheduler.core.pages import PageKey, Status, decode_page
from hyper_scheduler.core.retention import keep
from hyper_scheduler.core.state import (
    Capacity,
    ExperimentRun,
    Limits,
    Request,
    RunState,
    State,
    WorkerRun,
    WorkflowRun,
    experiment_runs,
)
from hyper_scheduler.core.tasks import look_at_gang, take_share
from hyper_scheduler.core.trials import restore_trials


@dataclass(frozen=True, slots=True)
class StoredWorkflow:
    """A workflow as etcd holds it."""

    head: bytes
    recipe: Recipe
    recipe_yaml: str
    pages: Mapping[PageKey, bytes] = field(default_factory=dict)


def restore(
    workflows: Mapping[str, StoredWorkflow],
    requests: Mapping[str, Request],
    drained: list[str],
    forgotten: Sequence[str] = (),
    *,
    epoch: int,
    now: float,
    limits: Limits,
) -> State:
    """A leader's first state.

    Args:
        workflows: by name.
        requests: answers that may be asked for again.
        drained: workers that get nothing new.
        forgotten: workflows whose results an earlier leader may have left behind.
        epoch: of this leader.
        now: the time.
        limits: bounds and delays.

    Tasks that were running stay so: their workers have a lease's time to come and say so.
    """
    state = State(epoch, limits, wake=True, checked_at=now)
    state.requests = dict(requests)
    state.drained = dict.fromkeys(drained)
    state.discarding, state.left_over = dict.fromkeys(forgotten), list(forgotten)
    found = [restore_workflow(name, stored) for name, stored in workflows.items()]
    for workflow in sorted(found, key=lambda each: each.end_time):
        if workflow.state.ended:
            keep(state, workflow)
    for workflow in found:
        name = workflow.name
        state.workflows[name] = workflow
        if not workflow.state.ended:
            state.unsettled[name] = None
            if workflow.stopping is None:
                state.active[name] = None
        for run in workflow.experiments.values():
            _expect_workers(state, workflow, run, now)
    if state.workers:  # what they run may not have been written down: giving it out ran it twice
        state.expected = dict.fromkeys(state.workers)
        state.held, state.hold_until = dict(state.active), now + limits.lease_s
    return state


def restore_workflow(name: str, stored: StoredWorkflow) -> WorkflowRun:
    """One workflow with its counts."""
    head: dict[str, Any] = json.loads(stored.head)
    workflow = WorkflowRun(
        name=name,
        recipe=stored.recipe,
        recipe_yaml=stored.recipe_yaml,
        experiments=experiment_runs(stored.recipe),
        create_time=head["create_time"],
        state=RunState(head["state"]),
        stopping=None if head["stopping"] is None else RunState(head["stopping"]),
        paused=head.get("paused", False),
        message=head["message"],
        end_time=head["end_time"],
        generation=head["generation"],
        stored=head["generation"],
        durable=RunState(head["state"]),
    )
    for key, data in stored.pages.items():
        workflow.experiments[key.experiment].pages[key.page] = decode_page(data)
    for key, facts in head["experiments"].items():
        run = workflow.experiments[key]
        run.state = RunState(facts["state"])
        run.start_time, run.end_time = facts["start_time"], facts["end_time"]
        run.lost, run.message = facts["lost"], facts["message"]
        run.durable = run.state is RunState.SUCCEEDED
        run.total = facts.get("total", run.total)
        _count(run)
        restore_trials(run)
        run.message = facts["message"]
    for run in workflow.experiments.values():
        if run.state is RunState.RUNNING:
            begin(workflow, run)
    return workflow


def _count(run: ExperimentRun) -> None:
    for page in run.pages.values():
        run.succeeded += page.done_count
        if run.feeds:
            page.durable = int.from_bytes(page.done, "little")
        for record in page.records.values():
            run.running += record.status is Status.RUNNING
            run.failed += record.status is Status.FAILED


def _expect_workers(state: State, workflow: WorkflowRun, run: ExperimentRun, now: float) -> None:
    """A stand-in for each worker that held a task; lost unless it comes back in time."""
    for number in sorted(run.pages):
        for index, record in run.pages[number].records.items():
            task = TaskId(workflow.name, run.spec.name, index)
            if run.spec.gang > 1:
                look_at_gang(state, run, task)
            if record.status is not Status.RUNNING or record.attempt is None:
                continue
            worker = state.workers.get(record.worker)
            if worker is None:
                worker = WorkerRun(record.worker, Capacity(0), 0, now, now)
                worker.draining = record.worker in state.drained
                state.workers[record.worker] = worker
            worker.running[task] = record.attempt
            if record.alone:
                worker.alone = task._replace(index=run.gang_of(index)[0])
            take_share(state, workflow, run.spec.name, worker, record.share)
