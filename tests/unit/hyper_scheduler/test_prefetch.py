"""Short functions are given out many at a time; long ones hold nothing hostage."""

from __future__ import annotations

import json

import pytest

from hyper_scheduler.core import commands as c
from hyper_scheduler.core.events import Outcome
from hyper_scheduler.core.model import Experiment, Sampling, Steps
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


def test_the_limit_of_an_experiment_holds() -> None:
    core = Core()
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 20, function="m:f", workers=3)))
    assert given(core.report("w1", task(0), 1, wall_s=0.0001)) == [3]


def test_what_is_returned_goes_to_another_worker() -> None:
    core = Core()
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 17, function="m:f", retries=0)))
    assert given(core.report("w1", task(0), 1, wall_s=0.01)) == [16]
    core.hello("w2", slots=1)
    commands = core.report("w1", task(16), 17, Outcome.RETURNED, sequence=2)
    assert commands[0] == core.start("w2", (task(16), 18))
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
