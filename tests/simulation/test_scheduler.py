"""Seeded runs of a whole cluster. `SEEDS=5000` runs more, `SEEDS=17:18` that one again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from hyper_scheduler.core.model import TaskId
from hyper_scheduler.core.parameters import count
from tests.simulation.world import Rates, World, random_recipe

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


def run_to_the_end(seed: int, rates: Rates, *, poison: bool = False) -> World:
    world = World(seed, rates)
    for _ in range(world.random.randint(1, 3)):
        recipe = random_recipe(world.random)
        if poison and world.random.random() < 0.5:
            spec = world.random.choice(recipe.experiments)
            world.poison.add((spec.name, world.random.randrange(count(spec))))
        delay_s = world.random.uniform(0.0, 10.0)
        world.after(delay_s, lambda recipe=recipe: world.submit(recipe))
    world.run(11.0, lambda: world.now > 10.5)
    world.run(DEADLINE_S, world.ended)
    return world


def poisoned(world: World, name: str) -> bool:
    return any(
        spec.name == experiment and index < count(spec)
        for spec in world.recipes[name].experiments
        for experiment, index in world.poison
    )


def check_succeeded(world: World, name: str) -> None:
    head = world.disk.head(name)
    assert head["state"] == "succeeded", (name, head)
    for spec in world.recipes[name].experiments:
        for index in range(count(spec)):
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
def test_wild_faults() -> None:
    rates = Rates(
        worker_crash=0.3, worker_silent=0.2, preemption=0.2, link_break=1.0, leader_crash=0.5,
        leader_deposed=0.5, drain=0.1,
    )  # fmt: skip

    def run(seed: int) -> None:
        world = run_to_the_end(seed, rates)
        for name in world.recipes:
            check_succeeded(world, name)

    run_seeds(35, run)
