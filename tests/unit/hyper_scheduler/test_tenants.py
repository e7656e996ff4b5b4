"""Tenants share the slots by weight, and have quotas."""

from __future__ import annotations

import heapq
import random
from collections import Counter

import pytest

from hyper_scheduler.core import commands as c
from hyper_scheduler.core.model import TaskId
from hyper_scheduler.core.state import Limits, Quota, State
from tests.unit.hyper_scheduler.cores import Core, experiment, recipe

A, B = "tenants/a/workflows/w", "tenants/b/workflows/w"


def core_with(**quotas: Quota) -> Core:
    limits = Limits(lease_s=1e9, gather_s=0.0, tenants=quotas)
    return Core(State(9, limits, checked_at=1000.0))


def slot_seconds(core: Core, slots: int, seconds: float, seed: int) -> Counter[str]:
    """Run tasks of random length while both tenants want more; who had how much."""
    rng = random.Random(seed)
    had: Counter[str] = Counter()
    ends: list[tuple[float, TaskId, int]] = []
    sequence, stop = 0, core.now + seconds

    def take(commands: list[c.Command]) -> None:
        for start in commands:
            if isinstance(start, c.Start):
                for task, attempt in start.tasks:
                    mean_s = 0.5 if task.workflow == A else 2.0
                    end = core.now + rng.expovariate(1.0 / mean_s)
                    had[task.workflow] += min(end, stop) - core.now
                    heapq.heappush(ends, (end, task, attempt.number))

    take(core.hello("w1", slots=slots))
    while ends[0][0] < stop:
        core.now, task, number = heapq.heappop(ends)
        sequence += 1
        take(core.report("w1", task, number, sequence=sequence))
    return had


@pytest.mark.parametrize("slots", [1, 2, 7, 20])
def test_weights_hold_within_a_tenth(slots: int) -> None:
    core = core_with(a=Quota(weight=3.0), b=Quota(weight=1.0))
    core.submit(recipe(experiment("e", 100_000)), A, "r1")
    core.submit(recipe(experiment("e", 100_000)), B, "r2")
    had = slot_seconds(core, slots, 1500.0 / slots, seed=slots)
    assert had[A] / had[B] == pytest.approx(3.0, rel=0.1)


def test_who_comes_late_does_not_take_everything() -> None:
    core = core_with()
    core.submit(recipe(experiment("e", 100_000)), A, "r1")
    slot_seconds(core, 4, 200.0, seed=1)
    core.submit(recipe(experiment("e", 100_000)), B, "r2")
    core.hello("w2", slots=12)
    use = core.state.tenants
    assert use["b"].had == use["a"].had > 100.0
    assert use["a"].used == use["b"].used


def test_quotas_refuse() -> None:
    core = core_with(a=Quota(workflows=1), b=Quota(tasks=10))
    core.submit(recipe(experiment("e", 100)), A, "r1")
    (refusal,) = core.submit(recipe(experiment("e", 1)), f"{A}2", "r2")
    assert isinstance(refusal, c.Refuse)
    assert (refusal.kind, "1 workflows at once" in refusal.message) == ("quota", True)
    assert isinstance(core.submit(recipe(experiment("e", 8)), B, "r3")[0], c.Reply)
    (refusal,) = core.submit(recipe(experiment("e", 3)), f"{B}2", "r4")
    assert isinstance(refusal, c.Refuse)
    assert "10 tasks at once, and would have 11" in refusal.message


def test_no_more_slots_than_the_quota() -> None:
    core = core_with(a=Quota(slots=2))
    core.submit(recipe(experiment("e", 9)), A, "r1")
    core.submit(recipe(experiment("e", 1)), B, "r2")
    core.hello("w1", slots=8)
    running = Counter(task.workflow for task in core.state.workers["w1"].running)
    assert running == {A: 2, B: 1}
