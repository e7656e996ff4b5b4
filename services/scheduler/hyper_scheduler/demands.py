"""What the experiments under way need of machines, from the core's state."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hyper_scheduler.core.model import Hardware
from hyper_scheduler.core.pages import Status
from hyper_scheduler.core.state import ExperimentRun, RunState, State, WorkflowRun
from hyper_scheduler.core.tasks import places_when_empty
from hyper_scheduler.placement.demand import Demand, Known
from hyper_scheduler.placement.fleet import UNKNOWN_TASK_S

COLD_START_S = Known().cold_start_h * 3600


def demands(
    state: State, owned: Iterable[tuple[str, str]], now: float, machines: int
) -> list[Demand]:
    """Experiments with tasks to run, and those that own machines; the urgent first.

    Args:
        state: of the core.
        owned: workflow and experiment of each machine.
        now: seconds since 1970.
        machines: at most, in all.
    """
    found: dict[tuple[str, str], Demand] = {}
    for workflow in state.workflows.values():
        for run in workflow.experiments.values():
            demand = demand_of(workflow, run, now, machines)
            if demand is not None:
                found[workflow.name, run.spec.name] = demand
    for workflow_name, experiment in owned:
        key = (workflow_name, experiment)
        found.setdefault(key, Demand(*key, 0, 1, Hardware()))
    return sorted(found.values(), key=lambda each: each.left_s)


def demand_of(
    workflow: WorkflowRun, run: ExperimentRun, now: float, machines: int
) -> Demand | None:
    """What an experiment needs now; None: nothing."""
    if workflow.state.ended or workflow.stopping is not None:
        return None
    if run.state is not RunState.RUNNING or run.spec.items:
        return None
    left = run.total - run.succeeded - run.failed
    if left <= 0:
        return None
    task_s = run.mean_s or _running_for_s(run, now)
    left_s = deadline_s = math.inf
    if workflow.recipe.deadline_s is not None:
        deadline_s = workflow.recipe.deadline_s
        left_s = workflow.create_time + deadline_s - now
        left_s -= tail_s(workflow.experiments, run, task_s, machines)
    return Demand(
        workflow=workflow.name,
        experiment=run.spec.name,
        tasks=left,
        total=run.total,
        hardware=run.spec.hardware,
        limit=run.spec.workers,
        gang=run.spec.gang,
        task_s=task_s,
        step_s=run.spec.around.checkpoint_every_s,
        left_s=left_s,
        deadline_s=deadline_s,
        labels=run.spec.labels,
        paused=workflow.paused,
        egress_gb=run.spec.hardware.data_bytes / 1e9,
    )


def _running_for_s(run: ExperimentRun, now: float) -> float:
    """No task has ended yet: they take as long as the oldest has run, or longer; 0: not known."""
    if not run.running:
        return 0.0
    starts = (
        record.start_time
        for page in run.pages.values()
        for record in page.records.values()
        if record.status is Status.RUNNING
    )
    lasted_s = now - min(starts, default=now)
    return lasted_s if lasted_s > UNKNOWN_TASK_S else 0.0


def tail_s(
    runs: Mapping[str, ExperimentRun], run: ExperimentRun, task_s: float, machines: int
) -> float:
    """How long what follows an experiment takes: the longest chain of those that wait for it.

    Tasks of one that has not begun are taken to last as long as `task_s`, those of this one.
    """
    task_s = task_s or UNKNOWN_TASK_S
    after = dict.fromkeys(runs, 0.0)
    for other in reversed(list(runs.values())):  # in topological order: followers come first
        for name in other.spec.depends_on:
            lasts_s = after[other.spec.name] + _lasts_s(runs[name], other, task_s, machines)
            after[name] = max(after[name], lasts_s)
    return after[run.spec.name]


def _lasts_s(before: ExperimentRun, run: ExperimentRun, task_s: float, machines: int) -> float:
    """How long an experiment goes on after the one before it has ended."""
    left = max(1, run.total - run.succeeded) if not run.state.ended else 0
    task_s = run.mean_s or task_s
    if not left or before.spec.name in run.spec.each:
        return task_s if left else 0.0  # of the last one; the others ran beside
    at_once = run.spec.workers or max(1, machines)
    waves = -(-left // max(run.spec.gang, at_once // run.spec.gang * run.spec.gang))
    return COLD_START_S + waves * task_s


def after_own_machines(state: State, demands: Sequence[Demand]) -> list[Demand]:
    """Machines that are there anyway cost nothing: theirs is the first work that fits there."""
    own = [
        each for each in state.workers.values()
        if each.session and not each.capacity.offer and not each.draining
    ]  # fmt: skip
    free = {each.name: each.capacity.slots for each in own}
    found = []
    for demand in demands:
        run, taken = _run_of(state, demand), 0
        for worker in own:
            if run is None:
                break
            places = min(free[worker.name], places_when_empty(worker, run.spec))
            places = min(places, demand.tasks - taken)
            free[worker.name] -= places
            taken += places
        found.append(replace(demand, tasks=demand.tasks - taken // demand.gang * demand.gang))
    return found


def without(demand: Demand, elsewhere: Counter[tuple[str, str]]) -> Demand:
    """Less the tasks that run where nothing more will: they need no other machine."""
    count = elsewhere[demand.workflow, demand.experiment]
    if not count or demand.gang > 1:
        return demand
    return replace(demand, tasks=max(0, demand.tasks - count))


def demand_kind(state: State, demand: Demand) -> str:
    """The kind of its tasks."""
    run = _run_of(state, demand)
    return "" if run is None else run.kind


def _run_of(state: State, demand: Demand) -> ExperimentRun | None:
    workflow = state.workflows.get(demand.workflow)
    return None if workflow is None else workflow.experiments.get(demand.experiment)
