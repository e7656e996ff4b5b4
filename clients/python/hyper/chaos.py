"""A drill: the workers of a local cluster come and go as spot machines did in a recording."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyper import placement, spot_traces
from hyper.cluster.home import Home
from hyper.cluster.plan import WORKER
from hyper.cluster.state import load
from hyper.cluster.up import restart
from hyper.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from hyper.client import Client

POLL_S = 0.2
_GRACE_S = 10.0
_SUMS = ("usd", "on_demand_usd", "rework_usd", "idle_usd")
Say = Callable[[str], None]


@dataclass(slots=True)
class Drill:
    """What was done to the workers.

    Args:
        seconds: it took.
        kills: workers ended by SIGKILL.
        restarts: workers started again.
        worker_s: seconds that workers lived, all together.
        workers: how many there are.
    """

    seconds: float = 0.0
    kills: int = 0
    restarts: int = 0
    worker_s: float = 0.0
    workers: int = 0

    def usd(self, spot_usd_h: float) -> float:
        """What as many spot machines would have cost for as long."""
        return self.worker_s / 3600 * spot_usd_h


@dataclass(frozen=True, slots=True)
class Spent:
    """What a tenant has lost and paid until now.

    Args:
        lost_attempts: of all its workflows: their worker went away.
        ledger: sums of machines that the scheduler has launched; None: it launches none.
    """

    lost_attempts: int
    ledger: dict[str, float] | None

    @staticmethod
    def of(client: Client) -> Spent:
        """As the cluster has it."""
        lost = sum(each.tasks.lost for each in client.workflows())
        try:
            found = placement.cost(client)
        except FailedPreconditionError:  # it has no catalogue of offers
            return Spent(lost, None)
        return Spent(
            lost, {key: sum(getattr(w, key) for w in found.workflows) for key in _SUMS}
        )  # fmt: skip

    def since(self, before: Spent) -> Spent:
        """What has been added; a workflow that was forgotten meanwhile takes nothing away."""
        lost = max(0, self.lost_attempts - before.lost_attempts)
        if self.ledger is None or before.ledger is None:
            return Spent(lost, None)
        return Spent(
            lost, {key: max(0.0, self.ledger[key] - before.ledger[key]) for key in _SUMS}
        )  # fmt: skip


@contextmanager
def command(text: str) -> Iterator[subprocess.Popen[bytes] | None]:
    """A command as a shell has it, without one; ended with this, should it still run.

    Raises:
        InvalidArgumentError: there is no such program.
    """
    if not text:
        yield None
        return
    try:
        process = subprocess.Popen(shlex.split(text), stdin=subprocess.DEVNULL, stdout=sys.stderr)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"--beside {text!r} cannot be started: {error}") from error
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wanted(recording: spot_traces.Recording, passed_s: float, speed: float, workers: int) -> int:
    """How many workers live at a moment of the replay: the recording's share of its most.

    Args:
        recording: all of its zones together.
        passed_s: since the start.
        speed: seconds of the recording a second.
        workers: that there are.
    """
    ticks = len(recording.capacity[0])
    tick = int(passed_s * speed / 3600 / recording.tick_h) % ticks
    sums = [sum(row[i] for row in recording.capacity) for i in range(ticks)]
    return round(workers * sums[tick] / max(max(sums), 1))


def drill(
    home: Home, trace: Path, going: Callable[[], bool], say: Say, *, speed: float = 600.0,
    least: int = 0,
) -> Drill:  # fmt: skip
    """Kill and restart workers after a recording for as long as `going` says.

    All workers run at the end, whatever happens.

    Args:
        home: of the cluster.
        trace: a recording, see `hyper.spot_traces`.
        going: whether to go on.
        say: is told each step.
        speed: seconds of the recording a second.
        least: workers that are never killed.

    Raises:
        NotFoundError: no cluster runs there.
        InvalidArgumentError: the recording cannot be read, or says nothing.
    """
    recordings = spot_traces.read([trace])
    if not recordings:
        raise InvalidArgumentError(f"{trace} holds no recording of {spot_traces.LEAST_H:g} h")
    cluster = load(home)
    if cluster is None:
        raise NotFoundError(f"no cluster runs in {home.root}: start one with `hyper up`")
    names = [name for name, member in cluster.members.items() if member.role == WORKER]
    found = Drill(workers=len(names))
    alive = dict.fromkeys(names)
    start = last = time.monotonic()
    try:
        while going():
            now = time.monotonic()
            found.worker_s += len(alive) * (now - last)
            last = now
            count = max(least, wanted(recordings[0], now - start, speed, len(names)))
            while len(alive) > count:
                _kill(home, alive.popitem()[0], found, say)
            for name in [each for each in names if each not in alive][: count - len(alive)]:
                _start(home, name, found, say)
                alive[name] = None
            time.sleep(POLL_S)
    finally:
        found.seconds = time.monotonic() - start
        for name in names:
            if name not in alive:
                _start(home, name, found, say)
    return found


def _kill(home: Home, name: str, found: Drill, say: Say) -> None:
    cluster = load(home)
    if cluster is not None and cluster.members[name].process.alive:
        os.kill(cluster.members[name].process.pid, signal.SIGKILL)
        found.kills += 1
        say(f"killed {name}")


def _start(home: Home, name: str, found: Drill, say: Say) -> None:
    restart(home, name, lambda _: None)
    found.restarts += 1
    say(f"started {name} again")
