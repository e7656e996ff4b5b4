"""Micro-batches: predictions that wait for the same net run together, one net at a time.

Whoever gets the machine first runs everything that waits for its net by then, in order of arrival
and up to a limit; the others find their results when it is theirs. Samples do not influence one
another, so that a result is the same, to the bit, in any company.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hyper.errors import CancelledError

Floats: TypeAlias = npt.NDArray[np.float32]
MAX_SAMPLES = 64
"""Of one batch; a larger call runs alone."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """One call."""

    net: Callable[[Any], Any]
    batch: npt.NDArray[Any]
    cancelled: threading.Event
    output: Floats | None = None
    seconds: float = 0.0
    error: BaseException | None = None
    done: bool = field(default=False)


class Batcher:
    """Runs nets, one at a time."""

    def __init__(self) -> None:
        self._machine = threading.Lock()
        self._queue: list[_Waiting] = []
        self._queue_lock = threading.Lock()

    def run(
        self, net: Callable[[Any], Any], batch: npt.NDArray[Any], cancelled: threading.Event
    ) -> tuple[Floats, float]:
        """The net's output on a batch, and the seconds it took (its share of a micro-batch).

        Raises:
            CancelledError: the caller was gone before its turn.
        """
        mine = _Waiting(net, batch, cancelled)
        with self._queue_lock:
            self._queue.append(mine)
        with self._machine:
            if not mine.done:
                self._run(self._take(mine))
        if mine.error is not None:
            raise mine.error
        if mine.output is None:
            raise CancelledError("the caller went away, or its deadline passed, while it waited")
        return mine.output, mine.seconds

    def _take(self, first: _Waiting) -> list[_Waiting]:
        """Those that run with `first`; they leave the queue."""
        with self._queue_lock:
            self._queue.remove(first)
            together, samples = [first], len(first.batch)
            for other in list(self._queue):
                fits = samples + len(other.batch) <= MAX_SAMPLES
                if other.net is first.net and other.batch.dtype == first.batch.dtype and fits:
                    together.append(other)
                    samples += len(other.batch)
                    self._queue.remove(other)
        return together

    def _run(self, together: list[_Waiting]) -> None:
        wanted = [one for one in together if not one.cancelled.is_set()]
        try:
            if wanted:
                self._compute(wanted)
        except Exception as error:  # of the net, for all who asked for it
            for one in wanted:
                one.error = error
            raise
        finally:
            for one in together:
                one.done = True

    def _compute(self, wanted: list[_Waiting]) -> None:
        start = time.perf_counter()
        parts = [one.batch for one in wanted]
        whole: Floats = wanted[0].net(parts[0] if len(parts) == 1 else np.concatenate(parts))
        seconds = time.perf_counter() - start
        at = 0
        for one in wanted:
            one.output = whole[at : at + len(one.batch)]
            one.seconds = seconds * len(one.batch) / max(1, len(whole))
            at += len(one.batch)
