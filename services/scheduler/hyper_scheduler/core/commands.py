"""What the shell shall do. The order of commands to one worker is the order on its stream."""

from __future__ import annotations

from dataclasses import dataclass

from hyper_scheduler.core.model import Attempt, TaskId
from hyper_scheduler.core.state import Request


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer a worker's hello."""

    worker: str
    session: int


@dataclass(frozen=True, slots=True)
class Start:
    """Have a worker run these attempts."""

    worker: str
    session: int
    tasks: tuple[tuple[TaskId, Attempt], ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Have a worker stop these attempts."""

    worker: str
    session: int
    tasks: tuple[tuple[TaskId, Attempt], ...]


@dataclass(frozen=True, slots=True)
class Ack:
    """A worker's reports up to `sequence` are durable."""

    worker: str
    session: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell a worker that it gets nothing new."""

    worker: str
    session: int
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker counts as lost; `tasks` will run again."""

    worker: str
    session: int
    tasks: tuple[TaskId, ...]


@dataclass(frozen=True, slots=True)
class Object:
    """Bytes for the object store; written before the transaction that names them."""

    key: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Put:
    """One key of etcd; deleted where `value` is None.

    Args:
        key: below the scheduler's own.
        value: None: delete it.
        expires: under the requests' lease.
        below: with None: delete every key that begins so.
    """

    key: str
    value: bytes | None
    expires: bool = False
    below: bool = False


@dataclass(frozen=True, slots=True)
class Commit:
    """Make all this durable, then say `Committed(number)`.

    The puts of one tuple of `atoms` go into one transaction; atoms in order. `garbage` are
    objects that nothing names any more once the commit is done.
    """

    number: int
    objects: tuple[Object, ...]
    atoms: tuple[tuple[Put, ...], ...]
    garbage: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """A change that was asked for is durable."""

    request: Request


@dataclass(frozen=True, slots=True)
class Refuse:
    """A change cannot be made; `kind` names the error's class."""

    request_id: str
    kind: str  # not_found | finished | conflict | invalid | quota
    message: str


@dataclass(frozen=True, slots=True)
class Expand:
    """Read the items that an experiment's parameters come from; answer with `Expanded`."""

    workflow: str
    experiment: str


@dataclass(frozen=True, slots=True)
class TrialView:
    """A task with an objective, for whoever suggests the next."""

    parameters_json: str
    value: float | None  # None while it runs, or after it failed
    running: bool


@dataclass(frozen=True, slots=True)
class Suggest:
    """Choose the parameters of a task by what others have come to; answer with `Suggested`."""

    workflow: str
    experiment: str
    index: int
    history: tuple[TrialView, ...]


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete the results of a workflow that is forgotten; answer with `Discarded`."""

    workflow: str


@dataclass(frozen=True, slots=True)
class Changed:
    """Watchers of a workflow should look again."""

    workflow: str


@dataclass(frozen=True, slots=True)
class Moved:
    """Tasks that changed state, for the metrics: how many came to be `to`."""

    to: str
    count: int


@dataclass(frozen=True, slots=True)
class Worked:
    """What launched machines have done and lost lately.

    Args:
        done: (kind of task, offer), tasks, seconds.
        lost: worker, seconds of work.
        carried: worker, bytes between it and storage.
    """

    done: tuple[tuple[tuple[str, str], float, float], ...]
    lost: tuple[tuple[str, float], ...]
    carried: tuple[tuple[str, int], ...] = ()


Command = (
    Welcome | Start | Stop | Ack | Drain | Lost | Commit | Reply | Refuse | Expand | Suggest
    | Discard | Changed | Moved | Worked
)  # fmt: skip
