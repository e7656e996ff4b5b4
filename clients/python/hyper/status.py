"""What the scheduler says of workflows, tasks and machines, as frozen values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from google.protobuf import timestamp_pb2

from hyper.context import AttemptId
from hyper.errors import InternalError
from hyperapi.scheduler.v1 import workflow_pb2


class RunState(StrEnum):
    """Of a workflow or of one of its experiments."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens unless it is retried."""
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)


class TaskState(StrEnum):
    """Of a task."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens unless it is retried."""
        return self in (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED)


class WorkerState(StrEnum):
    """Of a machine."""

    READY = "READY"
    DRAINING = "DRAINING"
    LOST = "LOST"


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """How many tasks are in which state; `lost` counts attempts that ended with their node."""

    total: int
    pending: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    lost: int


@dataclass(frozen=True, slots=True)
class ExperimentStatus:
    """One node of a workflow's graph."""

    name: str
    state: RunState
    depends_on: tuple[str, ...]
    tasks: TaskCounts
    start_time: datetime | None
    end_time: datetime | None
    message: str

    @property
    def id(self) -> str:
        """The last part of its name, as the recipe has it."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class WorkflowStatus:
    """A workflow at one moment."""

    name: str
    display_name: str
    state: RunState
    experiments: tuple[ExperimentStatus, ...]
    create_time: datetime | None
    end_time: datetime | None
    message: str
    etag: str
    tasks: TaskCounts
    recipe_yaml: str
    paused: bool = False
    waiting: str = ""  # why tasks wait, in one sentence; empty while they start

    @property
    def id(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]

    def experiment(self, name: str) -> ExperimentStatus:
        """The experiment of that name in the recipe.

        Raises:
            KeyError: there is none.
        """
        for experiment in self.experiments:
            if experiment.id == name:
                return experiment
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task; `result` only where it was asked for."""

    name: str
    state: TaskState
    index: int
    parameters: Mapping[str, Any]
    attempt: AttemptId | None
    worker: str
    failures: int
    losses: int
    result: Any
    message: str
    start_time: datetime | None
    end_time: datetime | None
    objective: float | None = None  # the newest value of the experiment's objective
    step: int = 0  # at which it was reported
    stopped_early: bool = False  # others did better

    @property
    def experiment(self) -> str:
        """The experiment it belongs to, as the recipe has it."""
        return self.name.split("/")[5]

    @property
    def id(self) -> str:
        """experiment/index."""
        return f"{self.experiment}/{self.index}"


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A machine that runs tasks."""

    name: str
    state: WorkerState
    slots: int
    running: int
    labels: Mapping[str, str]
    connect_time: datetime | None
    version: str
    heartbeat_age_s: float


@dataclass(frozen=True, slots=True)
class ServiceInstance:
    """One replica of one service."""

    service: str
    instance: str
    address: str
    metrics_address: str


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """Every replica that is alive; `leader` is the address of the scheduler that leads, or ""."""

    instances: tuple[ServiceInstance, ...]
    leader: str
    version: str


def to_json(value: Any) -> Any:
    """One of the values above as plain JSON types, for `--json`."""
    return json.loads(json.dumps(asdict(value), default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def workflow_from_proto(
    message: workflow_pb2.Workflow, before: WorkflowStatus | None = None
) -> WorkflowStatus:
    """Read a workflow; `before` keeps the recipe where the message leaves it out."""
    recipe = message.recipe_yaml or (before.recipe_yaml if before is not None else "")
    return WorkflowStatus(
        name=message.name,
        display_name=message.display_name,
        state=_run_state(message.state),
        experiments=tuple(
            ExperimentStatus(
                name=experiment.name,
                state=_run_state(experiment.state),
                depends_on=tuple(experiment.depends_on),
                tasks=_counts(experiment.tasks),
                start_time=_time(experiment, "start_time"),
                end_time=_time(experiment, "end_time"),
                message=experiment.message,
            )
            for experiment in message.experiments
        ),
        create_time=_time(message, "create_time"),
        end_time=_time(message, "end_time"),
        message=message.message,
        etag=message.etag,
        tasks=_counts(message.tasks),
        recipe_yaml=recipe,
        paused=message.paused,
        waiting=message.waiting,
    )


def task_from_proto(message: workflow_pb2.Task) -> TaskInfo:
    """Read a task."""
    attempt = None
    if message.HasField("attempt"):
        attempt = AttemptId(message.attempt.epoch, message.attempt.number)
    return TaskInfo(
        name=message.name,
        state=TaskState(_suffix(workflow_pb2.TaskState.Name(message.state), "TASK_STATE_")),
        index=message.index,
        parameters=_load(message.parameters_json) or {},
        attempt=attempt,
        worker=message.worker,
        failures=message.failures,
        losses=message.losses,
        result=_load(message.result_json),
        message=message.message,
        start_time=_time(message, "start_time"),
        end_time=_time(message, "end_time"),
        objective=message.objective if message.HasField("objective") else None,
        step=message.step,
        stopped_early=message.stopped_early,
    )


def worker_from_proto(message: workflow_pb2.Worker) -> WorkerInfo:
    """Read a worker."""
    return WorkerInfo(
        name=message.name,
        state=WorkerState(_suffix(workflow_pb2.WorkerState.Name(message.state), "WORKER_STATE_")),
        slots=message.slots,
        running=message.running,
        labels=dict(message.labels),
        connect_time=_time(message, "connect_time"),
        version=message.version,
        heartbeat_age_s=message.heartbeat_age.ToNanoseconds() / 1e9,
    )


def task_state_to_proto(state: TaskState | None) -> workflow_pb2.TaskState.ValueType:
    """The wire's state; None is any."""
    name = f"TASK_STATE_{state.name}" if state is not None else "TASK_STATE_UNSPECIFIED"
    return workflow_pb2.TaskState.Value(name)


def _run_state(value: workflow_pb2.RunState.ValueType) -> RunState:
    return RunState(_suffix(workflow_pb2.RunState.Name(value), "RUN_STATE_"))


def _suffix(name: str, prefix: str) -> str:
    text = name.removeprefix(prefix)
    if text == "UNSPECIFIED":
        raise InternalError(f"the scheduler sent {name}; client and cluster are of two versions")
    return text


def _counts(message: workflow_pb2.TaskCounts) -> TaskCounts:
    return TaskCounts(
        total=message.total,
        pending=message.pending,
        running=message.running,
        succeeded=message.succeeded,
        failed=message.failed,
        cancelled=message.cancelled,
        lost=message.lost,
    )


def _time(message: Any, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    stamp: timestamp_pb2.Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=UTC)


def _load(text: str) -> Any:
    return json.loads(text) if text else None
