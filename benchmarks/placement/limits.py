"""What the benchmark has to show, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.placement.replay import OMNISCIENT, OURS, Figures, Scenario

BEHIND = 0.05  # of the best fixed policy, at most, in any scenario
ZONES, WORK, SPOT = 9, 0.9, 1 / 3
COST_RATIOS = {0.2: 0.36, 1.0: 0.52}  # by changeover in hours, for such a market and job


@dataclass(frozen=True, slots=True)
class Limit:
    """One of them.

    Args:
        name: for people.
        value: that was found.
        most: that it may be.
    """

    name: str
    value: float
    most: float

    @property
    def kept(self) -> bool:
        """Whether it is."""
        return self.value <= self.most + 1e-9

    def facts(self) -> dict[str, float | bool]:
        """As JSON has it."""
        return {"value": self.value, "most": self.most, "kept": self.kept}


def limits(
    found: Mapping[str, Mapping[str, Figures]], jobs: Iterable[Scenario], work: float, spot: float
) -> list[Limit]:
    """All that these scenarios can show.

    Args:
        found: figures by scenario and policy, `mean` among them.
        jobs: the scenarios.
        work: part of the time to the deadline.
        spot: price of spot, of on-demand's 1.
    """
    jobs = list(jobs)

    def behind(name: str) -> float:
        """How much dearer ours is than the best of the others."""
        ratios = {policy: each["cost_ratio"] for policy, each in found[name].items()}
        best = min(each for policy, each in ratios.items() if policy not in (OURS, OMNISCIENT))
        return ratios[OURS] / best - 1

    worst = max(jobs, key=lambda each: behind(each.name))
    missed = sum(found[each.name][OURS]["missed_deadlines"] for each in jobs)
    made = [
        Limit(f"part behind the best fixed policy, most in {worst.name}", behind(worst.name),
              BEHIND),
        Limit("part behind the best fixed policy on the mean", behind("mean"), 0.0),
        Limit("missed deadlines", missed, 0.0),
    ]  # fmt: skip
    if not (math.isclose(work, WORK) and math.isclose(spot, SPOT, rel_tol=0.01)):
        return made
    for job in jobs:
        if len(job.recording.zones) == ZONES and (job.lanes, job.gang) == (1, 1):
            for changeover_h, most in COST_RATIOS.items():
                if math.isclose(job.changeover_h, changeover_h):
                    ratio = found[job.name][OURS]["cost_ratio"]
                    made.append(Limit(f"cost ratio in {job.name}", ratio, most))
    return made


def table(made: Iterable[Limit]) -> str:
    """For people."""
    return "\n".join(
        f"{'kept' if each.kept else 'NOT KEPT':8} {each.value:8.3f} of {each.most:.3f}  {each.name}"
        for each in made
    )
