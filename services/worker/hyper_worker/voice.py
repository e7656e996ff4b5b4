"""What a task says to Hyper while it runs: lines of its output that begin with `::hyper `.

    ::hyper report {"step": 3, "metrics": {"auc": 0.91}}
    ::hyper result {"list.json": ["a", "b"]}

So it works from every language, through `tee`, in containers and on other machines, wherever
output can be read; `hyper.report` and `hyper.result` print such lines. They stay in the log.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

from hyper_worker.runner.base import Output

MARK = b"::hyper "
LINE_BYTES_MAX = 72 << 10  # a result is at most 64 KiB
RESULT_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Metrics:
    """A report of a task."""

    step: int
    values: tuple[tuple[str, float], ...]


class Voice:
    """Passes an attempt's output on and listens.

    Args:
        log: where the output goes.
        on_metrics: told of each report.
    """

    def __init__(self, log: Output, on_metrics: Callable[[Metrics], None]) -> None:
        self._log, self._on_metrics = log, on_metrics
        self._line: bytearray | None = bytearray()  # the line under way; None: of no interest
        self.result_json = ""
        self.problem = ""

    def write(self, data: bytes) -> None:
        """See `Output`."""
        self._log.write(data)
        if self._line is None and MARK not in data and b"\n" not in data:
            return
        first, *rest = data.split(b"\n")
        self._take(first)
        for part in rest:
            self._end_line()
            self._take(part)

    def close(self) -> None:
        """No more output comes."""
        self._end_line()

    def _take(self, part: bytes) -> None:
        line = self._line
        if line is None or not part:
            return
        line += part[: LINE_BYTES_MAX - len(line)]
        head = bytes(line[: len(MARK)])
        if not MARK.startswith(head) and not head.startswith(MARK):
            self._line = None

    def _end_line(self) -> None:
        line, self._line = self._line, bytearray()
        if line is None or not line.startswith(MARK):
            return
        verb, _, text = bytes(line[len(MARK) :]).decode(errors="replace").strip().partition(" ")
        try:
            if len(line) >= LINE_BYTES_MAX:
                raise ValueError(f"it is over {RESULT_BYTES_MAX} bytes; write it to a dataset")
            value = json.loads(text)
            if verb == "report":
                self._on_metrics(_metrics(value))
            elif verb == "result":
                if len(text.encode()) > RESULT_BYTES_MAX:
                    raise ValueError(f"it is over {RESULT_BYTES_MAX} bytes; write it to a dataset")
                self.result_json = text
            else:
                raise ValueError(f"there is no {verb[:40]!r}; write report or result")
        except (ValueError, RecursionError) as error:
            self.problem = f"`::hyper {verb[:40]}` is malformed: {error}"
            self._log.write(f"[hyper: {self.problem}]\n".encode(errors="replace"))


def _metrics(value: object) -> Metrics:
    if not isinstance(value, dict) or not isinstance(value.get("metrics"), dict):
        raise ValueError('expected {"step": 1, "metrics": {"name": 0.5}}')
    step = value.get("step", 0)
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 1 << 62:
        raise ValueError("`step` is not a whole number from 0 on")
    numbers: list[tuple[str, float]] = []
    for name, number in value["metrics"].items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{name[:40]!r} is not a number")
        if math.isfinite(number):
            numbers.append((name, float(number)))
    return Metrics(step, tuple(numbers))
