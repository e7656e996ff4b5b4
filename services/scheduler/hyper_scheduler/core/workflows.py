"""A workflow's life: submitted, going from experiment to experiment, stopping, ended, retried."""

from __future__ import annotations

from dataclasses import replace

from hyper_scheduler.core.commands import Command, Expand, Refuse, Reply, Stop
from hyper_scheduler.core.events import (
    Cancel,
    DrainWorker,
    Expanded,
    Pause,
    Retry,
    Submit,
    Suggested,
)
from hyper_scheduler.core.following import begin
from hyper_scheduler.core.model import Attempt, Choice, Experiment, TaskId
from hyper_scheduler.core.pages import Blame, PageKey, Record, Status, Trial
from hyper_scheduler.core.parameters import MAX_COMBINATIONS, combinations, count
from hyper_scheduler.core.retention import keep_no_longer
from hyper_scheduler.core.state import (
    ExperimentRun,
    Request,
    RunState,
    State,
    WorkflowRun,
    experiment_runs,
)
from hyper_scheduler.core.tasks import refresh_ready, touch, touch_head

Change = Submit | Cancel | Retry | Pause | DrainWorker


def repeated(state: State, request: Request) -> list[Command] | None:
    """The answer to a request that came before; None for a new one."""
    known = state.requests.get(request.request_id)
    if known is None:
        return None
    if known != request:
        text = "this request_id was used for something else; make a new one for each change"
        return [Refuse(request.request_id, "invalid", text)]
    if request.kind != "drain" and known.name not in state.workflows:
        text = f"{known.name} has ended and is not kept any more"
        return [Refuse(request.request_id, "not_found", text)]
    for waiting in (state.pending, state.committing):
        if waiting is not None and known in waiting.requests:
            return []  # its answer is on the way and reaches everybody who asked
    return [Reply(known)]


def remember(state: State, request: Request, now: float) -> None:
    """Answer `request` once the next commit is durable, and whenever it comes again."""
    state.requests[request.request_id] = request
    while len(state.requests) > state.limits.requests:
        oldest = next(iter(state.requests))
        del state.requests[oldest]
        state.pending.dropped.append(oldest)
    state.pending.requests.append(request)
    state.pending.urgent = True
    if state.pending.since is None:
        state.pending.since = now


def submit(state: State, event: Submit) -> list[Command]:
    """Take a new workflow in."""
    request = Request(event.request_id, "submit", event.name)
    if (answer := repeated(state, request)) is not None:
        return answer
    if event.name in state.workflows:
        return [Refuse(event.request_id, "conflict", f"{event.name} exists already")]
    workflow = WorkflowRun(
        name=event.name,
        recipe=event.recipe,
        recipe_yaml=event.recipe_yaml,
        experiments=experiment_runs(event.recipe),
        create_time=event.now,
    )
    if text := _over_quota(state, workflow, workflow):
        return [Refuse(event.request_id, "quota", text)]
    state.workflows[event.name] = workflow
    state.active[event.name] = None
    state.pending.recipes[event.name] = None
    touch_head(state, event.name, event.now)
    remember(state, request, event.now)
    state.unsettled[event.name] = None
    return []


def _over_quota(state: State, new: WorkflowRun | None, workflow: WorkflowRun) -> str:
    """Why the tenant may not have this workflow (too, if it is `new`); empty when it may."""
    tenant = workflow.tenant
    quota = state.limits.quota(tenant)
    for run in workflow.experiments.values():
        if quota.slots and run.spec.gang > quota.slots:
            return (
                f"tenant {tenant} may use {quota.slots} slots at once, and the gang of "
                f"{run.spec.name} needs {run.spec.gang}; make it smaller, or ask for more"
            )
    if not (quota.workflows or quota.tasks):
        return ""
    mine = [
        each for each in state.workflows.values() if each.tenant == tenant and not each.state.ended
    ]
    if new is not None and quota.workflows and len(mine) >= quota.workflows:
        return (
            f"tenant {tenant} may have {quota.workflows} workflows at once; "
            "wait for the end of one, or cancel it"
        )
    known = mine if new is None else [*mine, new]
    tasks = sum(run.total for each in known for run in each.experiments.values())
    if quota.tasks and tasks > quota.tasks:
        return (
            f"tenant {tenant} may have {quota.tasks} tasks at once, and would have {tasks}; "
            "wait for the end of a workflow, or submit fewer tasks"
        )
    return ""


