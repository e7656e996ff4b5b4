"""What a runner is: it starts an attempt and says how it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from hyper_worker.core.model import Exit, Job


class Output(Protocol):
    """Takes an attempt's output in; never blocks and never raises."""

    def write(self, data: bytes) -> None:
        """Append to the attempt's log."""


class Execution(Protocol):
    """A started attempt."""

    @property
    def pid(self) -> int:
        """The root of its processes, and the number of their group."""

    async def wait(self) -> Exit:
        """Wait for the end of all that belongs to it, its output included."""

    def terminate(self) -> None:
        """Ask its processes to end (SIGTERM)."""

    def kill(self) -> None:
        """End its processes (SIGKILL)."""


class Runner(Protocol):
    """Starts attempts of one kind."""

    async def start(self, job: Job, folder: Path, output: Output) -> Execution:
        """Start an attempt in `folder`.

        Raises:
            OSError: it cannot be started.
            ValueError: the job is malformed; the message is for the user.
        """

    async def close(self) -> None:
        """End whatever still runs and free what is held."""
