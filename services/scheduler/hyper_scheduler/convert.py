"""Proto <-> domain values. Everything that comes from outside is checked here."""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections.abc import Sequence
from math import isfinite
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from hyper.errors import InvalidArgumentError
from hyper.names import check_part
from hyper_scheduler.core.events import MetricReport, Outcome, Report
from hyper_scheduler.core.gangs import Rank, ranks
from hyper_scheduler.core.model import Attempt, Experiment, Sampling, TaskId
from hyper_scheduler.core.parameters import parameters_writer
from hyper_scheduler.core.state import (
    Capacity,
    ExperimentRun,
    RunState,
    State,
    TaskState,
    WorkerRun,
    WorkflowRun,
)
from hyper_scheduler.core.waiting import why_waiting
from hyperapi.scheduler.v1 import workflow_pb2 as pb
from hyperapi.worker.v1 import agent_service_pb2 as agent

MAX_RESULT_BYTES = 65_536
_MAX_PORTS = 64
_MAX_METRICS = 64  # names in one report
_RUN_STATES = {
    RunState.PENDING: pb.RUN_STATE_PENDING,
    RunState.RUNNING: pb.RUN_STATE_RUNNING,
    RunState.SUCCEEDED: pb.RUN_STATE_SUCCEEDED,
    RunState.FAILED: pb.RUN_STATE_FAILED,
    RunState.CANCELLED: pb.RUN_STATE_CANCELLED,
}
_TASK_STATES = {
    TaskState.PENDING: pb.TASK_STATE_PENDING,
    TaskState.RUNNING: pb.TASK_STATE_RUNNING,
    TaskState.SUCCEEDED: pb.TASK_STATE_SUCCEEDED,
    TaskState.FAILED: pb.TASK_STATE_FAILED,
    TaskState.CANCELLED: pb.TASK_STATE_CANCELLED,
}
_OUTCOMES = {
    agent.OUTCOME_RUNNING: Outcome.RUNNING,
    agent.OUTCOME_SUCCEEDED: Outcome.SUCCEEDED,
    agent.OUTCOME_FAILED: Outcome.FAILED,
    agent.OUTCOME_STOPPED: Outcome.STOPPED,
    agent.OUTCOME_PREEMPTED: Outcome.PREEMPTED,
    agent.OUTCOME_RETURNED: Outcome.RETURNED,
}
_WORKFLOW = re.compile(r"tenants/([^/]+)/workflows/([^/]+)\Z")
_EXPERIMENT = re.compile(r"(tenants/[^/]+/workflows/[^/]+)/experiments/([^/]+)\Z")
_TASK = re.compile(
    r"(tenants/[^/]+/workflows/[^/]+)/experiments/([^/]+)/tasks/(0|[1-9][0-9]{0,14})\Z"
)


# ---- names and requests


def _malformed(field: str, text: str, form: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field} {text[:120]!r} is not of the form {form}", field=field)


def request_id(text: str, tenant: str) -> str:
    """A UUID in its usual form, of this tenant: that of another is another request."""
    try:
        return f"{tenant}:{uuid.UUID(text)}"
    except ValueError:
        raise InvalidArgumentError(
            f"request_id {text[:60]!r} is not a UUID; make one for each change",
            field="request_id",
        ) from None


def tenant(parent: str) -> str:
    """`tenants/{t}` -> t."""
    kind, _, name = parent.partition("/")
    if kind != "tenants" or not name:
        raise _malformed("parent", parent, "tenants/{tenant}")
    return check_part(name, "tenant")


def workflow_name(text: str) -> str:
    """A workflow's checked resource name."""
    match = _WORKFLOW.match(text)
    if match is None:
        raise _malformed("name", text, "tenants/{tenant}/workflows/{workflow}")
    check_part(match.group(1), "tenant")
    check_part(match.group(2), "workflow")
    return text


def new_workflow_name(display_name: str, request: str) -> str:
    """The name of a workflow yet to be: a repeat of the request, by its `request_id`, gets it."""
    parent, _, unique = request.partition(":")
    suffix = hashlib.sha256(f"{parent}/{unique}".encode()).hexdigest()[:8]
    return f"tenants/{parent}/workflows/{display_name[:100].rstrip('.')}-{suffix}"


def split_experiment(text: str) -> tuple[str, str]:
    """An experiment's resource name -> workflow, experiment."""
    match = _EXPERIMENT.match(text)
    if match is None:
        form = "tenants/{tenant}/workflows/{workflow}/experiments/{experiment}"
        raise _malformed("parent", text, form)
    return workflow_name(match.group(1)), check_part(match.group(2), "experiment")