def cancel(state: State, event: Cancel) -> list[Command]:
    """Begin to stop a workflow on request."""
    request = Request(event.request_id, "cancel", event.name)
    if (answer := repeated(state, request)) is not None:
        return answer
    found = _find(state, event.request_id, event.name, event.etag)
    if isinstance(found, Refuse):
        return [found]
    if found.state in (RunState.SUCCEEDED, RunState.FAILED):
        text = f"{event.name} has ended already ({found.state.value}); nothing to cancel"
        return [Refuse(event.request_id, "finished", text)]
    remember(state, request, event.now)
    if found.state.ended or found.stopping is not None:
        return []
    reason = event.reason[:500]
    return stop_workflow(
        state, found, RunState.CANCELLED, f"cancelled: {reason}" if reason else "cancelled",
        event.now,
    )  # fmt: skip


def retry(state: State, event: Retry) -> list[Command]:
    """Run what failed or was cancelled again; done tasks stay done."""
    request = Request(event.request_id, "retry", event.name)
    if (answer := repeated(state, request)) is not None:
        return answer
    found = _find(state, event.request_id, event.name, event.etag)
    if isinstance(found, Refuse):
        return [found]
    if not found.state.ended:
        text = f"{event.name} still runs; wait for its end or cancel it first"
        return [Refuse(event.request_id, "conflict", text)]
    if found.state is RunState.SUCCEEDED:
        text = f"{event.name} has succeeded; there is nothing to retry"
        return [Refuse(event.request_id, "finished", text)]
    found.state = found.durable = RunState.RUNNING
    found.stopping, found.message, found.end_time = None, "", 0.0
    found.paused = False
    found.generation += 1
    found.begun = found.generation
    for run in found.experiments.values():
        if run.state is not RunState.SUCCEEDED:
            _reset(state, found, run)
    state.active[found.name] = None
    keep_no_longer(state, found)
    touch_head(state, found.name, event.now)
    remember(state, request, event.now)
    state.unsettled[found.name] = None
    return []


def pause(state: State, event: Pause) -> list[Command]:
    """Start nothing more of a workflow, or go on with it; what runs goes on."""
    request = Request(event.request_id, "pause" if event.paused else "resume", event.name)
    if (answer := repeated(state, request)) is not None:
        return answer
    found = _find(state, event.request_id, event.name, event.etag)
    if isinstance(found, Refuse):
        return [found]
    if found.state.ended:
        text = f"{event.name} has ended already ({found.state.value}); there is nothing to pause"
        return [Refuse(event.request_id, "finished", text)]
    remember(state, request, event.now)
    if found.paused != event.paused:
        found.paused = event.paused
        found.generation += 1
        touch_head(state, found.name, event.now)
        state.wake = True
    return []


def _reset(state: State, workflow: WorkflowRun, run: ExperimentRun) -> None:
    run.state, run.message, run.end_time, run.failed = RunState.PENDING, "", 0.0, 0
    run.expanding, run.suggesting = False, -1
    run.rewind()  # `begin` puts in line what waits
    for number, page in run.pages.items():
        for record in page.records.values():
            if _forgive(record):
                state.pending.pages[PageKey(workflow.name, run.spec.name, number)] = None


def _forgive(record: Record) -> bool:
    """What is held against a task that did not succeed is forgotten; whether there was any."""
    if record.status is Status.PENDING and not (record.failures or record.crashes or record.blame):
        return False
    record.status, record.failures, record.blame = Status.PENDING, 0, Blame.NONE
    record.crashes, record.lone_crashes, record.lone_s = 0, 0, 0.0
    return True


