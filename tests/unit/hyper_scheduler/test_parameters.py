"""Parameters are a function of (recipe, index)."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper_scheduler.core.model import (
    Asha,
    Choice,
    Domain,
    Experiment,
    LogUniform,
    Objective,
    Sampling,
    Steps,
    Uniform,
)
from hyper_scheduler.core.parameters import combinations, count, parameters, parameters_writer

SCALARS = st.integers(-5, 5) | st.text(max_size=3) | st.booleans() | st.none()
DISCRETE: st.SearchStrategy[Domain] = st.lists(SCALARS, min_size=1, max_size=5).map(
    Choice.of
) | st.builds(Steps, st.integers(-9, 9), st.integers(1, 4), st.integers(1, 6))
CONTINUOUS: st.SearchStrategy[Domain] = st.builds(
    lambda low, span: Uniform(low, low + span), st.floats(-10, 10), st.floats(0.1, 10)
) | st.builds(
    lambda low, span: LogUniform(low, low * span), st.floats(1e-6, 1), st.floats(1.5, 100)
)
NAMES = st.sampled_from("abcd")


def experiment(domains: dict[str, Domain], samples: int = 0, seed: int = 0) -> Experiment:
    sampling = Sampling.RANDOM if samples else Sampling.GRID
    return Experiment(
        "e", command="true", parameters=domains, sampling=sampling, samples=samples, seed=seed
    )


@given(st.dictionaries(NAMES, DISCRETE, max_size=3))
def test_a_grid_is_the_product_in_order(domains: dict[str, Domain]) -> None:
    each = experiment(domains)
    values = [
        [
            parameters(experiment({name: domain}), i)[name]
            for i in range(count(experiment({name: domain})))
        ]
        for name, domain in domains.items()
    ]
    expected = [dict(zip(domains, row, strict=True)) for row in itertools.product(*values)]
    assert [parameters(each, index) for index in range(count(each))] == expected
    assert all(list(row) == list(domains) for row in expected)


def test_tasks_that_compete_do_not_come_in_the_order_of_the_grid() -> None:
    grid = experiment({name: Steps(0, 1, 8) for name in "abc"})
    competing = replace(grid, objective=Objective("auc", asha=Asha()))
    rows = [tuple(parameters(competing, index).values()) for index in range(512)]
    assert sorted(rows) == list(itertools.product(range(8), repeat=3))
    firsts = Counter(row[0] for row in rows[:128])  # in order: 0 and 1 alone
    assert set(firsts) == set(range(8)) and max(firsts.values()) < 40
    alone = replace(grid, objective=Objective("auc"))
    assert [parameters(alone, i) for i in range(512)] == [parameters(grid, i) for i in range(512)]
    write = parameters_writer(competing)
    assert [json.loads(write(i)) for i in (0, 7, 511)] == [
        parameters(competing, i) for i in (0, 7, 511)
    ]


@given(st.dictionaries(NAMES, DISCRETE, max_size=3), st.integers(1, 60), st.integers(0, 2**63 - 1))
def test_random_repeats_as_little_as_it_can(
    domains: dict[str, Domain], samples: int, seed: int
) -> None:
    distinct = {
        name: Choice(tuple(str(n) for n in range(combinations(experiment({name: domain})))))
        for name, domain in domains.items()
    }
    each = experiment(distinct, samples, seed)
    drawn = Counter(str(parameters(each, index)) for index in range(samples))
    total = combinations(each)
    assert len(drawn) == min(samples, total)
    assert max(drawn.values()) == -(-samples // total)


@given(
    st.dictionaries(NAMES, DISCRETE | CONTINUOUS, max_size=4),
    st.integers(0, 10**9 - 1),
    st.integers(0, 2**63 - 1),
)
def test_random_is_reproducible_and_in_range(
    domains: dict[str, Domain], index: int, seed: int
) -> None:
    values = parameters(experiment(domains, 10**9, seed), index)
    assert values == parameters(experiment(domains, 10**9, seed), index)
    for name, domain in domains.items():
        if isinstance(domain, Uniform | LogUniform):
            value = values[name]
            assert isinstance(value, float)
            assert domain.low <= value <= domain.high


def test_seeds_and_experiments_differ() -> None:
    domains: dict[str, Domain] = {"a": Steps(0, 1, 1000), "b": Uniform(0.0, 1.0)}
    one = [parameters(experiment(domains, 50, 1), index) for index in range(50)]
    two = [parameters(experiment(domains, 50, 2), index) for index in range(50)]
    assert one != two
    values = [float(str(row["b"])) for row in one]
    assert 0.3 < sum(values) / 50 < 0.7


def test_steps_have_no_rounding_noise() -> None:
    each = experiment({"a": Steps(0.1, 0.1, 3)})
    assert [parameters(each, index)["a"] for index in range(3)] == [0.1, 0.2, 0.3]


def test_ten_million_tasks_cost_nothing() -> None:
    each = experiment({"a": Steps(0, 1, 10_000), "b": Steps(0, 1, 1000)})
    assert count(each) == 10_000_000
    assert parameters(each, 9_999_999) == {"a": 9999, "b": 999}


@pytest.mark.parametrize("index", [-1, 3])
def test_there_is_no_other_task(index: int) -> None:
    with pytest.raises(IndexError):
        parameters(experiment({"a": Steps(0, 1, 3)}), index)
