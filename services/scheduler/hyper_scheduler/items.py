"""Fan-out: the items that an earlier experiment's tasks have left in their results."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hyper.errors import InvalidArgumentError
from hyper_scheduler.core.model import Items
from hyper_scheduler.core.pages import PageKey
from hyper_scheduler.core.state import WorkflowRun
from hyper_scheduler.store import Store

MAX_ITEMS = 1_000_000  # of one parameter
MAX_BYTES = 64 << 20  # of their JSON, which the leader keeps in memory


async def items_of(
    store: Store, workflow: WorkflowRun, sources: Mapping[str, Items]
) -> dict[str, tuple[str, ...]]:
    """The items of some parameters, each as JSON; the results they come from are durable.

    Raises:
        InvalidArgumentError: the results are not what the recipe says.
        UnavailableError: the object store cannot be reached.
    """
    return {name: await _items(store, workflow, source) for name, source in sources.items()}


async def _items(store: Store, workflow: WorkflowRun, source: Items) -> tuple[str, ...]:
    run = workflow.experiments[source.experiment]
    items: list[str] = []
    size = 0
    for number in sorted(run.pages):
        key = PageKey(workflow.name, source.experiment, number)
        lines = await store.results(key, run.pages[number])
        found = await asyncio.to_thread(_in_page, lines, source)  # may be much: others go on
        items += found
        size += sum(map(len, found))
        if len(items) > MAX_ITEMS or size > MAX_BYTES:
            raise InvalidArgumentError(
                f"the results of {source.experiment} hold more than {MAX_ITEMS} items or "
                f"{MAX_BYTES >> 20} MiB; let each item stand for several"
            )
    return tuple(items)


def _in_page(lines: Mapping[int, Mapping[str, Any]], source: Items) -> list[str]:
    return [
        item for index in sorted(lines) for item in values(index, lines[index]["result"], source)
    ]


def values(index: int, result_json: str, source: Items) -> Iterator[str]:
    """The items in the result of one task: those of a list, the numbers of `{"range": [a, b]}` or
    `[a, b, step]`, or the value itself; nothing of null, and nothing of a task that was stopped
    early.

    Raises:
        InvalidArgumentError: the result has no such key, or the range is not one.
    """
    result = json.loads(result_json) if result_json else None
    if isinstance(result, dict) and result.get("stopped_early") is True:
        return
    if source.key:
        if not isinstance(result, dict) or source.key not in result:
            keys = ", ".join(map(str, result)) if isinstance(result, dict) else "no mapping"
            keys = keys if result is not None else "no result"
            raise InvalidArgumentError(
                f"the result of task {index} of {source.experiment} has no {source.key!r}: "
                f"there is {keys[:200] or 'nothing'}"
            )
        result = result[source.key]
    if result is None:
        return
    each: Iterable[object] = [result]
    if isinstance(result, list):
        each = result
    elif isinstance(result, dict) and result.keys() == {"range"}:
        each = _range(index, result["range"], source)
    for item in each:
        yield json.dumps(item)


def _range(index: int, ends: object, source: Items) -> range:
    """As in a recipe: up to but without the end."""
    whole = isinstance(ends, list) and all(type(end) is int for end in ends)
    if not (isinstance(ends, list) and whole and len(ends) in (2, 3)) or ends[2:] == [0]:
        raise InvalidArgumentError(
            f"the result of task {index} of {source.experiment} has a range that is not "
            "[a, b] or [a, b, step] of whole numbers"
        )
    numbers = range(*ends)
    if len(numbers[: MAX_ITEMS + 1]) > MAX_ITEMS:
        raise InvalidArgumentError(
            f"the result of task {index} of {source.experiment} has a range of more than "
            f"{MAX_ITEMS} numbers; let each stand for several"
        )
    return numbers
