"""What a runner is: it starts an attempt and says how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hyper_worker.core.model import Exit, Job, Key
from hyper_worker.runner.place import Place


class Output(Protocol):
    """Takes an attempt's output in; never blocks and never raises."""

    def write(self, data: bytes) -> None:
        """Append to the attempt's log."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command beside a task has come to.

    Args:
        exit_code: negative for a signal.
        output: stdout and stderr, in order; the end of them.
        truncated: whether there was more.
    """

    exit_code: int
    output: bytes
    truncated: bool = False


class Execution(Protocol):
    """Started attempts: a command, or a bundle of functions."""

    @property
    def pid(self) -> int:
        """Of the leading process, as this machine counts; 0: not known."""

    async def exec(self, arguments: Sequence[str], timeout_s: float) -> Ran:
        """Run a command beside it: in its folder, with its environment, in its container.

        Raises:
            ValueError: that cannot be; the message is for the user.
        """

    async def wait(self) -> None:
        """Wait for the end of all that belongs to it, its output included."""

    def terminate(self, key: Key) -> None:
        """Ask an attempt's processes to end (SIGTERM)."""

    def kill(self, key: Key) -> None:
        """End an attempt's processes (SIGKILL)."""


class Sink(Protocol):
    """Hears of what becomes of started attempts."""

    def output(self, key: Key) -> Output:
        """Where the output of an attempt goes; asked for when there is some."""

    def ended(self, ends: list[tuple[Key, Exit]]) -> None:
        """These have ended, their output has been passed on."""

    def returned(self, keys: list[Key]) -> None:
        """These have not been started and will not be here."""


class Runner(Protocol):
    """Starts attempts of one kind."""

    async def start(self, jobs: Sequence[Job], place: Place, sink: Sink) -> Execution:
        """Start attempts, one after the other; every one is heard of at the sink.

        Raises:
            OSError: they cannot be started.
            ValueError: the first job is malformed; the message is for the user.
        """

    async def close(self) -> None:
        """End whatever still runs and free what is held."""
