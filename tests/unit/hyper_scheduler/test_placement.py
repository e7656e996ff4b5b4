"""What always holds of placement, whatever the market does."""

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper_scheduler.placement import fixed
from hyper_scheduler.placement.hazard import Hazard, Prior
from hyper_scheduler.placement.score import Terms, stretch
from hyper_scheduler.placement.simulation import Job, Traces, posterior, simulate
from hyper_scheduler.placement.slack import Way, all_lost_per_h, slack_value
from hyper_scheduler.placement.spread import domain_cap
from hyper_scheduler.placement.steady import steady
from hyper_scheduler.placement.view import Market, Unit, View

POLICIES = (
    steady, fixed.on_demand_only, fixed.cheapest_spot, fixed.eager_failover, fixed.uniform_progress,
)  # fmt: skip
rates = st.floats(0.0, 5.0)
prices = st.floats(0.01, 20.0)
ON_DEMAND = Market("on-demand", "on-demand", 1.0, on_demand=True)


@given(rates, rates, st.floats(0, 10), st.floats(0, 2), prices)
def test_a_score_grows_with_risk(low: float, more: float, step: float, cold: float, usd: float):
    calm, wild = (
        Terms(usd, losses_per_h=each, step_h=step, cold_start_h=cold) for each in (low, low + more)
    )
    assert usd <= calm.usd_per_unit * (1 + 1e-12)
    assert calm.usd_per_unit <= wild.usd_per_unit * (1 + 1e-9)


@given(rates, st.floats(0.001, 5.0), prices)
def test_longer_steps_and_higher_prices_cost_more(rate: float, step: float, usd: float):
    assert stretch(rate, step) >= 1.0
    assert stretch(rate, step * 2) >= stretch(rate, step)
    one, two = Terms(usd, 2.0, rate, step), Terms(usd, 1.0, rate, step)
    assert two.usd_per_unit == pytest.approx(2 * one.usd_per_unit)


def test_rework_is_what_happens():
    """(exp(rT) - 1) / (rT) against steps that are lost whole at random."""
    rng, rate, step = random.Random(1), 0.7, 1.3
    spent = 0.0
    for _ in range(20_000):
        while (lost := rng.expovariate(rate)) < step:
            spent += lost
        spent += step
    assert spent / (20_000 * step) == pytest.approx(stretch(rate, step), rel=0.02)


def test_no_throughput_no_use():
    assert Terms(1.0, throughput=0.0).usd_per_unit == math.inf


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 50), st.floats(0, 50)), max_size=20))
def test_a_posterior_stays_between_prior_and_data(seen: list[tuple[int, float, float]]):
    hazard = Hazard(Prior(0.5, 4.0, 8.0))
    for events, exposure_h, passed_h in seen:
        hazard = hazard.seen(events, exposure_h, passed_h)
        assert hazard.mean_per_h > 0
    if hazard.exposure_h > 0:
        data = hazard.events / hazard.exposure_h
        assert min(data, 0.125) - 1e-9 <= hazard.mean_per_h <= max(data, 0.125) + 1e-9


def test_a_posterior_learns_and_forgets():
    wild = Hazard().seen(30, 10.0)
    assert wild.mean_per_h == pytest.approx(30.5 / 14)
    assert wild.seen(0, 0, passed_h=1000.0).mean_per_h == pytest.approx(0.125, rel=1e-3)
    with pytest.raises(ValueError, match="below 0"):
        wild.seen(-1, 0)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data())
def test_rates_come_from_the_past_alone(capacity: list[int], data: st.DataObject):
    cut = data.draw(st.integers(1, len(capacity)))
    whole = posterior(capacity, 0.1, 3, Prior())
    assert posterior(capacity[:cut], 0.1, 3, Prior()) == whole[:cut]


