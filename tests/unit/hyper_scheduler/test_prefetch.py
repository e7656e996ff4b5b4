"""Short functions are given out many at a time; long ones hold nothing hostage."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hyper_scheduler.core import commands as c
from hyper_scheduler.core.events import Outcome
from hyper_scheduler.core.model import Asha, Experiment, Objective, Sampling, Steps
from hyper_scheduler.core.parameters import Choice, parameters, parameters_writer
from hyper_scheduler.core.state import SLOT
from tests.unit.hyper_scheduler.cores import Core, experiment, recipe, task


def given(commands: list[c.Command]) -> list[int]:
    """How many tasks each worker got."""
    return [len(each.tasks) for each in commands if isinstance(each, c.Start)]


@pytest.mark.parametrize(("wall_s", "tasks"), [(0.0001, 512), (0.01, 32), (0.3, 1), (60.0, 1)])
def test_how_many_wait_at_a_worker_depends_on_how_long_they_take(wall_s: float, tasks: int) -> None:
    core = Core()
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 2000, function="m:f")))
    assert given(core.report("w1", task(0), 1, wall_s=wall_s)) == [tasks]
    assert core.state.workers["w1"].load == SLOT


def test_commands_are_given_out_one_by_one() -> None:
    core = Core()
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 20)))
    assert given(core.report("w1", task(0), 1, wall_s=0.0001)) == [1]


def test_the_limit_of_an_experiment_is_of_slots() -> None:
    core = Core()
    for name in ("w1", "w2", "w3"):
        core.hello(name, slots=1)
    core.submit(recipe(experiment("a", 2000, function="m:f", workers=2)))
    run = core.state.workflows[task(0).workflow].experiments["a"]
    assert (run.slots, run.held) == (2, {"w1": SLOT, "w2": SLOT})

    def starts(commands: list[c.Command]) -> list[tuple[str, int]]:
        return [(each.worker, len(each.tasks)) for each in commands if isinstance(each, c.Start)]

    assert starts(core.report("w1", task(0), 1, wall_s=0.01)) == [("w3", 32)]
    assert starts(core.report("w2", task(1), 2, wall_s=0.01)) == [("w1", 32)]
    assert core.state.workers["w2"].load == 0
    # What ends makes room in a slot that is the experiment's already, not in others.
    assert starts(core.report("w3", task(2), 3, wall_s=0.01)) == [("w3", 1)]
    assert (run.slots, run.begun) == (2, {})


def test_the_limit_of_an_experiment_holds_where_a_worker_has_several_slots() -> None:
    core = Core()
    core.hello("w1", slots=8)
    core.submit(recipe(experiment("a", 2000, function="m:f", workers=3)))
    assert given(core.report("w1", task(0), 1, wall_s=0.0001)) == [1]
    assert core.state.workers["w1"].load == 3 * SLOT


def test_the_last_tasks_are_shared_out_evenly() -> None:
    core = Core()
    for name in ("w1", "w2"):
        core.hello(name, slots=1)
    core.submit(recipe(experiment("a", 42, function="m:f")))
    assert given(core.report("w1", task(0), 1, wall_s=0.0001)) == [8]  # of 40 left
    assert given(core.report("w2", task(1), 2, wall_s=0.0001)) == [8]


@pytest.mark.parametrize("early", [None, Asha()])
def test_trials_wait_at_a_worker_unless_they_may_be_stopped(early: Asha | None) -> None:
    core = Core()
    core.hello("w1", slots=1)
    objective = Objective("loss", maximize=False, asha=early)
    core.submit(recipe(replace(experiment("a", 2000, function="m:f"), objective=objective)))
    assert given(core.report("w1", task(0), 1, wall_s=0.01)) == [32 if early is None else 1]


def test_what_is_returned_goes_to_another_worker() -> None:
    core = Core()
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 33, function="m:f", retries=0)))
    assert given(core.report("w1", task(0), 1, wall_s=0.01)) == [16]
    assert given(core.report("w1", task(16), 17, Outcome.RETURNED, sequence=2)) == []
    (start,) = [each for each in core.hello("w2", slots=1) if isinstance(each, c.Start)]
    assert start.tasks[0] == core.start("w2", (task(16), 18)).tasks[0]
    assert core.state.workers["w1"].load == 15 * SLOT  # what it keeps is long: nothing more
    record = core.state.workflows[task(0).workflow].experiments["a"].record(16)
    assert record is not None
    assert (record.failures, record.losses) == (0, 0)


@pytest.mark.parametrize("sampling", list(Sampling))
def test_written_parameters_are_the_parameters(sampling: Sampling) -> None:
    spec = Experiment(
        "a",
        parameters={
            "one": Choice.of(["x"]),
            "steps": Steps(0.1, 0.1, 3),
            "more": Choice.of([1, {"a": [None, "\u00fc"]}, True]),
        },
        sampling=sampling,
        samples=20,
    )
    write = parameters_writer(spec)
    for index in range(9):
        assert json.loads(write(index)) == parameters(spec, index)
        assert write(index) == json.dumps(parameters(spec, index))
