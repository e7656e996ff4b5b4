"""The policy that weighs dollars against slack.

Machines are taken where an hour of useful work is cheapest, an interruption priced at what it
costs in rework, cold start and slack (`slack.py`). From that follow, without rules of their own:
good zones are preferred when the deadline is near and cheap ones when it is far; a better zone is
moved to before the old machine is given up; where an interruption would force the job onto
on-demand machines, a second spot machine in another zone stands by; with no spot in sight the job
waits only while waiting costs less than on-demand does. Machines that are never taken and cost no
more than spot, such as those of a rack that is paid for, are used like spot, or before it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from hyper_scheduler.placement.prices import Prices
from hyper_scheduler.placement.spread import domain_cap
from hyper_scheduler.placement.view import Holding, Unit, View

_ROUNDING = 1e-9
_NOWHERE: Counter[int] = Counter()


def steady(view: View) -> Holding:
    """The units to hold now."""
    prices = Prices(view)
    must = min(float(view.must_on_demand), prices.sure_lanes)
    if must >= view.lanes:
        return _finish_on_demand(prices)
    chosen = _cheap(prices, view.lanes)
    if (short := must - _filled(view, chosen, sure=True)) > 0:
        chosen = _cheap(prices, view.lanes - short)
    if not prices.sure:
        return tuple(chosen)
    filled, safe = _filled(view, chosen), _filled(view, chosen, sure=True)
    must, lanes = max(0.0, must - safe), float(view.lanes)
    works = [each.market for each in _cheap_units(prices) if each.ready_in_h <= 0]
    held = _filled(view, (each.market for each in view.held(on_demand=True))) - safe
    kept = min(held, lanes - min(_filled(view, works), filled, lanes))  # replaced by what works
    bought = 0.0 if prices.waiting_is_cheaper else max(0.0, lanes - must - filled)
    return (*chosen, *_sure(prices, max(must, kept, must + bought), Counter(chosen)))


def _finish_on_demand(prices: Prices) -> Holding:
    """No interruption can be afforded: spot goes on only until on-demand works."""
    view = prices.view
    on_demand = view.held(on_demand=True)
    soonest = max((each.ready_in_h for each in on_demand), default=view.changeover_h)
    ready = _filled(view, (each.market for each in on_demand if each.ready_in_h <= 0))
    found = _sure(prices, view.lanes, _NOWHERE)
    for each in view.held(on_demand=False):
        if ready >= view.lanes - _ROUNDING:
            break
        if each.ready_in_h <= 0 or each.ready_in_h < soonest:
            found.append(each.market)
            ready += view.fills(each.market)
    return tuple(found)


def _cheap_units(prices: Prices) -> list[Unit]:
    """Held where work is cheap: on spot, and where on-demand costs no more."""
    markets = prices.view.markets
    return [
        each for each in prices.view.units
        if not markets[each.market].on_demand or each.market in prices.bargains
    ]  # fmt: skip


def _cheap(prices: Prices, lanes: float) -> list[int]:
    """Units for so many lanes, the net aside: those that work, those that start, then the best."""
    view, held = prices.view, _cheap_units(prices)
    working = [each for each in held if each.ready_in_h <= 0]
    starting = [each.market for each in held if each.ready_in_h > 0]
    if view.lanes == 1:
        ready = bool(working) or any(u.ready_in_h <= 0 for u in view.held(on_demand=True))
        lanes = float(prices.machines(ready))
    kept = _kept(prices, working, lanes)
    cap = domain_cap(max(math.ceil(lanes), view.lanes), prices.domains)
    return _filled_up(prices, kept, starting, prices.available, lanes, cap, _NOWHERE)


def _sure(prices: Prices, lanes: float, elsewhere: Counter[int]) -> list[int]:
    """On-demand units for so many lanes beyond those that are counted `elsewhere`."""
    view, others = prices.view, Counter(elsewhere)
    working: list[Unit] = []
    coming: list[int] = []
    for each in view.held(on_demand=True):
        if others[each.market] > 0:
            others[each.market] -= 1
        elif each.ready_in_h <= 0:
            working.append(each)
        else:
            coming.append(each.market)
    kept = _kept(prices, working, lanes)
    starting: list[int] = []
    stays = list(kept)
    for i in sorted(coming, key=prices.score):
        if _filled(view, (*kept, *starting)) < lanes - _ROUNDING:
            starting.append(i)
        elif stays and prices.worth_moving(stays[-1], i):
            starting.append(i)
            del stays[-max(1, math.floor(_replaced(view, stays[-1], i) + _ROUNDING)) :]
    return _filled_up(prices, kept, starting, prices.sure, lanes, math.inf, elsewhere)


def _kept(prices: Prices, working: Sequence[Unit], lanes: float) -> list[int]:
    """Units that go on working, the best first: who has work is not ended before who has none."""
    kept: list[Unit] = []
    spare: list[Unit] = []
    filled = 0.0
    for each in sorted(working, key=lambda unit: (not unit.busy, prices.score(unit.market))):
        (kept if filled < lanes - _ROUNDING else spare).append(each)
        filled += prices.view.fills(each.market)
    markets = sorted((each.market for each in kept), key=prices.score)
    came, over = [], 0.0
    for idle in spare:  # one that was started to take over is idle as long as nothing waits
        if not markets or not prices.worth_moving(markets[-1], idle.market):
            continue
        came.append(idle.market)
        over += prices.view.fills(idle.market)
        while (
            markets and over > prices.view.fills(markets[-1]) - _ROUNDING
            and prices.worth_moving(markets[-1], idle.market)
        ):  # fmt: skip
            over -= prices.view.fills(markets.pop())
    return sorted((*markets, *came), key=prices.score)


def _filled_up(
    prices: Prices, kept: list[int], starting: list[int], order: Sequence[int], lanes: float,
    cap: float, elsewhere: Counter[int],
) -> list[int]:  # fmt: skip
    """What is held, and the best of `order` for the lanes that nothing works on; or else units that
    will take over from the worst that work."""
    view, wanted = prices.view, [*kept, *starting]
    rest = lanes - _filled(view, wanted)
    while rest > _ROUNDING:
        room = _room(view, wanted, cap, elsewhere)
        options = [i for i in order if room(i) > 0]
        if not options:
            return wanted
        best = min(options, key=_score_of_more(prices, wanted, rest))
        spare = rest - max(map(view.fills, options))  # while there is some, the choice is the same
        count = min(room(best), 1 + max(0, int(spare / view.fills(best) + _ROUNDING)))
        if view.markets[best].optimism > 1.0 and best not in wanted:
            count = 1
        wanted += [best] * count
        rest -= count * view.fills(best)
    if not starting and len(wanted) == len(kept):
        wanted += _moves(prices, kept, order, cap, elsewhere)
    return wanted


def _moves(
    prices: Prices, kept: Sequence[int], order: Sequence[int], cap: float, elsewhere: Counter[int]
) -> list[int]:
    """Units that take over from the worst that work, which are given up once these are ready."""
    view, stays, coming = prices.view, list(kept), list[int]()
    while stays:
        old = stays[-1]
        others = [i for i in stays if i != old]  # who is given up counts in no domain
        room = _room(view, [*others, *coming], cap, elsewhere)
        tried = {i for i in (*kept, *coming) if view.markets[i].optimism > 1.0}
        new = next((i for i in order if room(i) > 0 and i not in tried), None)
        if new is None or not prices.worth_moving(old, new):
            break
        count = math.ceil((len(stays) - len(others)) / _replaced(view, old, new) - _ROUNDING)
        count = 1 if view.markets[new].optimism > 1.0 else min(count, room(new))
        if count * _replaced(view, old, new) < 1.0 - _ROUNDING and count == room(new):
            break  # there are too few of them to take over from one
        coming += [new] * count
        replaced = max(1, math.floor(count * _replaced(view, old, new) + _ROUNDING))
        stays = [*others, *stays[len(others) :][replaced:]]
    return coming


def _replaced(view: View, old: int, new: int) -> float:
    """Units of `old` that one of `new` does the work of, as lanes go."""
    return view.fills(new) / view.fills(old)


def _score_of_more(prices: Prices, wanted: Sequence[int], rest: float) -> Callable[[int], float]:
    """What one more unit's work costs, where `rest` lanes are to be filled."""
    markets, there = prices.view.markets, frozenset(wanted)

    def score(i: int) -> float:
        # of a machine with more places than are wanted the others are paid for nothing
        usd = prices.score(i) * max(1.0, prices.view.fills(i) / rest)
        again = markets[i].optimism if i in there else 1.0
        return usd * again * (1.0 + _ROUNDING if again > 1.0 else 1.0)  # equal: what is known

    return score


def _room(
    view: View, wanted: Sequence[int], cap: float, elsewhere: Counter[int]
) -> Callable[[int], int]:
    """How many more units of a market there may be: of spot at most `cap` lanes in one domain."""
    taken = Counter(wanted) + elsewhere
    lanes: dict[str, float] = {}  # of spot, by domain
    for i in wanted:
        if not view.markets[i].on_demand:
            domain = view.markets[i].domain
            lanes[domain] = lanes.get(domain, 0.0) + view.fills(i)

    def room(i: int) -> int:
        market = view.markets[i]
        left = market.capacity - taken[i]
        if market.on_demand or math.isinf(cap):
            return left
        there = lanes.get(market.domain, 0.0)
        return min(left, max(int((cap - there) / view.fills(i) + _ROUNDING), int(not there)))

    return room


def _filled(view: View, units: Iterable[int], *, sure: bool = False) -> float:
    """Lanes that units work on; `sure`: those of on-demand ones alone."""
    return sum(view.fills(i) for i in units if view.markets[i].on_demand or not sure)
