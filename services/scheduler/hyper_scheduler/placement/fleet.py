"""From what an experiment needs and what can be had to launches and terminations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hyper_scheduler.core.model import Hardware, Spot
from hyper_scheduler.placement.backoff import Refusal
from hyper_scheduler.placement.hazard import Hazard
from hyper_scheduler.placement.offers import Offer, mismatch, sorts
from hyper_scheduler.placement.score import Terms
from hyper_scheduler.placement.steady import steady
from hyper_scheduler.placement.view import Market, Unit, View


@dataclass(frozen=True, slots=True)
class Demand:
    """An experiment that has tasks to run.

    Args:
        workflow: its resource name.
        experiment: within it.
        tasks: that have not ended, a gang's counted each.
        limit: machines' slots at most at once; 0: no bound.
        hardware: of one task.
        gang: tasks that start together, in one zone.
        task_s: what a task takes on the reference machine; 0: not known.
        step_s: work that is lost with a machine: a task, or a checkpoint's interval.
        left_s: until the deadline; infinite: none.
        deadline_s: from the workflow's start to its deadline.
        egress_gb: of one task, to where its data are not.
        total: tasks in all.
    """

    workflow: str
    experiment: str
    tasks: int
    total: int
    hardware: Hardware
    limit: int = 0
    gang: int = 1
    task_s: float = 0.0
    step_s: float = 0.0
    left_s: float = math.inf
    deadline_s: float = math.inf
    egress_gb: float = 0.0


_UNSEEN = Hazard()


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one offer.

    Args:
        hazard: of its spot machines.
        throughput: tasks an hour of one slot; 0: not measured.
        cold_start_h: from the launch to the first task.
    """

    hazard: Hazard = _UNSEEN
    throughput: float = 0.0
    cold_start_h: float = 0.05


@dataclass(frozen=True, slots=True)
class Held:
    """A machine of the experiment that is there or on its way."""

    name: str
    offer: str
    spot: bool
    ready: bool
    age_h: float


