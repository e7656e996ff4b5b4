"""A job on a market whose capacity is known tick by tick: what a policy would have paid.

The same policies decide here and in the running scheduler. A unit that is asked for works after
the changeover and is billed from the start; one that is lost, or given up, is billed until then.
More units may be held than can work, such as one that starts while another still works.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from hyper_scheduler.placement.hazard import TODAY, USUAL, Hazard, Prior
from hyper_scheduler.placement.view import Holding, Market, Unit, View

Policy = Callable[[View], Holding]
GIVE_UP_H = 48.0
LOOK_H = 0.05  # a policy is asked at least so often


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done.

    Args:
        work_h: unit-hours of useful work.
        deadline_h: from its start.
        lanes: units that can work at once.
        changeover_h: from asking for a unit to its first useful work.
        step_h: work that is lost with a unit: task length or checkpoint interval; 0: none.
    """

    work_h: float
    deadline_h: float
    lanes: int = 1
    changeover_h: float = 0.2
    step_h: float = 0.0


@dataclass(frozen=True, slots=True)
class Traces:
    """Spot markets over time.

    Args:
        tick_h: hours between two looks.
        capacity: by market, units that could be had at each tick.
        markets: the same order; their losses and capacities are replaced tick by tick.
        on_demand: the market that is never taken.
        others: more of these.
        losses: by market and tick, from what was seen before; see `posterior`.
        usual: the same with a longer memory.
    """

    tick_h: float
    capacity: tuple[tuple[int, ...], ...]
    markets: tuple[Market, ...]
    on_demand: Market
    losses: tuple[tuple[float, ...], ...]
    usual: tuple[tuple[float, ...], ...]
    others: tuple[Market, ...] = ()
    _seen: dict[int, tuple[Market, ...]] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def of(
        tick_h: float,
        capacity: Sequence[Sequence[int]],
        markets: Sequence[Market],
        on_demand: Market,
        watched: int,
        prior: Prior = TODAY,
    ) -> Traces:
        """With the losses that a fleet of `watched` units a market would have taught."""
        ticks = tuple(tuple(each) for each in capacity)
        losses = tuple(posterior(each, tick_h, watched, prior) for each in ticks)
        usual = tuple(posterior(each, tick_h, watched, USUAL) for each in ticks)
        return Traces(tick_h, ticks, tuple(markets), on_demand, losses, usual)

    def at(self, tick: int) -> tuple[Market, ...]:
        """All markets as they stand, those on demand last."""
        found = self._seen.get(tick)
        if found is None:
            rows = zip(self.markets, self.capacity, self.losses, self.usual, strict=True)
            spot = (
                replace(
                    market,
                    capacity=capacity[tick],
                    losses_per_h=losses[tick],
                    usual_losses_per_h=usual[tick],
                )
                for market, capacity, losses, usual in rows
            )
            found = self._seen[tick] = (*spot, self.on_demand, *self.others)
        return found


def posterior(
    capacity: Sequence[int], tick_h: float, watched: int, prior: Prior
) -> tuple[float, ...]:
    """Expected losses an hour at each tick, from the ticks before it alone."""
    known = Hazard(prior)
    rates: list[float] = []
    before = 0
    for now in capacity:
        held = min(before, watched)
        known = known.seen(max(0, held - now), held * tick_h, tick_h)
        rates.append(known.mean_per_h)
        before = now
    return tuple(rates)


@dataclass(slots=True)
class Outcome:
    """What became of a job."""

    usd: float = 0.0
    end_h: float = 0.0
    late: bool = False
    on_demand_h: float = 0.0
    preemptions: int = 0
    launches: int = 0
    rework_h: float = 0.0


@dataclass(slots=True)
class _Held:
    market: int
    ready_in_h: float
    unsaved_h: float = 0.0  # work since its last checkpoint


@dataclass(slots=True)
class _Run:
    job: Job
    traces: Traces
    work_h: float
    held: list[_Held] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    short_since_h: float = math.inf  # when there was spot for every lane last; infinite: now
    began: bool = True  # a unit has begun to work, or nothing has been asked for yet


