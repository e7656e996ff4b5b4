"""Tasks that end the worker they run on.

A lost worker is nobody's failure: machines vanish. But a task may be what makes them vanish, and
would take one after the other. So a task whose attempts lost their worker `SUSPECT` times in a
row runs alone on a worker from then on, where it can hurt no other and its neighbours cannot be
the cause. It is set aside only when chance does not explain what it did there: when the rate at
which workers are lost otherwise makes as many losses in as short a time less likely than one in
a million. Spot machines that vanish often raise that rate, and long tasks had more time, so that
preemption sets nothing aside.
"""

from __future__ import annotations

import math

from hyper_scheduler.core.pages import Record
from hyper_scheduler.core.state import State

CHANCE = 1e-6
PRIOR_LOSSES, PRIOR_S = 1.0, 3_600.0  # before anything was seen: a loss an hour is to be expected


def is_poison(state: State, record: Record) -> bool:
    """Whether chance does not explain how often the task lost a worker of its own.

    The rate to compare with is that of all other workers, those of other suspects included.
    """
    losses = PRIOR_LOSSES + max(0, state.workers_crashed - record.lone_crashes)
    watched_s = PRIOR_S + max(0.0, state.worker_s - record.lone_s)
    return chance(record.lone_crashes, record.lone_s, losses, watched_s) < CHANCE


def chance(count: int, exposure_s: float, losses: float, watched_s: float) -> float:
    """The probability of `count` or more losses in `exposure_s`.

    Args:
        count: of losses.
        exposure_s: in which they came.
        losses: shape of the Gamma posterior of the rate, `losses` events ...
        watched_s: ... in so many seconds; so the count is negative binomial.
    """
    if count <= 0:
        return 1.0
    part = exposure_s / (watched_s + exposure_s)
    if part <= 0.0:
        return 0.0
    log_none = losses * math.log1p(-part)
    below = math.fsum(
        math.exp(
            math.lgamma(n + losses) - math.lgamma(losses) - math.lgamma(n + 1)
            + n * math.log(part) + log_none
        )
        for n in range(count)
    )  # fmt: skip
    if below < 0.999:
        return 1.0 - below
    total, n = 0.0, count  # the tail itself, where 1 - below has no digits left
    while True:
        term = math.exp(
            math.lgamma(n + losses) - math.lgamma(losses) - math.lgamma(n + 1)
            + n * math.log(part) + log_none
        )  # fmt: skip
        total += term
        n += 1
        if term < total * 1e-9 or n > count + 10_000:
            return total


def verdict(record: Record) -> str:
    """Why it is set aside, for people."""
    return (
        f"set aside: its worker was lost {record.crashes} times in a row, the last "
        f"{record.lone_crashes} while nothing else ran there ({record.lone_s:.0f} s in all), more "
        "than machines are lost otherwise; see its log, then `hyper retry`"
    )
