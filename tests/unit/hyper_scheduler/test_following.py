"""Task by task behind another experiment; as many tasks as an earlier one has left items."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper.errors import InvalidArgumentError
from hyper_scheduler.core import commands as c
from hyper_scheduler.core import events as e
from hyper_scheduler.core.model import Experiment, Items
from hyper_scheduler.core.taskset import TaskSet
from hyper_scheduler.items import values
from tests.unit.hyper_scheduler.cores import Core, W, experiment, recipe, task


def after(name: str, tasks: int, *before: str) -> Experiment:
    return replace(experiment(name, tasks, *before), each=before)


def test_a_task_starts_when_the_one_it_follows_is_durable() -> None:
    core = Core(hold_commits=True)
    core.hello("w1", 1)
    core.submit(recipe(experiment("a", 3), after("b", 3, "a")))
    core.feed(e.Committed(core.now, core.commits[-1].number))
    core.feed(e.Committed(core.now, core.commits[-1].number))
    core.hello("w2", 1)
    core.hello("w3", 1)
    core.report("w2", task(1), 2)
    run = core.state.workflows[W].experiments["b"]
    assert run.running == 0
    for _ in range(3):
        core.feed(e.Committed(core.now, core.commits[-1].number))
    assert list(core.state.workers["w2"].running) == [task(1, "b")]


def test_it_follows_several_and_gangs() -> None:
    core = Core()
    core.hello("w1", 8)
    first = replace(experiment("a", 2), gang=2)
    core.submit(recipe(first, experiment("b", 2), after("c", 2, "a", "b")))
    number = {t: attempt.number for t, attempt in core.state.workers["w1"].running.items()}
    run = core.state.workflows[W].experiments["c"]
    for sequence, which in enumerate((task(2), task(3), task(0, "b")), 1):
        core.report("w1", which, number[which], sequence=sequence)
    assert run.running == 0
    core.report("w1", task(1, "b"), number[task(1, "b")], sequence=4)
    assert [t for t in core.state.workers["w1"].running if t.experiment == "c"] == [task(1, "c")]


def fan_out(key: str = "") -> tuple[Experiment, Experiment]:
    items = Experiment("b", "true", depends_on=("a",), parameters={"x": Items("a", key)})
    return experiment("a", 1), items


def test_items_become_tasks() -> None:
    core = Core()
    core.hello("w1", 4)
    core.submit(recipe(*fan_out()))
    commands = core.report("w1", task(0), 1)
    assert c.Expand(W, "b") in commands
    core.feed(e.Expanded(core.now, W, "b", (("x", ('"u"', '"v"', "3")),)))
    run = core.state.workflows[W].experiments["b"]
    assert (run.total, run.running) == (3, 3)


def test_items_are_durable_before_their_tasks_start() -> None:
    """A leader that takes over must know what reports of these tasks are about."""
    core = Core()
    core.hello("w1", 4)
    core.submit(recipe(*fan_out()))
    core.report("w1", task(0), 1)
    core.hold_commits, before = True, len(core.commits)
    core.feed(e.Expanded(core.now, W, "b", (("x", ('"u"', '"v"')),)))
    core.later(0.5)
    run = core.state.workflows[W].experiments["b"]
    assert (run.total, run.running) == (2, 0)
    for commit in core.commits[before:]:
        core.feed(e.Committed(core.now, commit.number))
    assert run.running == 2


def test_no_items_are_no_tasks_and_success() -> None:
    core = Core()
    core.hello("w1", 4)
    core.submit(recipe(*fan_out()))
    core.report("w1", task(0), 1)
    core.feed(e.Expanded(core.now, W, "b", (("x", ()),)))
    assert core.state.workflows[W].state.value == "succeeded"


def test_results_that_are_no_items_fail_the_workflow() -> None:
    core = Core()
    core.hello("w1", 4)
    core.submit(recipe(*fan_out()))
    core.report("w1", task(0), 1)
    core.feed(e.Expanded(core.now, W, "b", (), "no such key"))
    assert core.state.workflows[W].message == "experiment b: no such key"


def test_items_in_results() -> None:
    assert list(values(0, '["a", 1]', Items("p"))) == ['"a"', "1"]
    assert list(values(0, '{"k": [[1], {}]}', Items("p", "k"))) == ["[1]", "{}"]
    assert list(values(0, "7", Items("p"))) == ["7"]
    assert list(values(0, "", Items("p"))) == list(values(0, "null", Items("p"))) == []
    assert list(values(0, '{"k": null}', Items("p", "k"))) == []
    assert list(values(0, '{"stopped_early": true, "step": 3}', Items("p", "k"))) == []
    for result, there in (('{"other": 1}', "other"), ("", "no result"), ("[1]", "no mapping"),
                          ("{}", "nothing")):  # fmt: skip
        text = f"task 4 of p has no 'k': there is {there}"
        with pytest.raises(InvalidArgumentError, match=text):
            list(values(4, result, Items("p", "k")))


def test_a_range_in_a_result_is_its_numbers() -> None:
    assert list(values(0, '{"range": [2, 5]}', Items("p"))) == ["2", "3", "4"]
    assert list(values(0, '{"k": {"range": [0, 100, 40]}}', Items("p", "k"))) == ["0", "40", "80"]
    assert list(values(0, '{"k": {"range": [3, 3]}}', Items("p", "k"))) == []
    assert list(values(0, '{"range": [1, 2], "more": 0}', Items("p"))) != ["1"]  # a value, as it is
    for ends in ("[1]", "[0, 2.5]", "[0, 9, 0]", "[true, 9]", "[0, 1, 2, 3]", '"0-9"', "[]"):
        with pytest.raises(InvalidArgumentError, match="a range that is not"):
            list(values(4, f'{{"range": {ends}}}', Items("p")))
    with pytest.raises(InvalidArgumentError, match="more than 1000000 numbers"):
        list(values(0, '{"range": [0, 1000000000000000000000000]}', Items("p")))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20_000)), max_size=60))
def test_a_task_set_is_a_sorted_set(steps: list[tuple[bool, int]]) -> None:
    ours, model = TaskSet(), set()
    for add, number in steps:
        (ours.add if add else ours.discard)(number)
        (model.add if add else model.discard)(number)
        assert ours.first() == min(model, default=None)
        assert (number in ours) == (number in model)


@pytest.mark.parametrize("end", [0, 1, 4095, 4096, 4097, 10_000])
def test_all_below(end: int) -> None:
    ours = TaskSet()
    ours.add_below(end)
    assert sum(index in ours for index in range(end + 5_000)) == end
