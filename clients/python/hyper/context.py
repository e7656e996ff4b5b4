"""What a task function gets as its first argument.

```python
def ingest(context: TaskContext, *, section: int, session: str) -> dict[str, float]:
    array = context.client.attach(session)["raw"]
    context.log(f"section {section}")
    return {"mean": float(array[section].mean())}
```
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyper.arrays import Array
    from hyper.client import Client
    from hyper.datasets import Dataset

TASK = "HYPER_TASK"
ATTEMPT = "HYPER_ATTEMPT"
PARAMETERS = "HYPER_PARAMETERS"


class TaskStopped(BaseException):
    """Raised in a task function that is asked to end: by `hyper cancel`, timeout or preemption.

    Not an `Exception`, so that only `finally`, `with` and those who mean it see it.
    """


@dataclass(frozen=True, slots=True, order=True)
class AttemptId:
    """One run of one task; greater is newer. Written "epoch.number"."""

    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.number}"


_steps: dict[str, int] = {}  # of each attempt: the last one that was reported


def report(step: int | None = None, **metrics: float) -> None:
    """Say how the task does, so that it can be compared with others (`objective` of a recipe).

    One line of output, which the worker reads; outside of a task it is just printed.

    Args:
        step: how far it is, from 0 on; one more than the last one if not given.
        metrics: numbers by name.

    Raises:
        ValueError: a metric is not a finite number, or the step is negative.
    """
    attempt = f"{os.environ.get(TASK)} {os.environ.get(ATTEMPT)}"
    if step is None:
        step = _steps.get(attempt, 0) + 1
    if step < 0:
        raise ValueError(f"step {step} is negative")
    _steps.clear()  # one attempt at a time
    _steps[attempt] = step
    numbers = {name: float(value) for name, value in metrics.items()}
    text = json.dumps({"step": int(step), "metrics": numbers}, allow_nan=False)
    print(f"::hyper report {text}", flush=True)


def result(value: object) -> None:
    """Leave a result behind, from a command; a function returns it instead.

    Args:
        value: JSON, at most 64 KiB; the last one counts.

    Raises:
        TypeError, ValueError: it is not JSON.
    """
    print(f"::hyper result {json.dumps(value, allow_nan=False)}", flush=True)


_client_lock = threading.Lock()
_client: Client | None = None


def _shared_client() -> Client:
    """One client a process: a warm process keeps its connections from task to task."""
    from hyper.client import Client  # only tasks that use it pay for gRPC

    global _client
    with _client_lock:
        if _client is None:
            _client = Client(notice=lambda line: print(f"hyper: {line}", file=sys.stderr))
        return _client


@dataclass(frozen=True, slots=True)
class TaskContext:
    """The task that is running, and its way to the cluster.

    Args:
        task: its full resource name.
        attempt: which run of it this is.
    """

    task: str
    attempt: AttemptId

    @property
    def client(self) -> Client:
        """A client of the cluster the task runs in; connected when first used."""
        return _shared_client()

    @property
    def index(self) -> int:
        """The task's number within its experiment."""
        return int(self.task.rpartition("/")[2])

    def log(self, text: str) -> None:
        """Write a line to the task's log."""
        print(text, flush=True)

    def report(self, step: int | None = None, **metrics: float) -> None:
        """Say how the task does; see `hyper.report`."""
        report(step, **metrics)

    def open(self, address: str) -> Dataset | Array:
        """`Client.open` on the task's client."""
        return self.client.open(address)

    @classmethod
    def from_environment(cls) -> TaskContext:
        """The context of a command, from what the worker put into its environment.

        Raises:
            KeyError: this process was not started by a worker.
        """
        epoch, _, number = os.environ[ATTEMPT].partition(".")
        return cls(os.environ[TASK], AttemptId(int(epoch), int(number)))