def drain_worker(state: State, event: DrainWorker) -> list[Command]:
    """Give a worker nothing new from now on."""
    request = Request(event.request_id, "drain", event.worker)
    if (answer := repeated(state, request)) is not None:
        return answer
    worker = state.workers.get(event.worker)
    if worker is None:
        text = f"there is no worker {event.worker}; `hyper nodes` lists them"
        return [Refuse(event.request_id, "not_found", text)]
    worker.draining = True
    state.drained[event.worker] = None
    state.pending.drained[event.worker] = True
    refresh_ready(state, worker)
    remember(state, request, event.now)
    return []


def _find(state: State, request_id: str, name: str, etag: str) -> WorkflowRun | Refuse:
    workflow = state.workflows.get(name)
    if workflow is None:
        return Refuse(request_id, "not_found", f"there is no workflow {name}")
    if etag and etag != str(workflow.generation):
        text = f"{name} has changed since it was read; read it again, then retry"
        return Refuse(request_id, "conflict", text)
    return workflow


def stop_workflow(
    state: State, workflow: WorkflowRun, target: RunState, message: str, now: float
) -> list[Command]:
    """Start nothing more of the workflow and stop what runs."""
    workflow.stopping, workflow.message = target, message
    workflow.generation += 1
    state.active.pop(workflow.name, None)
    touch_head(state, workflow.name, now)
    state.unsettled[workflow.name] = None
    commands: list[Command] = []
    if workflow.running:
        for worker in state.workers.values():
            mine: list[tuple[TaskId, Attempt]] = [
                (task, attempt)
                for task, attempt in worker.running.items()
                if task.workflow == workflow.name
            ]
            if mine and worker.session:
                commands.append(Stop(worker.name, worker.session, tuple(mine)))
    return commands


def settle(state: State, workflow: WorkflowRun, now: float) -> list[Command]:
    """Let experiments succeed and start, a failed one stop the workflow, and the workflow end."""
    if workflow.state.ended:
        return []
    commands: list[Command] = []
    runs = workflow.experiments
    for run in runs.values():
        if workflow.stopping is None and workflow.stored >= workflow.begun:
            commands += _go_on(state, workflow, run, now)
        if run.state is RunState.RUNNING and run.succeeded == run.total and not run.expanding:
            run.state, run.end_time = RunState.SUCCEEDED, now
            touch_head(state, workflow.name, now)
            state.pending.urgent = True
    if all(run.state is RunState.SUCCEEDED for run in runs.values()):
        _end(state, workflow, workflow.stopping or RunState.SUCCEEDED, now)
    elif workflow.stopping is not None and not workflow.running:
        _end(state, workflow, workflow.stopping, now)
    return commands


def _go_on(state: State, workflow: WorkflowRun, run: ExperimentRun, now: float) -> list[Command]:
    """Start an experiment whose turn has come; one with a failed task stops the workflow."""
    if run.failed:
        return stop_workflow(state, workflow, RunState.FAILED, _failure(run), now)
    runs, depends_on = workflow.experiments, run.spec.depends_on  # the last is ready last
    if run.state.ended or not all(_precedes(runs[name], run) for name in reversed(depends_on)):
        return []
    if run.spec.items:
        if run.expanding:
            return []
        run.expanding = True
        return [Expand(workflow.name, run.spec.name)]
    if run.state is RunState.RUNNING or workflow.stored < run.known:
        return []
    for name in run.spec.each:
        if runs[name].units != run.units:
            text = (
                f"experiment {run.spec.name} has {run.units} tasks and follows {name} task by "
                f"task, which has {runs[name].units}; give both the same parameters"
            )
            return stop_workflow(state, workflow, RunState.FAILED, text, now)
    run.state, run.start_time = RunState.RUNNING, run.start_time or now
    begin(workflow, run)
    state.wake = True
    touch_head(state, workflow.name, now)
    return []