def simulate(
    job: Job, traces: Traces, start: int, policy: Policy, give_up_h: float = GIVE_UP_H
) -> Outcome:
    """Run a job from tick `start`; a trace that ends stands still from then on.

    What is `give_up_h` late is not followed further.

    The policy is asked when a market's capacity changes or a unit begins to work, and every
    `LOOK_H` besides.
    """
    run = _Run(job, traces, job.work_h)
    last = min(map(len, traces.capacity), default=1) - 1
    tick, looked_h, before = start, -math.inf, traces.at(start)
    while run.work_h > 1e-9 and run.outcome.end_h < job.deadline_h + give_up_h:
        markets = traces.at(min(tick, last))
        _take_away(run, markets)
        spot = sum(each.capacity * each.lanes for each in markets if not each.on_demand)
        if spot >= job.lanes:
            run.short_since_h = math.inf
        else:
            run.short_since_h = min(run.short_since_h, run.outcome.end_h)
        moved = run.began or any(
            old.capacity != new.capacity for old, new in zip(before, markets, strict=False)
        )
        if moved or run.outcome.end_h - looked_h >= LOOK_H - 1e-9:
            _rearrange(run, policy(_view(run, markets)))
            looked_h, before = run.outcome.end_h, markets
        _pass(run, markets)
        tick += 1
    run.outcome.late = run.outcome.end_h > job.deadline_h + 1e-6 or run.work_h > 1e-9
    return run.outcome


def _view(run: _Run, markets: tuple[Market, ...]) -> View:
    job = run.job
    return View(
        markets=markets,
        units=tuple(Unit(each.market, each.ready_in_h) for each in run.held),
        lanes=job.lanes,
        work_h=run.work_h,
        total_h=job.work_h,
        left_h=job.deadline_h - run.outcome.end_h,
        deadline_h=job.deadline_h,
        changeover_h=job.changeover_h,
        step_h=job.step_h,
        short_for_h=max(0.0, run.outcome.end_h - run.short_since_h),
        margin_h=2 * max(run.traces.tick_h, LOOK_H),
    )


def _take_away(run: _Run, markets: tuple[Market, ...]) -> None:
    """Spot units beyond what the market has: those that start first, then the newest."""
    for i, count in Counter(each.market for each in run.held).items():
        for _ in range(count - markets[i].capacity):
            mine = [each for each in run.held if each.market == i]
            lost = max(mine, key=lambda each: each.ready_in_h)
            run.held.remove(lost)
            run.work_h += lost.unsaved_h
            run.outcome.rework_h += lost.unsaved_h
            run.outcome.preemptions += 1


def _rearrange(run: _Run, wanted: Holding) -> None:
    """Keep what is wanted and held, those that work first; launch the rest; give up the others."""
    held: dict[int, list[_Held]] = {}
    for each in sorted(run.held, key=lambda each: -each.ready_in_h):
        held.setdefault(each.market, []).append(each)
    kept: list[_Held] = []
    for i in wanted:
        mine = held.get(i)
        if mine:
            kept.append(mine.pop())
        else:
            kept.append(_Held(i, run.job.changeover_h))
            run.outcome.launches += 1
    run.held = kept


def _pass(run: _Run, markets: tuple[Market, ...]) -> None:
    """One tick, or less if the work ends within it."""
    run.began = False
    workers = _workers(run, markets)
    step_h = _until_done(run, workers)
    for each, rate in workers:
        done = max(0.0, step_h - each.ready_in_h) * rate
        run.work_h -= done
        run.outcome.usd += done * markets[each.market].egress_usd
        if run.job.step_h > 0:
            each.unsaved_h = math.fmod(each.unsaved_h + done, run.job.step_h)
    run.work_h = max(0.0, run.work_h)
    for each in run.held:
        run.outcome.usd += step_h * markets[each.market].usd_h
        run.outcome.on_demand_h += step_h if markets[each.market].on_demand else 0.0
        if each.ready_in_h > 0.0:
            each.ready_in_h = max(0.0, each.ready_in_h - step_h)
            run.began = run.began or each.ready_in_h <= 0.0
    run.outcome.end_h += step_h


def _workers(run: _Run, markets: tuple[Market, ...]) -> list[tuple[_Held, float]]:
    """Units that there is work for, and what each does in an hour."""
    found: list[tuple[_Held, float]] = []
    rest = float(run.job.lanes)
    for each in sorted(run.held, key=lambda unit: unit.ready_in_h):
        if rest <= 0:
            break
        market = markets[each.market]
        found.append((each, market.throughput * min(1.0, rest / market.lanes)))
        rest -= market.lanes
    return found


def _until_done(run: _Run, workers: list[tuple[_Held, float]]) -> float:
    """Hours until the work ends, at most a tick."""
    tick_h = run.traces.tick_h
    rate = offset = 0.0
    for each, throughput in workers:  # in the order in which they are ready
        if rate and (run.work_h + offset) / rate <= each.ready_in_h:
            break
        rate += throughput
        offset += throughput * each.ready_in_h
    return min(tick_h, (run.work_h + offset) / rate) if rate else tick_h
