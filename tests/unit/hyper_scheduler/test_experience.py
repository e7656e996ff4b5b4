"""What a leadership learns of its own machines, without Prometheus and beside it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from hyper_scheduler.experience import Experience
from hyper_scheduler.measured import Measured
from hyper_scheduler.placement.demand import Known
from hyper_scheduler.placement.hazard import Hazard
from tests.unit.hyper_scheduler.cores import W, experiment, recipe
from tests.unit.hyper_scheduler.scaling import DEAR, Fleet


def test_a_cold_start_is_prometheus_s_else_our_own_else_the_default() -> None:
    seen = Experience()
    for seconds in (2.0, 4.0):
        seen.started("a", seconds)
    seen.started("b", 10.0)
    found = seen.known("abc", "k", Measured(cold_start_h={"b": 0.5}))
    assert found["a"].cold_start_h == pytest.approx(3 / 3600)
    assert found["b"].cold_start_h == 0.5
    assert found["c"].cold_start_h == Known().cold_start_h


def test_what_prometheus_saw_before_counts_once() -> None:
    seen = Experience()
    seen.preempted("a")
    for _ in range(2):
        seen.remember(Measured(hazards={"a": Hazard(events=3.0, exposure_h=5.0)}))
    seen.passed("a", 2, 0.5)
    assert seen.hazard("a").events == pytest.approx(3.0, rel=0.1)
    assert seen.hazard("a").exposure_h == pytest.approx(6.0, rel=0.1)
    assert seen.hazard("b") == Hazard()


@pytest.mark.parametrize(("start_s", "launched"), [(1.0, 3), (180.0, 1)])
async def test_as_many_are_replaced_as_their_start_is_worth(start_s: float, launched: int) -> None:
    """Two minutes of work are left: three machines share them if machines start in a second."""
    fleet = Fleet(DEAR.replace("max: 2", "max: 3"))
    fleet.submit(recipe(replace(experiment("a", 120), workers=3)), task_s=60.0)
    first = await fleet.look()
    assert len(first) == 3
    fleet.join(*first)
    await fleet.look(start_s)
    (run,) = fleet.core.state.workflows[W].experiments.values()
    run.mean_s = 1.0
    fleet.provider.there = []
    fleet.core.state.workers.clear()
    for _ in range(3):
        there = await fleet.look(1.0)
    assert len(there) == launched


async def test_a_new_leader_learns_from_the_ledger() -> None:
    fleet = Fleet()
    fleet.submit(recipe(replace(experiment("a", 9), workers=2)))
    fleet.join(*await fleet.look())
    await fleet.look(7.0)
    fleet.next_leader()
    leading = asyncio.create_task(fleet.scaler.run())
    await asyncio.sleep(0.1)
    leading.cancel()
    assert fleet.scaler.known("")["dear"].cold_start_h == pytest.approx(7 / 3600)