@given(
    st.lists(st.tuples(prices, rates), min_size=1, max_size=3), prices, st.floats(0, 1),
    st.floats(0.1, 200),
)  # fmt: skip
def test_slack_is_never_worth_less_than_nothing(
    ways: list[tuple[float, float]], on_demand: float, restart: float, work: float
):
    value = slack_value(tuple(Way(*each) for each in ways), on_demand, restart, work)
    for part in (0.25, 0.5, 1.0):
        costs = [value.cost_usd(m, work * part) for m in range(13)]
        assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(costs))
        assert value.interruption_usd(0.5, work * part) == 0.0
    assert value.cost_usd(0, work) <= on_demand * work * 1.27


@given(st.lists(rates, min_size=1, max_size=4), st.floats(0, 2))
def test_more_machines_are_rarely_gone_at_once(losses: list[float], replace_h: float):
    one = all_lost_per_h((min(losses),), replace_h, 0.0)
    same = all_lost_per_h((min(losses),) * 2, replace_h, 0.0)
    assert same <= 2 * one + 1e-12


@given(st.integers(1, 500), st.integers(1, 20))
def test_a_third_at_most(fleet: int, domains: int):
    cap = domain_cap(fleet, domains)
    assert cap * domains >= fleet  # the fleet fits
    if domains >= 3:
        assert cap <= max(1, math.ceil(fleet / 3))


@st.composite
def views(draw: st.DrawFn) -> View:
    spot = [
        Market(f"z{i}", f"z{draw(st.integers(0, 4))}", draw(st.floats(0.05, 0.9)),
               losses_per_h=draw(st.floats(0, 3)), capacity=draw(st.integers(0, 6)))
        for i in range(draw(st.integers(0, 5)))
    ]  # fmt: skip
    markets = (*spot, ON_DEMAND)
    units = tuple(
        Unit(i, draw(st.sampled_from((0.0, 0.1, 0.5))))
        for i, each in enumerate(markets)
        for _ in range(draw(st.integers(0, min(2, each.capacity))))
    )
    total = draw(st.floats(1, 100))
    return View(
        markets=markets,
        units=units,
        lanes=draw(st.integers(1, 12)),
        work_h=total * draw(st.floats(0.01, 1)),
        total_h=total,
        left_h=draw(st.one_of(st.just(math.inf), st.floats(0.0, 120.0))),
        deadline_h=120.0,
        changeover_h=draw(st.sampled_from((0.05, 0.2, 1.0))),
        step_h=draw(st.sampled_from((0.0, 0.1))),
        margin_h=0.1,
        short_for_h=draw(st.sampled_from((0.0, 5.0))),
    )


@given(views())
def test_every_policy_keeps_to_the_market(view: View):
    for policy in POLICIES:
        wanted = Counter(policy(view))
        for i, count in wanted.items():
            assert count <= view.markets[i].capacity
        assert policy(view) == policy(view)
        if view.must_on_demand == view.lanes:
            assert wanted[len(view.markets) - 1] >= view.lanes


@given(views())
def test_nobody_buys_more_of_a_zone_than_a_third(view: View):
    """But for those that take over from others of the zone, which end when these are ready."""
    held = Counter(view.markets[each.market].domain for each in view.units)
    chosen = [i for i in steady(view) if not view.markets[i].on_demand]
    wanted = Counter(view.markets[i].domain for i in chosen)
    bought = Counter(chosen) - Counter(each.market for each in view.units)
    new = Counter(view.markets[i].domain for i in bought.elements())
    there = {each.domain for each in view.markets if not each.on_demand and each.capacity > 0}
    count = max(view.lanes, 3 if view.lanes == 1 else 0)
    cap = domain_cap(count, len(there))
    for domain, units in wanted.items():
        assert units <= max(cap, held[domain]) + min(new[domain], held[domain])
        assert new[domain] <= cap


