"""How often machines of one kind are taken away: a Gamma posterior over exposure hours.

Preemptions of one (zone, instance type) are taken as a Poisson process whose rate drifts: events
and exposure fade with a half-life. With prior Gamma(a, b), `events` in `exposure_h` give
Gamma(a + events, b + exposure_h), whose mean is the rate used (Gelman et al., Bayesian Data
Analysis, 3rd ed., section 2.6).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed before anything was seen: `events` in `exposure_h` hours.

    Args:
        events: shape of the Gamma distribution.
        exposure_h: its rate.
        half_life_h: after which what was seen counts half; 0: it never fades.
    """

    events: float = 0.5
    exposure_h: float = 4.0
    half_life_h: float = 8.0


TODAY = Prior()
USUAL = Prior(half_life_h=96.0)  # what a market is like over days


@dataclass(frozen=True, slots=True)
class Hazard:
    """The posterior of one market's preemption rate.

    Args:
        prior: what it started from.
        events: preemptions seen, faded.
        exposure_h: machine-hours watched, faded.
    """

    prior: Prior = Prior()
    events: float = 0.0
    exposure_h: float = 0.0

    @property
    def shape(self) -> float:
        """Of the Gamma distribution."""
        return self.prior.events + self.events

    @property
    def rate_h(self) -> float:
        """Of the Gamma distribution, in hours."""
        return self.prior.exposure_h + self.exposure_h

    @property
    def mean_per_h(self) -> float:
        """Expected preemptions of a machine in an hour."""
        return self.shape / self.rate_h

    def seen(self, events: float, exposure_h: float, passed_h: float = 0.0) -> Hazard:
        """The posterior `passed_h` later, with what was seen meanwhile.

        Raises:
            ValueError: one of them is below 0.
        """
        if min(events, exposure_h, passed_h) < 0:
            raise ValueError("preemptions, exposure and time are never below 0")
        half_h = self.prior.half_life_h
        fade = 0.5 ** (passed_h / half_h) if half_h > 0 else 1.0
        return replace(
            self,
            events=self.events * fade + events,
            exposure_h=self.exposure_h * fade + exposure_h,
        )
