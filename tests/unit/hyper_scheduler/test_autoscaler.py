"""One look of the autoscaler: providers that are away, machines that are there anyway, limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyper_scheduler.autoscaler import network_of
from hyper_scheduler.core.model import Hardware
from hyper_scheduler.placement.ledger import Machine
from hyper_servicekit.clock import ManualClock
from tests.unit.hyper_scheduler.cores import Core, experiment, recipe
from tests.unit.hyper_scheduler.scaling import DEAR, OFFERS, Provider, autoscaler


async def test_a_provider_that_is_away_stops_no_other() -> None:
    core = Core()
    core.submit(recipe(replace(experiment("a", 30), workers=3)))
    broken, good = Provider(away=True), Provider()
    scaler, beside = autoscaler(core, broken=broken, good=good)
    for _ in range(3):
        await scaler.look()
    assert len(good.there) == 2  # as many as there are
    assert broken.there == []
    assert "cheap/spot" in scaler.refusals
    good.away = True
    core.later(1.0)
    core.state.workflows.clear()
    saved = beside.saved
    for _ in range(2):
        await scaler.look()
    assert (len(good.there), beside.saved) == (2, saved + 2)
    good.away = False
    for _ in range(4):
        await scaler.look()
    assert good.there == []
    assert scaler.ledger.machines == {}


async def test_a_machine_whose_agent_stays_away_is_replaced() -> None:
    core, clock, good = Core(), ManualClock(1000.0), Provider()
    core.submit(recipe(replace(experiment("a", 3), workers=1)))
    scaler, _ = autoscaler(core, DEAR, clock, good=good)

    async def look(after_s: float) -> list[str]:
        await clock.advance(after_s)
        await scaler.look()
        return [each.machine for each in good.there]

    await scaler.look()
    (first,) = await look(5)
    core.hello("worker", labels={"machine": first})
    assert await look(5) == [first]
    core.later(20.0)  # no heartbeat: lost
    assert await look(50) == [first]
    (second,) = await look(20)
    assert second != first
    assert "dear/spot" not in scaler.refusals  # it was there
    core.hello("other", labels={"machine": second})
    for _ in range(2):
        assert await look(5) == [second]
    assert list(scaler.ledger.machines) == [second]


async def test_a_machine_whose_agent_never_comes_is_given_up_later() -> None:
    core, clock, good = Core(), ManualClock(1000.0), Provider()
    core.submit(recipe(replace(experiment("a", 3), workers=1)))
    scaler, _ = autoscaler(core, DEAR, clock, good=good)
    for _ in range(3):
        await scaler.look()
    assert len(good.there) == 1
    await clock.advance(590)
    await scaler.look()
    assert len(good.there) == 1
    await clock.advance(20)
    await scaler.look()
    assert "NoAgent" in [each.reason for each in scaler.refusals.values()]
    assert good.there == []


@pytest.mark.parametrize(("gpus", "launched"), [(0, 1), (1, 3)])
async def test_workers_that_are_there_take_what_fits_them(gpus: int, launched: int) -> None:
    """A slot counts once, and for no task that it cannot run."""
    core = Core()
    core.hello("own", slots=2)
    core.state.room = 0
    for name in ("first", "second"):
        work = experiment("a", 2 if name == "first" else 1)
        work = replace(work, hardware=Hardware(gpus=gpus))
        core.submit(recipe(work), f"tenants/t/workflows/{name}", name)
        core.state.workflows[f"tenants/t/workflows/{name}"].experiments["a"].mean_s = 3600.0
    with_gpus = OFFERS.replace("max: 2", "max: 9, gpu: T4")
    scaler, _ = autoscaler(core, with_gpus, broken=Provider(), good=Provider())
    await scaler.look()
    assert len(scaler.ledger.machines) == launched


def test_networks_have_their_workflows_own_names() -> None:
    long = "tenants/t/workflows/" + "x" * 60
    assert network_of(f"{long}-1a2b3c4d") != network_of(f"{long}-5e6f7a8b")
    assert len(network_of(long)) <= 48


async def test_machines_carry_a_tag_that_no_other_deployment_has() -> None:
    core = Core()
    scaler, beside = autoscaler(core, broken=Provider(), good=Provider())
    # machines of an older version are called what they were
    entry = Machine("dear", "w", "e", "good", True, 1.0, 1.0, 1, 0.0, 0.0)
    scaler.ledger.open("m-1", entry)
    await scaler._name_cluster()
    assert (scaler._tag.value, beside.known) == ("hyper", "")
    scaler.ledger.close("m-1", preempted=False)
    await scaler._name_cluster()
    assert scaler._tag.value == "hyper-1a2b"
    scaler.ledger.open("m-2", entry)
    await scaler._name_cluster()
    assert scaler._tag.value == "hyper-1a2b"
