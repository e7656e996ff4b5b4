"""Python functions as tasks, without YAML: `@hyper.task` and `Client.map`.

```python
@hyper.task(cpus=2, retries=5)
def measure(section: int, *, dataset: str) -> float:
    import hyper
    return float(hyper.open(dataset)[section].mean())

with hyper.connect() as client:
    means = client.map(measure, range(20), dataset="lab/brain/aligned").results()
```

Nothing is pickled: the function's source travels (`hyper.shipping`), its arguments and what it
returns are JSON.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from hyper import shipping
from hyper.errors import InvalidArgumentError, WorkFailedError
from hyper.workdir import upload_files

if TYPE_CHECKING:
    from hyper.client import Client
    from hyper.status import TaskInfo, WorkflowStatus
    from hyper.workflows import Workflow

P = ParamSpec("P")
R = TypeVar("R")

ITEMS_FILE = "_hyper_items.jsonl"
ITEMS_BYTES_MAX = 32 << 20
_EXPERIMENT = "map"
_HARDWARE = ("cpus", "memory", "gpu", "spot")
_KEYS = ("retries", "timeout", "grace", "env", "labels", "image", "secrets", "setup", "inputs")


class TaskFunction(Generic[P, R]):
    """A function that `Client.map` can run elsewhere; called here, it is the function.

    Args:
        function: what it does; its arguments and result are JSON. Where its first parameter is
            named `context`, it gets a `hyper.TaskContext` there.
        options: keys of a recipe's experiment.
    """

    def __init__(self, function: Callable[P, R], options: Mapping[str, Any] | None = None) -> None:
        self.function = function
        self.options = dict(options or {})
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it here."""
        return self.function(*args, **kwargs)


@overload
def task(function: Callable[P, R], /) -> TaskFunction[P, R]: ...


@overload
def task(**options: Any) -> Callable[[Callable[P, R]], TaskFunction[P, R]]: ...


