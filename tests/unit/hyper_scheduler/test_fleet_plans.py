"""From demand to machines: what is used first, kept, moved, and not bought."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from hyper_scheduler.core.model import Hardware, Spot
from hyper_scheduler.placement.backoff import Refusal, refused
from hyper_scheduler.placement.demand import Demand, Held, Known, Plan, refusal_key
from hyper_scheduler.placement.fleet import plan
from hyper_scheduler.placement.hazard import Hazard
from hyper_scheduler.placement.offers import Offer

HOUR = 3600.0


def drawn(
    offers: Sequence[Offer],
    held: Sequence[Held] = (),
    known: Mapping[str, Known] | None = None,
    refusals: Mapping[str, Refusal] | None = None,
    most: int = 100,
    **changes: object,
) -> Plan:
    """A plan for 100 tasks of an hour."""
    fields = {"workflow": "w", "experiment": "e", "tasks": 100, "total": 100,
              "hardware": Hardware(), "task_s": HOUR} | changes  # fmt: skip
    return plan(Demand(**fields), offers, known or {}, held, refusals or {}, 0.0, most)  # type: ignore[arg-type]


def offer(name: str, **changes: object) -> Offer:
    fields = {"provider": "p", "zone": name, "spot_usd_h": 0.1, "on_demand_usd_h": 0.3} | changes
    return Offer(name, **fields)  # type: ignore[arg-type]


def sure(name: str, usd_h: float, **changes: object) -> Offer:
    return offer(name, spot_usd_h=None, on_demand_usd_h=usd_h, **changes)


def machine(
    name: str, of: str, *, busy: int = 0, spot: bool = True, age_h: float = 1.0, ready: bool = True
) -> Held:
    return Held(name, of, spot, ready, age_h, busy)


NEVER = Hardware(spot=Spot.NEVER)
CALM = Hazard().seen(0.0, 1000.0)


# Who is ended


def test_an_idle_machine_is_ended_before_a_busy_one() -> None:
    held = [machine(f"m-{i}", "a", busy=int(i != 3), age_h=10.0 - i) for i in range(10)]
    found = drawn([offer("a")], held, tasks=9)
    assert (found.ends, found.launches) == (("m-3",), ())


def test_an_idle_machine_is_ended_before_a_busy_one_of_a_dearer_offer() -> None:
    held = [machine("idle", "a"), machine("busy", "b", busy=1)]
    offers = [offer("a", most=1), offer("b", spot_usd_h=0.105)]
    assert drawn(offers, held, tasks=1, limit=2).ends == ("idle",)


def test_work_in_progress_is_not_moved_away_from() -> None:
    """The last task is done where it runs, however cheap another offer is."""
    offers = [offer("a", spot_usd_h=1.0), offer("b", spot_usd_h=0.1)]
    held = [machine("m", "a", busy=1)]
    last = drawn(offers, held, tasks=1, limit=1, task_s=10 * HOUR)
    assert (last.launches, last.ends) == ((), ())
    more = drawn(offers, held, tasks=9, limit=1, task_s=10 * HOUR)
    assert (more.launches, more.ends) == ((("b", True),), ())
    both = [*held, machine("n", "b", busy=1)]
    assert drawn(offers, both, tasks=9, limit=1, task_s=10 * HOUR).ends == ("m",)


def test_what_has_checkpoints_is_moved_in_the_middle() -> None:
    offers = [offer("a", spot_usd_h=1.0, on_demand_usd_h=2.0), offer("b", spot_usd_h=0.1)]
    old = machine("m", "a", busy=1)
    long = {"tasks": 1, "limit": 1, "task_s": 10 * HOUR, "step_s": 300.0}
    assert drawn(offers, [old], **long).launches == (("b", True),)
    found = drawn(offers, [old, machine("n", "b")], **long)
    assert (found.ends, found.moved) == (("m",), frozenset({"m"}))
    few = drawn(offers[:1], [machine(f"m-{i}", "a", busy=1) for i in range(3)], **long)
    assert (len(few.ends), few.moved) == (2, frozenset())  # nothing takes over from them


# What is used first


def test_a_rack_that_is_paid_for_is_used_before_spot() -> None:
    rack, cloud = sure("rack", 0.0, most=2), offer("cloud", on_demand_usd_h=None)
    found = drawn([cloud, rack], limit=6)
    assert Counter(found.launches) == {("rack", False): 2, ("cloud", True): 4}
    refusals = refused({}, refusal_key("cloud", spot=True), "NoCapacity", 0.0)
    away = drawn([cloud, rack], limit=6, refusals=refusals)
    assert Counter(away.launches) == {("rack", False): 2}


def test_spot_is_waited_for_where_on_demand_is_dearer() -> None:
    refusals = refused({}, refusal_key("cloud", spot=True), "NoCapacity", 0.0)
    assert drawn([offer("cloud")], limit=6, refusals=refusals).launches == ()


def test_several_on_demand_offers_make_one_fleet() -> None:
    racks = [sure(f"rack-{i}", 0.1 * i, most=2) for i in range(3)]
    found = drawn(racks, limit=6, hardware=NEVER)
    assert Counter(found.launches) == {(each.name, False): 2 for each in racks}


@pytest.mark.parametrize("faster", [1.0, 1.05, 1.09])
def test_noise_moves_no_machine(faster: float) -> None:
    offers = [sure("a", 0.3), sure("b", 0.3)]
    known = {"a": Known(throughput=10.0), "b": Known(throughput=10.0 * faster)}
    held = [machine(f"m-{i}", "a", busy=1, spot=False) for i in range(4)]
    found = drawn(offers, held, known, limit=4, hardware=NEVER)
    assert (found.launches, found.ends) == ((), ())


def test_an_offer_that_was_not_measured_is_tried_with_one_machine() -> None:
    offers = [sure("a", 0.3), sure("b", 0.3)]
    known = {"a": Known(throughput=10.0)}
    found = drawn(offers, (), known, limit=6, hardware=NEVER)
    assert Counter(found.launches) == {("a", False): 5, ("b", False): 1}
    held = [machine(f"m-{i}", "a", busy=1, spot=False) for i in range(6)]
    assert drawn(offers, held, known, limit=6, hardware=NEVER).launches == (("b", False),)
    held[5] = machine("n", "b", busy=1, spot=False)
    again = drawn(offers, held, known, limit=6, hardware=NEVER)
    assert (again.launches, again.ends) == ((), ())


@pytest.mark.parametrize("faster", [0.93, 1.0, 1.07])
def test_noise_moves_nothing_between_spot_and_on_demand(faster: float) -> None:
    offers = [sure("rack", 0.1), offer("cloud", on_demand_usd_h=None)]
    known = {
        "rack": Known(throughput=10.0 * faster, hazard=CALM),
        "cloud": Known(throughput=10.0, hazard=CALM),
    }
    held = [machine(f"m-{i}", "rack", busy=1, spot=False) for i in range(4)]
    found = drawn(offers, held, known, limit=4, task_s=60.0)
    assert (found.launches, found.ends) == ((), ())


def test_a_better_offer_is_moved_to_before_machines_are_ended() -> None:
    offers = [sure("a", 0.3), sure("b", 0.3)]
    known = {"a": Known(throughput=10.0), "b": Known(throughput=30.0)}
    held = [machine(f"m-{i}", "a", busy=1, spot=False) for i in range(4)]
    first = drawn(offers, held, known, limit=4, hardware=NEVER)
    assert (first.launches, first.ends) == ((("b", False),) * 4, ())
    coming = [machine(f"n-{i}", "b", ready=False, spot=False) for i in range(4)]
    waits = drawn(offers, [*held, *coming], known, limit=4, hardware=NEVER)
    assert (waits.launches, waits.ends) == ((), ())
    held.append(machine("n", "b", busy=1, spot=False))
    then = drawn(offers, [*held, *coming[1:]], known, limit=4, hardware=NEVER)
    assert (len(then.launches), len(then.ends)) == (0, 1)
    assert then.ends[0] in {"m-0", "m-1", "m-2", "m-3"}


@pytest.mark.parametrize("zone", ["", "z"])
def test_a_better_offer_of_the_same_zone_takes_over(zone: str) -> None:
    """A zone that holds all that it may has room for who replaces what stands there."""
    offers = [offer("a", zone=zone or "za"), offer("b", zone=zone or "zb")]
    known = {"a": Known(throughput=10.0), "b": Known(throughput=30.0)}
    held = [machine(f"m-{i}", "ab"[i % 2], busy=1) for i in range(4)]
    found = drawn(offers, held, known, limit=4)
    assert set(found.launches) <= {("b", True)}
    assert len(found.launches) == (2 if zone else 0)  # two zones share a fleet evenly


def test_what_was_started_to_take_over_does_so_beside_more_than_are_wanted() -> None:
    offers = [sure("a", 0.3), sure("b", 0.1)]
    held = [machine(f"m-{i}", "a", busy=1, spot=False) for i in range(5)]
    coming = [machine(f"n-{i}", "b", busy=0, spot=False) for i in range(4)]
    found = drawn(offers, [*held, *coming], limit=4, hardware=NEVER)
    assert (found.launches, set(found.ends)) == ((), {each.name for each in held})


@pytest.mark.parametrize(("most", "launched"), [(3, 0), (4, 4), (9, 4)])
def test_small_machines_take_over_from_a_large_one_together_or_not_at_all(
    most: int, launched: int
) -> None:
    offers = [sure("large", 3.0, slots=4), sure("small", 0.1, slots=1, most=most)]
    held = [machine("m", "large", busy=4, spot=False)]
    found = drawn(offers, held, limit=4, hardware=NEVER)
    assert (len(found.launches), found.ends) == (launched, ())


def test_one_large_machine_takes_over_from_many_small_ones() -> None:
    offers = [sure("small", 0.3, slots=1), sure("large", 0.4, slots=4)]
    held = [machine(f"m-{i}", "small", busy=1, spot=False) for i in range(4)]
    found = drawn(offers, held, limit=4, hardware=NEVER)
    assert (found.launches, found.ends) == ((("large", False),), ())
    there = drawn(
        offers, [*held, machine("n", "large", busy=0, spot=False)], limit=4, hardware=NEVER
    )
    assert set(there.ends) == {"m-0", "m-1", "m-2", "m-3"}


# Machines of several sizes


def test_lanes_are_places_not_machines() -> None:
    offers = [
        sure("big", 3.0, slots=64, zone="z"), sure("small", 0.04, slots=1, zone="z"),
    ]  # fmt: skip
    found = drawn(offers, limit=64, hardware=NEVER)
    assert Counter(found.launches) == {("small", False): 64}
    cheap = [sure("big", 2.0, slots=64, zone="z"), offers[1]]
    assert Counter(drawn(cheap, limit=64, hardware=NEVER).launches) == {("big", False): 1}
    # a large machine for a few tasks is paid for nothing
    assert Counter(drawn(cheap, limit=3, hardware=NEVER).launches) == {("small", False): 3}
    assert len(drawn(offers, limit=64, hardware=NEVER, most=10).launches) == 10


def test_slower_machines_are_called_sooner_before_a_deadline() -> None:
    """Nine hours of work of the fast ones, 27 of those that can be had for sure."""
    offers = [offer("spot", on_demand_usd_h=None), sure("slow", 1.0)]
    known = {"spot": Known(throughput=3.0), "slow": Known(throughput=1.0)}
    job = {"tasks": 27, "total": 27, "limit": 1, "task_s": HOUR / 3, "deadline_s": 40 * HOUR}
    relaxed = drawn(offers, (), known, left_s=40 * HOUR, **job)
    assert relaxed.launches == (("spot", True),)
    late = drawn(offers, (), known, left_s=27.3 * HOUR, **job)
    assert ("slow", False) in late.launches


# What is not bought


def test_no_more_machines_than_their_start_is_worth() -> None:
    """A hundred tasks of a second end on one machine before a second one has started."""
    assert len(drawn([offer("a")], task_s=1.0).launches) == 1
    assert len(drawn([offer("a")], task_s=10 * HOUR).launches) == 100
    held = [machine(f"m-{i}", "a", busy=1) for i in range(5)]
    assert drawn([offer("a")], held, task_s=1.0).ends == ()  # those have started
    soon = drawn([offer("a")], task_s=30.0, left_s=330.0, deadline_s=330.0)
    assert len(soon.launches) >= 20  # in time, whatever it costs


def test_machines_without_the_labels_are_not_bought() -> None:
    labels = {"zone": "b"}
    found = drawn([offer("a"), offer("b")], limit=2, labels=labels)
    assert Counter(found.launches) == {("b", True): 2}
    none = drawn([offer("a")], limit=2, labels={"team": "x"})
    assert none.launches == ()
    assert "label team=x" in none.message


def test_an_offer_whose_agents_never_came_is_tried_with_one_machine() -> None:
    refusals = {refusal_key("a", spot=True): Refusal("NoAgent", 3, until=-1.0)}
    only = [offer("a", on_demand_usd_h=None)]
    assert len(drawn(only, limit=5, refusals=refusals).launches) == 1
    held = [Held("m", "a", True, False, 0.01)]
    assert drawn(only, held, limit=5, refusals=refusals).launches == ()


def test_a_pause_keeps_what_runs() -> None:
    held = [machine("busy", "a", busy=1), machine("idle", "a")]
    found = drawn([offer("a")], held, paused=True)
    assert (found.launches, found.ends) == ((), ("idle",))


@pytest.mark.parametrize("left_s", [math.inf, 20 * HOUR])
def test_a_fleet_is_stable(left_s: float) -> None:
    """Nothing is launched or ended while nothing changes."""
    offers = [offer("a"), offer("b", spot_usd_h=0.12), sure("rack", 0.05, most=1, slots=4)]
    job = {"limit": 9, "left_s": left_s, "deadline_s": 30 * HOUR}
    held: list[Held] = []
    for _ in range(5):
        found = drawn(offers, held, **job)
        held = [each for each in held if each.name not in found.ends]
        held += [
            machine(f"m-{len(held) + i}", name, busy=1, spot=spot)
            for i, (name, spot) in enumerate(found.launches)
        ]
    found = drawn(offers, held, **job)
    assert held
    assert (found.launches, found.ends) == ((), ())
