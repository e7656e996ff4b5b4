"""What a job is likely to cost and when it ends: samples of markets from their posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from hyper_scheduler.placement.hazard import Hazard
from hyper_scheduler.placement.simulation import Job, Outcome, Traces, simulate
from hyper_scheduler.placement.steady import steady
from hyper_scheduler.placement.view import View

TICKS = 120  # of a job as long as it takes without interruption
AWAY_H = 0.5  # for so long a market that took a machine has none, on average


class Chance(Protocol):
    """What is asked of a `random.Random`."""

    def gammavariate(self, alpha: float, beta: float) -> float:
        """From a Gamma distribution of this shape and scale."""
        ...

    def expovariate(self, lambd: float) -> float:
        """From an exponential distribution of this rate."""
        ...


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, tenth and ninetieth percentile."""

    mean: float
    p10: float
    p90: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of at least one value."""
        ordered = sorted(values)
        last = len(ordered) - 1
        return Spread(
            sum(ordered) / len(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)]
        )


def forecast(view: View, hazards: Sequence[Hazard], samples: int, random: Chance) -> list[Outcome]:
    """Outcomes of a job that starts now, one a sample.

    Each sample draws every spot market's rate from its posterior, then a course of the market:
    machines of a zone are lost together, and are to be had again after a while.

    Args:
        view: the moment, nothing held.
        hazards: of the spot markets, in order.
        samples: how many.
        random: where chance comes from.
    """
    spot = [each for each in view.markets if not each.on_demand]
    sure = [view.markets[i] for i in view.on_demand()]
    alone_h = view.work_h / view.lanes + view.changeover_h
    # without on-demand, or a deadline, the net must never be reached
    deadline_h = view.left_h if sure and math.isfinite(view.left_h) else 50 * alone_h
    tick_h = max(alone_h / TICKS, 1e-4)
    ticks = 4 * TICKS
    job = Job(view.work_h, deadline_h, view.lanes, view.changeover_h, view.step_h)
    # where none is sold there is none to be had, whatever the policy would like
    on_demand = sure[0] if sure else replace(view.markets[0], on_demand=True, capacity=0)
    found = []
    for _ in range(samples):
        courses, rates = [], []
        for market, hazard in zip(spot, hazards, strict=True):
            rate = random.gammavariate(hazard.shape, 1 / hazard.rate_h)
            courses.append(_course(market.capacity, rate, tick_h, ticks, random))
            rates.append((rate,) * ticks)
        traces = Traces(
            tick_h, tuple(courses), tuple(spot), on_demand, tuple(rates), tuple(rates),
            tuple(sure[1:]),
        )  # fmt: skip
        found.append(simulate(job, traces, 0, _policy(view), give_up_h=4 * alone_h))
    return found


def _policy(view: View) -> Callable[[View], tuple[int, ...]]:
    def decide(moment: View) -> tuple[int, ...]:
        left_h = moment.left_h if math.isfinite(view.left_h) else math.inf
        return steady(replace(moment, left_h=left_h, idle_allowed=view.idle_allowed))

    return decide


def _course(
    capacity: int, rate: float, tick_h: float, ticks: int, random: Chance
) -> tuple[int, ...]:
    """Machines to be had, tick by tick."""
    course: list[int] = []
    up = True
    while len(course) < ticks:
        mean_h = 1 / max(rate, 1e-9) if up else AWAY_H
        spell = min(ticks, max(1, round(random.expovariate(1 / mean_h) / tick_h)))
        course += [capacity if up else 0] * spell
        up = not up
    return (*course[: ticks - 1], capacity)  # it stands still there: not while it is away
