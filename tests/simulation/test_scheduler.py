"""Seeded runs of a whole cluster. `SEEDS=5000` runs more, `SEEDS=17:18` that one again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from hyper_scheduler.core.model import TaskId
from hyper_scheduler.core.state import Limits
from tests.simulation.recipes import random_recipe
from tests.simulation.world import FORGETFUL, LIMITS, Rates, World

DEADLINE_S = 600.0  # virtual; liveness: long after the faults have stopped everything has ended


def seeds(default: int) -> Iterator[int]:
    first, colon, last = os.environ.get("SEEDS", str(default)).partition(":")
    return iter(range(int(first), int(last)) if colon else range(int(first)))


def run_seeds(default: int, run: Callable[[int], None]) -> None:
    for seed in seeds(default):
        try:
            run(seed)
        except BaseException as error:
            error.add_note(f"failing seed: {seed} (run it again with SEEDS={seed}:{seed + 1})")
            raise


def run_to_the_end(
    seed: int,
    rates: Rates,
    *,
    poison: bool = False,
    killers: bool = False,
    limits: Limits = LIMITS,
) -> World:
    world = World(seed, rates, limits=limits)
    for _ in range(world.random.randint(1, 3)):
        recipe = random_recipe(world.random)
        if poison and world.random.random() < 0.5:
            spec = world.random.choice(recipe.experiments)
            world.poison.add((spec.name, 0))
        single = [spec for spec in recipe.experiments if spec.gang == 1]
        if killers and single and world.random.random() < 0.7:
            world.killers.add((world.random.choice(single).name, 0))
        delay_s = world.random.uniform(0.0, 10.0)
        world.after(delay_s, lambda recipe=recipe: world.submit(recipe))
    world.run(11.0, lambda: world.now > 10.5)
    world.run(DEADLINE_S, world.ended)
    return world


def poisoned(world: World, name: str) -> bool:
    names = {experiment for experiment, _ in world.poison | world.killers}
    return any(
        spec.name in names and spec.objective is None  # others may be stopped early instead
        for spec in world.recipes[name].experiments
    )


def check_succeeded(world: World, name: str) -> None:
    head = world.disk.head(name)
    assert head["state"] == "succeeded", (name, head)
    for spec in world.recipes[name].experiments:
        for index in range(world.disk.total(name, spec.name)):
            assert world.disk.is_done(TaskId(name, spec.name, index)), (name, spec.name, index)


@pytest.mark.timeout(3600)
def test_no_fault_fails_a_workflow() -> None:
    def run(seed: int) -> None:
        world = run_to_the_end(seed, Rates())
        for name in world.recipes:
            check_succeeded(world, name)

    run_seeds(50, run)


@pytest.mark.timeout(3600)
def test_poison_fails_its_workflow_alone() -> None:
    def run(seed: int) -> None:
        world = run_to_the_end(seed, Rates(), poison=True)
        for name in world.recipes:
            if poisoned(world, name):
                assert world.disk.head(name)["state"] == "failed", name
            else:
                check_succeeded(world, name)

    run_seeds(35, run)


@pytest.mark.timeout(3600)
def test_cancelling_ends_a_workflow() -> None:
    def run(seed: int) -> None:
        world = run_to_the_end(seed, Rates(cancel=0.1))
        for name in world.recipes:
            state = world.disk.head(name)["state"]
            assert state in ("succeeded", "cancelled"), (name, state)
            if state == "succeeded":
                check_succeeded(world, name)
            else:
                assert name in world.cancelled

    run_seeds(35, run)


@pytest.mark.timeout(3600)
def test_what_has_ended_is_forgotten_and_nothing_else() -> None:
    def run(seed: int) -> None:
        rates = Rates(cancel=0.05, retry=0.1, pause=0.1)
        world = run_to_the_end(seed, rates, limits=FORGETFUL)
        for name in world.recipes:
            if world.disk.head(name)["state"] == "succeeded":
                check_succeeded(world, name)
            else:
                assert name in world.cancelled
        world.run(DEADLINE_S, world.nothing_left)

    run_seeds(35, run)


@pytest.mark.timeout(3600)
def test_wild_faults() -> None:
    rates = Rates(
        worker_crash=0.3, worker_silent=0.2, preemption=0.2, link_break=1.0, leader_crash=0.5,
        leader_deposed=0.5, drain=0.1, pause=0.05,
    )  # fmt: skip

    def run(seed: int) -> None:
        world = run_to_the_end(seed, rates)
        for name in world.recipes:
            check_succeeded(world, name)

    run_seeds(35, run)


@pytest.mark.timeout(3600)
def test_a_task_that_ends_its_workers_fails_its_workflow_alone() -> None:
    def run(seed: int) -> None:
        quiet = Rates(worker_crash=0.0, worker_silent=0.0, preemption=0.02, drain=0.0)
        world = run_to_the_end(seed, quiet, killers=True)
        for name in world.recipes:
            if not poisoned(world, name):
                check_succeeded(world, name)
                continue
            head = world.disk.head(name)
            assert head["state"] == "failed", (name, head)
            assert "set aside: its worker was lost" in head["message"], (name, head)
        killers = sum(
            (spec.name, 0) in world.killers
            for recipe in world.recipes.values()
            for spec in recipe.experiments
        )
        assert world.killed <= 20 * killers, f"{killers} tasks took {world.killed} workers"

    run_seeds(35, run)