def _precedes(needed: ExperimentRun, run: ExperimentRun) -> bool:
    """Whether an experiment is far enough for one that depends on it to start."""
    if needed.spec.name in run.spec.each:
        return needed.state in (RunState.RUNNING, RunState.SUCCEEDED)
    return needed.durable


def expanded(state: State, event: Expanded) -> list[Command]:
    """The items of an experiment are known: it has tasks now."""
    workflow = state.workflows.get(event.workflow)
    run = None if workflow is None else workflow.experiments.get(event.experiment)
    if workflow is None or run is None or not run.expanding:
        return []
    run.expanding = False
    state.unsettled[workflow.name] = state.touched[workflow.name] = None
    if workflow.stopping is not None or workflow.state.ended:
        return []
    values = dict(event.items)
    parameters = {
        name: Choice(values[name]) if name in values else domain
        for name, domain in run.spec.parameters.items()
    }
    spec = replace(run.spec, parameters=parameters)
    problem = event.problem
    if not problem and (combinations(spec) > MAX_COMBINATIONS or _too_many(state, workflow, spec)):
        problem = f"its items make more than {state.limits.tasks} tasks"
    if not problem and run.state is RunState.RUNNING and count(spec) * spec.gang != run.total:
        problem = "its items are not those it started with"
    if problem:
        text = f"experiment {run.spec.name}: {problem}"
        return stop_workflow(state, workflow, RunState.FAILED, text, event.now)
    if run.state is RunState.RUNNING:
        run.spec, run.write = spec, None  # of an earlier leader: its tasks are in line already
        state.wake = True
        return []
    run.expand(spec)
    if text := _over_quota(state, None, workflow):
        return stop_workflow(state, workflow, RunState.FAILED, text, event.now)
    # a new leader must know what reports of its tasks are about: they start once this is durable
    workflow.generation += 1
    run.known = workflow.generation
    state.pending.urgent = True
    touch_head(state, workflow.name, event.now)
    return []


def _too_many(state: State, workflow: WorkflowRun, spec: Experiment) -> bool:
    others = sum(run.total for run in workflow.experiments.values() if run.spec.name != spec.name)
    return others + count(spec) * spec.gang > state.limits.tasks


def suggested(state: State, event: Suggested) -> list[Command]:
    """The parameters of a task have been chosen; it starts once that is durable."""
    workflow = state.workflows.get(event.workflow)
    run = None if workflow is None else workflow.experiments.get(event.experiment)
    if workflow is None or run is None or run.suggesting != event.index:
        return []
    run.suggesting = -1
    if workflow.stopping is not None or workflow.state.ended:
        return []
    if event.problem:
        text = f"experiment {run.spec.name}: no parameters for task {event.index}: {event.problem}"
        return stop_workflow(state, workflow, RunState.FAILED, text, event.now)
    run.page(event.index).trials[event.index] = Trial(event.parameters_json)
    touch(state, TaskId(workflow.name, run.spec.name, event.index), event.now)
    state.pending.urgent = True
    return []


def _failure(run: ExperimentRun) -> str:
    """Why an experiment failed, by its first task that did."""
    for number in sorted(run.pages):
        for index, record in sorted(run.pages[number].records.items()):
            if record.status is Status.FAILED:
                run.message = f"task {index} {_how(record)}"
                return f"experiment {run.spec.name}: {run.message}"
    raise AssertionError(f"experiment {run.spec.name} counts a failed task that is not there")


def _how(record: Record) -> str:
    if record.lone_crashes:
        return record.message
    times = "once" if record.failures == 1 else f"{record.failures} times"
    return f"failed {times}: {record.message}"


def _end(state: State, workflow: WorkflowRun, outcome: RunState, now: float) -> None:
    workflow.state, workflow.end_time = outcome, now
    workflow.generation += 1
    state.active.pop(workflow.name, None)
    for run in workflow.experiments.values():
        if not run.state.ended:
            run.state = RunState.FAILED if run.failed else RunState.CANCELLED
            run.end_time = now
    touch_head(state, workflow.name, now)
    state.pending.urgent = True
