"""A task's parameters as a function of (recipe, index): nothing is stored for a task.

Grid runs through the product in the order of declaration, the last parameter fastest. Random draws
from the product of the discrete parameters through a keyed permutation, so that no combination
comes twice before every other came once; continuous ones come from a counter-based generator.
With early stopping a grid is permuted too: in order, each task would be compared with its like, and
where later ones learn faster none would be stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from hashlib import blake2b
from typing import assert_never

from hyper_scheduler.core.model import (
    Choice,
    Domain,
    Experiment,
    Items,
    LogUniform,
    Sampling,
    Steps,
    Uniform,
    Value,
)

MAX_COMBINATIONS = 1 << 62
_ROUNDS = 4  # of the Feistel network; four make a pseudo-random permutation


def size(domain: Domain) -> int | None:
    """How many values a domain has; None for a continuous one."""
    match domain:
        case Choice(values_json):
            return len(values_json)
        case Steps(count=count):
            return count
        case Uniform() | LogUniform():
            return None
        case Items():
            return 0
    assert_never(domain)


def combinations(experiment: Experiment) -> int:
    """The size of the product of the discrete parameters; 1 without any."""
    sizes = (size(domain) for domain in experiment.parameters.values())
    return math.prod(each for each in sizes if each is not None)


def count(experiment: Experiment) -> int:
    """How many tasks the experiment has, a gang counted once; 0 before its items are known."""
    if experiment.items:
        return 0
    if experiment.sampling is Sampling.GRID:
        return combinations(experiment)
    return experiment.samples


def parameters(experiment: Experiment, index: int) -> dict[str, Value]:
    """The parameters of task (or gang) `index`, in the order of declaration.

    Those of `tpe` are not a function of the index: see `core/trials.py`.

    Raises:
        IndexError: there is no such task.
    """
    if not 0 <= index < count(experiment):
        raise IndexError(f"experiment {experiment.name} has no task {index}")
    position = _position(experiment, combinations(experiment), index)
    values: dict[str, Value] = {}
    for name, domain in reversed(list(experiment.parameters.items())):
        each = size(domain)
        if each is None:
            values[name] = _continuous(domain, experiment, name, index)
        else:
            position, place = divmod(position, each)
            values[name] = _discrete(domain, place)
    return {name: values[name] for name in experiment.parameters}


def _position(experiment: Experiment, total: int, index: int) -> int:
    """Which combination of the discrete parameters a task has."""
    shuffled = experiment.sampling is Sampling.RANDOM
    if experiment.sampling is Sampling.GRID and experiment.objective is not None:
        shuffled = experiment.objective.asha is not None
    if not shuffled:
        return index
    lap, offset = divmod(index, total)
    seed = f"{experiment.seed}/{experiment.name}/{lap}".encode()
    return _permute(offset, total, blake2b(seed, digest_size=32).digest())


def parameters_writer(experiment: Experiment) -> Callable[[int], str]:
    """`parameters` as JSON text, by task; what all tasks have in common is prepared."""
    domains = list(experiment.parameters.items())
    if experiment.sampling is not Sampling.GRID:
        return lambda index: json.dumps(parameters(experiment, index))
    parts: list[tuple[str, int, Domain, tuple[str, ...]]] = []
    for name, domain in reversed(domains):
        texts = domain.values_json if isinstance(domain, Choice) else ()
        parts.append((f"{json.dumps(name)}: ", size(domain) or 1, domain, texts))

    total = combinations(experiment)

    def write(index: int) -> str:
        position = _position(experiment, total, index)
        found: list[str] = []
        for label, each, domain, texts in parts:
            place = 0
            if each > 1:
                position, place = divmod(position, each)
            text = texts[place] if texts else json.dumps(_discrete(domain, place))
            found.append(label + text)
        found.reverse()
        return "{" + ", ".join(found) + "}"

    return write


def _discrete(domain: Domain, place: int) -> Value:
    if isinstance(domain, Choice):
        chosen: Value = json.loads(domain.values_json[place])
        return chosen
    if isinstance(domain, Steps):
        return step_value(domain, place)
    raise TypeError(f"{domain} is continuous")


def step_value(domain: Steps, place: int) -> int | float:
    """The number at a place."""
    value = domain.start + place * domain.step
    return value if isinstance(value, int) else float(f"{value:.12g}")  # 0.1 x 3 is 0.3


def _continuous(domain: Domain, experiment: Experiment, name: str, index: int) -> float:
    unit = _unit(f"{experiment.seed}/{experiment.name}/{name}/{index}".encode())
    if isinstance(domain, Uniform):
        return min(domain.high, domain.low + unit * (domain.high - domain.low))
    if isinstance(domain, LogUniform):
        low, high = math.log(domain.low), math.log(domain.high)
        return min(domain.high, max(domain.low, math.exp(low + unit * (high - low))))
    raise TypeError(f"{domain} is discrete")


def _unit(key: bytes) -> float:
    """A number in [0, 1) that depends on nothing but the key."""
    return (int.from_bytes(blake2b(key, digest_size=8).digest()) >> 11) / (1 << 53)


def _permute(position: int, total: int, key: bytes) -> int:
    """Where a keyed permutation of range(total) sends `position`.

    A balanced Feistel network over the next even power of two, walked until it lands in range:
    fewer than four steps on average.
    """
    half = max(1, (max(1, total - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for turn in range(_ROUNDS):
            text = turn.to_bytes(1) + right.to_bytes((half + 7) // 8)
            digest = blake2b(text, key=key, digest_size=(half + 7) // 8).digest()
            left, right = right, left ^ (int.from_bytes(digest) & mask)
        position = (left << half) | right
        if position < total:
            return position