def task_id(text: str) -> TaskId:
    """A task's resource name."""
    match = _TASK.match(text)
    if match is None:
        form = "tenants/{tenant}/workflows/{workflow}/experiments/{experiment}/tasks/{index}"
        raise _malformed("name", text, form)
    workflow = workflow_name(match.group(1))
    return TaskId(workflow, check_part(match.group(2), "experiment"), int(match.group(3)))


def worker_name(text: str) -> str:
    """`workers/{worker}` -> worker."""
    kind, _, name = text.partition("/")
    if kind != "workers" or not name:
        raise _malformed("name", text, "workers/{worker}")
    return check_part(name, "worker")


def experiment_name(workflow: str, experiment: str) -> str:
    """An experiment's resource name."""
    return f"{workflow}/experiments/{experiment}"


def tenant_of(name: str) -> str:
    """The tenant of a resource name."""
    return name.split("/", 2)[1]


def secret_name(text: str) -> tuple[str, str]:
    """`tenants/{t}/secrets/{s}` -> t, s."""
    parts = text.split("/")
    if len(parts) != 4 or parts[0] != "tenants" or parts[2] != "secrets":
        raise _malformed("name", text, "tenants/{tenant}/secrets/{secret}")
    return check_part(parts[1], "tenant"), check_part(parts[3], "secret")


def state_filter(value: int) -> TaskState | None:
    """The state that a list is limited to."""
    if value == pb.TASK_STATE_UNSPECIFIED:
        return None
    for state, code in _TASK_STATES.items():
        if code == value:
            return state
    raise InvalidArgumentError(f"state {value} is not known", field="state")


# ---- from workers


def hello(message: agent.Hello, max_slots: int) -> tuple[str, Capacity]:
    """Who has come, with what."""
    worker = check_part(message.worker, "worker")
    if not 0 <= message.slots <= max_slots:
        raise InvalidArgumentError(
            f"worker {worker} offers {message.slots} slots; offer 0 to {max_slots}", field="slots"
        )
    if len(message.labels) > 64:
        raise InvalidArgumentError(f"worker {worker} has more than 64 labels", field="labels")
    return worker, Capacity(
        slots=message.slots,
        cpus=message.cpus,
        memory_bytes=message.memory_bytes,
        gpus=message.gpus,
        labels=tuple(sorted(message.labels.items())),
        version=message.version[:64],
        offer=message.labels.get("offer", "")[:64],
        host=message.host[:256],
        ports=tuple(port for port in message.ports[:_MAX_PORTS] if 0 < port < 65_536),
    )


def attempt_of(key: agent.TaskKey) -> tuple[TaskId, Attempt]:
    """Which attempt of which task."""
    return task_id(key.task), Attempt(key.attempt.epoch, key.attempt.number)


def report(status: agent.TaskStatus) -> Report:
    """What a worker says of an attempt."""
    task, attempt = attempt_of(status.key)
    outcome = _OUTCOMES.get(status.outcome)
    if outcome is None:
        raise InvalidArgumentError(f"outcome {status.outcome} is not known", field="outcome")
    message, result = status.message[:1024], status.result_json
    if outcome is Outcome.SUCCEEDED and (problem := _result_problem(result)):
        outcome, message, result = Outcome.FAILED, problem, ""
    if outcome is Outcome.FAILED and not message:
        message = f"exit status {status.exit_code}"
    return Report(
        task=task,
        attempt=attempt,
        outcome=outcome,
        message=message,
        result_json=result,
        exit_code=status.exit_code,
        wall_s=_seconds(status.wall),
        cpu_s=_seconds(status.cpu),
        peak_rss_bytes=status.peak_rss_bytes,
        permanent=status.permanent,
    )


def metric_reports(batch: agent.StatusBatch) -> tuple[MetricReport, ...]:
    """What attempts say of themselves while they run."""
    found: list[MetricReport] = []
    for each in batch.metrics:
        task, attempt = attempt_of(each.key)
        finite = [(name[:128], value) for name, value in each.metrics.items() if isfinite(value)]
        found.append(MetricReport(task, attempt, each.step, tuple(finite[:_MAX_METRICS])))
    return tuple(found)


