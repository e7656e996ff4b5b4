"""Jobs on recorded markets, policy by policy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.placement.bound import bound_usd
from hyper.spot_traces import Recording
from hyper_scheduler.placement import fixed
from hyper_scheduler.placement.simulation import Job, Outcome, Policy, Traces, simulate
from hyper_scheduler.placement.steady import steady
from hyper_scheduler.placement.view import Market

ON_DEMAND = "all_on_demand"
OURS = "ours"
OMNISCIENT = "omniscient"
POLICIES: dict[str, Policy] = {
    ON_DEMAND: fixed.on_demand_only,
    "cheapest_spot": fixed.cheapest_spot,
    "eager_failover": fixed.eager_failover,
    "uniform_progress": fixed.uniform_progress,
    OURS: steady,
}
LONGEST_H = 48.0 / 0.9
WARM_H = 72.0  # of the recording before the first window, for the posteriors to learn from
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of job on a market, in many windows."""

    name: str
    recording: Recording
    changeover_h: float
    work: float  # part of what could be done until the deadline
    lanes: int = 1
    gang: int = 1  # machines of one unit, all in one zone
    step_h: float = 0.0


def scenarios(recordings: Sequence[Recording], work: float) -> list[Scenario]:
    """The jobs that fit a recording: one machine, or a gang, or a fleet where there are many."""
    found = []
    for each in recordings:
        most = max(map(max, each.capacity))
        kinds = [("", 1, 1, 0.0)]
        if most > 1 and len(each.zones) > 1:
            kinds = [(f" gang of {most}", 1, most, 0.0), (f" fleet of {most}", most, 1, 0.0)]
        elif most > 1:
            usual = max(2, int(statistics.median(each.capacity[0])))
            kinds = [(f" fleet of {usual}, 3 min steps", usual, 1, 0.05)]
        shorter = deadline_h(each) / LONGEST_H
        for text, lanes, gang, step_h in kinds:
            for changeover_h in (0.2 * shorter, 1.0 * shorter):
                name = f"{each.name}{text}, changeover {changeover_h:.2g} h"
                found.append(Scenario(name, each, changeover_h, work, lanes, gang, step_h))
    return found


def deadline_h(recording: Recording) -> float:
    """Of a job on this recording; a shorter one has shorter jobs, and changeovers to match."""
    return min(LONGEST_H, recording.hours * 0.6)


def replay(scenario: Scenario, windows: int, spot_usd_h: float) -> dict[str, Figures]:
    """Every policy on the same windows."""
    recording = scenario.recording
    until_h = deadline_h(recording)
    job = Job(
        work_h=scenario.work * until_h * scenario.lanes,
        deadline_h=until_h,
        lanes=scenario.lanes,
        changeover_h=scenario.changeover_h,
        step_h=scenario.step_h,
    )
    market = Traces.of(
        recording.tick_h,
        [[count // scenario.gang for count in row] for row in recording.capacity],
        [Market(zone, zone, spot_usd_h) for zone in recording.zones],
        Market("on-demand", "on-demand", 1.0, on_demand=True),
        scenario.lanes,
    )
    starts = _starts(recording, until_h, windows)
    outcomes = {
        name: [simulate(job, market, start, policy) for start in starts]
        for name, policy in POLICIES.items()
    }
    whole_usd = statistics.fmean(each.usd for each in outcomes[ON_DEMAND])
    found = {name: _figures(each, whole_usd) for name, each in outcomes.items()}
    least_usd = statistics.fmean(bound_usd(job, market, start) for start in starts)
    found[OMNISCIENT] = {"cost_ratio": least_usd / whole_usd}
    return found


def _starts(recording: Recording, until_h: float, windows: int) -> list[int]:
    """Ticks at which jobs start, spread evenly."""
    first = int(min(WARM_H, recording.hours * 0.2) / recording.tick_h)
    last = int((recording.hours - until_h) / recording.tick_h) - 1
    count = max(1, min(windows, (last - first) // 10 + 1))
    return [first + (last - first) * i // max(1, count - 1) for i in range(count)]


def _figures(outcomes: Sequence[Outcome], whole_usd: float) -> Figures:
    def mean(of: Callable[[Outcome], float]) -> float:
        return statistics.fmean(of(each) for each in outcomes)

    return {
        "cost_ratio": mean(lambda each: each.usd) / whole_usd,
        "missed_deadlines": sum(each.late for each in outcomes),
        "on_demand_hours": mean(lambda each: each.on_demand_h),
        "preemptions": mean(lambda each: each.preemptions),
        "rework_hours": mean(lambda each: each.rework_h),
        "windows": len(outcomes),
    }
