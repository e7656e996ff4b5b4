"""What slack before a deadline is worth, in dollars.

A job with `work_h` hours left may be interrupted a few times: each time costs a changeover of
slack. When none is left it must finish on on-demand machines. Let J(m, w) be the least expected
cost of w hours of work when m interruptions can still be afforded. Each way to hold spot machines
is a cost an hour and a rate of interruptions, and

    dJ(m, w) / dw = min over ways of  cost + rate * (J(m-1, w) + restart - J(m, w)),
    J(0, w) = w * on_demand,

which is solved by implicit Euler in w. J(m-1, w) - J(m, w) is what an interruption costs beyond
the dollars of the restart: the shadow price by which policies weigh risk against money.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

MAX_INTERRUPTIONS = 12  # more make no difference that matters
_STEPS = 100


@dataclass(frozen=True, slots=True)
class Way:
    """One way to hold machines: what an hour costs, and how often all are lost at once."""

    usd_h: float
    losses_per_h: float


@dataclass(frozen=True, slots=True)
class SlackValue:
    """J on a grid: `table[m][i]` for m interruptions and i / _STEPS of `work_h`."""

    work_h: float
    table: tuple[tuple[float, ...], ...]

    def cost_usd(self, interruptions: float, work_h: float) -> float:
        """J, between the grid's lines by interpolation."""
        m = min(max(interruptions, 0.0), float(MAX_INTERRUPTIONS))
        low = min(int(m), MAX_INTERRUPTIONS - 1)
        part = m - low
        at = min(max(work_h / self.work_h, 0.0), 1.0) * _STEPS if self.work_h > 0 else 0.0
        column = min(math.ceil(at), _STEPS)
        below, above = self.table[low][column], self.table[low + 1][column]
        return below + part * (above - below)

    def interruption_usd(self, interruptions: float, work_h: float) -> float:
        """What losing one of these interruptions costs; 0 where none can be afforded."""
        m = math.floor(interruptions)
        if m < 1:
            return 0.0
        return max(0.0, self.cost_usd(m - 1, work_h) - self.cost_usd(m, work_h))


def slack_value(
    ways: tuple[Way, ...], on_demand_usd_h: float, restart_usd: float, work_h: float
) -> SlackValue:
    """Solve for J; arguments are rounded to a few digits, so that many questions share one answer.

    Args:
        ways: how spot machines can be held.
        on_demand_usd_h: what an hour costs on the machine that is never taken.
        restart_usd: dollars of one cold start.
        work_h: the most hours of work that will be asked about.
    """
    rounded = tuple(Way(_digits(each.usd_h), _quarter(each.losses_per_h)) for each in ways)
    # the table's end is rounded up, so that what is asked lies inside
    return _solve(rounded, _digits(on_demand_usd_h), _digits(restart_usd), _up(work_h))


@lru_cache(maxsize=4096)
def _solve(
    ways: tuple[Way, ...], on_demand_usd_h: float, restart_usd: float, work_h: float
) -> SlackValue:
    h = work_h / _STEPS
    rows = [tuple(on_demand_usd_h * h * i for i in range(_STEPS + 1))]
    for _ in range(MAX_INTERRUPTIONS):
        before, row, value = rows[-1], [0.0], 0.0
        for i in range(1, _STEPS + 1):
            after_loss = before[i] + restart_usd
            best = value + h * on_demand_usd_h
            for way in ways:
                rate = way.losses_per_h
                best = min(best, (value + h * (way.usd_h + rate * after_loss)) / (1.0 + h * rate))
            value = best
            row.append(value)
        rows.append(tuple(row))
    return SlackValue(work_h, tuple(rows))


def _digits(usd: float) -> float:
    return float(f"{usd:.3g}")


def _quarter(rate: float) -> float:
    """A rate to a quarter of e: no posterior knows it better."""
    return round(math.exp(round(math.log(rate) * 4) / 4), 9) if rate > 1e-6 else 0.0


def _up(value: float) -> float:
    """To the next power of 1.25."""
    if value <= 1e-6:
        return 1e-6
    return 1.25 ** math.ceil(math.log(value) / math.log(1.25) - 1e-9)


def all_lost_per_h(rates: tuple[float, ...], replace_h: float, shared: float) -> float:
    """How often machines in different zones are gone at once, each replaced within `replace_h`.

    Args:
        rates: losses an hour of each; at least one.
        replace_h: how long a lost one is missing.
        shared: part of the losses that strike the next zone as well.
    """
    if len(rates) == 1:
        return rates[0]
    gone = [-math.expm1(-rate * replace_h) for rate in rates]
    total = 0.0
    for i, rate in enumerate(rates):
        together = rate
        for j, part in enumerate(gone):
            together *= part if j != i else 1.0
        total += together
    return total + float(shared ** (len(rates) - 1)) * min(rates)
