"""No policy can be cheaper: a lower bound for one that knows the future.

One lane: Lagrangian relaxation of "the work is done by the deadline". For a price of progress, the
best path through (tick, machine) is found by dynamic programming; the dual value at any price is a
lower bound. Moving between machines costs a cold start's dollars but no time, and looks at no
capacity while the new one starts, which only favours the path. More lanes: spot hours as far as
there is capacity for every lane, the rest on demand, no cold starts.
"""

from __future__ import annotations

import math

import numpy as np

from hyper_scheduler.placement.simulation import Job, Traces

_PRICES = 14


def bound_usd(job: Job, traces: Traces, start: int) -> float:
    """The least that the job could have cost."""
    ticks = math.ceil(job.deadline_h / traces.tick_h)
    capacity = np.array([row[start : start + ticks] for row in traces.capacity])
    spot = np.array([market.usd_h for market in traces.markets])
    if job.lanes > 1:
        lanes = np.minimum(capacity.sum(axis=0), job.lanes)
        spot_h = min(job.work_h, float(lanes.sum()) * traces.tick_h)
        rest_h = job.work_h - spot_h
        return float(spot_h * spot.min() + rest_h * traces.on_demand.usd_h)
    there = np.vstack([capacity > 0, np.ones((1, capacity.shape[1]), bool)])
    prices = np.append(spot, traces.on_demand.usd_h)
    low, high, best = 0.0, 4.0 * float(prices.max()), 0.0
    for _ in range(_PRICES):
        progress_usd = (low + high) / 2
        cost, done_h = _path(job, traces.tick_h, there, prices, progress_usd)
        best = max(best, cost + progress_usd * job.work_h)
        if done_h < job.work_h:
            low = progress_usd
        else:
            high = progress_usd
    return best


def _path(
    job: Job, tick_h: float, there: np.ndarray, prices: np.ndarray, progress_usd: float
) -> tuple[float, float]:
    """Cost less the price of its progress, and that progress in hours, of the best path."""
    machines, ticks = there.shape
    starting = max(1, math.ceil(job.changeover_h / tick_h - 1e-9))
    left_h = starting * tick_h - job.changeover_h  # of the last tick of a start
    lasts = np.zeros((machines, ticks + 1), int)
    for k in range(ticks - 1, -1, -1):
        lasts[:, k] = np.where(there[:, k], lasts[:, k + 1] + 1, 0)
    working, working_h = np.zeros((machines, ticks + 1)), np.zeros((machines, ticks + 1))
    idle, idle_h = np.zeros(ticks + 1), np.zeros(ticks + 1)
    for k in range(ticks - 1, -1, -1):
        idle[k], idle_h[k] = idle[k + 1], idle_h[k + 1]
        if k + starting <= ticks:
            after = working[:, k + starting] + prices * starting * tick_h - progress_usd * left_h
            after = np.where(lasts[:, k] >= starting, after, np.inf)
            j = int(np.argmin(after))
            if after[j] < idle[k]:
                idle[k], idle_h[k] = after[j], left_h + working_h[j, k + starting]
        stay = (prices - progress_usd) * tick_h + working[:, k + 1]
        moved = np.where(there[:, k], stay + prices * job.changeover_h, np.inf)
        j = int(np.argmin(moved))
        value = np.where(there[:, k], np.minimum(stay, moved[j]), np.inf)
        hours = tick_h + np.where(stay <= moved[j], working_h[:, k + 1], working_h[j, k + 1])
        working[:, k] = np.minimum(value, idle[k])
        working_h[:, k] = np.where(value <= idle[k], hours, idle_h[k])
    return float(idle[0]), float(idle_h[0])
