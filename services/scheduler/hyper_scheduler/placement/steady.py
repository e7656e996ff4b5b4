"""The policy that weighs dollars against slack.

Machines are taken where an hour of useful work is cheapest, an interruption priced at what it
costs in rework, cold start and slack (`slack.py`). From that follow, without rules of their own:
good zones are preferred when the deadline is near and cheap ones when it is far; a better zone is
moved to before the old machine is given up; where an interruption would force the job onto
on-demand machines, a second spot machine in another zone stands by; with no spot in sight the job
waits only while waiting costs less than on-demand does.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from hyper_scheduler.placement.score import Terms
from hyper_scheduler.placement.slack import Way, all_lost_per_h, slack_value
from hyper_scheduler.placement.spread import domain_cap
from hyper_scheduler.placement.view import Holding, Unit, View

STANDBYS = 3  # machines at most for a job that cannot be divided
SHARED_LOSSES = 0.1  # part of the losses that strike two zones at once
PATIENCE = 2.0  # changeovers for which a fleet waits out a shortage
MOVE_GAIN = 2.0  # a move must promise so many times what it costs


def steady(view: View) -> Holding:
    """The units to hold now."""
    prices = _Prices(view)
    must = view.must_on_demand
    working = [each for each in view.held(on_demand=False) if each.ready_in_h <= 0]
    starting = [each for each in view.held(on_demand=False) if each.ready_in_h > 0]
    sure = prices.on_demand
    if sure is None:
        must = 0
    if must >= view.lanes:
        return _finish_on_demand(view, working, starting, sure)
    working.sort(key=lambda unit: prices.score(unit.market))
    spot = _spot(view, prices, working, starting, view.lanes - must)
    missing = max(0, view.lanes - must - len(spot))
    if sure is None:
        return tuple(spot)
    held = len(view.held(on_demand=True))
    covered = min(len(working), len(spot))
    kept = min(held, max(0, view.lanes - covered))  # until what replaces it works
    bought = 0 if prices.waiting_is_cheaper else missing
    return tuple(spot) + (sure,) * max(must, kept, must + bought)


def _finish_on_demand(
    view: View, working: list[Unit], starting: list[Unit], sure: int | None
) -> Holding:
    """No interruption can be afforded: spot goes on only until on-demand works."""
    on_demand = view.held(on_demand=True)
    ready = sum(each.ready_in_h <= 0 for each in on_demand)
    soonest = max((each.ready_in_h for each in on_demand), default=view.changeover_h)
    bridging = working + [each for each in starting if each.ready_in_h < soonest]
    assert sure is not None  # the caller has asked for one
    still = max(0, view.lanes - ready)
    return (sure,) * view.lanes + tuple(each.market for each in bridging[:still])


def _spot(
    view: View, prices: _Prices, working: list[Unit], starting: list[Unit], lanes: int
) -> list[int]:
    """Spot units to hold: those that work, those that start, then the best that can be had."""
    count = lanes if view.lanes > 1 else prices.machines(bool(working) or _on_demand_works(view))
    wanted = [each.market for each in working[:count]] + [each.market for each in starting]
    taken = Counter(wanted)
    domains = Counter(view.markets[i].domain for i in wanted)
    cap = domain_cap(max(count, view.lanes), prices.domains)

    def room(i: int) -> bool:
        market = view.markets[i]
        return taken[i] < market.capacity and domains[market.domain] < cap

    for i in prices.available:
        while len(wanted) < count and room(i):
            wanted.append(i)
            taken[i] += 1
            domains[view.markets[i].domain] += 1
    if len(wanted) == count and not starting and working:
        worst = working[min(count, len(working)) - 1].market
        better = next((i for i in prices.available if i not in taken and room(i)), None)
        if better is not None and worst in taken and prices.worth_moving(worst, better):
            wanted.append(better)
    return wanted


def _on_demand_works(view: View) -> bool:
    return any(each.ready_in_h <= 0 for each in view.held(on_demand=True))


@dataclass(slots=True, init=False)
class _Prices:
    """What interruptions and hours cost at this moment."""

    view: View
    on_demand: int | None
    available: list[int]  # spot markets with capacity, the best first
    domains: int  # of these
    waiting_is_cheaper: bool
    slack_usd: float
    restart_usd: float
    _scores: dict[int, float]

    def __init__(self, view: View) -> None:
        self.view, self.on_demand = view, view.cheapest_on_demand()
        self._scores, self.slack_usd, self.waiting_is_cheaper = {}, 0.0, view.idle_allowed
        spot = [i for i, each in enumerate(view.markets) if not each.on_demand]
        there = [i for i in spot if view.markets[i].capacity > 0]
        self.domains = len({view.markets[i].domain for i in there})
        order = sorted(there or spot, key=self.score)
        self.restart_usd = view.changeover_h * (view.markets[order[0]].usd_h if order else 0.0)
        if order and self.on_demand is not None and not math.isinf(view.left_h):
            self._weigh_slack(order)
        self.available = sorted(there, key=self.score)

    def _weigh_slack(self, order: list[int]) -> None:
        view, interruption_h = self.view, max(self.view.interruption_h, 1e-3)
        cheapest = [view.markets[i] for i in order[:2]]
        usd_h = cheapest[0].usd_h / cheapest[0].throughput
        ahead_h = view.work_h / view.lanes if view.lanes > 1 else 0.0
        rates = [each.expected_losses_per_h(ahead_h) for each in cheapest]
        ways = [Way(usd_h, sum(rates) / len(rates))]
        if view.lanes == 1 and len(cheapest) > 1:
            together = all_lost_per_h(tuple(rates), view.changeover_h, SHARED_LOSSES)
            standby_usd_h = 2 * usd_h + 2 * ways[0].losses_per_h * self.restart_usd
            ways.append(Way(standby_usd_h, together))
        assert self.on_demand is not None  # the caller has looked
        sure = view.markets[self.on_demand]
        sure_usd_h = sure.usd_h / sure.throughput
        value = slack_value(
            tuple(ways), sure_usd_h, self.restart_usd, view.total_h / view.lanes
        )  # fmt: skip
        work_h = view.work_h / view.lanes
        expected = ways[0].losses_per_h * work_h
        affordable = (view.slack_h - view.margin_h) / interruption_h
        pending_h = min((each.ready_in_h for each in view.units), default=view.changeover_h)

        def pooled(interruptions: float) -> float:
            """What so many a lane are worth to one lane: many lanes share their luck."""
            return expected + (interruptions - expected) * math.sqrt(view.lanes)

        after_start = max(1.0, pooled(affordable - pending_h / interruption_h))
        self.slack_usd = value.interruption_usd(after_start, work_h)
        self._scores.clear()
        left = pooled(affordable - 1) if view.lanes > 1 else affordable - 1  # after the wait
        waiting_usd_h = value.interruption_usd(left, work_h) / interruption_h
        # most shortages are over before a machine bought for them would work
        passing = view.lanes > 1 and view.short_for_h < PATIENCE * view.changeover_h
        worth = sure_usd_h - usd_h
        self.waiting_is_cheaper = left >= 1 and (passing or waiting_usd_h < worth)

    def score(self, i: int) -> float:
        """Dollars for a unit of useful work in this market."""
        if i not in self._scores:
            view, market = self.view, self.view.markets[i]
            self._scores[i] = Terms(
                market.usd_h,
                market.throughput,
                market.losses_per_h,
                view.step_h,
                view.changeover_h,
                market.egress_usd,
                self.slack_usd,
            ).usd_per_unit
        return self._scores[i]

    def machines(self, working: bool) -> int:
        """How many spot machines a job that cannot be divided should hold."""
        view = self.view
        best, best_usd = 1, math.inf
        for count in range(1, min(STANDBYS, len(self.available)) + 1):
            chosen = [view.markets[i] for i in self.available[:count]]
            usd_h = sum(each.usd_h for each in chosen)
            rates = tuple(each.losses_per_h for each in chosen)
            if working:
                lost = all_lost_per_h(rates, view.changeover_h, SHARED_LOSSES)
                usd = usd_h + lost * (self.slack_usd + self.restart_usd)
                usd += sum(rates) * self.restart_usd if count > 1 else 0.0
            else:
                gone = math.prod(-math.expm1(-rate * view.changeover_h) for rate in rates)
                shared = SHARED_LOSSES ** (count - 1) if count > 1 else 0.0
                gone += shared * -math.expm1(-min(rates) * view.changeover_h)
                usd = usd_h * view.changeover_h + gone * self.slack_usd
            if usd < best_usd - 1e-12:
                best, best_usd = count, usd
        return best

    def worth_moving(self, old: int, new: int) -> bool:
        """Whether a unit should be replaced by one elsewhere, started before it is given up."""
        view = self.view
        rates = (view.markets[old].losses_per_h, view.markets[new].losses_per_h)
        lasts_h = min(view.work_h / view.lanes, *(1 / max(rate, 1e-6) for rate in rates))
        gain = (self.score(old) - self.score(new)) * lasts_h * view.markets[new].throughput
        return gain > MOVE_GAIN * view.changeover_h * view.markets[new].usd_h
