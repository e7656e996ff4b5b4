"""Policies without a model of the market: what the good one is measured against.

Each is told by the same safety net when lanes must go on-demand (`View.must_on_demand`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hyper_scheduler.placement.view import Holding, View


def on_demand_only(view: View) -> Holding:
    """Never spot."""
    sure = view.cheapest_on_demand()
    return () if sure is None else (sure,) * view.lanes


def cheapest_spot(view: View) -> Holding:
    """Spot of the one cheapest offer, waited for until the net says on-demand."""
    spot = _by_price(view)
    return _with_net(view, spot[:1], fall_back=0)


def eager_failover(view: View) -> Holding:
    """Spot of any zone at once; while there is none, on-demand."""
    return _with_net(view, _by_price(view), fall_back=view.lanes)


def uniform_progress(view: View) -> Holding:
    """Spot of any zone; on-demand only while progress is behind a straight line to the deadline.

    Wu et al., "Can't Be Late: Optimizing Spot Instance Savings under Deadlines", NSDI 2024: once
    on on-demand it stays there until it is two changeovers ahead of the line.
    """
    whole_h = view.deadline_h
    expected_h = view.total_h * (1.0 - view.left_h / whole_h) if whole_h > 0 else view.total_h
    done_h = view.total_h - view.work_h
    ahead_h = (done_h - expected_h) / view.lanes
    on_demand = len(view.held(on_demand=True))
    if on_demand and ahead_h < 2 * view.changeover_h:
        return _with_net(view, [], fall_back=view.lanes)
    return _with_net(view, _by_price(view), fall_back=view.lanes if ahead_h < 0 else 0)


def _by_price(view: View) -> list[int]:
    """Spot markets, the cheapest first."""
    spot = [i for i, each in enumerate(view.markets) if not each.on_demand]
    return sorted(spot, key=lambda i: view.markets[i].usd_h / view.markets[i].throughput)


def _with_net(view: View, spot: Iterable[int], *, fall_back: int) -> Holding:
    """Held spot units, then those of `spot`, then up to `fall_back` lanes on demand."""
    sure = view.cheapest_on_demand()
    must = 0 if sure is None else view.must_on_demand
    lanes = view.lanes - must
    wanted = [each.market for each in view.held(on_demand=False)][:lanes]
    taken = Counter(wanted)
    for i in spot:
        while len(wanted) < lanes and taken[i] < view.markets[i].capacity:
            wanted.append(i)
            taken[i] += 1
    if sure is None:
        return tuple(wanted)
    return (*wanted, *(sure,) * (must + min(fall_back, lanes - len(wanted))))
