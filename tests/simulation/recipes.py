"""Random recipes for the simulation."""

from __future__ import annotations

import random

from hyper_scheduler.core.model import (
    Asha,
    Domain,
    Experiment,
    Hardware,
    Items,
    Objective,
    Recipe,
    Sampling,
    Steps,
)


def random_recipe(rng: random.Random, retries: int = 2) -> Recipe:
    """A few experiments, each depending on some of those before it, in all the ways there are."""
    experiments: list[Experiment] = []
    for number in range(rng.randint(1, 4)):
        earlier = [each.name for each in experiments]
        depends_on = tuple(name for name in earlier if rng.random() < 0.5)
        each: tuple[str, ...] = ()
        parameters: dict[str, Domain] = {"i": Steps(0, 1, rng.randint(1, 15))}
        gang = rng.choice([1, 1, 1, 2, 3])
        if gang > 1:
            parameters = {"i": Steps(0, 1, rng.randint(1, 4))}
        if depends_on and rng.random() < 0.5:
            before = next(one for one in experiments if one.name == depends_on[0])
            if not before.items and before.sampling is Sampling.GRID and rng.random() < 0.6:
                each, parameters = (before.name,), dict(before.parameters)
            elif before.objective is None:
                parameters = {"i": Items(before.name)}
        trials = gang == 1 and not each and "i" in parameters and rng.random() < 0.3
        objective = Objective("score", rng.random() < 0.5, Asha(1, 2)) if trials else None
        chosen = objective is not None and isinstance(parameters["i"], Steps) and rng.random() < 0.5
        experiments.append(
            Experiment(
                name=f"e{number}",
                function="m:f",
                depends_on=depends_on,
                each=each,
                parameters=parameters,
                sampling=Sampling.TPE if chosen else Sampling.GRID,
                samples=rng.randint(1, 8) if chosen else 0,
                workers=rng.choice([0, 0, max(2, gang)]),
                retries=retries,
                gang=gang,
                objective=objective,
                hardware=Hardware(cpus=rng.choice([0, 0, 0, 1] if gang > 1 else [0, 0, 0, 1, 3])),
            )
        )
    return Recipe("sim", tuple(experiments), priority=rng.randint(0, 1))
