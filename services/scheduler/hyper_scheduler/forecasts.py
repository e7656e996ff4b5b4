"""Asks for forecasts: one process at a time, for so long and no longer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from hyper.errors import ResourceExhaustedError, UnavailableError
from hyper_scheduler.forecasting import Question, pack, unpack
from hyper_scheduler.killing import killed
from hyper_scheduler.placement.simulation import Outcome

LIMIT_S = 60.0
WAITING_MAX = 16
TOTAL_MAX = 3_000  # samples of one plan, of all its experiments together
LEAST = 10


def allowed(samples: int, experiments: int) -> int:
    """Samples of each experiment, so that a plan of many does not take for ever."""
    return min(samples, max(LEAST, TOTAL_MAX // max(1, experiments)))


class Forecasts:
    """Where `hyper plan` gets its spread from."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def outcomes(
        self, questions: Sequence[Question], samples: int, limit_s: float
    ) -> list[list[Outcome]]:
        """Of each question, one a sample.

        Args:
            questions: of one plan.
            samples: of each.
            limit_s: that it may take, once it is its turn.

        Raises:
            ResourceExhaustedError: too many ask, or this takes too long.
            UnavailableError: the process has failed.
        """
        if not questions:
            return []
        if self._waiting >= WAITING_MAX:
            raise ResourceExhaustedError(
                "too many plans are being made; try again in a moment", retry_after_s=5.0
            )
        self._waiting += 1
        try:
            async with self._turn:
                return await self._ask(pack(questions, samples), limit_s)
        finally:
            self._waiting -= 1

    async def _ask(self, text: bytes, limit_s: float) -> list[list[Outcome]]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hyper_scheduler.forecasting",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(limit_s):
                out, err = await process.communicate(text)
        except TimeoutError as error:
            raise ResourceExhaustedError(
                f"the forecast takes longer than {LIMIT_S:g} s; ask for fewer samples "
                "(`--samples 10`)"
            ) from error
        finally:
            if process.returncode is None:
                await killed(process)
        if process.returncode:
            raise UnavailableError(
                f"the forecast has failed: {err.decode(errors='replace')[-300:]}"
            )
        return await asyncio.to_thread(unpack, out)
