"""One page: what 4,096 neighbouring tasks of an experiment have come to.

A bitmap of the done ones, a record for each that is neither done nor untouched, and the names of
the objects that hold the results. This is the unit that is written to etcd.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from hyper_scheduler.core.model import Attempt

PAGE_TASKS = 4096
SEGMENT_LINES = 256  # an object with this many results is closed
SEGMENT_BYTES = 65_536
PAGE_MESSAGES = 131_072  # characters of messages in a stored page


class PageKey(NamedTuple):
    """Which page."""

    workflow: str
    experiment: str
    page: int


class Status(StrEnum):
    """Of a task that is neither done nor untouched."""

    PENDING = "pending"  # ran before and will run again
    RUNNING = "running"
    FAILED = "failed"
    HELD = "held"  # of a gang: has succeeded; done once all of it has


class Blame(StrEnum):
    """What the newest attempt of a gang's task has come to, until the gang is judged."""

    NONE = ""
    FAILED = "failed"
    PERMANENT = "permanent"
    LOST = "lost"


@dataclass(slots=True)
class Record:
    """What is known of such a task; its newest attempt above all."""

    status: Status
    attempt: Attempt | None = None
    worker: str = ""
    failures: int = 0
    losses: int = 0
    message: str = ""
    start_time: float = 0.0
    end_time: float = 0.0
    reported: bool = False  # the newest attempt has said how it ended; it was not just lost
    crashes: int = 0  # attempts in a row that ended with the loss of their worker
    lone_crashes: int = 0  # of these, while nothing else ran there
    lone_s: float = 0.0  # how long these ran
    alone: bool = False  # this attempt has its worker for itself
    blame: Blame = Blame.NONE
    share: int = 512  # of a slot; not stored


@dataclass(slots=True)
class Trial:
    """What a task of an experiment with an objective has said of itself."""

    parameters_json: str = ""  # where they are no function of the index
    step: int = -1  # of the newest report
    value: float | None = None  # at that step
    rungs: list[float] = field(default_factory=list)  # values at the steps where it was compared
    stopped: bool = False  # others did better
    durable: bool = False  # that it has these parameters; not stored


@dataclass(slots=True)
class Page:
    """Tasks `PAGE_TASKS * number` and the next 4,095."""

    done: bytearray = field(default_factory=lambda: bytearray(PAGE_TASKS // 8))
    done_count: int = 0
    records: dict[int, Record] = field(default_factory=dict)
    segments: list[str] = field(default_factory=list)  # names of result objects, oldest first
    open_lines: list[str] = field(default_factory=list)  # what the last segment holds, while open
    fresh: list[str] = field(default_factory=list)  # results that are in no object yet
    durable: int = 0  # the bitmap as stored; kept where others follow task by task
    trials: dict[int, Trial] = field(default_factory=dict)

    def is_done(self, index: int) -> bool:
        """Whether task `index` has succeeded."""
        place = index % PAGE_TASKS
        return bool(self.done[place >> 3] >> (place & 7) & 1)

    def set_done(self, index: int, line: str) -> None:
        """Task `index` has succeeded; `line` is its result, empty if that is kept already."""
        if self.is_done(index):
            raise AssertionError(f"task {index} is done twice")
        place = index % PAGE_TASKS
        self.done[place >> 3] |= 1 << (place & 7)
        self.done_count += 1
        self.records.pop(index, None)
        if line:
            self.fresh.append(line)

    def unsaved(self) -> Iterator[str]:
        """Result lines that memory holds, the newest last."""
        yield from self.open_lines
        yield from self.fresh

    def cut_segment(self, stem: str) -> tuple[str, bytes, str] | None:
        """Move fresh results into an object: its name, its bytes, the name it replaces (or "").

        While an object is small it is written again under a new name with what came since, so
        that slow tasks do not leave one object each. `stem` must be new with every call.
        """
        if not self.fresh:
            return None
        replaced = self.segments.pop() if self.open_lines else ""
        self.open_lines += self.fresh
        self.fresh = []
        data = "".join(line + "\n" for line in self.open_lines).encode()
        self.segments.append(stem)
        if len(self.open_lines) >= SEGMENT_LINES or len(data) >= SEGMENT_BYTES:
            self.open_lines = []
        return stem, data, replaced


_RUNNING = Status.RUNNING


def _plain(record: Record) -> bool:
    """Whether nothing has gone wrong with the task: such records are stored column by column."""
    return not (
        record.failures
        or record.losses
        or record.message
        or record.end_time
        or record.reported
        or record.alone
    )


def encode_page(page: Page) -> bytes:
    """The page as etcd holds it: never more than etcd takes, so long messages are cut."""
    longest = PAGE_MESSAGES // max(1, len(page.records))
    runs: dict[tuple[str, int, float], tuple[list[int], list[int]]] = {}
    others: dict[int, Record] = {}
    for index, record in page.records.items():
        attempt = record.attempt
        if record.status is _RUNNING and attempt is not None and _plain(record):
            group = runs.setdefault((record.worker, attempt[0], record.start_time), ([], []))
            group[0].append(index)
            group[1].append(attempt[1])
        else:
            others[index] = record
    records = {
        str(index): [
            record.status.value, record.attempt, record.worker, record.failures,
            record.losses, record.message[:longest], record.start_time, record.end_time,
            record.reported, *_rare(record),
        ]
        for index, record in others.items()
    }  # fmt: skip
    value: dict[str, Any]
    done = base64.b64encode(page.done.rstrip(b"\0")).decode()
    value = {"done": done, "records": records, "segments": page.segments}
    if page.trials:
        value["trials"] = {
            str(index): [each.parameters_json, each.step, each.value, each.rungs, each.stopped]
            for index, each in page.trials.items()
        }
    if runs:
        value["runs"] = [[*key, *columns] for key, columns in runs.items()]
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _rare(record: Record) -> tuple[int | float | bool | str, ...]:
    """What nearly every task has nothing of."""
    if not record.crashes and not record.alone and not record.blame:
        return ()
    return record.crashes, record.lone_crashes, record.lone_s, record.alone, record.blame.value


def decode_page(data: bytes) -> Page:
    """What `encode_page` made."""
    value: dict[str, Any] = json.loads(data)
    done = bytearray(base64.b64decode(value["done"]).ljust(PAGE_TASKS // 8, b"\0"))
    page = Page(
        done=done,
        done_count=int.from_bytes(done).bit_count(),
        segments=list(value["segments"]),
    )
    for index, (status, attempt, *rest) in value["records"].items():
        newest = None if attempt is None else Attempt(*attempt)
        record = page.records[int(index)] = Record(Status(status), newest, *rest)
        record.blame = Blame(record.blame)
    for worker, epoch, start_time, indices, numbers in value.get("runs", ()):
        for place, number in zip(indices, numbers, strict=True):
            page.records[place] = Record(
                Status.RUNNING, Attempt(epoch, number), worker, start_time=start_time
            )
    for index, facts in value.get("trials", {}).items():
        trial = page.trials[int(index)] = Trial(*facts)
        trial.durable = True
    return page
