"""What a placement policy sees at one moment, and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

MEMORY_H = 12.0  # for so long a market stays as it is today


@dataclass(frozen=True, slots=True)
class Market:
    """One offer as it can be bought: spot or on demand, in one zone.

    Args:
        key: its name.
        domain: failure domain: what vanishes together.
        usd_h: of one unit (a machine, or a gang of them) an hour.
        on_demand: never taken away.
        losses_per_h: expected, of one unit.
        throughput: useful work an hour, against the reference machine.
        capacity: units that could be had now, those held counted in.
        egress_usd: to move one unit-hour's data there.
        usual_losses_per_h: over days, where `losses_per_h` is of today; None: the same.
        lanes: that one unit fills: large machines run more tasks at once than small ones.
        optimism: how many times its throughput is taken for what it may be: a single unit is tried.
    """

    key: str
    domain: str
    usd_h: float
    on_demand: bool = False
    losses_per_h: float = 0.0
    throughput: float = 1.0
    capacity: int = 1_000_000
    egress_usd: float = 0.0
    usual_losses_per_h: float | None = None
    lanes: float = 1.0
    optimism: float = 1.0

    def expected_losses_per_h(self, ahead_h: float) -> float:
        """Losses an hour on average over the next hours: today's, then what is usual."""
        if self.usual_losses_per_h is None or ahead_h <= 0:
            return self.losses_per_h
        part = -math.expm1(-ahead_h / MEMORY_H) * MEMORY_H / ahead_h
        return part * self.losses_per_h + (1.0 - part) * self.usual_losses_per_h


class Unit(NamedTuple):
    """One that is held: where, hours until it works (0: it does), and whether it has work."""

    market: int
    ready_in_h: float
    busy: bool = True


@dataclass(frozen=True, slots=True)
class View:
    """The moment.

    Args:
        markets: all of them, those without capacity too.
        units: held now.
        lanes: units of the smallest machine that can work at the same time.
        work_h: unit-hours of useful work left, on the reference machine.
        total_h: of the whole job: what `work_h` was at its start.
        left_h: hours until the deadline; infinite: there is none.
        deadline_h: hours from the job's start to its deadline.
        changeover_h: from asking for a unit to its first useful work.
        step_h: work that is lost with a unit: task length or checkpoint interval.
        margin_h: slack that is kept for what is not known: the time between two looks.
        short_for_h: how long there has not been spot capacity for every lane.
        idle_allowed: without a deadline, wait for spot instead of paying for on-demand.
    """

    markets: tuple[Market, ...]
    units: tuple[Unit, ...]
    lanes: int
    work_h: float
    total_h: float
    left_h: float = math.inf
    deadline_h: float = math.inf
    changeover_h: float = 0.1
    step_h: float = 0.0
    margin_h: float = 0.0
    short_for_h: float = math.inf
    idle_allowed: bool = True

    @property
    def slack_h(self) -> float:
        """Hours that every lane could stand still and the work still be done in time."""
        return self.left_h - self.work_h / self._sure_rate

    @property
    def _sure_rate(self) -> float:
        """Useful work an hour of the on-demand machines that all lanes would fall back to."""
        rest, rate = float(self.lanes), 0.0
        for i in self.on_demand():
            market = self.markets[i]
            filled = min(rest, market.capacity * market.lanes)
            rate += filled * market.throughput / market.lanes
            rest -= filled
        return rate or float(self.lanes)

    @property
    def interruption_h(self) -> float:
        """Slack that one interruption of a lane costs."""
        return self.changeover_h + self.step_h

    @property
    def must_on_demand(self) -> int:
        """Lanes that must not be interrupted any more: the safety net before a deadline.

        Slack is shared: each lane on spot needs enough of it to start once more on demand.
        """
        if math.isinf(self.left_h):
            return 0
        if self.interruption_h <= 0:
            return self.lanes if self.slack_h <= self.margin_h else 0
        spare = (self.slack_h - self.margin_h) * self.lanes / self.interruption_h
        return self.lanes - min(self.lanes, max(0, math.floor(spare)))

    def held(self, *, on_demand: bool) -> list[Unit]:
        """Units of one sort, those that work first."""
        chosen = [each for each in self.units if self.markets[each.market].on_demand == on_demand]
        return sorted(chosen, key=lambda unit: unit.ready_in_h)

    def on_demand(self) -> list[int]:
        """Markets that are never taken and have capacity, by price for work."""
        sure = [
            i
            for i, each in enumerate(self.markets)
            if each.on_demand and each.capacity > 0 and each.throughput > 0
        ]
        return sorted(sure, key=lambda i: self.markets[i].usd_h / self.useful(i))

    def fills(self, i: int) -> float:
        """Lanes that one unit of the market works on; a large machine may have more places."""
        return min(self.markets[i].lanes, float(self.lanes))

    def useful(self, i: int) -> float:
        """Useful work an hour of one unit that fills as many lanes as it can."""
        market = self.markets[i]
        return market.throughput * self.fills(i) / market.lanes

    def cheapest_on_demand(self) -> int | None:
        """The first of these."""
        return next(iter(self.on_demand()), None)


# The units to hold from now on, as markets; one that is listed twice is held twice.
Holding = tuple[int, ...]
