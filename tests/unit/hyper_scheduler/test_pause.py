"""A paused workflow starts nothing, also under the next leader."""

from __future__ import annotations

from hyper_scheduler.core import commands as c
from hyper_scheduler.core import events as e
from hyper_scheduler.core.state import Request, RunState
from tests.unit.hyper_scheduler.cores import Core, W, experiment, recipe, task
from tests.unit.hyper_scheduler.test_takeover import successor


def test_nothing_starts_while_paused_and_what_runs_goes_on() -> None:
    core = Core()
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 3)))
    assert core.feed(e.Pause(core.now, "r2", W, True)) == [c.Reply(Request("r2", "pause", W))]
    assert core.report("w1", task(0), 1) == [core.ack("w1")]
    assert core.state.workflows[W].experiments["a"].succeeded == 1
    assert core.feed(e.Pause(core.now, "r3", W, False)) == [
        core.start("w1", (task(1), 2)),
        c.Reply(Request("r3", "resume", W)),
    ]


def test_the_next_leader_knows() -> None:
    core = Core()
    core.submit(recipe(experiment("a", 1)))
    core.feed(e.Pause(core.now, "r2", W, True))
    after = successor(core)
    assert after.hello("w1") == [after.welcome("w1")]
    assert after.feed(e.Pause(after.now, "r3", W, False))[0] == c.Start(
        "w1", 1, ((task(0), after.state.workers["w1"].running[task(0)]),)
    )


def test_a_paused_workflow_can_be_cancelled() -> None:
    core = Core()
    core.submit(recipe(experiment("a", 1)))
    core.feed(e.Pause(core.now, "r2", W, True))
    core.feed(e.Cancel(core.now, "r3", W))
    assert core.state.workflows[W].state is RunState.CANCELLED
    (refusal,) = core.feed(e.Pause(core.now, "r4", W, True))
    assert isinstance(refusal, c.Refuse)
    assert refusal.kind == "finished"
