"""Offers, refusals, the ledger, and from demand to launches."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from hyper import spot_traces
from hyper.errors import InvalidArgumentError
from hyper_scheduler.catalogue import parse_catalogue
from hyper_scheduler.core.model import Hardware, Spot
from hyper_scheduler.demands import demands
from hyper_scheduler.placement.backoff import FIRST_S, MOST_S, accepted, refused
from hyper_scheduler.placement.demand import Demand, Held, Known, refusal_key
from hyper_scheduler.placement.fleet import plan, view_of
from hyper_scheduler.placement.forecast import forecast
from hyper_scheduler.placement.hazard import Hazard
from hyper_scheduler.placement.ledger import EXPERIMENTS, REST, Ledger, Machine
from hyper_scheduler.placement.offers import Offer, mismatch
from hyper_scheduler.providers.options import wrong_option
from hyper_scheduler.recipe import parse_recipe
from tests.unit.hyper_scheduler.cores import Core

CATALOGUE = """
version: 1
as_of: 2026-11-01
offers:
  - {name: t4, provider: aws, cloud: aws, region: r, zone: r-a, instance_type: g4dn.xlarge, cpus: 4,
     memory: 16GiB, gpu: T4, on_demand: 0.526, spot: 0.158, egress: 0.09, slots: 4,
     options: {image: ami-1}}
  - {name: rack, provider: ssh, on_demand: 0, options: {hosts: "a,b"}}
