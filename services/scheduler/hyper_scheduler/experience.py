"""What one leadership has seen of offers, together with what Prometheus saw before it.

Pure: the autoscaler says what happens, `known` says what it means for plans. Without Prometheus
a scheduler still learns from its own machines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hyper_scheduler.measured import Measured
from hyper_scheduler.placement.demand import Known
from hyper_scheduler.placement.hazard import Hazard

_UNSEEN = Hazard()


class Experience:
    """Hazards and cold starts by offer."""

    def __init__(self) -> None:
        self._hazards: dict[str, Hazard] = {}
        self._remembered: set[str] = set()  # offers whose hazard has Prometheus's history
        self._starts: dict[str, tuple[int, float]] = {}  # how many, and their seconds together

    def hazard(self, offer: str) -> Hazard:
        """The posterior of this leadership, and of what Prometheus had seen before it."""
        return self._hazards.get(offer, _UNSEEN)

    def preempted(self, offer: str) -> None:
        """A spot machine of this offer was taken away."""
        self._hazards[offer] = self.hazard(offer).seen(1, 0.0)

    def passed(self, offer: str, machines: int, hours: float) -> None:
        """So many spot machines of this offer were there for so long."""
        self._hazards[offer] = self.hazard(offer).seen(0, machines * hours, hours)

    def started(self, offer: str, seconds: float) -> None:
        """A machine's agent came `seconds` after its launch."""
        count, total = self._starts.get(offer, (0, 0.0))
        self._starts[offer] = count + 1, total + max(0.0, seconds)

    def remember(self, measured: Measured) -> None:
        """Take what Prometheus has seen before this leadership: once, whenever it comes.

        What it saw since then is in it too, so the greater counts and not the sum.
        """
        for offer, before in measured.hazards.items():
            if offer not in self._remembered:
                self._remembered.add(offer)
                own = self.hazard(offer)
                self._hazards[offer] = replace(
                    own,
                    events=max(own.events, before.events),
                    exposure_h=max(own.exposure_h, before.exposure_h),
                )

    def known(self, offers: Iterable[str], kind: str, measured: Measured) -> dict[str, Known]:
        """What is known of each offer for one kind of task.

        A cold start is Prometheus's mean of a day, else the mean of what was seen here, else
        the default.
        """
        found = {}
        for offer in offers:
            count, seconds = self._starts.get(offer, (0, 0.0))
            own_h = seconds / count / 3600 if count else Known().cold_start_h
            found[offer] = Known(
                hazard=self.hazard(offer),
                throughput=measured.throughput.get((kind, offer), 0.0),
                cold_start_h=measured.cold_start_h.get(offer, own_h),
            )
        return found
