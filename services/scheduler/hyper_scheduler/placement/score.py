"""What an hour of useful work costs on a machine that may vanish.

A machine is lost at rate r. Each loss costs what was done since the last checkpoint (or start of
the task) and a cold start of the next machine. With memoryless losses and steps of length T that
are lost whole, a step takes (exp(rT) - 1) / r machine-hours on average (Young, CACM 17(9), 1974;
Daly, FGCS 22(3), 2006), so an hour of useful work takes (exp(rT) - 1) / (rT) hours, and each of
these losses adds a cold start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_MAX_EXPONENT = 50.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a score is made of; `str()` of it is the reason that people are shown.

    Args:
        price_usd_h: of a machine.
        throughput: units of useful work an hour while nothing goes wrong.
        losses_per_h: how often the machine is expected to be taken.
        step_h: work that is lost whole with the machine: task length or checkpoint interval.
        cold_start_h: from asking for a machine to its first useful work, billed.
        egress_usd: moving one unit's data to and from it.
        slack_usd: what one interruption costs besides, because a deadline comes nearer.
    """

    price_usd_h: float
    throughput: float = 1.0
    losses_per_h: float = 0.0
    step_h: float = 0.0
    cold_start_h: float = 0.0
    egress_usd: float = 0.0
    slack_usd: float = 0.0

    @property
    def interruptions_per_useful_h(self) -> float:
        """Losses in the time that an hour of useful work takes."""
        return self.losses_per_h * stretch(self.losses_per_h, self.step_h)

    @property
    def billed_h_per_useful_h(self) -> float:
        """Machine-hours paid for an hour of useful work; at least 1."""
        useful = stretch(self.losses_per_h, self.step_h)
        return useful * (1.0 + self.losses_per_h * self.cold_start_h)

    @property
    def usd_per_unit(self) -> float:
        """The score: dollars for one unit of useful work; infinite where nothing is done."""
        if self.throughput <= 0:
            return math.inf
        hour = self.price_usd_h * self.billed_h_per_useful_h
        hour += self.interruptions_per_useful_h * self.slack_usd
        return hour / self.throughput + self.egress_usd

    def __str__(self) -> str:
        parts = [f"${self.price_usd_h:.4g}/h / {self.throughput:.4g} units/h"]
        if self.losses_per_h > 0:
            parts.append(
                f"x {self.billed_h_per_useful_h:.3f} for rework and cold starts "
                f"({self.losses_per_h:.3g} losses/h)"
            )
        if self.slack_usd > 0 and self.losses_per_h > 0:
            parts.append(f"+ ${self.slack_usd:.3g} an interruption for the deadline")
        if self.egress_usd > 0:
            parts.append(f"+ ${self.egress_usd:.3g} egress")
        return " ".join(parts)


def stretch(losses_per_h: float, step_h: float) -> float:
    """Machine-hours for an hour of work whose steps are lost whole: (exp(x) - 1) / x, x = r T."""
    exponent = min(losses_per_h * step_h, _MAX_EXPONENT)
    return math.expm1(exponent) / exponent if exponent > 1e-9 else 1.0
