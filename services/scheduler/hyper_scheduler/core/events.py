"""What can happen. `now` is seconds since 1970."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from hyper_scheduler.core.model import Attempt, Recipe, TaskId
from hyper_scheduler.core.state import Capacity


@dataclass(frozen=True, slots=True)
class Submit:
    """A valid recipe was handed in."""

    now: float
    request_id: str
    name: str
    recipe: Recipe
    recipe_yaml: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a workflow."""

    now: float
    request_id: str
    name: str
    reason: str = ""
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """Run what failed or was cancelled again."""

    now: float
    request_id: str
    name: str
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Start nothing more of a workflow, or go on with it."""

    now: float
    request_id: str
    name: str
    paused: bool
    etag: str = ""


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Give a worker nothing new."""

    now: float
    request_id: str
    worker: str


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker opened a stream and says what it still runs."""

    now: float
    worker: str
    session: int
    capacity: Capacity
    running: tuple[tuple[TaskId, Attempt], ...] = ()


@dataclass(frozen=True, slots=True)
class Goodbye:
    """A worker's stream ended."""

    now: float
    worker: str
    session: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A worker lives."""

    now: float
    worker: str
    session: int


class Outcome(StrEnum):
    """What a worker says of an attempt."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    PREEMPTED = "preempted"
    RETURNED = "returned"


class Report(NamedTuple):
    """One attempt, as its worker reports it."""

    task: TaskId
    attempt: Attempt
    outcome: Outcome
    message: str = ""
    result_json: str = ""
    exit_code: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0
    permanent: bool = False  # another attempt would fail in the same way


@dataclass(frozen=True, slots=True)
class Reports:
    """A batch of them; acknowledged once all of it is durable."""

    now: float
    worker: str
    session: int
    sequence: int
    reports: tuple[Report, ...]


class MetricReport(NamedTuple):
    """What an attempt says of itself while it runs."""

    task: TaskId
    attempt: Attempt
    step: int
    metrics: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Metrics:
    """A batch of them; not acknowledged: the next report says more."""

    now: float
    worker: str
    session: int
    reports: tuple[MetricReport, ...]


@dataclass(frozen=True, slots=True)
class Expanded:
    """The items that an experiment waited for, each as JSON; or why there are none."""

    now: float
    workflow: str
    experiment: str
    items: tuple[tuple[str, tuple[str, ...]], ...] = ()  # by parameter
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Suggested:
    """The parameters that a task shall have; or why there are none."""

    now: float
    workflow: str
    experiment: str
    index: int
    parameters_json: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Discarded:
    """No result of a forgotten workflow is left."""

    now: float
    workflow: str


@dataclass(frozen=True, slots=True)
class Placed:
    """Why machines do not come, by workflow, has changed."""

    now: float
    over_budget: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Committed:
    """Commit `number` is durable."""

    now: float
    number: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""

    now: float


Event = (
    Submit
    | Cancel
    | Retry
    | Pause
    | DrainWorker
    | Hello
    | Goodbye
    | Heartbeat
    | Reports
    | Metrics
    | Expanded
    | Suggested
    | Discarded
    | Placed
    | Committed
    | Tick
)
