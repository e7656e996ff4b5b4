"""Recorded spot markets: availability files in JSON, and the fleet sizes of Bamboo (NSDI 2023)."""

from __future__ import annotations

import csv
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hyper.errors import InvalidArgumentError

TICK_H = 0.05  # of fleets, which are recorded event by event
_MOST_H = 100_000.0
LEAST_H = 8.0  # a shorter recording says nothing about a job


@dataclass(frozen=True, slots=True)
class Recording:
    """Zones that can stand in for one another.

    Args:
        name: for people.
        tick_h: hours between two values.
        zones: their names.
        capacity: by zone, machines that could be had at each tick.
    """

    name: str
    tick_h: float
    zones: tuple[str, ...]
    capacity: tuple[tuple[int, ...], ...]

    @property
    def hours(self) -> float:
        """How long it lasts."""
        return len(self.capacity[0]) * self.tick_h


def read(paths: Iterable[Path]) -> list[Recording]:
    """Every recording in these files and folders, but fleets' shorter than `LEAST_H`.

    Raises:
        InvalidArgumentError: a file cannot be read, has another format or no recording's values; a
            folder holds none; two recordings have one name.
    """
    availability: dict[tuple[Path, str, float], list[tuple[str, list[int]]]] = {}
    found: list[tuple[Path, Recording]] = []
    for path in sorted({each for given in paths for each in _files(given)}):
        try:
            if path.suffix == ".json":
                tick_h, values = _read_json(path)
                zone, _, kind = path.stem.partition("_")
                availability.setdefault((path.parent, kind, tick_h), []).append((zone, values))
                continue
            sizes = _read_fleet(path)
            if not all(0 <= at < _MOST_H for at, _ in sizes):
                raise InvalidArgumentError(f"{path}: times lie between 0 and {_MOST_H:g} h")
            capacity = _sampled(sizes)
        except OSError as error:
            raise InvalidArgumentError(f"{path} cannot be read ({error.strerror})") from error
        if len(capacity) * TICK_H >= LEAST_H:
            found.append((path, Recording(path.stem, TICK_H, ("fleet",), (capacity,))))
    for (folder, kind, tick_h), zones in availability.items():
        length = min(len(values) for _, values in zones)
        name = f"{folder.name}/{kind}" if kind else folder.name
        rows = tuple(tuple(values[:length]) for _, values in zones)
        found.append((folder, Recording(name, tick_h, tuple(zone for zone, _ in zones), rows)))
    places: dict[str, Path] = {}
    for place, recording in found:
        if recording.name in places:
            raise InvalidArgumentError(
                f"two recordings are called {recording.name!r}, of {places[recording.name]} and of "
                f"{place}: rename one of the folders or files, or read them one at a time"
            )
        places[recording.name] = place
    return [recording for _, recording in found]


def _files(given: Path) -> list[Path]:
    if not given.is_dir():
        return [given]
    kinds = (".json", ".csv", ".txt")
    found = [each for each in given.rglob("*") if each.is_file() and each.suffix in kinds]
    if not found:
        raise InvalidArgumentError(f"{given} holds no recording (files {', '.join(kinds)})")
    return found


def _read_json(path: Path) -> tuple[float, list[int]]:
    """The format of "Can't Be Late" (NSDI 2024): machines available at each tick."""
    try:
        content = json.loads(path.read_text())
        tick_h = float(content["metadata"]["gap_seconds"]) / 3600
        values = [_count(each) for each in content["data"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        text = 'expected {"metadata": {"gap_seconds": s}, "data": [...]}'
        raise InvalidArgumentError(f"{path}: {text} ({error})") from error
    if not 0 < tick_h < math.inf or not values or min(values) < 0:
        raise InvalidArgumentError(
            f"{path}: needs a finite gap above 0 and at least one count, none below 0"
        )
    return tick_h, values


def _count(value: object) -> int:
    """Machines; a truth value is one or none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no count of machines")
    return int(value)


def _read_fleet(path: Path) -> list[tuple[float, int]]:
    """(hours, machines) at each change, of any of Bamboo's three formats."""
    try:
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file, skipinitialspace=True) if row]
        if rows and rows[0][1:2] in (["add"], ["remove"]):
            return _from_events(rows)
        if rows and len(rows[0]) == 3:
            times = sorted((datetime.fromisoformat(f"{d} {t}"), int(n)) for d, t, n in rows)
            return [((at - times[0][0]).total_seconds() / 3600, n) for at, n in times]
        sizes = [(float(t), int(n)) for t, n in rows]
    except (ValueError, OverflowError, csv.Error) as error:
        raise InvalidArgumentError(f"{path}: not the recording of a fleet ({error})") from error
    hours = 1.0 if sizes and sizes[-1][0] < 1000 else 3600.0  # some count hours, some seconds
    return [(t / hours, n) for t, n in sizes]


def _from_events(rows: Sequence[Sequence[str]]) -> list[tuple[float, int]]:
    size, sizes = 0, []
    for at_ms, what, _ in rows:
        size += 1 if what == "add" else -1
        sizes.append((float(at_ms) / 3.6e6, size))
    return sizes


def _sampled(sizes: Sequence[tuple[float, int]]) -> tuple[int, ...]:
    """The size at each tick."""
    if not sizes:
        return ()
    times = [at for at, _ in sizes]
    ticks = int(times[-1] / TICK_H)
    return tuple(
        sizes[max(0, bisect_right(times, i * TICK_H) - 1)][1] for i in range(ticks)
    )  # fmt: skip
