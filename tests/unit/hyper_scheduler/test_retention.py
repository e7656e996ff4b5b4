"""What has ended is kept for a while, and no longer: neither in memory nor in etcd nor in S3."""

from __future__ import annotations

import dataclasses

import pytest

from hyper_scheduler.core import commands as c
from hyper_scheduler.core import events as e
from hyper_scheduler.core.pages import PageKey
from hyper_scheduler.core.restore import StoredWorkflow, restore
from hyper_scheduler.core.state import Limits, RunState, State
from tests.unit.hyper_scheduler.cores import Core, experiment, recipe, task

LIMITS = Limits(lease_s=6.0, gather_s=0.0, kept_s=100.0)


def core(**limits: float) -> Core:
    made = Core(State(9, dataclasses.replace(LIMITS, **limits), checked_at=1000.0))
    made.hello("w", slots=100)
    return made


def name(of: str, tenant: str = "t") -> str:
    return f"tenants/{tenant}/workflows/{of}"


def ended(one: Core, workflow: str) -> None:
    """Submit a workflow of one task and have it succeed."""
    one.submit(recipe(experiment("a", 1)), workflow, request_id=f"r-{workflow}")
    one.report("w", task(0, workflow=workflow), one.state.number)
    assert one.state.workflows[workflow].durable is RunState.SUCCEEDED


def later(one: Core, seconds: float) -> list[str]:
    """Which workflows' results are to be deleted, while time passes and the worker lives."""
    found: list[str] = []
    for _ in range(round(seconds)):
        one.beat("w")
        found += [x.workflow for x in one.later(1.0) if isinstance(x, c.Discard)]
    return found


def test_it_goes_when_its_time_is_over() -> None:
    one = core()
    ended(one, name("old"))
    one.submit(recipe(experiment("a", 1)), name("runs"))
    assert later(one, 95) == []
    assert later(one, 10) == [name("old")]
    assert list(one.state.workflows) == [name("runs")]
    (atom,) = one.commits[-1].atoms
    assert atom == (
        c.Put("workflows/t/old/", None, below=True),
        c.Put("forgotten/t/old", b"{}"),
    )
    one.feed(e.Discarded(one.now, name("old")))
    assert one.commits[-1].atoms == ((c.Put("forgotten/t/old", None),),)


def test_results_go_only_once_that_is_durable() -> None:
    one = core()
    ended(one, name("old"))
    one.hold_commits = True
    assert later(one, 110) == []
    commands = one.feed(e.Committed(one.now, one.state.commits))
    assert commands == [c.Discard(name("old"))]


def test_the_next_leader_deletes_what_is_left() -> None:
    state = restore({}, {}, [], [name("old")], epoch=10, now=1000.0, limits=LIMITS)
    one = Core(state)
    assert one.later(0.5) == [c.Discard(name("old"))]
    assert one.later(5.0) == []
    one.feed(e.Discarded(one.now, name("old")))
    assert one.commits[-1].atoms == ((c.Put("forgotten/t/old", None),),)


def test_the_next_leader_goes_on_counting() -> None:
    one = core()
    ended(one, name("old"))
    stored: dict[str, bytes] = {}
    for atom in (atom for commit in one.commits for atom in commit.atoms):
        stored |= {put.key: put.value for put in atom if put.value is not None}
    head = stored["workflows/t/old/head"]
    pages = {PageKey(name("old"), "a", 0): stored["workflows/t/old/pages/a/000000"]}
    kept = {name("old"): StoredWorkflow(head, recipe(experiment("a", 1)), "yaml", pages)}
    state = restore(kept, {}, [], epoch=10, now=one.now + 90, limits=LIMITS)
    two = Core(state, now=one.now + 90)
    assert two.later(5) == []
    assert two.later(10) == [c.Discard(name("old"))]


def test_the_oldest_of_who_has_most_goes_when_there_are_too_many() -> None:
    one = core(kept_workflows=3, kept_least_s=10.0)
    ended(one, name("theirs", "u"))
    for number in range(4):
        ended(one, name(f"w{number}"))
    assert later(one, 9) == []
    assert later(one, 3) == [name("w0"), name("w1")]
    assert later(one, 20) == []


def test_pages_are_bounded() -> None:
    one = core(kept_pages=2, kept_least_s=0.0)
    for number in range(3):
        ended(one, name(f"w{number}"))
    assert later(one, 2) == [name("w0")]


@pytest.mark.parametrize("how", ["submit", "cancel"])
def test_a_repeat_for_a_forgotten_one_says_so(how: str) -> None:
    one = core()
    one.submit(recipe(experiment("a", 1)), name("old"), request_id="r")
    one.feed(e.Cancel(one.now, "s", name("old")))
    one.report("w", task(0, workflow=name("old")), 1, e.Outcome.STOPPED)
    assert later(one, 105) == [name("old")]
    if how == "submit":
        (answer,) = one.submit(recipe(experiment("a", 1)), name("old"), request_id="r")
    else:
        (answer,) = one.feed(e.Cancel(one.now, "s", name("old")))
    assert isinstance(answer, c.Refuse)
    assert (answer.kind, name("old") in answer.message) == ("not_found", True)


def test_what_is_retried_is_kept() -> None:
    one = core()
    one.submit(recipe(experiment("a", 1)), name("old"))
    one.feed(e.Cancel(one.now, "s", name("old")))
    one.report("w", task(0, workflow=name("old")), 1, e.Outcome.STOPPED)
    later(one, 95)
    one.feed(e.Retry(one.now, "t", name("old")))
    assert later(one, 20) == []
    one.report("w", task(0, workflow=name("old")), 2)
    assert one.state.workflows[name("old")].durable is RunState.SUCCEEDED
    assert later(one, 95) == []
    assert later(one, 10) == [name("old")]