@given(st.integers(0, 10_000), st.sampled_from((0.1, 0.4)), st.integers(1, 3))
def test_a_deadline_is_met_whatever_the_market_does(seed: int, changeover: float, lanes: int):
    rng = random.Random(seed)
    capacity = []
    for _ in range(3):
        row: list[int] = []
        while len(row) < 140:
            row += [rng.choice((0, lanes))] * rng.randint(1, 30)
        capacity.append(row[:140])
    market = Traces.of(0.1, capacity, [Market(f"z{i}", f"z{i}", 0.3) for i in range(3)], ON_DEMAND,
                       lanes)  # fmt: skip
    job = Job(8.0 * lanes, 12.0, lanes, changeover)
    outcome = simulate(job, market, 10, steady)
    assert not outcome.late
    assert outcome.usd >= 0.3 * job.work_h - 1e-6


def test_spot_that_never_fails_costs_its_price():
    market = Traces.of(0.1, [[1] * 300], [Market("z", "z", 0.25)], ON_DEMAND, 1)
    outcome = simulate(Job(10.0, 20.0, 1, 0.5), market, 0, steady)
    assert outcome.usd == pytest.approx(0.25 * 10.5)
    assert (outcome.preemptions, outcome.on_demand_h, outcome.launches) == (0, 0.0, 1)


def test_a_simulated_job_pays_for_its_data():
    far = Market("z", "z", 0.25, egress_usd=0.07)
    market = Traces.of(0.1, [[1] * 300], [far], ON_DEMAND, 1)
    outcome = simulate(Job(10.0, 20.0, 1, 0.5), market, 0, steady)
    assert outcome.usd == pytest.approx(0.25 * 10.5 + 0.07 * 10)


@st.composite
def mixed_views(draw: st.DrawFn) -> View:
    """Machines of several sizes, on spot and on demand, some of each to be had."""
    markets = tuple(
        Market(
            f"m{i}", f"z{draw(st.integers(0, 2))}", draw(st.floats(0.0, 2.0)),
            on_demand=draw(st.booleans()), losses_per_h=draw(st.sampled_from((0.0, 0.1, 2.0))),
            throughput=draw(st.floats(0.1, 8.0)), capacity=draw(st.integers(0, 5)),
            lanes=draw(st.sampled_from((1.0, 1.5, 4.0, 64.0))),
            optimism=draw(st.sampled_from((1.0, 1.2))),
        )
        for i in range(draw(st.integers(1, 6)))
    )  # fmt: skip
    units = tuple(
        Unit(i, draw(st.sampled_from((0.0, 0.2))), draw(st.booleans()))
        for i, each in enumerate(markets)
        for _ in range(draw(st.integers(0, each.capacity)))
    )
    return View(
        markets, units, lanes=draw(st.integers(1, 20)), work_h=draw(st.floats(0.01, 100)),
        total_h=100.0, left_h=draw(st.one_of(st.just(math.inf), st.floats(-5.0, 120.0))),
        deadline_h=120.0, changeover_h=draw(st.sampled_from((0.0, 0.05, 1.0))),
        step_h=draw(st.sampled_from((0.0, 0.5))), idle_allowed=draw(st.booleans()),
    )  # fmt: skip


@given(mixed_views())
def test_machines_of_all_sizes_fill_the_lanes_and_no_more(view: View):
    wanted = Counter(steady(view))
    assert all(count <= view.markets[i].capacity for i, count in wanted.items())
    lanes = sum(view.markets[i].lanes * count for i, count in wanted.items())
    sure = sum(each.capacity * each.lanes for each in view.markets if each.on_demand)
    must = min(view.must_on_demand, sure)
    on_demand = sum(
        view.fills(i) * count for i, count in wanted.items() if view.markets[i].on_demand
    )
    assert on_demand >= must - 1e-6
    if not view.idle_allowed and all(each.on_demand for each in view.markets):
        assert lanes >= min(view.lanes, sure) - 1e-6
    # none but those that bridge, stand by or are about to take over from others is of no use
    held = Counter(each.market for each in view.units)
    new = [i for i, count in wanted.items() for _ in range(count - held[i])]
    if new and view.lanes > 1:
        least = min(view.markets[i].lanes for i in new)
        rest = sum(view.fills(i) * count for i, count in wanted.items()) - view.fills(new[-1])
        bridged = sum(view.fills(i) for i in held.elements())
        assert rest <= view.lanes + bridged + least
