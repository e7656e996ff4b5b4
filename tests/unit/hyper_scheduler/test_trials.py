"""Early stopping by what others report; parameters chosen by what others came to."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from hyper_scheduler.core import commands as c
from hyper_scheduler.core import events as e
from hyper_scheduler.core.commands import TrialView
from hyper_scheduler.core.model import (
    Asha,
    Attempt,
    Choice,
    Experiment,
    LogUniform,
    Objective,
    Sampling,
    Steps,
    Uniform,
)
from hyper_scheduler.suggest import suggest
from tests.unit.hyper_scheduler.cores import Core, W, experiment, recipe, task


def tell(core: Core, index: int, number: int, step: int, value: float) -> list[c.Command]:
    report = e.MetricReport(task(index), Attempt(9, number), step, (("auc", value),))
    return core.feed(e.Metrics(core.now, "w1", core.sessions["w1"], (report,)))


@pytest.mark.parametrize("maximize", [True, False])
def test_the_worse_are_stopped_where_enough_have_come(maximize: bool) -> None:
    core = Core()
    core.hello("w1", 4)
    objective = Objective("auc", maximize, Asha(min_steps=10, reduction=2))
    core.submit(recipe(replace(experiment("a", 4), objective=objective)))
    sign = 1.0 if maximize else -1.0
    assert not tell(core, 0, 1, 9, sign * 0.9)  # no step at which they are compared
    assert not tell(core, 0, 1, 10, sign * 0.9)
    assert core.stop("w1", (task(1), 2)) in tell(core, 1, 2, 10, sign * 0.5)
    assert not tell(core, 2, 3, 10, sign * 0.95)
    run = core.state.workflows[W].experiments["a"]
    assert run.best == (sign * 0.95, 2)
    core.report("w1", task(1), 2, e.Outcome.STOPPED)
    assert run.is_done(1)
    line = json.loads(core.commits[-1].objects[0].data.splitlines()[-1])
    assert json.loads(line["result"]) == {"stopped_early": True, "step": 10, "auc": sign * 0.5}


def test_a_stopped_task_whose_worker_is_lost_does_not_run_again() -> None:
    core = Core()
    core.hello("w1", 2)
    core.submit(recipe(replace(experiment("a", 2), objective=Objective("auc", asha=Asha(1, 2)))))
    tell(core, 0, 1, 1, 0.9)
    tell(core, 1, 2, 1, 0.1)
    core.later(7.0)
    run = core.state.workflows[W].experiments["a"]
    assert run.is_done(1) and not run.is_done(0)


def test_reports_of_superseded_attempts_are_not_heard() -> None:
    core = Core()
    core.hello("w1", 2)
    core.submit(recipe(replace(experiment("a", 2), objective=Objective("auc"))))
    tell(core, 0, 7, 1, 0.9)
    assert core.state.workflows[W].experiments["a"].best is None


def tpe(samples: int = 3) -> Experiment:
    return Experiment(
        "a", "true", parameters={"x": Uniform(0.0, 1.0)}, sampling=Sampling.TPE, samples=samples,
        objective=Objective("auc"), workers=1,
    )  # fmt: skip


def test_parameters_are_asked_for_one_by_one_and_durable_before_the_start() -> None:
    core = Core()
    core.hello("w1", 2)
    asked = core.submit(recipe(tpe()))
    assert c.Suggest(W, "a", 0, ()) in asked
    core.hold_commits = True
    assert not core.feed(e.Suggested(core.now, W, "a", 0, '{"x": 0.25}'))
    assert not core.state.workers["w1"].running
    core.hold_commits = False
    core.feed(e.Committed(core.now, core.commits[-1].number))
    assert list(core.state.workers["w1"].running) == [task(0)]
    one = e.Report(task(0), Attempt(9, 1), e.Outcome.SUCCEEDED, result_json='{"auc": 0.5}')
    asked = core.feed(e.Reports(core.now, "w1", core.sessions["w1"], 1, (one,)))
    assert c.Suggest(W, "a", 1, (TrialView('{"x": 0.25}', 0.5, False),)) in asked


SPACE = Experiment(
    "a", "true",
    parameters={
        "x": Uniform(-1.0, 1.0), "lr": LogUniform(1e-5, 1.0), "n": Steps(2, 2, 50),
        "kind": Choice.of(["u", "v", "w"]), "data": Choice.of(["constant"]),
    },
    sampling=Sampling.TPE, samples=60, seed=3, objective=Objective("loss", maximize=False),
)  # fmt: skip


def test_suggestions_are_reproducible_and_find_what_is_good() -> None:
    history: list[TrialView] = []
    losses: list[float] = []
    for index in range(45):
        text = suggest(SPACE, index, history)
        if index % 20 == 0:
            assert text == suggest(SPACE, index, history)
        chosen = json.loads(text)
        assert list(chosen) == list(SPACE.parameters)
        assert chosen["data"] == "constant" and chosen["n"] in range(2, 102, 2)
        loss = (chosen["x"] - 0.3) ** 2 + (chosen["n"] - 40) ** 2 / 2500 + (chosen["kind"] != "v")
        losses.append(loss)
        history.append(TrialView(text, loss, False))
    rng = random.Random(0)
    blind = [
        (rng.uniform(-1, 1) - 0.3) ** 2 + (rng.randrange(2, 102, 2) - 40) ** 2 / 2500
        + (rng.choice("uvw") != "v")
        for _ in range(20_000)
    ]  # fmt: skip
    later = sum(losses[20:]) / 25
    assert later < 0.5 * sum(blind) / len(blind)


def test_running_and_failed_tasks_are_part_of_the_history() -> None:
    views = [TrialView(suggest(SPACE, i, []), None, i % 2 == 0) for i in range(12)]
    assert json.loads(suggest(SPACE, 12, views))
