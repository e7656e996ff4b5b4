"""Where there is no place for a task is remembered, and forgotten when there is more room."""

from __future__ import annotations

import pytest

from hyper_scheduler.core import commands as c
from hyper_scheduler.core import dispatch
from hyper_scheduler.core.events import Cancel
from hyper_scheduler.core.model import Experiment, Hardware
from hyper_scheduler.core.state import WorkerRun
from hyper_scheduler.core.tasks import fits
from tests.unit.hyper_scheduler.cores import Core, experiment, recipe, task

X, Y = "tenants/t/workflows/x", "tenants/t/workflows/y"


def test_idle_workers_are_not_asked_again_for_what_they_do_not_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = Core()
    for number in range(200):
        core.hello(f"w{number}")
    for number in range(20):
        core.submit(
            recipe(experiment("a", 5, labels={"gpu": "x"})), f"{X}{number}", request_id=f"x{number}"
        )
    core.submit(recipe(experiment("a", 5)), Y, request_id="y")
    asked: list[str] = []

    def counted(worker: WorkerRun, spec: Experiment, share: int = dispatch.SLOT) -> bool:
        asked.append(worker.name)
        return fits(worker, spec, share)

    monkeypatch.setattr(dispatch, "fits", counted)
    core.report("w0", task(0, workflow=Y), 1)
    assert len(asked) < 20


def test_a_worker_that_comes_is_asked() -> None:
    core = Core()
    core.hello("w")
    core.submit(recipe(experiment("a", 1, labels={"gpu": "x"})), X)
    core.hello("v", labels={"gpu": "x"})
    assert core.state.workers["v"].running


def test_room_that_comes_back_is_used() -> None:
    core = Core()
    core.hello("w", slots=3)
    core.submit(recipe(experiment("a", 1, hardware=Hardware(cpus=3))), X)
    core.submit(recipe(experiment("a", 1, hardware=Hardware(cpus=2))), Y, request_id="y")
    assert len(core.state.workers["w"].running) == 1
    commands = core.report("w", task(0, workflow=X), 1)
    assert core.start("w", (task(0, workflow=Y), 2)) in commands


def test_what_was_kept_for_a_gang_is_there_for_others_afterwards() -> None:
    core = Core()
    core.hello("w", slots=2)
    core.submit(recipe(experiment("a", 1)), Y, request_id="y")
    gang = Experiment("a", command="true", gang=2)
    core.submit(recipe(gang), X)  # waits, and keeps the free slot
    core.submit(recipe(experiment("a", 1)), f"{Y}2", request_id="y2")
    assert len(core.state.workers["w"].running) == 1
    commands = core.feed(Cancel(core.now, "z", X))
    assert any(isinstance(each, c.Start) for each in [*commands, *core.later(1.0)])
