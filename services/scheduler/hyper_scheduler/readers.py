"""Reads the values of a recipe's keys; each says what is wrong, and what to write instead."""

from __future__ import annotations

import re
from difflib import get_close_matches

from hyper.errors import HyperError
from hyper.names import check_part
from hyper_scheduler.positioned import Node

MAX_MEMORY_BYTES = 1 << 50
_DURATION = re.compile(r"(?:([0-9.]+)d)?(?:([0-9.]+)h)?(?:([0-9.]+)m)?(?:([0-9.]+)s)?\Z")
_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?i?B?)\Z")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def mapping(node: Node, known: tuple[str, ...] | None) -> dict[str, Node]:
    """A mapping; with `known`, one of these keys alone."""
    if not isinstance(node.value, dict):
        node.fail(wrong_type(node, "a mapping"))
    for key, each in node.value.items():
        if known is not None and key not in known:
            near = get_close_matches(key[:80], known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            each.fail(f"unknown key {key[:80]!r}; {hint}known are {', '.join(known)}")
    return node.value


def wrong_type(node: Node, wanted: str) -> str:
    """What is wrong with a value of another kind."""
    kinds = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number",
             float: "a number"}  # fmt: skip
    return f"expected {wanted}, found {kinds.get(type(node.value), 'nothing')}"


def text(node: Node) -> str:
    """Text."""
    if not isinstance(node.value, str):
        node.fail(wrong_type(node, "text"))
    return node.value


def integer(node: Node, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    if isinstance(node.value, bool) or not isinstance(node.value, int):
        node.fail(wrong_type(node, "a whole number"))
    if not low <= node.value <= high:
        node.fail(f"{node.value} is not between {low} and {high}")
    return node.value


def number(node: Node, low: float, high: float) -> float:
    """A number from `low` to `high`."""
    if isinstance(node.value, bool) or not isinstance(node.value, int | float):
        node.fail(wrong_type(node, "a number"))
    if not low <= node.value <= high:
        node.fail(f"{node.value} is not between {low} and {high}")
    return float(node.value)


def name(node: Node, given: str) -> str:
    """A name of a workflow or experiment."""
    try:
        return check_part(given, "name")
    except HyperError as error:
        node.fail(error.message)


def strings(node: Node) -> dict[str, str]:
    """A mapping of names to text, as an environment is."""
    result: dict[str, str] = {}
    for key, each in mapping(node, None).items():
        if isinstance(each.value, dict | list) or each.value is None:
            each.fail(wrong_type(each, "text"))
        value = each.value
        result[key] = str(value).lower() if isinstance(value, bool) else str(value)
        if "\0" in result[key] or "\0" in key or "=" in key:
            each.fail("a name may not hold '=', and nothing may hold a NUL")
    return result


def duration(node: Node, *, zero: bool = False) -> float:
    """`2h`, `5m`, `1h30m`, `30s`, or a number of seconds."""
    seconds: float | None = None
    if isinstance(node.value, int | float) and not isinstance(node.value, bool):
        seconds = float(node.value)
    elif isinstance(node.value, str) and (match := _DURATION.match(node.value)):
        try:
            parts = [float(part) if part else 0.0 for part in match.groups()]
            seconds = sum(a * b for a, b in zip(parts, (86400, 3600, 60, 1), strict=True))
        except ValueError:
            seconds = None
        if not node.value:
            seconds = None
    if seconds is None:
        node.fail(f"{str(node.plain())[:40]!r} is not a duration; write 2h, 5m or 30s")
    if not (seconds > 0 or (zero and seconds == 0)) or seconds > 366 * 86400:
        node.fail("a duration must be more than nothing and at most a year")
    return seconds


def amount_of_memory(node: Node) -> int:
    """`8GiB`, `512MB`, or a number of bytes."""
    size: float = -1
    if isinstance(node.value, int) and not isinstance(node.value, bool):
        size = node.value
    elif isinstance(node.value, str) and (match := _BYTES.match(node.value)):
        unit = match.group(2).removesuffix("B")
        size = float(match.group(1)) * (_BINARY.get(unit) or _UNITS.get(unit, 1))
    if size < 0:
        node.fail(f"{str(node.plain())[:40]!r} is not an amount of memory; write 8GiB or 512MB")
    if size > MAX_MEMORY_BYTES:
        node.fail(f"more memory than any machine has; at most {MAX_MEMORY_BYTES >> 40} TiB")
    return int(size)
