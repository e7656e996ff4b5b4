"""From what an experiment needs and what can be had to launches and terminations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hyper_scheduler.core.model import Spot
from hyper_scheduler.placement.backoff import Refusal
from hyper_scheduler.placement.demand import (
    NO_AGENT,
    Demand,
    Held,
    Known,
    Plan,
    Row,
    refusal_key,
)
from hyper_scheduler.placement.offers import Offer, mismatch, sorts
from hyper_scheduler.placement.score import Terms
from hyper_scheduler.placement.steady import steady
from hyper_scheduler.placement.view import Market, Unit, View

UNKNOWN_TASK_S = 60.0
OPTIMISM = 1.2  # an offer that was not measured is taken as so much better: it is tried once


def plan(
    demand: Demand,
    offers: Sequence[Offer],
    known: Mapping[str, Known],
    held: Sequence[Held],
    refusals: Mapping[str, Refusal],
    now: float,
    most: int,
) -> Plan:
    """Launches and terminations for one experiment, and why.

    Args:
        demand: what is to be done.
        offers: all of the catalogue.
        known: by offer; one that is not there has its prior.
        held: machines that were launched for this experiment.
        refusals: by offer and sort, as `OFFER/spot`.
        now: seconds since 1970.
        most: machines for one experiment at most.
    """
    if demand.paused:
        idle = tuple(each.name for each in held if not each.busy)
        return Plan(ends=idle, message="paused: no machine is launched")
    choices, rows = _choices(demand, offers, refusals, now)
    if not choices:
        text = "no offer fits: " + "; ".join(f"{row.offer}: {row.reason}" for row in rows[:5])
        return Plan(ends=tuple(each.name for each in held), rows=tuple(rows), message=text)
    view, index = _view(demand, choices, known, held, most)
    wanted = Counter(steady(view)) if demand.tasks else Counter()
    launches: list[tuple[str, bool]] = []
    ends = [each for each in held if each.name not in index]
    room = most - len(held)
    for i, choice in enumerate(choices):
        mine = [each for each in held if index.get(each.name) == i]
        mine.sort(key=lambda each: (not each.busy, not each.ready, -each.age_h))
        group = _group(choice.offer, demand)
        count = wanted[i] * group
        ends += mine[count:]
        more = max(0, min(count - len(mine), room))
        if group > 1 and more < count - len(mine):  # a part of a gang is of no use
            more = max(0, (len(mine) + more) // group * group - len(mine))
        launches += [(choice.offer.name, choice.spot)] * more
        room -= more
        rows.append(_row(view, i, choice, count))
    machines = sum(wanted[i] * _group(each.offer, demand) for i, each in enumerate(choices))
    names, moved = _in_order(ends, held, machines, demand)
    return Plan(tuple(launches), names, moved, tuple(rows))


def view_of(
    demand: Demand, offers: Sequence[Offer], known: Mapping[str, Known],
    refusals: Mapping[str, Refusal], now: float, most: int,
) -> tuple[View, list[str]]:  # fmt: skip
    """The moment before anything is launched, and the offers of its markets; for forecasts."""
    choices, _ = _choices(demand, offers, refusals, now)
    return _view(demand, choices, known, (), most)[0], [choice.offer.name for choice in choices]


def _in_order(
    ends: list[Held], held: Sequence[Held], wanted: int, demand: Demand
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Machines that are ended, the idle first; and those whose work others take over.

    A busy machine finishes what it runs. Where there are checkpoints it need not, if another is
    held in its place: two would be paid for one's work.
    """
    ends.sort(key=lambda each: bool(each.busy))
    busy = [each.name for each in ends if each.busy]
    fewer = max(0, sum(bool(each.busy) for each in held) - wanted)
    moved = frozenset(busy[fewer:]) if demand.step_s and wanted else frozenset[str]()
    return tuple(each.name for each in ends), moved


class _Choice(NamedTuple):
    """One offer as it can be bought."""

    offer: Offer
    spot: bool
    away: str  # why it cannot be had now
    doubtful: bool  # its machines' agents did not come: the next one must show itself first


def _choices(
    demand: Demand, offers: Sequence[Offer], refusals: Mapping[str, Refusal], now: float
) -> tuple[list[_Choice], list[Row]]:  # fmt: skip
    choices: list[_Choice] = []
    rows: list[Row] = []
    for offer in offers:
        why = mismatch(offer, demand.hardware)
        ways = [] if why else sorts(offer, demand.hardware)
        if not why and not ways:
            why = "not sold so, or above the highest price"
        if not why and offer.places(demand.hardware) < 1:
            why = "no task fits on it"
        lacking = {spot: _lacking(offer, spot, demand.labels) for spot in ways}
        if not why and all(lacking.values()):
            why = next(iter(lacking.values()))
        if why:
            price = offer.spot_usd_h if offer.spot_usd_h is not None else offer.on_demand_usd_h
            rows.append(Row(offer.name, offer.spot_usd_h is not None, price or 0.0, math.inf, 0,
                            why))  # fmt: skip
            continue
        for spot in ways:
            if lacking[spot]:
                continue
            refusal = refusals.get(refusal_key(offer.name, spot=spot))
            away = refusal.reason if refusal is not None and refusal.until > now else ""
            doubtful = refusal is not None and refusal.reason == NO_AGENT
            choices.append(_Choice(offer, spot, away, doubtful))
    return choices, rows


def _lacking(offer: Offer, spot: bool, wanted: Mapping[str, str]) -> str:
    """The first label that tasks ask for and its workers will not have; empty: none."""
    labels = offer.labels(spot=spot)
    for key, value in wanted.items():
        if labels.get(key) != value:
            return f"its machines do not have the label {key}={value}"
    return ""


