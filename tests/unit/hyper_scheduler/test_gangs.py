"""Gangs start, restart and succeed together; a lost node is never a failure of theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyper_scheduler.core import events as e
from hyper_scheduler.core.gangs import ranks
from hyper_scheduler.core.model import Recipe
from hyper_scheduler.core.pages import Status
from tests.unit.hyper_scheduler.cores import Core, W, experiment, recipe, task

F = e.Outcome.FAILED


def gang(size: int, tasks: int = 1, retries: int = 1) -> Recipe:
    return recipe(replace(experiment("a", tasks, retries=retries), gang=size))


def test_all_start_or_none() -> None:
    core = Core()
    core.hello("w1", 2)
    core.submit(gang(3))
    assert not core.state.workers["w1"].running
    given = core.hello("w2", 1)
    assert core.start("w1", (task(0), 1), (task(1), 2)) in given
    assert core.start("w2", (task(2), 3)) in given


def test_places_are_told_under_the_names_of_torchrun() -> None:
    core = Core()
    core.hello("w1", 2, labels={"host": "h1"})
    core.hello("w2", 2, labels={"host": "h2"})
    core.submit(gang(4))
    run = core.state.workflows[W].experiments["a"]
    found = ranks(core.state, run, task(2))
    assert [found[i].rank for i in range(4)] == [0, 1, 2, 3]
    assert [found[i].local_rank for i in range(4)] == [0, 1, 0, 1]
    assert [found[i].node_rank for i in range(4)] == [0, 0, 1, 1]
    assert {each.world_size for each in found.values()} == {4}
    assert len({(each.master_addr, each.master_port) for each in found.values()}) == 1


def test_parameters_are_those_of_the_gang() -> None:
    core = Core()
    core.submit(gang(2, tasks=3))
    run = core.state.workflows[W].experiments["a"]
    assert (run.total, run.units) == (6, 3)


def test_a_gang_is_done_when_all_of_it_is() -> None:
    core = Core()
    core.hello("w1", 2)
    core.submit(gang(2))
    core.report("w1", task(0), 1)
    run = core.state.workflows[W].experiments["a"]
    assert (run.succeeded, run.record(0).status) == (0, Status.HELD)  # type: ignore[union-attr]
    core.report("w1", task(1), 2, sequence=2)
    assert run.succeeded == 2
    assert core.state.workflows[W].state.value == "succeeded"


def test_the_loss_of_one_rank_restarts_all_and_counts_as_nothing() -> None:
    core = Core()
    core.hello("w1", 1)
    core.hello("w2", 1)
    core.submit(gang(2, retries=0))
    run = core.state.workflows[W].experiments["a"]
    # the peer of the machine that is gone fails at once, long before the lease has run out
    core.report("w1", task(0), 1, F, message="connection reset")
    assert run.record(0).failures == 0  # type: ignore[union-attr]
    for _ in range(8):
        core.beat("w1")
        core.later(1.0)
    assert "w2" not in core.state.workers
    given = core.hello("w3", 1)
    assert {command.tasks for command in given if hasattr(command, "tasks")}
    assert run.running == 2
    assert [run.record(i).failures for i in (0, 1)] == [0, 0]  # type: ignore[union-attr]


def test_a_failure_stops_the_others_and_counts_once_all_have_ended() -> None:
    core = Core()
    core.hello("w1", 2)
    core.submit(gang(2, retries=1))
    run = core.state.workflows[W].experiments["a"]
    assert core.stop("w1", (task(1), 2)) in core.report("w1", task(0), 1, F)
    assert run.record(0).failures == 0  # type: ignore[union-attr]
    given = core.report("w1", task(1), 2, e.Outcome.STOPPED, sequence=2)
    assert core.start("w1", (task(0), 3), (task(1), 4)) in given
    assert [run.record(i).failures for i in (0, 1)] == [1, 0]  # type: ignore[union-attr]
    core.report("w1", task(0), 3, F, sequence=3, message="bad luck")
    core.report("w1", task(1), 4, e.Outcome.STOPPED, sequence=4)
    assert core.state.workflows[W].message == (
        "experiment a: task 0 failed 2 times: bad luck"
    )  # fmt: skip


def test_a_rank_that_has_succeeded_runs_again_with_the_others() -> None:
    core = Core()
    core.hello("w1", 2)
    core.submit(gang(2))
    core.report("w1", task(0), 1)
    given = core.report("w1", task(1), 2, F, sequence=2)
    assert core.start("w1", (task(0), 3), (task(1), 4)) in given


def test_workers_are_kept_free_for_a_gang_that_waits() -> None:
    core = Core()
    core.hello("w1", 1)
    core.hello("w2", 1)
    core.submit(recipe(experiment("s", 9)), name=f"{W}1", request_id="r1")
    core.submit(gang(2), request_id="r2")
    run = core.state.workflows[W].experiments["a"]
    for sequence in range(1, 6):  # one worker after the other becomes free: in turn at first
        busy = [each for each in ("w1", "w2") if core.state.workers[each].running]
        if run.running or not busy:
            break
        ((which, attempt),) = core.state.workers[busy[0]].running.items()
        core.report(busy[0], which, attempt.number, sequence=sequence)
    assert core.state.workflows[f"{W}1"].experiments["s"].succeeded <= 3
    assert core.state.workflows[W].experiments["a"].running == 2


@pytest.mark.parametrize("slots", [1, 2])
def test_a_gang_over_the_quota_is_refused(slots: int) -> None:
    core = Core()
    core.state.limits = replace(core.state.limits, other_tenants=_quota(slots))
    core.hello("w1", 4)
    refused = [type(each).__name__ for each in core.submit(gang(2))] == ["Refuse"]
    assert refused == (slots < 2)


def _quota(slots: int):  # type: ignore[no-untyped-def]
    from hyper_scheduler.core.state import Quota

    return Quota(slots=slots)


def test_a_gang_stays_within_one_zone_of_one_cloud() -> None:
    core = Core()
    for name, cloud, zone in (("w1", "aws", "a"), ("w2", "gcp", "a"), ("w3", "aws", "b")):
        core.hello(name, 1, labels={"cloud": cloud, "zone": zone})
    core.submit(gang(2))
    assert not any(each.running for each in core.state.workers.values())
    core.hello("w4", 1, labels={"cloud": "gcp", "zone": "a"})
    held = {name for name, each in core.state.workers.items() if each.running}
    assert held == {"w2", "w4"}


def test_what_is_kept_free_for_a_gang_is_in_one_zone() -> None:
    core = Core()
    for name, zone in (("w1", "a"), ("w2", "b"), ("w3", "b")):
        core.hello(name, 1, labels={"zone": zone})
    core.submit(recipe(experiment("b", 3)), f"{W}2", "r2")
    core.submit(gang(2))
    core.report("w1", task(0, "b", f"{W}2"), 1)
    assert core.state.reserved is not None
    assert core.state.reserved.workers == {"w2", "w3"}
