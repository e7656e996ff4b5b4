"""Whole short logs, many in an object: a request to S3 costs more than a task of 30 ms.

logs-packed/{experiment}/{block}/{indices}-{digest}

A block is of `BLOCK` tasks; `indices` are those of the pack's tasks in it, in base 36 and joined by
dots, so that a log is found by listing a block. A pack is a line of JSON, [[index, epoch, number,
bytes], ...], and then the logs. The digest is of all that: the same logs make the same object.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import NamedTuple

from hyper_servicekit.objects import ObjectStore

ROOT = "logs-packed/"
BLOCK = 1024
PACK_LOGS = 100  # as a key has room for
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Attempt(NamedTuple):
    """One try at a task; greater is newer."""

    epoch: int
    number: int


@dataclass(frozen=True, slots=True)
class Whole:
    """All of an attempt's log, and since when it is there."""

    index: int
    attempt: Attempt
    data: bytes
    stored: datetime | None = None


def packs(experiment: str, logs: Sequence[Whole]) -> Iterator[tuple[str, bytes]]:
    """Key and content of each object that holds some of `logs`."""
    in_order = sorted(logs, key=lambda each: (each.index, each.attempt))
    for block, members in groupby(in_order, key=lambda each: each.index // BLOCK):
        block_logs = list(members)
        for start in range(0, len(block_logs), PACK_LOGS):
            some = block_logs[start : start + PACK_LOGS]
            head = [[each.index, *each.attempt, len(each.data)] for each in some]
            data = json.dumps(head).encode() + b"\n" + b"".join(each.data for each in some)
            names = ".".join(_base36(each.index % BLOCK) for each in some)
            digest = hashlib.sha256(data).hexdigest()[:16]
            yield f"{_prefix(experiment, block)}{names}-{digest}", data


async def of_task(store: ObjectStore, task: str) -> list[Whole]:
    """The logs of a task's attempts that are in packs."""
    experiment, _, text = task.rpartition("/tasks/")
    if not text.isdecimal():
        return []
    index = int(text)
    prefix, name = _prefix(experiment, index // BLOCK), _base36(index % BLOCK)
    found: list[Whole] = []
    async for info in store.list(prefix):
        names = info.key.removeprefix(prefix).partition("-")[0].split(".")
        if name in names:
            logs = _open(await store.get(info.key), info.modified)
            found += [each for each in logs if each.index == index]
    return found


def _prefix(experiment: str, block: int) -> str:
    return f"{ROOT}{experiment}/{block:08d}/"


def _base36(number: int) -> str:
    text = ""
    while number or not text:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return text


def _open(data: bytes, stored: datetime) -> Iterator[Whole]:
    line, _, rest = data.partition(b"\n")
    at = 0
    for index, epoch, number, size in json.loads(line):
        yield Whole(index, Attempt(epoch, number), rest[at : at + size], stored)
        at += size
