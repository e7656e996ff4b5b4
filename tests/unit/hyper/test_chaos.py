"""The parts of a drill that need no cluster."""

from __future__ import annotations

import os
import sys

import pytest

from hyper.chaos import Spent, command, wanted
from hyper.errors import InvalidArgumentError
from hyper.spot_traces import Recording


def spent(lost: int, usd: float | None) -> Spent:
    sums = {"usd": usd, "on_demand_usd": 3.0, "rework_usd": 0.5, "idle_usd": 0.0}
    return Spent(lost, None if usd is None else sums)  # type: ignore[arg-type]


def test_what_was_lost_and_paid_meanwhile() -> None:
    found = spent(7, 2.5).since(spent(4, 1.0))
    assert found.lost_attempts == 3
    assert found.ledger == {"usd": 1.5, "on_demand_usd": 0.0, "rework_usd": 0.0, "idle_usd": 0.0}
    # a workflow was forgotten; another scheduler leads, which has no catalogue
    assert spent(1, 0.5).since(spent(4, 1.0)).ledger == {**found.ledger, "usd": 0.0}
    assert spent(1, None).since(spent(4, 1.0)) == Spent(0, None)


def test_workers_follow_the_recordings_share() -> None:
    recording = Recording("r", 1.0, ("a", "b"), ((2, 0, 1), (2, 0, 0)))
    hours = [wanted(recording, 3600.0 * hour, 1.0, 8) for hour in range(6)]
    assert hours == [8, 0, 2, 8, 0, 2]
    assert wanted(recording, 1.0, 3600.0, 8) == 0  # an hour a second


def test_a_command_that_still_runs_is_ended() -> None:
    with command(f"{sys.executable} -c 'import time; time.sleep(600)'") as job:
        assert job is not None and job.poll() is None
    assert job.returncode == -15
    with pytest.raises(ProcessLookupError):
        os.kill(job.pid, 0)
    with command("") as nothing:
        assert nothing is None
    for wrong in ("no-such-program", "'"):
        with pytest.raises(InvalidArgumentError, match="cannot be started"), command(wrong):
            pass