@dataclass(frozen=True, slots=True)
class Row:
    """One way to buy one offer, as people see it."""

    offer: str
    spot: bool
    usd_h: float
    usd_per_task_h: float
    machines: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for one experiment."""

    launches: tuple[tuple[str, bool], ...] = ()  # offer, spot
    ends: tuple[str, ...] = ()  # machines that are drained and terminated
    rows: tuple[Row, ...] = ()
    message: str = ""


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
    choices, rows = _choices(demand, offers, refusals, now)
    if not choices:
        text = "no offer fits: " + "; ".join(f"{row.offer}: {row.reason}" for row in rows[:5])
        return Plan(ends=tuple(each.name for each in held), rows=tuple(rows), message=text)
    view, index = _view(demand, choices, known, held, most)
    wanted = Counter(steady(view)) if demand.tasks else Counter()
    launches: list[tuple[str, bool]] = []
    ends: list[str] = []
    for i, (offer, spot, _) in enumerate(choices):
        group = _group(offer, demand)
        mine = [each for each in held if index.get(each.name) == i]
        mine.sort(key=lambda each: (not each.ready, -each.age_h))
        count = wanted[i] * group
        launches += [(offer.name, spot)] * max(0, count - len(mine))
        ends += [each.name for each in mine[count:]]
    ends += [each.name for each in held if each.name not in index]
    rows += [
        _row(view, i, choice, wanted[i] * _group(choice[0], demand))
        for i, choice in enumerate(choices)
    ]
    return Plan(tuple(launches), tuple(ends), tuple(rows))


def view_of(
    demand: Demand, offers: Sequence[Offer], known: Mapping[str, Known],
    refusals: Mapping[str, Refusal], now: float, most: int,
) -> tuple[View, list[str]]:  # fmt: skip
    """The moment before anything is launched, and the offers of its markets; for forecasts."""
    choices, _ = _choices(demand, offers, refusals, now)
    return _view(demand, choices, known, (), most)[0], [choice[0].name for choice in choices]


Choice = tuple[Offer, bool, str]  # offer, spot, why it cannot be had now


def _choices(
    demand: Demand, offers: Sequence[Offer], refusals: Mapping[str, Refusal], now: float
) -> tuple[list[Choice], list[Row]]:  # fmt: skip
    choices: list[Choice] = []
    rows: list[Row] = []
    for offer in offers:
        why = mismatch(offer, demand.hardware)
        ways = [] if why else sorts(offer, demand.hardware)
        if not why and not ways:
            why = "not sold so, or above the highest price"
        if not why and offer.places(demand.hardware) < 1:
            why = "no task fits on it"
        if why:
            price = offer.spot_usd_h if offer.spot_usd_h is not None else offer.on_demand_usd_h
            rows.append(Row(offer.name, offer.spot_usd_h is not None, price or 0.0, math.inf, 0,
                            why))  # fmt: skip
            continue
        for spot in ways:
            refusal = refusals.get(refusal_key(offer.name, spot=spot))
            away = refusal is not None and refusal.until > now
            choices.append((offer, spot, refusal.reason if away and refusal is not None else ""))
    return choices, rows


def refusal_key(offer: str, *, spot: bool) -> str:
    """Under which refusals are remembered."""
    return f"{offer}/{'spot' if spot else 'on-demand'}"


def _group(offer: Offer, demand: Demand) -> int:
    """Machines that one unit of the policy is: those of a gang, or one."""
    return -(-demand.gang // offer.places(demand.hardware))


def _view(
    demand: Demand, choices: Sequence[Choice], known: Mapping[str, Known],
    held: Sequence[Held], most: int,
) -> tuple[View, dict[str, int]]:  # fmt: skip
    """The moment as the policy sees it, and the market of each machine held."""
    places = max(choice[0].places(demand.hardware) for choice in choices)
    measured = [known[c[0].name].throughput for c in choices if c[0].name in known]
    best = max(measured, default=0.0)
    unseen = best * OPTIMISM if best else 1.0
    best = best or 1.0
    task_h = (demand.task_s or UNKNOWN_TASK_S) / 3600
    markets = []
    for offer, spot, away in choices:
        fact = known.get(offer.name, Known())
        room = offer.places(demand.hardware) / places if demand.gang == 1 else 1.0
        group = _group(offer, demand)
        usd_h = offer.usd_h(spot=spot)
        assert usd_h is not None  # `sorts` has looked
        # an on-demand machine that is wanted when there is no spot competes as if it were spot
        sure = not spot
        mine = sum(1 for each in held if each.offer == offer.name and each.spot == spot)
        markets.append(
            Market(
                key=offer.name,
                domain=f"{offer.cloud}/{offer.zone}",
                usd_h=usd_h * group,
                on_demand=sure,
                losses_per_h=0.0 if sure else fact.hazard.mean_per_h * group,
                throughput=(fact.throughput or unseen) / best * room,
                capacity=(mine if away else offer.most) // group,
                egress_usd=demand.egress_gb * offer.egress_usd_gb / task_h,
            )
        )
    per_unit = places if demand.gang == 1 else demand.gang  # tasks
    lanes = demand.tasks // demand.gang
    if demand.limit:
        lanes = min(lanes, max(1, demand.limit // demand.gang))
    per_lane = places if demand.gang == 1 else 1
    smallest = min(_group(choice[0], demand) for choice in choices)
    lanes = max(1, min(-(-lanes // per_lane), most // smallest))
    index: dict[str, int] = {}
    waits: dict[int, list[float]] = {}
    cold_h = max((known.get(c[0].name, Known()).cold_start_h for c in choices), default=0.05)
    for each in held:
        found = next((i for i, c in enumerate(choices)
                      if (c[0].name, c[1]) == (each.offer, each.spot)), None)  # fmt: skip
        if found is not None:
            index[each.name] = found
            wait_h = 0.0 if each.ready else max(1e-3, cold_h - each.age_h)
            waits.setdefault(found, []).append(wait_h)
    units = [
        Unit(i, wait_h)  # of a gang: once the last of its machines is there
        for i, each in waits.items()
        for wait_h in _every(sorted(each), _group(choices[i][0], demand))
    ]
    step_h = min(demand.step_s / 3600, task_h) if demand.step_s else task_h
    view = View(
        markets=tuple(markets),
        units=tuple(units),
        lanes=lanes,
        work_h=max(1e-6, demand.tasks * task_h / per_unit),
        total_h=max(1e-6, demand.total * task_h / per_unit),
        left_h=demand.left_s / 3600,
        deadline_h=demand.deadline_s / 3600,
        changeover_h=cold_h,
        step_h=step_h,
        margin_h=0.0 if math.isinf(demand.left_s) else min(0.05, cold_h),
        idle_allowed=demand.hardware.spot is Spot.ONLY and any(spot for _, spot, _ in choices),
    )
    return view, index


def _every(values: Sequence[float], count: int) -> Sequence[float]:
    """The last of each complete group of so many."""
    return values[count - 1 :: count]


def _row(view: View, i: int, choice: Choice, machines: int) -> Row:
    market, (offer, spot, away) = view.markets[i], choice
    terms = Terms(
        market.usd_h, market.throughput, market.losses_per_h, view.step_h, view.changeover_h,
        market.egress_usd,
    )  # fmt: skip
    reason = f"refused lately: {away}" if away else str(terms)
    return Row(offer.name, spot, market.usd_h, terms.usd_per_unit, machines, reason)