def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Mark a function as a task, with what it needs.

    Args:
        function: given where the decorator stands without brackets.
        options: `cpus`, `memory` ("4GiB"), `gpu`, `spot`; `retries`, `timeout`, `grace`, `env`,
            `labels`, `image`, `secrets`, `setup`, `inputs`: as in a recipe.

    Raises:
        InvalidArgumentError: an option is not known.
    """
    unknown = [key for key in options if key not in (*_HARDWARE, *_KEYS)]
    if unknown:
        raise InvalidArgumentError(
            f"@hyper.task knows no {unknown[0]!r}; it takes {', '.join((*_HARDWARE, *_KEYS))}"
        )
    if function is not None:
        return TaskFunction(function, options)
    return lambda wrapped: TaskFunction(wrapped, options)


class MapRun(Generic[R]):
    """Calls of one function over many items, as a workflow.

    Args:
        workflow: that runs them.
        count: of calls.
    """

    def __init__(self, workflow: Workflow, count: int) -> None:
        self.workflow = workflow
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[R]:
        return iter(self.results())

    def __repr__(self) -> str:
        return f"<MapRun {self._count} calls, {self.workflow!r}>"

    def _repr_html_(self) -> str:
        return self.workflow._repr_html_()

    def wait(
        self,
        timeout_s: float | None = None,
        on_update: Callable[[WorkflowStatus], None] | None = None,
    ) -> WorkflowStatus:
        """Wait for the end; see `Workflow.wait`."""
        return self.workflow.wait(timeout_s, on_update)

    def results(
        self,
        timeout_s: float | None = None,
        on_update: Callable[[WorkflowStatus], None] | None = None,
    ) -> list[R]:
        """What every call returned, in the order of the items, once all have ended.

        Args:
            timeout_s: how long to wait; None: until the end.
            on_update: is called with every status on the way, for progress.

        Raises:
            WorkFailedError: a call has failed more than `retries` times; the message ends with
                its output.
            DeadlineError: they still run after `timeout_s`; they go on.
        """
        status = self.workflow.wait(timeout_s, on_update)
        if status.state != "SUCCEEDED":
            raise WorkFailedError(self._why(status))
        return [task.result for task in self.workflow.tasks(_EXPERIMENT, results=True)]

    def _why(self, status: WorkflowStatus) -> str:
        from hyper.workflows import explain_failure

        task, lines = explain_failure(self.workflow)
        head = f"{self.workflow.name} {status.state.lower()}: {status.message or 'no reason given'}"
        if task is None:
            return head
        return "\n".join([head, f"the output of call {task.index} ends:", *lines])

    def tasks(self) -> Iterator[TaskInfo]:
        """Every call as a task: state, worker, times."""
        return self.workflow.tasks(_EXPERIMENT)


def map_function(
    client: Client,
    function: Callable[..., R],
    iterables: tuple[Iterable[Any], ...],
    constants: Mapping[str, Any],
    *,
    workers: int | None = None,
    name: str | None = None,
) -> MapRun[R]:
    """Start one call of `function` for each item; see `Client.map`."""
    _refuse_recursion()
    marked = function if isinstance(function, TaskFunction) else TaskFunction(function)
    if not iterables:
        raise InvalidArgumentError("map needs items: client.map(function, items)")
    lines = _encode_items(marked, zip(*iterables, strict=False), constants)
    if not lines:
        raise InvalidArgumentError("there are no items, so there is nothing to run")
    shipped = shipping.ship(marked.function)
    files = {**shipped.files, ITEMS_FILE: "\n".join(lines).encode()}
    address = upload_files(client, files, label=f"{shipped.target} and its items")
    experiment: dict[str, Any] = {
        "function": "hyper.mapped:call",
        "workdir": address,
        "parameters": {
            "target": shipped.target,
            "with_context": _wants_context(marked.function),
            "index": {"range": [0, len(lines)]},
        },
        **{key: value for key, value in marked.options.items() if key in _KEYS},
    }
    hardware = {key: value for key, value in marked.options.items() if key in _HARDWARE}
    if hardware:
        experiment["hardware"] = hardware
    if workers is not None:
        experiment["workers"] = workers
    title = name or shipping.workflow_name(marked.function)
    recipe = {"version": 1, "name": title, "experiments": {_EXPERIMENT: experiment}}
    return MapRun(client.submit(recipe), len(lines))


def _refuse_recursion() -> None:
    """A module that maps when it is imported would do so again in each of its tasks."""
    from hyper import mapped

    if mapped.importing:
        raise InvalidArgumentError(
            f"{mapped.importing} calls client.map when it is imported, and a task imports it: put "
            'the call under `if __name__ == "__main__":`'
        )


def _wants_context(function: Callable[..., Any]) -> bool:
    return next(iter(inspect.signature(function).parameters), "") == "context"


def _encode_items(
    marked: TaskFunction[..., Any], items: Iterable[tuple[Any, ...]], constants: Mapping[str, Any]
) -> list[str]:
    """A line of JSON a call: positional and keyword arguments, checked against the signature."""
    signature = inspect.signature(marked.function)
    first = (None,) if _wants_context(marked.function) else ()
    lines: list[str] = []
    size = 0
    for number, item in enumerate(items):
        try:
            signature.bind(*first, *item, **constants)
        except TypeError as error:
            raise InvalidArgumentError(
                f"item {number} does not fit {shipping.name_of(marked.function)}{signature}: "
                f"{error}"
            ) from None
        try:
            line = json.dumps([item, dict(constants)], default=_plain, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(
                f"item {number} is not JSON ({error}): give numbers, text, lists and dicts; put "
                "arrays and files into a dataset and give its address"
            ) from None
        size += len(line)
        if size > ITEMS_BYTES_MAX:
            raise InvalidArgumentError(
                f"the items are over {ITEMS_BYTES_MAX >> 20} MiB: put what they hold into a "
                "dataset, and give numbers or names"
            )
        lines.append(line)
    return lines


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__}")