def _group(offer: Offer, demand: Demand) -> int:
    """Machines that one unit of the policy is: those of a gang, or one."""
    return -(-demand.gang // offer.places(demand.hardware))


def _view(
    demand: Demand, choices: Sequence[_Choice], known: Mapping[str, Known],
    held: Sequence[Held], most: int,
) -> tuple[View, dict[str, int]]:  # fmt: skip
    """The moment as the policy sees it, and the market of each machine held."""
    places = [choice.offer.places(demand.hardware) if demand.gang == 1 else 1 for choice in choices]
    smallest = min(places)  # what a lane is
    task_h = (demand.task_s or UNKNOWN_TASK_S) / 3600
    starts_h = [known.get(choice.offer.name, Known()).cold_start_h for choice in choices]
    index = {
        each.name: i for each in held for i, choice in enumerate(choices)
        if (choice.offer.name, choice.spot) == (each.offer, each.spot)
    }  # fmt: skip
    markets = _markets(demand, choices, known, Counter(index.values()), places, task_h)
    per_lane = smallest if demand.gang == 1 else demand.gang  # tasks
    work_h = max(1e-6, demand.tasks * task_h / per_lane)
    there = sum(markets[i].lanes / _group(choices[i].offer, demand) for i in index.values())
    lanes = _lanes(demand, per_lane, work_h, min(starts_h), there)
    machines = max(most // _group(each.offer, demand) * market.lanes
                   for each, market in zip(choices, markets, strict=True))  # fmt: skip
    cold_h = max(starts_h)
    view = View(
        markets=markets,
        units=_units(demand, choices, held, index, cold_h),
        lanes=max(1, min(lanes, math.floor(machines))),
        work_h=work_h,
        total_h=max(1e-6, demand.total * task_h / per_lane),
        left_h=demand.left_s / 3600,
        deadline_h=demand.deadline_s / 3600,
        changeover_h=cold_h,
        step_h=min(demand.step_s / 3600, task_h) if demand.step_s else task_h,
        margin_h=0.0 if math.isinf(demand.left_s) else min(0.05, cold_h),
        idle_allowed=demand.hardware.spot is Spot.ONLY and any(each.spot for each in choices),
    )
    return view, index


def _markets(
    demand: Demand, choices: Sequence[_Choice], known: Mapping[str, Known],
    there: Mapping[int, int], places: Sequence[int], task_h: float,
) -> tuple[Market, ...]:  # fmt: skip
    """One of each choice; `there` machines of it are held."""
    measured = [known[each.offer.name].throughput for each in choices if each.offer.name in known]
    best = max(measured, default=0.0)
    gb_h = demand.egress_gb * min(places) * demand.gang / task_h  # that a lane moves
    found = []
    for i, (offer, spot, away, doubtful) in enumerate(choices):
        fact, mine = known.get(offer.name, Known()), there.get(i, 0)
        group, lanes = _group(offer, demand), places[i] / min(places)
        usd_h = offer.usd_h(spot=spot)
        assert usd_h is not None  # `sorts` has looked
        optimism = OPTIMISM if best and not fact.throughput else 1.0
        speed = fact.throughput / best if best and fact.throughput else optimism
        capacity = mine if away else min(offer.most, max(1, mine)) if doubtful else offer.most
        found.append(
            Market(
                key=offer.name,
                domain=f"{offer.cloud}/{offer.zone}",
                usd_h=usd_h * group,
                on_demand=not spot,
                losses_per_h=fact.hazard.mean_per_h * group if spot else 0.0,
                throughput=speed * lanes,
                capacity=capacity // group,
                egress_usd=gb_h * offer.egress_usd_gb,
                lanes=lanes,
                optimism=optimism,
            )
        )
    return tuple(found)


def _lanes(demand: Demand, per_lane: int, work_h: float, start_h: float, there: float) -> int:
    """Units of the smallest machine that are of use at once, those that are there at least.

    A machine that starts for longer than it then works ends the work hardly sooner, and is paid.
    """
    tasks = demand.tasks // demand.gang * demand.gang
    if demand.limit:
        tasks = min(tasks, max(demand.gang, demand.limit // demand.gang * demand.gang))
    lanes = -(-tasks // per_lane)
    if start_h <= 0:
        return lanes
    worth = work_h / start_h
    if work_h / max(1.0, worth) + start_h > demand.left_s / 3600:
        worth = work_h / max(1e-6, demand.left_s / 3600 - start_h)  # or it would be late
    return min(lanes, max(math.ceil(worth - 1e-9), math.ceil(there - 1e-9)))


def _units(
    demand: Demand, choices: Sequence[_Choice], held: Sequence[Held], index: Mapping[str, int],
    cold_h: float,
) -> tuple[Unit, ...]:  # fmt: skip
    """Those of the policy; a gang's works once the last of its machines is there."""
    found: list[Unit] = []
    for i, choice in enumerate(choices):
        mine = [each for each in held if index.get(each.name) == i]
        group = _group(choice.offer, demand)
        waits = sorted(0.0 if each.ready else max(1e-3, cold_h - each.age_h) for each in mine)
        busy = -(-sum(bool(each.busy) for each in mine) // group)
        found += [
            Unit(i, wait_h, busy=number < busy)
            for number, wait_h in enumerate(waits[group - 1 :: group])
        ]
    return tuple(found)


def _row(view: View, i: int, choice: _Choice, machines: int) -> Row:
    market = view.markets[i]
    terms = Terms(
        market.usd_h, market.throughput, market.losses_per_h, view.step_h, view.changeover_h,
        market.egress_usd,
    )  # fmt: skip
    reason = f"refused lately: {choice.away}" if choice.away else str(terms)
    return Row(choice.offer.name, choice.spot, market.usd_h, terms.usd_per_unit, machines, reason)
