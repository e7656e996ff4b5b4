"""What a recipe may write for a parameter, read into a domain.

A list is a choice; `{range: [a, b]}` or `[a, b, step]` runs from a up to but without b, as in
Python; `{randint: [a, b]}` is every whole number from a to b, both included; `"0.001-0.1"`,
`{uniform: [a, b]}` and `{loguniform: [a, b]}` are continuous; `{lines: ...}` is one value a line
of a text, `{file: ...}` of a file beside the recipe (the client reads it); `{from: prepare/key}` is
one value an item of what the tasks of experiment `prepare` have as `key` in their results.
`{value: ...}` and any other scalar are constants.
"""

from __future__ import annotations

import math
import re

from hyper_scheduler.core.model import Choice, Domain, Items, LogUniform, Steps, Uniform, Value
from hyper_scheduler.core.parameters import MAX_COMBINATIONS
from hyper_scheduler.positioned import Node

_NUMBER = r"[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?"
_SPAN = re.compile(rf"\s*({_NUMBER})\s*-\s*({_NUMBER})\s*\Z")
_KINDS = ("range", "uniform", "loguniform", "randint", "value", "from", "lines", "choice", "file")


def read_domain(node: Node) -> Domain:
    """Read one parameter.

    Raises:
        InvalidArgumentError: INVALID_RECIPE; it is malformed or holds no value.
    """
    value = node.value
    if isinstance(value, list):
        if not value:
            node.fail("the list is empty, so the experiment would have no task")
        return Choice.of([each.plain() for each in value])
    if isinstance(value, dict):
        return _kind(node, value)
    if isinstance(value, str) and (match := _SPAN.match(value)):
        low, high = float(match.group(1)), float(match.group(2))
        if low < high and math.isfinite(high):
            return Uniform(low, high)
    return Choice.of([node.plain()])


def _kind(node: Node, value: dict[str, Node]) -> Domain:
    if len(value) == 1 and "file" in value:
        value["file"].fail(
            "files are read where a recipe is submitted: use `hyper submit` or the SDK, or write "
            "{lines: ...}"
        )
    if len(value) != 1 or next(iter(value)) not in _KINDS:
        node.fail(f"not a kind of parameter; write one of {', '.join(_KINDS)}, a list or a scalar")
    kind, inner = next(iter(value.items()))
    if kind == "value":
        return Choice.of([inner.plain()])
    if kind == "choice":
        if not isinstance(inner.value, list) or not inner.value:
            inner.fail("expected a list with at least one value")
        return Choice.of([each.plain() for each in inner.value])
    if kind == "from":
        return _items(inner)
    if kind == "lines":
        return _lines(inner)
    if kind == "range":
        return _range(inner)
    low, high = _numbers(inner, (2,))
    if low > high or (low == high and kind != "randint"):
        inner.fail(f"{low} is not below {high}")
    if kind == "randint":
        if not isinstance(low, int) or not isinstance(high, int):
            inner.fail("randint takes whole numbers")
        return Steps(low, 1, high - low + 1)
    if kind == "uniform":
        return Uniform(float(low), float(high))
    if low <= 0:
        inner.fail("loguniform needs numbers above 0")
    return LogUniform(float(low), float(high))


def _items(node: Node) -> Items:
    if not isinstance(node.value, str) or not node.value.partition("/")[0]:
        node.fail("expected an experiment, or experiment/key of its tasks' results")
    experiment, _, key = node.value.partition("/")
    return Items(experiment, key)


def _lines(node: Node) -> Choice:
    lines = node.value.splitlines() if isinstance(node.value, str) else []
    values: list[Value] = [line for line in lines if line.strip()]
    if not values:
        node.fail("there is no line, so the experiment would have no task")
    return Choice.of(values)


def _range(node: Node) -> Domain:
    start, stop, *rest = _numbers(node, (2, 3))
    step = rest[0] if rest else 1
    if step == 0:
        node.fail("the step is 0")
    if isinstance(start, int) and isinstance(stop, int) and isinstance(step, int):
        steps = -((start - stop) // step)  # the length of range(), which has a bound of its own
    else:
        span = (stop - start) / step
        if abs(span) > MAX_COMBINATIONS:  # infinite, maybe
            node.fail("the step is too small for the range")
        steps = math.ceil(span - 1e-9)  # a step that divides the span up to rounding is meant to
    if steps <= 0:
        node.fail("the range is empty, so the experiment would have no task")
    return Steps(start, step, steps)


def _numbers(node: Node, lengths: tuple[int, ...]) -> list[int | float]:
    items = node.value
    if not isinstance(items, list) or len(items) not in lengths:
        node.fail(f"expected a list of {' or '.join(map(str, lengths))} numbers")
    numbers: list[int | float] = []
    for each in items:
        if isinstance(each.value, bool) or not isinstance(each.value, int | float):
            each.fail("expected a number")
        if abs(each.value) > 2**62:
            each.fail("the number is too large")
        numbers.append(each.value)
    return numbers
