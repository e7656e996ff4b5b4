"""Live prices beside the catalogue's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

import pytest

from hyper.errors import UnavailableError
from hyper_scheduler.catalogue import OLD_DAYS, parse_catalogue
from hyper_scheduler.placement.offers import Offer
from hyper_scheduler.prices import KEPT_S, Prices
from hyper_scheduler.providers.guarded import Guarded
from hyper_servicekit.clock import ManualClock
from tests.unit.hyper_scheduler.cores import Core, experiment, recipe
from tests.unit.hyper_scheduler.scaling import DEAR, OFFERS, Provider, autoscaler


@dataclass
class Told(Provider):
    """Tells prices."""

    now: dict[str, float] = field(default_factory=dict)
    asked: int = 0

    async def prices(self, offers: Sequence[Offer]) -> Mapping[str, float]:
        self._reach()
        self.asked += 1
        return self.now


async def test_live_prices_count_while_they_are_fresh() -> None:
    listed = parse_catalogue(OFFERS)
    prices, told = Prices(listed, 600.0), Told(now={"dear": 0.05, "cheap": 9.0, "other": 1.0})
    # one that tells none, and one that does
    providers = {"broken": Guarded("broken", Provider), "good": Guarded("good", lambda: told)}

    def usd_h(now: float) -> list[float | None]:
        return [each.spot_usd_h for each in prices.catalogue(now).offers]

    assert usd_h(0.0) == [0.01, 0.1]
    for now in (0.0, 100.0, 599.0):
        await prices.look(providers, now)
    assert (usd_h(599.0), told.asked) == ([0.01, 0.05], 1)
    told.now["dear"] = 0.06
    await prices.look(providers, 600.0)
    assert usd_h(600.0) == [0.01, 0.06]
    told.away = True  # the last price counts for a while, then the catalogue's
    await prices.look(providers, 1200.0)
    assert usd_h(600.0 + KEPT_S) == [0.01, 0.06]
    assert usd_h(601.0 + KEPT_S) == [0.01, 0.1]


@pytest.mark.parametrize("usd_h", [math.nan, math.inf, 0.0, -1.0, 1e9])
async def test_prices_that_are_none_do_not_count(usd_h: float) -> None:
    prices = Prices(parse_catalogue(DEAR), 1.0)
    await prices.look({"good": Told(now={"dear": usd_h})}, 0.0)
    assert prices.live(0.0) == {}


async def test_nobody_is_asked_who_is_not_to_be() -> None:
    told = Told(now={"dear": 0.05})
    await Prices(parse_catalogue(DEAR), 0.0).look({"good": told}, 0.0)
    assert told.asked == 0


async def test_a_price_moves_work_and_what_is_paid() -> None:
    core, clock = Core(), ManualClock()
    core.submit(recipe(replace(experiment("a", 3), workers=1)))
    cheap, dear = Told(), Told(now={"dear": 0.001})
    scaler, _ = autoscaler(core, OFFERS, clock, broken=cheap, good=dear)
    await scaler.look()
    (entry,) = scaler.ledger.machines.values()
    assert (entry.offer, entry.usd_h) == ("dear", 0.001)
    dear.now["dear"] = 0.002
    await clock.advance(600.0)
    await scaler.look()
    assert entry.usd_h == 0.002


async def test_a_provider_that_is_away_keeps_no_other_from_telling() -> None:
    class Away(Told):
        async def prices(self, offers: Sequence[Offer]) -> Mapping[str, float]:
            raise UnavailableError("no answer")

    prices = Prices(parse_catalogue(OFFERS), 1.0)
    await prices.look({"broken": Away(), "good": Told(now={"dear": 0.05})}, 0.0)
    assert list(prices.live(0.0)) == ["dear"]


def test_old_catalogues_are_warned_of() -> None:
    catalogue = parse_catalogue(OFFERS)
    for days, word in ((0, ""), (OLD_DAYS, ""), (OLD_DAYS + 1, "ago"), (-2, "to come")):
        told = catalogue.age(date(2026, 11, 1) + timedelta(days))
        assert bool(told) == bool(word)
        assert word in told