"""


def demand(**changes: object) -> Demand:
    fields = {"workflow": "w", "experiment": "e", "tasks": 100, "total": 100,
              "hardware": Hardware(), "limit": 3, "task_s": 600.0} | changes  # fmt: skip
    return Demand(**fields)  # type: ignore[arg-type]


def offer(name: str, **changes: object) -> Offer:
    fields = {"provider": "p", "zone": name, "spot_usd_h": 0.1, "on_demand_usd_h": 0.3} | changes
    return Offer(name, **fields)  # type: ignore[arg-type]


def test_a_catalogue_is_read():
    found = parse_catalogue(CATALOGUE)
    t4 = found.offer("t4")
    assert t4 is not None
    assert (str(found.as_of), t4.gpus, t4.memory_bytes) == ("2026-11-01", 1, 16 * 2**30)
    assert t4.labels(spot=True)["instance_type"] == "g4dn.xlarge"
    assert t4.places(Hardware(cpus=2)) == 2


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("as_of: 2026-11-01", "as_of: yesterday", "as_of"),
        ("on_demand: 0.526, spot: 0.158,", "", "offers"),
        ("spot: 0.158", "spot: -1", "spot"),
        ("spot: 0.158", "sopt: 0.158", "sopt"),
        ("name: rack", "name: t4", "offers"),
        ("name: rack", "name: ../rack", "name"),
        ("hosts: ", "host: ", "options.host"),
        ("hosts: ", "port: ssh, hosts: ", "options.port"),
        ('{hosts: "a,b"}', "{user: me}", "options"),
    ],
)
def test_a_wrong_catalogue_names_line_and_key(old: str, new: str, key: str):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_catalogue(CATALOGUE.replace(old, new))
    assert key in caught.value.metadata["key"]
    assert int(caught.value.metadata["line"]) > 0
    assert caught.value.message.startswith("catalogue of offers: line ")


@pytest.mark.parametrize("text", ["", "# nothing", "version: 1\nas_of: 2026-11-01\noffers: []"])
def test_an_empty_catalogue_is_not_called_a_recipe(text: str):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_catalogue(text)
    assert "recipe" not in caught.value.message


@pytest.mark.parametrize(
    ("provider", "option", "value"),
    [
        ("process", "environment", "{"), ("process", "environment", "[1]"),
        ("process", "environment", '{"A": {}}'),
        ("docker", "cpus", "two"), ("docker", "memory_bytes", "8GiB"), ("docker", "command", "'"),
        ("gcp", "disk_gb", "50GB"), ("slurm", "arguments", '--x="'), ("ssh", "port", "70000"),
        ("kubernetes", "cpus", "2 cores"), ("kubernetes", "node_selector", "spot"),
        ("aws", "keyname", "mine"),
    ],
)  # fmt: skip
def test_options_are_checked_before_anything_is_launched(provider: str, option: str, value: str):
    assert wrong_option(provider, {option: value})[0] == option
    assert wrong_option(provider, {option: value})[1]


def test_options_that_are_right_pass():
    for provider, options in (
        ("process", {"environment": '{"A": "b", "C": 1}'}),
        ("slurm", {"arguments": "--mem=1G -N 1"}),
        ("docker", {"image": "i", "cpus": "1.5", "memory_bytes": "1000", "command": "a 'b c'"}),
        ("kubernetes", {"image": "i", "cpus": "500m", "memory_bytes": "4Gi", "gpus": "1"}),
        ("elsewhere", {"anything": "goes"}),
    ):  # fmt: skip
        assert wrong_option(provider, options) == ("", "")


def test_what_does_not_fit_says_why():
    t4 = parse_catalogue(CATALOGUE).offers[0]
    assert mismatch(t4, Hardware(cpus=4, gpus=1, gpu="t4", clouds=("aws",))) == ""
    for need, word in (
        (Hardware(cpus=8), "cores"), (Hardware(gpus=2), "GPUs"), (Hardware(gpu="A100"), "T4"),
        (Hardware(memory_bytes=2**40), "GiB"), (Hardware(clouds=("gcp",)), "gcp"),
        (Hardware(instance_type="p3"), "p3"),
    ):  # fmt: skip
        assert word in mismatch(t4, need)


def test_launches_are_spread_over_zones():
    drawn = plan(demand(), [offer(each) for each in "abc"], {}, (), {}, 0.0, 100)
    assert sorted(drawn.launches) == [("a", True), ("b", True), ("c", True)]


def test_the_highest_price_and_spot_false_are_kept_to():
    offers = [offer("a"), offer("b", spot_usd_h=0.01, on_demand_usd_h=0.2)]
    sure = plan(demand(hardware=Hardware(spot=Spot.NEVER)), offers, {}, (), {}, 0.0, 100)
    assert set(sure.launches) == {("b", False)}
    cheap = plan(demand(hardware=Hardware(max_usd_h=0.05)), offers, {}, (), {}, 0.0, 100)
    assert set(cheap.launches) == {("b", True)}
    free = plan(demand(hardware=Hardware(max_usd_h=0.0)), offers, {}, (), {}, 0.0, 100)
    assert (free.launches, free.rows[0].reason) == ((), "not sold so, or above the highest price")
    none = plan(demand(hardware=Hardware(cpus=99)), offers, {}, (), {}, 0.0, 100)
    assert not none.launches
    assert "no offer fits" in none.message


def test_a_refused_offer_is_left_alone_for_a_while():
    refusals = refused({}, refusal_key("a", spot=True), "VcpuLimitExceeded", 0.0)
    offers = [offer("a"), offer("b", spot_usd_h=0.2)]
    early = plan(demand(limit=1), offers, {}, (), refusals, FIRST_S - 1, 100)
    assert early.launches == (("b", True),)
    assert any("VcpuLimitExceeded" in row.reason for row in early.rows)
    late = plan(demand(limit=1), offers, {}, (), refusals, FIRST_S + 1, 100)
    assert late.launches == (("a", True),)
    for _ in range(50):
        refusals = refused(refusals, "a/spot", "Again", 0.0)
    assert refusals["a/spot"].until == MOST_S
    assert accepted(refusals, "a/spot") == {}


def test_without_spot_machines_are_bought():
    """Waiting for what nobody sells would be for ever."""
    for spot in (Spot.ONLY, Spot.PREFER):
        only = [offer("a", spot_usd_h=None)]
        drawn = plan(demand(hardware=Hardware(spot=spot)), only, {}, (), {}, 0.0, 9)
        assert drawn.launches == (("a", False),) * 3


def test_a_gang_gets_all_its_machines():
    offers = [offer("a", slots=2), offer("b", slots=2)]
    eight = demand(gang=8, tasks=8, total=8, limit=0)
    drawn = plan(eight, offers, {}, (), {}, 0.0, 100)
    assert len(drawn.launches) == 4
    assert len({name for name, _ in drawn.launches}) == 1  # one zone
    zone = drawn.launches[0][0]
    held = [Held(f"m-{i}", zone, True, i < 2, 0.01) for i in range(3)]
    more = plan(eight, offers, {}, held, {}, 0.0, 100)
    assert (len(more.launches), more.ends) == (1, ())
    full = [*held, Held("m-3", zone, True, True, 0.01)]
    assert plan(eight, offers, {}, full, {}, 0.0, 100).launches == ()


@pytest.mark.parametrize("only", [{"most": 0}, {"spot_usd_h": None}, {"on_demand_usd_h": None}])
def test_a_forecast_ends_whatever_can_be_had(only: dict[str, object]):
    view, _ = view_of(demand(), [offer("a", **only)], {}, {}, 0.0, 9)
    hazards = [Hazard() for each in view.markets if not each.on_demand]
    assert len(forecast(view, hazards, 3, random.Random(1))) == 3


def test_machines_go_when_the_work_is_done():
    held = [Held("m-1", "a", True, True, 1.0), Held("m-2", "gone", True, True, 1.0)]
    assert set(plan(demand(tasks=0), [offer("a")], {}, held, {}, 0.0, 9).ends) == {"m-1", "m-2"}


def test_what_was_measured_slow_costs_more():
    known = {"a": Known(throughput=100.0), "b": Known(throughput=300.0)}
    drawn = plan(demand(), [offer("a"), offer("b")], known, (), {}, 0.0, 100)
    score = {row.offer: row.usd_per_task_h for row in drawn.rows if row.spot}
    assert score["a"] == pytest.approx(3 * score["b"])


def test_experiments_are_kept_apart():
    ledger = Ledger.of({"accounts/w": {"a": {"usd": 2.0, "machine_h": 1.0}}})  # without them
    ledger.open("m", Machine("a", "w", "e", "p", True, 1.0, 1.0, 1, 0.0, 0.0))
    ledger.see("m", 3600.0, busy_slots=1)
    ledger = Ledger.of(json.loads(json.dumps(ledger.parts())))
    assert (ledger.spent_usd("w"), ledger.experiments["w"]["e"].usd) == (3.0, 1.0)
    ledger.close("m", preempted=False)
    ledger.forget(set())
    assert ledger.parts() == {}


def test_a_workflow_of_many_experiments_stays_small():
    ledger = Ledger()
    for number in range(2 * EXPERIMENTS):
        ledger.open("m", Machine("a", "w", f"e{number}", "p", True, 1 / 3, 1.0, 1, 0.0, 0.0))
        ledger.see("m", 1000.0, busy_slots=1)
        ledger.close("m", preempted=False)
    mine = ledger.experiments["w"]
    assert len(mine) == EXPERIMENTS + 1
    assert mine[REST].launches == EXPERIMENTS
    assert max(len(json.dumps(part)) for part in ledger.parts().values()) < 1_000_000
    assert sum(each.usd for each in mine.values()) == pytest.approx(ledger.spent_usd("w"))


def test_the_ledger_pays_by_the_second_and_keeps_what_was_lost():
    ledger = Ledger()
    ledger.open("m", Machine("a", "w", "e", "p", True, 3.6, 10.8, 2, 0.0, 0.0))
    ledger.see("m", 1000.0, busy_slots=1)
    ledger = Ledger.of(json.loads(json.dumps(ledger.parts())))  # the next leader's
    ledger.see("m", 1500.0, busy_slots=2)
    ledger.close("m", preempted=True)
    ledger.rework("m", 100.0)
    account = ledger.account("w", "a")
    assert account.usd == ledger.spent_usd("w") == pytest.approx(1.5)
    assert account.on_demand_usd == pytest.approx(4.5)
    assert account.idle_usd == pytest.approx(0.5)
    assert account.rework_usd == pytest.approx(0.05)
    assert (account.launches, account.preemptions) == (1, 1)
    assert ledger.rework("unknown", 1.0) is None
    ledger.forget(set())
    assert ledger.accounts == {}


def test_no_part_of_a_ledger_outgrows_a_value_of_etcd():
    ledger = Ledger()
    for i in range(5_000):
        machine = Machine("offer", f"tenants/t/workflows/{i % 1_000:040}", "e", "p", True, 1 / 3,
                          1.0, 4, 1.7e9 + i / 3, 1.7e9)  # fmt: skip
        ledger.open(f"m-{i:012}", replace(machine, offer=f"offer-{i % 7}"))
    parts = ledger.parts()
    assert max(len(json.dumps(each)) for each in parts.values()) < 1_000_000
    assert Ledger.of(json.loads(json.dumps(parts))) == ledger


def test_the_ledger_pays_for_data_by_the_gigabyte():
    ledger = Ledger()
    machine = Machine("a", "w", "e", "p", True, 3.6, 10.8, 2, 0.0, 0.0, egress_usd_gb=0.09)
    ledger.open("m", machine)
    assert ledger.carry("m", 2_000_000_000) == ("a", pytest.approx(0.18))
    ledger.close("m", preempted=True)
    ledger = Ledger.of(json.loads(json.dumps(ledger.parts())))
    for account in (ledger.account("w", "a"), ledger.experiments["w"]["e"]):
        assert account.usd == account.egress_usd == account.on_demand_usd == pytest.approx(0.18)
    assert ledger.carry("unknown", 1) is None


@pytest.mark.parametrize("deadline_s", [math.inf, 40_000.0])
def test_a_forecast_has_a_spread(deadline_s: float):
    offers = [offer("a"), offer("b")]
    wild = {each: Known(hazard=Hazard().seen(20, 10.0)) for each in "ab"}
    what = demand(left_s=deadline_s, deadline_s=deadline_s, step_s=600.0)
    view, names = view_of(what, offers, wild, {}, 0.0, 100)
    assert names == ["a", "a", "b", "b"]
    outcomes = forecast(view, [wild["a"].hazard] * 2, 20, random.Random(1))
    usd = [each.usd for each in outcomes]
    assert min(usd) >= 0.1 * view.work_h
    assert min(usd) < max(usd)
    again = forecast(view, [wild["a"].hazard] * 2, 20, random.Random(1))
    assert [each.usd for each in again] == usd


def test_a_forecast_uses_all_that_is_sold_on_demand_and_all_of_a_large_machine():
    def ends_h(*racks: Offer) -> float:
        what = demand(hardware=Hardware(spot=Spot.NEVER), limit=6, tasks=60, total=60)
        view, _ = view_of(what, racks, {}, {}, 0.0, 100)
        (outcome,) = forecast(view, [], 1, random.Random(1))
        return outcome.end_h

    three = [offer(each, spot_usd_h=None, most=2) for each in "abc"]
    assert ends_h(*three) == pytest.approx(10 / 6 + 0.05, rel=0.02)
    large = offer("large", spot_usd_h=None, slots=4, on_demand_usd_h=0.5, most=1)
    assert ends_h(*three[:1], large) == pytest.approx(10 / 6 + 0.05, rel=0.02)


def test_recordings_of_both_kinds_are_read(tmp_path: Path):
    for zone, data in (("us-1a", [0, 1, 1]), ("us-1b", [2, 2, 0])):
        content = {"metadata": {"gap_seconds": 600}, "data": data}
        (tmp_path / f"{zone}_v100_1.json").write_text(json.dumps(content))
    events = [f"{i * 3_600_000},{'add' if i < 9 else 'remove'},node{i}" for i in range(12)]
    (tmp_path / "fleet.csv").write_text("\n".join(events))
    fleet, zones = sorted(spot_traces.read([tmp_path]), key=lambda each: each.name == "fleet")[::-1]
    assert zones.capacity == ((0, 1, 1), (2, 2, 0))
    assert zones.tick_h == pytest.approx(1 / 6)
    assert (fleet.capacity[0][0], max(fleet.capacity[0])) == (1, 9)
    (tmp_path / "us-1a_v100_1.json").write_text('{"data": [1]}')
    with pytest.raises(InvalidArgumentError, match="gap_seconds"):
        spot_traces.read([tmp_path])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '{"metadata": {"gap_seconds": Infinity}, "data": [1]}', "finite gap"),
        ("a.json", '{"metadata": {"gap_seconds": NaN}, "data": [1]}', "finite gap"),
        ("a.json", '{"metadata": {"gap_seconds": 0}, "data": [1]}', "finite gap"),
        ("a.json", '{"metadata": {"gap_seconds": 60}, "data": []}', "at least one count"),
        ("a.json", '{"metadata": {"gap_seconds": 60}, "data": [Infinity]}', "no count"),
        ("a.json", '{"metadata": {"gap_seconds": 60}, "data": "123"}', "no count"),
        ("a.json", "[" * 100_000, "expected"),
        ("a.csv", "nan,1\n1,2", "times lie between"), ("a.csv", "1e300,1", "times lie between"),
        ("a.csv", "inf,add,x", "times lie between"), ("a.csv", "1,2,3,4", "not the recording"),
        ("a.csv", "\udcff", "not the recording"), ("b.md", "", "holds no recording"),
    ],
)  # fmt: skip
def test_what_is_no_recording_is_refused(tmp_path: Path, name: str, text: str, says: str):
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidArgumentError, match=says):
        spot_traces.read([tmp_path])


def test_recordings_of_one_name_are_refused(tmp_path: Path):
    text = '{"metadata": {"gap_seconds": 600}, "data": [1, 2]}'
    for folder in ("one/x", "two/x"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a_v100.json").write_text(text)
    with pytest.raises(InvalidArgumentError, match=r"'x/v100', of .*one/x and of .*two/x"):
        spot_traces.read([tmp_path])
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        spot_traces.read([tmp_path / "absent.json"])


@pytest.mark.parametrize(("slots", "gang"), [(1, 1), (4, 1), (4, 4)])
def test_data_are_worth_staying_where_they_are(slots: int, gang: int):
    """An offer that is cheaper by the hour is dearer with what its tasks move over a border."""
    both = {"slots": slots, "on_demand_usd_h": 1.0 * slots}
    offers = [
        offer("near", spot_usd_h=0.2 * slots, **both),
        offer("far", spot_usd_h=0.1 * slots, egress_usd_gb=0.09, **both),
    ]
    for gigabytes, best in ((0.0, "far"), (0.5, "far"), (5.0, "near")):
        wanted = demand(egress_gb=gigabytes, limit=slots, gang=gang, task_s=3600.0)
        drawn = plan(wanted, offers, {}, (), {}, 0.0, 9)
        rows = {row.offer: row for row in drawn.rows if row.spot}
        assert min(rows.values(), key=lambda row: row.usd_per_task_h).offer == best
        assert {name for name, _ in drawn.launches} == {best}
        assert ("egress" in rows["far"].reason) == (gigabytes > 0)
    # an hour of what runs at once on one machine
    assert rows["far"].usd_per_task_h == pytest.approx(slots * (0.1 + 5 * 0.09), rel=0.1)


def test_a_recipe_says_how_much_its_tasks_move():
    text = "name: r\nexperiments:\n  a:\n    command: 'true'\n    hardware: {data: 2GB}\n"
    core = Core()
    core.submit(parse_recipe(text))
    (found,) = demands(core.state, [], core.now, 9)
    assert found.egress_gb == 2.0
    with pytest.raises(InvalidArgumentError, match="data"):
        parse_recipe(text.replace("2GB", "much"))
