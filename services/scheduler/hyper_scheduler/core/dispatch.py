"""Which task goes to which worker next.

Higher priority first; workflows of one priority in turn; within one, its experiments in turn;
within an experiment in order of index. Workers with a free slot are taken in turn.
"""

from __future__ import annotations

from collections import deque

from hyper_scheduler.core.commands import Command, Start
from hyper_scheduler.core.model import Attempt, TaskId
from hyper_scheduler.core.state import SLOT, RunState, State, WorkerRun, WorkflowRun
from hyper_scheduler.core.tasks import assign, fits


def dispatch(state: State, now: float) -> list[Command]:
    """Give out as much as fits; one batch a worker."""
    on_the_way = 0 if state.committing is None else state.committing.results
    if not state.wake or state.pending.results + on_the_way > state.limits.results:
        return []
    state.wake = False
    if not state.ready:
        return []
    batches: dict[str, list[tuple[TaskId, Attempt]]] = {}
    names = [name for name in state.active if name not in state.held]
    turns = deque(sorted(names, key=lambda name: -state.workflows[name].recipe.priority))
    while turns and state.ready:
        level = state.workflows[turns[0]].recipe.priority
        same = deque[str]()
        while turns and state.workflows[turns[0]].recipe.priority == level:
            same.append(turns.popleft())
        while same and state.ready:
            name = same.popleft()
            given = _serve(state, state.workflows[name], now)
            if given is None:
                continue
            worker, tasks = given
            batches.setdefault(worker.name, []).extend(tasks)
            state.active.pop(name)
            state.active[name] = None  # to the end of its turn
            same.append(name)
    return [
        Start(name, state.workers[name].session, tuple(tasks)) for name, tasks in batches.items()
    ]


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
        while len(tasks) < min(limit, SLOT // share):
            index = run.peek()
            if index is None or not (not tasks or fits(worker, run.spec, share)):
                break
            task = TaskId(workflow.name, run.spec.name, index)
            attempt = state.next_attempt()
            assign(state, task, attempt, worker, now)
            tasks.append((task, attempt))
        workflow.turn = (workflow.turn + step + 1) % len(runs)
        return worker, tasks
    return None