def reports(batch: agent.StatusBatch) -> tuple[Report, ...]:
    """What a worker says of its attempts."""
    found = [report(each) for each in batch.statuses]
    for group in batch.successes:
        workflow_part, experiment = split_experiment(group.experiment)
        epoch = group.epoch
        columns = zip(
            group.indices, group.numbers, group.results_json,
            group.wall_s, group.cpu_s, group.peak_rss_bytes, strict=True,
        )  # fmt: skip
        try:
            for index, number, result, wall_s, cpu_s, peak_bytes in columns:
                task, attempt = TaskId(workflow_part, experiment, index), Attempt(epoch, number)
                problem = _result_problem(result)
                outcome = Outcome.FAILED if problem else Outcome.SUCCEEDED
                text = "" if problem else result
                found.append(
                    Report(task, attempt, outcome, problem, text, 0, wall_s, cpu_s, peak_bytes)
                )
        except ValueError:
            raise InvalidArgumentError(
                f"successes of {group.experiment} have columns of different lengths"
            ) from None
    return tuple(found)


def _result_problem(result: str) -> str:
    if len(result.encode("utf-8", "surrogatepass")) > MAX_RESULT_BYTES:
        return f"the result is longer than {MAX_RESULT_BYTES} bytes; write it to a dataset"
    if not result:
        return ""
    try:
        json.loads(result)
    except (ValueError, RecursionError):
        return "the result is not JSON"
    return ""


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


# ---- to workers


def duration(seconds: float) -> Duration:
    """Seconds as a proto."""
    whole = math.floor(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def welcome(heartbeat_s: float, lease_s: float, epoch: int) -> agent.ConnectResponse:
    """The first message down a stream."""
    message = agent.Welcome(
        heartbeat_interval=duration(heartbeat_s), lease=duration(lease_s), epoch=epoch
    )
    return agent.ConnectResponse(welcome=message)


def task_key(task: TaskId, attempt: Attempt) -> agent.TaskKey:
    """Which attempt of which task."""
    return agent.TaskKey(task=task.name, attempt=attempt_proto(attempt))


def attempt_proto(attempt: Attempt) -> pb.Attempt:
    """An attempt's number."""
    return pb.Attempt(epoch=attempt.epoch, number=attempt.number)


def task_spec(name: str, spec: Experiment, token: str) -> agent.TaskSpec:
    """What the tasks of an experiment share."""
    message = agent.TaskSpec(
        experiment=name,
        command=spec.command,
        function=spec.function,
        image=spec.image,
        env=dict(spec.env),
        grace=duration(spec.grace_s),
        workdir=spec.workdir,
        token=token,
    )
    if spec.timeout_s is not None:
        message.timeout.CopyFrom(duration(spec.timeout_s))
    _put_around(message, spec)
    return message


def _put_around(message: agent.TaskSpec, spec: Experiment) -> None:
    need, around = spec.hardware, spec.around
    if need.cpus or need.memory_bytes or need.gpus:
        message.hardware.cpus = need.cpus
        message.hardware.memory_bytes = need.memory_bytes
        message.hardware.gpus = need.gpus
    message.setup, message.registry = around.setup, around.registry
    message.secrets.update(around.secrets)
    message.network = around.network
    for bindings, pairs in ((message.inputs, around.inputs), (message.outputs, around.outputs)):
        for path, address in pairs:
            bindings.add(path=path, address=address)
    if around.checkpoint_path:
        message.checkpoint.path = around.checkpoint_path
        message.checkpoint.every.CopyFrom(duration(around.checkpoint_every_s))


def start_group(
    name: str, state: State, run: ExperimentRun, tasks: Sequence[tuple[TaskId, Attempt]]
) -> agent.StartGroup:
    """Attempts of one experiment to run."""
    group = agent.StartGroup(
        experiment=name,
        epoch=state.epoch,
        indices=[task.index for task, _ in tasks],
        numbers=[attempt.number for _, attempt in tasks],
        parameters_json=[parameters_json(run, task.index) for task, _ in tasks],
    )
    if run.spec.gang > 1 or run.spec.ranked:
        group.ranks.extend(rank(ranks(state, run, task)[task.index]) for task, _ in tasks)
    return group


def rank(place: Rank) -> agent.Rank:
    """The place of a task in its gang."""
    return agent.Rank(
        rank=place.rank,
        world_size=place.world_size,
        local_rank=place.local_rank,
        local_world_size=place.local_world_size,
        node_rank=place.node_rank,
        master_addr=place.master_addr,
        master_port=place.master_port,
    )


def parameters_json(run: ExperimentRun, index: int) -> str:
    """The parameters of a task as JSON; empty mapping where nobody has chosen them yet."""
    if run.spec.sampling is Sampling.TPE:
        trial = run.trial(index)
        return trial.parameters_json if trial is not None and trial.parameters_json else "{}"
    if run.spec.items:
        return "{}"
    if run.write is None:
        run.write = parameters_writer(run.spec)
    return run.write(index // run.spec.gang)


# ---- to people


def timestamp(seconds: float) -> Timestamp | None:
    """Seconds since 1970 as a proto; None for 0, which stands for never."""
    if not seconds:
        return None
    whole = math.floor(seconds)
    return Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))


