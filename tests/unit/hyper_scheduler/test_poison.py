"""A task that ends its workers is set aside; machines that vanish by themselves are no reason."""

from __future__ import annotations

import math

import pytest

from hyper_scheduler.core import events as e
from hyper_scheduler.core.model import Attempt
from hyper_scheduler.core.poison import chance
from tests.unit.hyper_scheduler.cores import Core, W, experiment, recipe, task


def lose_worker(core: Core, name: str, after_s: float) -> None:
    """The worker is heard of for so long, then no more."""
    core.later(after_s)
    core.beat(name)
    core.later(7.0)


def test_chance_is_the_negative_binomial_tail() -> None:
    assert chance(0, 10.0, 1.0, 3600.0) == 1.0
    part = 36.0 / (3600.0 + 36.0)
    assert math.isclose(chance(1, 36.0, 1.0, 3600.0), part)  # a = 1: geometric
    assert math.isclose(chance(5, 36.0, 1.0, 3600.0), part**5, rel_tol=1e-6)
    assert chance(3, 3600.0, 50.0, 3600.0) > 0.999


def test_it_runs_alone_and_is_set_aside() -> None:
    core = Core()
    core.submit(recipe(experiment("a", 1), experiment("b", 40)))
    run = core.state.workflows[W].experiments["a"]
    lost = 0
    while not run.failed:
        name = f"w{lost}"
        core.hello(name, 3)
        if run.record(0) is not None and run.record(0).crashes >= 3:  # type: ignore[union-attr]
            assert list(core.state.workers[name].running) == [task(0)]
        lose_worker(core, name, 1.0)
        lost += 1
        assert lost < 12
    assert lost >= 5
    assert "task 0 set aside: its worker was lost" in core.state.workflows[W].message
    others = core.state.workflows[W].experiments["b"]
    assert others.failed == 0


def test_a_neighbour_is_cleared_by_running_alone() -> None:
    core = Core()
    core.submit(recipe(experiment("a", 1)))
    for number in range(4):
        core.hello(f"w{number}")
        lose_worker(core, f"w{number}", 1.0)
    core.hello("w9")
    ((which, attempt),) = core.state.workers["w9"].running.items()
    core.report("w9", which, attempt.number)
    assert core.state.workflows[W].state.value == "succeeded"


@pytest.mark.parametrize("hours", [0.5, 3.0])
def test_long_tasks_on_machines_that_vanish_are_not_poison(hours: float) -> None:
    """Each machine lasts so long, whatever runs on it: forty losses in a row mean nothing."""
    core = Core()
    core.submit(recipe(experiment("a", 2)))
    run = core.state.workflows[W].experiments["a"]
    for number in range(40):
        for one in ("x", "y"):
            core.hello(f"{one}{number}")
        core.now += hours * 3600.0
        core.state.worker_s += 2 * hours * 3600.0  # no tick has passed
        for worker in core.state.workers.values():
            worker.last_seen = core.now
        core.state.checked_at = core.now
        core.later(7.0)
    assert run.failed == 0
    assert run.record(0).losses >= 39  # type: ignore[union-attr]


def test_notice_and_draining_are_not_held_against_it() -> None:
    core = Core()
    core.submit(recipe(experiment("a", 1)))
    for number in range(1, 6):
        core.hello(f"w{number}")
        core.report(f"w{number}", task(0), number, e.Outcome.PREEMPTED)
    record = core.state.workflows[W].experiments["a"].record(0)
    assert record is not None
    assert (record.losses, record.crashes) == (5, 0)


def test_what_cannot_succeed_is_not_tried_again() -> None:
    core = Core()
    core.hello("w1")
    core.submit(recipe(experiment("a", 1, retries=5)))
    one = e.Report(
        task(0), Attempt(9, 1), e.Outcome.FAILED, message="no such array", permanent=True
    )  # fmt: skip
    core.feed(e.Reports(core.now, "w1", core.sessions["w1"], 1, (one,)))
    assert core.state.workflows[W].message == "experiment a: task 0 failed once: no such array"
