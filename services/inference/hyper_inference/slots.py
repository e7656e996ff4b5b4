"""Calls that are served at once, and calls that may wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hyper.errors import ResourceExhaustedError
from hyper_inference import metrics


class Slots:
    """At most `workers` calls inside, `queue` waiting; the rest are told when to come back."""

    def __init__(self, workers: int, queue: int, *, retry_after_s: float = 1.0) -> None:
        self._inside = asyncio.Semaphore(workers)
        self._queue = queue
        self._waiting = 0
        self._retry_after_s = retry_after_s

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A place for one call.

        Raises:
            ResourceExhaustedError: QUEUE_FULL.
        """
        if self._inside.locked() and self._waiting >= self._queue:
            raise ResourceExhaustedError(
                f"{self._waiting} calls wait already; try again in {self._retry_after_s:g} s, or "
                "start more replicas of the inference service",
                reason="QUEUE_FULL",
                retry_after_s=self._retry_after_s,
            )
        self._waiting += 1
        metrics.QUEUE.set(self._waiting)
        try:
            await self._inside.acquire()
        finally:
            self._waiting -= 1
            metrics.QUEUE.set(self._waiting)
        metrics.BUSY.inc()
        try:
            yield
        finally:
            metrics.BUSY.dec()
            self._inside.release()