def workflow(run: WorkflowRun, state: State | None = None, *, recipe: bool = True) -> pb.Workflow:
    """A workflow as people see it: its end shows once it is durable.

    Args:
        run: the workflow.
        state: the leader's, where this replica leads: says why tasks wait.
        recipe: whether its text is wanted.
    """
    ended = run.durable.ended
    experiments = [_experiment(run, each) for each in run.experiments.values()]
    total = pb.TaskCounts()
    for each in experiments:
        for field in ("total", "pending", "running", "succeeded", "failed", "cancelled", "lost"):
            setattr(total, field, getattr(total, field) + getattr(each.tasks, field))
    return pb.Workflow(
        name=run.name,
        display_name=run.recipe.name,
        state=_RUN_STATES[run.durable if ended else RunState.RUNNING],
        recipe_yaml=run.recipe_yaml if recipe else "",
        experiments=experiments,
        create_time=timestamp(run.create_time),
        end_time=timestamp(run.end_time) if ended else None,
        message=run.message,
        etag=str(run.generation),
        paused=run.paused,
        tasks=total,
        waiting="" if state is None else why_waiting(state, run),
    )


def _experiment(workflow_run: WorkflowRun, run: ExperimentRun) -> pb.Experiment:
    rest = run.total - run.succeeded - run.failed - run.running
    ended = run.state.ended
    return pb.Experiment(
        name=experiment_name(workflow_run.name, run.spec.name),
        state=_RUN_STATES[run.state],
        depends_on=run.spec.depends_on,
        tasks=pb.TaskCounts(
            total=run.total,
            pending=0 if ended else rest,
            running=run.running,
            succeeded=run.succeeded,
            failed=run.failed,
            cancelled=rest if ended else 0,
            lost=run.lost,
        ),
        start_time=timestamp(run.start_time),
        end_time=timestamp(run.end_time),
        message=run.message,
    )


def task(
    run: ExperimentRun, key: TaskId, result: dict[str, Any] | None, *, with_result: bool
) -> pb.Task:
    """A task as people see it; `result` is its line where it is done."""
    message = pb.Task(
        name=key.name,
        state=_TASK_STATES[run.task_state(key.index)],
        index=key.index,
        parameters_json=parameters_json(run, key.index),
    )
    trial = run.trial(key.index)
    if trial is not None and trial.value is not None:
        message.objective, message.step = trial.value, max(0, trial.step)
        message.stopped_early = trial.stopped
    record = run.record(key.index)
    if record is not None:
        if record.attempt is not None:
            message.attempt.CopyFrom(attempt_proto(record.attempt))
        message.worker = f"workers/{record.worker}" if record.worker else ""
        message.failures, message.losses = record.failures, record.losses
        message.message = record.message
        _set_times(message, record.start_time, record.end_time)
    elif result is not None:
        message.attempt.CopyFrom(attempt_proto(Attempt(*result["attempt"])))
        message.worker = f"workers/{result['worker']}"
        message.failures, message.losses = result["failures"], result["losses"]
        _set_times(message, result["start"], result["end"])
        if with_result:
            message.result_json = result["result"]
    return message


def _set_times(message: pb.Task, start: float, end: float) -> None:
    for field, value in ((message.start_time, start), (message.end_time, end)):
        stamp = timestamp(value)
        if stamp is not None:
            field.CopyFrom(stamp)


def worker(run: WorkerRun, now: float, *, lost: bool = False) -> pb.Worker:
    """A worker as people see it."""
    state = pb.WORKER_STATE_DRAINING if run.draining else pb.WORKER_STATE_READY
    return pb.Worker(
        name=f"workers/{run.name}",
        state=pb.WORKER_STATE_LOST if lost else state,
        slots=run.capacity.slots,
        running=len(run.running),
        labels=dict(run.capacity.labels),
        connect_time=timestamp(run.connect_time),
        version=run.capacity.version,
        heartbeat_age=duration(max(0.0, now - run.last_seen)),
    )


def workers(state: State, now: float) -> list[pb.Worker]:
    """All of them by name: those that live, then those lost lately."""
    alive = [worker(state.workers[name], now) for name in sorted(state.workers)]
    return alive + [worker(state.lost[name], now, lost=True) for name in sorted(state.lost)]
