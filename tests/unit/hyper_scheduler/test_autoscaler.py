"""One look of the autoscaler: providers that are away, machines that are there anyway, limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from hyper.errors import UnavailableError
from hyper_scheduler.autoscaler import Autoscaler, network_of
from hyper_scheduler.catalogue import parse_catalogue
from hyper_scheduler.config import PlacementSettings
from hyper_scheduler.core.model import Hardware
from hyper_scheduler.measured import Prometheus
from hyper_scheduler.placement.ledger import Machine
from hyper_scheduler.providers.base import Instance, Order
from hyper_servicekit.clock import Clock, ManualClock, SystemClock
from tests.unit.hyper_scheduler.cores import Core, experiment, recipe

OFFERS = """
version: 1
as_of: 2026-11-01
offers:
  - {name: cheap, provider: broken, on_demand: 0.1, spot: 0.01, zone: a, max: 2}
  - {name: dear, provider: good, on_demand: 0.3, spot: 0.1, zone: b, max: 2}
"""
DEAR = "\n".join(line for line in OFFERS.splitlines() if "cheap" not in line)


@dataclass
class Provider:
    """Keeps machines in a list; no provider of ours can be made to fail on demand."""

    away: bool = False
    there: list[Instance] = field(default_factory=list)

    def _reach(self) -> None:
        if self.away:
            raise UnavailableError("no answer")

    async def launch(self, order: Order) -> str:
        self._reach()
        self.there.append(Instance(f"i-{order.machine}", order.machine))
        return self.there[-1].id

    async def instances(self) -> Sequence[Instance]:
        return list(self.there)

    async def terminate(self, ids: Sequence[str]) -> None:
        self._reach()
        self.there = [each for each in self.there if each.id not in ids]

    async def notices(self) -> Sequence[str]:
        return ()

    async def tidy(self, networks: Sequence[str]) -> None:
        return None

    async def close(self) -> None:
        return None


class Beside:
    """The parts of a term and a store that the autoscaler needs."""

    def __init__(self, core: Core) -> None:
        self.state, self.fence, self.saved = core.state, None, 0
        self.known = ""

    async def ask(self, change: object) -> str:
        return ""

    async def save_ledger(self, plain: object, fence: object) -> None:
        self.saved += 1

    async def has_identity(self) -> bool:
        return bool(self.known)

    async def identity(self, fence: object) -> str:
        self.known = self.known or "1a2b"
        return self.known


def autoscaler(
    core: Core, offers: str = OFFERS, clock: Clock | None = None, **providers: Provider
) -> tuple[Autoscaler, Beside]:
    beside = Beside(core)
    scaler = Autoscaler(
        PlacementSettings(drain_s=0, join_s=600, silent_s=60), parse_catalogue(offers), providers,
        Prometheus("", "2m"), cast(Any, beside), cast(Any, beside), clock or SystemClock(),
        "here:1",
    )  # fmt: skip
    return scaler, beside


async def test_a_provider_that_is_away_stops_no_other() -> None:
    core = Core()
    core.submit(recipe(replace(experiment("a", 3), workers=3)))
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
    core, clock, good = Core(), ManualClock(), Provider()
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
    core, clock, good = Core(), ManualClock(), Provider()
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
