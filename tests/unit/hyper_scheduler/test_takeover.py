"""A new leader waits for the workers of the one before it, so that nothing runs twice."""

from __future__ import annotations

from hyper_scheduler.core import commands as c
from hyper_scheduler.core.commit import encode_head
from hyper_scheduler.core.model import Attempt
from hyper_scheduler.core.pages import PageKey, encode_page
from hyper_scheduler.core.restore import StoredWorkflow, restore
from tests.unit.hyper_scheduler.cores import Core, W, experiment, recipe, task


def successor(core: Core) -> Core:
    """The next leader, from what `core` would have stored."""
    stored = {
        name: StoredWorkflow(
            encode_head(run),
            run.recipe,
            run.recipe_yaml,
            {
                PageKey(name, key, number): encode_page(page)
                for key, each in run.experiments.items()
                for number, page in each.pages.items()
            },
        )
        for name, run in core.state.workflows.items()
    }
    state = restore(stored, {}, [], epoch=10, now=core.now, limits=core.state.limits)
    return Core(state, core.now)


def successor_of_two_workers(tasks: int) -> Core:
    """Of a leader that has given tasks to both of its workers."""
    core = Core()
    core.hello("w1", slots=1)
    core.hello("w2", slots=1)
    core.submit(recipe(experiment("a", tasks)))
    return successor(core)


def starts(commands: list[c.Command]) -> list[c.Start]:
    return [each for each in commands if isinstance(each, c.Start)]


def test_nothing_is_given_out_before_the_known_workers_came() -> None:
    after = successor_of_two_workers(4)
    assert not starts(after.hello("w3", slots=1))
    # w1 also runs an attempt that the earlier leader gave out without living to write it down
    running = ((task(0), Attempt(9, 1)), (task(2), Attempt(9, 3)))
    assert not starts(after.hello("w1", slots=2, running=running))
    (start,) = starts(after.hello("w2", slots=1, running=((task(1), Attempt(9, 2)),)))
    assert start == c.Start("w3", 1, ((task(3), Attempt(10, 1)),))


def test_the_wait_is_bounded_and_not_for_new_workflows() -> None:
    core = Core()
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 2)))
    after = successor(core)
    after.hello("w2", slots=1)
    other = f"{W}2"
    (start,) = starts(after.submit(recipe(experiment("a", 1)), other, "r2"))
    assert start.tasks[0][0].workflow == other
    after.hello("w3", slots=1)
    assert not starts(after.later(5.0))
    after.beat("w2", "w3")
    (start,) = starts(after.later(1.5))
    assert start.worker == "w3"


def test_a_leader_without_known_workers_starts_at_once() -> None:
    core = Core()
    core.submit(recipe(experiment("a", 1)))
    assert starts(successor(core).hello("w1"))


def test_of_two_attempts_that_come_to_light_the_older_one_is_stopped() -> None:
    after = successor_of_two_workers(2)
    after.hello("w1", slots=1, running=((task(0), Attempt(9, 1)),))
    found = after.hello("w2", slots=1, running=((task(0), Attempt(9, 5)),))
    stop = c.Stop("w1", after.state.workers["w1"].session, ((task(0), Attempt(9, 1)),))
    assert stop in found
    # and so where the newer one has ended already, and is only reported
    after = successor_of_two_workers(1)
    after.hello("w1", slots=1, running=((task(0), Attempt(9, 1)),))
    after.hello("w2", slots=1)
    assert stop in after.report("w2", task(0), 7, epoch=9)
