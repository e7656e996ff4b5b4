"""When machines end: the idle first, none with work in it unless something forces it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyper_scheduler.core import events as e
from hyper_scheduler.core.model import Around, Recipe
from hyper_scheduler.core.waiting import why_waiting
from hyper_scheduler.demands import demand_of
from hyper_scheduler.placement.backoff import FIRST_S
from tests.unit.hyper_scheduler.cores import Core, W, experiment, recipe
from tests.unit.hyper_scheduler.scaling import DEAR, Fleet

COSTLY = DEAR.replace("spot: 0.1", "spot: 3600").replace("on_demand: 0.3", "on_demand: 9000")
MANY = DEAR.replace("max: 2", "max: 9")


def work(tasks: int, workers: int = 0) -> Recipe:
    return recipe(experiment("a", tasks, workers=workers))


async def started(offers: str = MANY, tasks: int = 3, workers: int = 0) -> tuple[Fleet, list[str]]:
    """A fleet with a machine for each task, and these running."""
    fleet = Fleet(offers)
    fleet.submit(work(tasks, workers))
    machines = await fleet.look()
    fleet.join(*machines)
    await fleet.look()
    return fleet, machines


def why(fleet: Fleet) -> str:
    return why_waiting(fleet.core.state, fleet.core.state.workflows[W])


async def test_the_machine_whose_task_has_ended_goes() -> None:
    fleet, machines = await started()
    assert fleet.busy == set(machines)
    fleet.end(machines[0])  # the oldest
    for _ in range(3):
        left = await fleet.look()
    assert set(left) == set(machines[1:])


async def test_a_cancelled_workflow_has_time_to_stop_its_tasks() -> None:
    fleet, machines = await started(tasks=1)
    fleet.core.feed(e.Cancel(fleet.core.now, "c", W))
    for _ in range(3):
        assert await fleet.look(60) == machines
    fleet.end(machines[0], e.Outcome.STOPPED)
    assert await fleet.look() == []


async def test_a_pause_lets_run_what_runs() -> None:
    fleet, machines = await started(tasks=4, workers=2)
    fleet.core.feed(e.Pause(fleet.core.now, "p", W, True))
    for _ in range(3):
        assert await fleet.look(60) == machines
    fleet.end(machines[0])
    await fleet.look()
    assert await fleet.look() == machines[1:]
    fleet.core.feed(e.Pause(fleet.core.now, "q", W, False))
    assert len(await fleet.look()) == 2
    assert not fleet.core.state.workers[machines[1]].draining


@pytest.mark.parametrize("fail_over", [False, True])
async def test_a_drained_machine_is_replaced_and_ended(fail_over: bool) -> None:
    fleet, (machine,) = await started(tasks=3, workers=1)
    fleet.core.feed(e.DrainWorker(fleet.core.now, "d", machine))
    if fail_over:
        fleet.next_leader()
    both = await fleet.look()
    assert len(both) == 2
    fleet.end(machine)
    (new,) = await fleet.look()
    assert new != machine


async def test_the_last_task_of_a_drained_machine_needs_no_other() -> None:
    fleet, (machine,) = await started(tasks=1)
    fleet.core.feed(e.DrainWorker(fleet.core.now, "d", machine))
    assert await fleet.look(60) == [machine]


@pytest.mark.parametrize("told_by", ["provider", "agent"])
async def test_an_announced_preemption_counts_and_is_replaced_at_once(told_by: str) -> None:
    fleet, (machine,) = await started(tasks=3, workers=1)
    before = fleet.scaler.known("")["dear"].hazard.events
    if told_by == "provider":
        fleet.provider.noticed = [f"i-{machine}"]
        assert len(await fleet.look()) == 2
    fleet.end(machine, e.Outcome.PREEMPTED)
    for _ in range(3):
        assert machine not in await fleet.look()
    account = fleet.scaler.ledger.account(W, "dear")
    assert (account.preemptions, account.launches) == (1, 2)
    assert fleet.scaler.known("")["dear"].hazard.events > before + 0.9


async def test_a_machine_that_is_ended_is_no_preemption() -> None:
    fleet, machines = await started(tasks=1)
    fleet.end(machines[0])
    for _ in range(4):
        assert await fleet.look() == []
    assert fleet.scaler.ledger.account(W, "dear").preemptions == 0


async def test_a_broken_image_is_tried_more_and_more_rarely() -> None:
    fleet = Fleet(MANY)
    fleet.submit(work(3))
    assert len(await fleet.look()) == 3
    await fleet.look(601)  # no agent within join_s
    refusals = []
    for _ in range(4):
        (refusal,) = fleet.scaler.refusals.values()
        refusals.append((refusal.reason, refusal.count))
        assert "NoAgent, no agent came from its machines" in why(fleet)
        assert len(await fleet.look(FIRST_S * 2**refusal.count)) == 1  # to show itself
        await fleet.look(601)
    assert refusals == [("NoAgent", count) for count in (1, 2, 3, 4)]
    (machine,) = await fleet.look(FIRST_S * 2**5)
    fleet.join(machine)
    assert len(await fleet.look()) == 3
    assert not fleet.scaler.refusals


async def test_a_budget_lets_be_finished_what_runs_and_says_so() -> None:
    fleet = Fleet(COSTLY)
    fleet.submit(replace(work(3, workers=1), budget_usd=4.0))
    machines = await fleet.look()
    fleet.join(*machines)
    assert why(fleet) == ""
    for _ in range(3):
        assert await fleet.look(60) == machines
    assert why(fleet).startswith("the budget of 4 USD is used up")
    fleet.end(machines[0])
    for _ in range(2):
        assert await fleet.look() == []
    assert why(fleet).startswith("the budget of 4 USD is used up")


async def test_a_budget_cuts_short_what_saves_a_checkpoint() -> None:
    fleet = Fleet(COSTLY)
    around = Around(checkpoint_path="/c", checkpoint_every_s=300)
    long = replace(experiment("a", 3, workers=1), around=around)
    fleet.submit(replace(recipe(long), budget_usd=4.0))
    fleet.join(*await fleet.look())
    await fleet.look(60)
    assert await fleet.look(60) == []


async def test_a_new_leader_waits_for_busy_agents_before_it_ends_machines() -> None:
    fleet, machines = await started(tasks=2)
    fleet.core.state.expected = dict.fromkeys(machines)
    fleet.end(machines[0])
    assert await fleet.look() == machines
    fleet.core.state.expected = {}
    await fleet.look()
    assert await fleet.look() == machines[1:]


async def test_an_agent_that_is_away_for_a_moment_keeps_its_machine() -> None:
    fleet, machines = await started(tasks=2)
    fleet.core.feed(e.DrainWorker(fleet.core.now, "d", machines[0]))
    await fleet.look()
    del fleet.core.state.workers[machines[0]].running[
        next(iter(fleet.core.state.workers[machines[0]].running))
    ]
    del fleet.core.state.workers[machines[0]]
    assert machines[0] in await fleet.look(30)
    assert machines[0] not in await fleet.look(61)


def test_later_stages_need_time_before_the_deadline() -> None:
    core = Core()
    stages = (
        experiment("a", 4),
        experiment("b", 6, "a", workers=2),
        experiment("c", 2, "b"),
        replace(experiment("d", 4, "a"), each=("a",)),
    )
    core.submit(recipe(*stages, deadline_s=10_000.0))
    workflow = core.state.workflows[W]
    first, second = workflow.experiments["a"], workflow.experiments["b"]
    first.mean_s = 100.0
    demand = demand_of(workflow, first, core.now, 10)
    assert demand is not None
    starts_s = 180.0
    assert demand.left_s == pytest.approx(10_000 - (3 * 100 + starts_s) - (100 + starts_s))
    second.mean_s = 1000.0
    longer = demand_of(workflow, first, core.now, 10)
    assert longer is not None
    assert longer.left_s == pytest.approx(10_000 - (3 * 1000 + starts_s) - (100 + starts_s))


def test_what_runs_for_long_is_long() -> None:
    core = Core()
    core.hello("w1")
    core.submit(recipe(experiment("a", 4)))
    run = core.state.workflows[W].experiments["a"]

    def task_s(at: float) -> float:
        demand = demand_of(core.state.workflows[W], run, at, 10)
        assert demand is not None
        return demand.task_s

    assert (task_s(core.now + 5), task_s(core.now + 900)) == (0.0, 900.0)
    core.report("w1", next(iter(core.state.workers["w1"].running)), 1, wall_s=2.0)
    assert task_s(core.now + 900) == 2.0
