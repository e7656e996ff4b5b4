"""Which machines are of the kind that a task asks for, and what is lost with them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyper_scheduler.core import commands as c
from hyper_scheduler.core import events as e
from hyper_scheduler.core.model import Around, Hardware, Spot
from hyper_scheduler.core.state import Capacity
from hyper_scheduler.core.step import step
from tests.unit.hyper_scheduler.cores import Core, experiment, recipe, task

GIB = 1 << 30


def launched(core: Core, name: str, memory: float = 8 * GIB, **labels: str) -> None:
    """A machine of this cluster's says hello."""
    core.sessions[name] = 1
    capacity = Capacity(
        1, cpus=4, memory_bytes=int(memory), gpus=1, labels=tuple(labels.items()), offer="o"
    )
    core.feed(e.Hello(core.now, name, 1, capacity))


@pytest.mark.parametrize(
    ("hardware", "labels", "runs"),
    [
        (Hardware(gpus=1, gpu="t4"), {"gpu": "T4"}, True),  # as offers are matched
        (Hardware(gpus=1, gpu="A100"), {"gpu": "T4"}, False),
        (Hardware(spot=Spot.NEVER), {"spot": "true"}, False),
        (Hardware(spot=Spot.NEVER), {"spot": "false"}, True),
        (Hardware(spot=Spot.NEVER), {}, True),
        (Hardware(spot=Spot.PREFER), {"spot": "true"}, True),
    ],
)
def test_the_kind_of_a_machine(hardware: Hardware, labels: dict[str, str], runs: bool) -> None:
    core = Core()
    launched(core, "w1", **labels)
    core.submit(recipe(experiment("a", 1, hardware=hardware)))
    assert bool(core.state.workers["w1"].running) is runs


@pytest.mark.parametrize(("gib", "runs"), [(15.4, True), (12.0, False)])
def test_a_machine_sold_with_so_much_memory_runs_what_asks_for_it(gib: float, runs: bool) -> None:
    """Its kernel and firmware keep some: an instance of 16 GiB reports 15.4."""
    core = Core()
    launched(core, "w1", gib * GIB)
    core.submit(recipe(experiment("a", 1, hardware=Hardware(memory_bytes=16 * GIB))))
    assert bool(core.state.workers["w1"].running) is runs


@pytest.mark.parametrize("announced", [True, False])
def test_what_was_saved_at_the_notice_is_not_lost(announced: bool) -> None:
    core = Core()
    launched(core, "w1")
    spec = experiment("a", 1)
    core.submit(recipe(replace(spec, around=Around(checkpoint_path="/c", checkpoint_every_s=300))))
    core.now += 1000
    core.state.workers["w1"].last_seen = core.state.checked_at = core.now
    if announced:
        core.report("w1", task(0), 1, e.Outcome.PREEMPTED)
        assert core.state.rework_s == {"w1": 0.0}
    else:
        core.state.workers["w1"].last_seen = core.now - 10
        core.state.checked_at = core.now - 0.5
        commands = step(core.state, e.Tick(core.now))
        assert ("w1", 300.0) in [pair for each in commands for pair in getattr(each, "lost", ())]


def test_data_of_every_attempt_that_ran_is_counted() -> None:
    """Done, failed or lost: it was moved; what was given back unbegun was not."""
    core = Core()
    launched(core, "w1")
    core.submit(recipe(experiment("a", 2, retries=3, hardware=Hardware(data_bytes=5_000))))
    core.report("w1", task(0), 1, e.Outcome.FAILED)
    core.report("w1", task(1), 1, e.Outcome.RETURNED, sequence=2)
    core.report("w1", task(0), 2, sequence=3)
    assert core.state.carried == {"w1": 10_000}
    core.now += 1000
    core.state.workers["w1"].last_seen = core.now - 10  # with the other one running
    core.state.checked_at = core.now - 0.5
    commands = step(core.state, e.Tick(core.now))
    told = [each.carried for each in commands if isinstance(each, c.Worked)]
    assert told == [(("w1", 15_000),)]
    assert core.state.carried == {}


def test_machines_of_the_users_own_pay_for_no_data() -> None:
    core = Core()
    core.hello("w1")
    core.submit(recipe(experiment("a", 1, hardware=Hardware(data_bytes=5_000))))
    core.report("w1", task(0), 1)
    assert core.state.carried == {}
