"""What markets cost at one moment, an hour of useful work with everything that may go wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hyper_scheduler.placement.score import Terms
from hyper_scheduler.placement.slack import Way, all_lost_per_h, slack_value
from hyper_scheduler.placement.view import View

STANDBYS = 3  # machines at most for a job that cannot be divided
SHARED_LOSSES = 0.1  # part of the losses that strike two zones at once
PATIENCE = 2.0  # changeovers for which a fleet waits out a shortage
MOVE_GAIN = 2.0  # a move must promise so many times what it costs
NOISE = 0.1  # scores that differ by no more than this part are the same


@dataclass(slots=True, init=False)
class Prices:
    """What interruptions and hours cost at this moment.

    Args:
        view: the moment.
    """

    view: View
    sure: list[int]  # on-demand markets with capacity, the cheapest first
    bargains: frozenset[int]  # those of them that cost no more than spot
    available: list[int]  # these, and spot markets with capacity, the best first
    domains: int  # of spot markets with capacity
    waiting_is_cheaper: bool
    slack_usd: float
    restart_usd: float
    _scores: dict[int, float]

    def __init__(self, view: View) -> None:
        self.view, self.sure = view, view.on_demand()
        self._scores, self.slack_usd, self.waiting_is_cheaper = {}, 0.0, view.idle_allowed
        spot = [i for i, each in enumerate(view.markets) if not each.on_demand]
        there = [i for i in spot if view.markets[i].capacity > 0]
        self.domains = len({view.markets[i].domain for i in there})
        order = sorted(there or spot, key=self.score)
        self.restart_usd = view.changeover_h * (view.markets[order[0]].usd_h if order else 0.0)
        self.bargains = self._bargains(there or order[:1])
        if order and self.sure and not math.isinf(view.left_h):
            self._weigh_slack(order)
        self.available = sorted([*there, *sorted(self.bargains)], key=self.score)

    def _bargains(self, spot: list[int]) -> frozenset[int]:
        """On-demand markets that cost no more than the spot that work would be given to."""
        if not spot:
            return frozenset()
        most = max(map(self.score, spot))  # the deadline is not weighed yet
        held = {each.market for each in self.view.units}
        return frozenset(
            i for i in self.sure if self.score(i) * (1.0 - NOISE if i in held else 1.0) <= most
        )

    @property
    def sure_lanes(self) -> float:
        """Lanes that all on-demand machines could fill, those of the job at most."""
        markets = [self.view.markets[i] for i in self.sure]
        return min(float(self.view.lanes), sum(each.capacity * each.lanes for each in markets))

    def _weigh_slack(self, order: list[int]) -> None:
        view, interruption_h = self.view, max(self.view.interruption_h, 1e-3)
        cheapest = [view.markets[i] for i in order[:2]]
        usd_h = cheapest[0].usd_h / view.useful(order[0])
        ahead_h = view.work_h / view.lanes if view.lanes > 1 else 0.0
        rates = [each.expected_losses_per_h(ahead_h) for each in cheapest]
        ways = [Way(usd_h, sum(rates) / len(rates))]
        if view.lanes == 1 and len(cheapest) > 1:
            together = all_lost_per_h(tuple(rates), view.changeover_h, SHARED_LOSSES)
            standby_usd_h = 2 * usd_h + 2 * ways[0].losses_per_h * self.restart_usd
            ways.append(Way(standby_usd_h, together))
        sure_usd_h = view.markets[self.sure[0]].usd_h / view.useful(self.sure[0])
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
                view.useful(i),
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
        """Whether a unit should be replaced by one elsewhere, started before it is given up.

        What the old one works on is finished there, or is lost: it gains nothing.
        """
        view = self.view
        if self.score(new) > (1.0 - NOISE) * self.score(old):
            return False
        rates = (view.markets[old].losses_per_h, view.markets[new].losses_per_h)
        left_h = view.work_h / view.lanes - view.step_h
        lasts_h = min(left_h, *(1 / max(rate, 1e-6) for rate in rates))
        gain = (self.score(old) - self.score(new)) * lasts_h * view.useful(new)
        return gain > MOVE_GAIN * view.changeover_h * view.markets[new].usd_h
