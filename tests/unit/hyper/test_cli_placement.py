"""`hyper plan` and `hyper cost` as people call them, against the real service, state made up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hyper.cli import main as cli
from hyper_scheduler import forecasts
from hyper_scheduler.autoscaler import Autoscaler
from hyper_scheduler.measured import Measured
from hyper_scheduler.placement.ledger import Ledger, Machine
from tests.support.placement_service import placement_service
from tests.unit.hyper_scheduler.cores import Core
from tests.unit.hyper_scheduler.scaling import OFFERS, Provider, autoscaler

pytestmark = pytest.mark.timeout(120)
RECIPE: dict[str, Any] = {
    "version": 1, "name": "r",
    "experiments": {
        "first": {"command": "true", "parameters": {"i": {"range": [0, 100]}}, "workers": 2},
        "second": {"command": "true", "depends_on": ["first"]},
    },
}  # fmt: skip
SPOT_ONLY = OFFERS.replace("on_demand: 0.1, ", "").replace("on_demand: 0.3, ", "")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    write(file)
    return file


def write(file: Path, **hardware: Any) -> None:
    recipe = json.loads(json.dumps(RECIPE))
    if hardware:
        recipe["experiments"]["second"]["hardware"] = hardware
    file.write_text(json.dumps(recipe))


@contextmanager
def served(offers: str | None = OFFERS) -> Iterator[Autoscaler]:
    core, scaler = Core(), None
    if offers is not None:
        scaler, _ = autoscaler(core, offers, broken=Provider(), good=Provider())
    with placement_service(core.state, scaler) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPER_ENDPOINT", address)
        yield scaler  # type: ignore[misc]


def test_a_plan_says_how_old_prices_are(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(OFFERS.replace("as_of: 2026-11-01", "as_of: 2020-01-01")) as scaler:
        scaler._prices._heard["dear"] = (0.02, time.time() - 120)
        scaler._take_prices(time.time())
        scaler._prometheus.last = Measured(utilization={"dear": 0.75})
        assert cli.run(["plan", str(file)]) == 0
        text = capsys.readouterr().out
        assert cli.run(["plan", str(file), "--json"]) == 0
        facts = told(capsys)
    assert "prices of 2020-01-01; spot of 1 offers live, 2" in text
    assert "days old: compare them with today's" in text
    assert "75%" in text
    rows = {(each["offer"], each["spot"]): each for each in facts["experiments"][0]["offers"]}
    assert rows["dear", True]["usd_h"] == 0.02
    assert 120 <= rows["dear", True]["price_age_s"] < 300
    assert rows["dear", False]["price_age_s"] is rows["cheap", True]["price_age_s"] is None
    assert rows["dear", False]["utilization"] == 0.75


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_plan_for_people_and_for_programs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served():
        assert cli.run(["plan", str(file), "--task-time", "36", "--samples", "20"]) == 0
        text = capsys.readouterr().out
        assert cli.run(["plan", str(file), "--task-time", "36", "--tasks", "first=1000",
                        "--json"]) == 0  # fmt: skip
        facts = told(capsys)
    assert "first: 100 tasks of 36 s (assumed)" in text
    assert "prices of 2026-11-01" in text
    first, second = facts["experiments"]
    assert (first["tasks"], second["tasks"]) == (1000, 1)
    # ten hours of work on the cheapest machine, and its cold starts
    assert 0.1 <= first["cost_usd"]["mean"] < 1.0
    assert facts["cost_usd"]["mean"] == pytest.approx(
        first["cost_usd"]["mean"] + second["cost_usd"]["mean"]
    )
    assert facts["finish_s"]["mean"] > 5 * 3600  # on two machines
    assert facts["on_demand_usd"] == pytest.approx(0.1 * 10.01)


@pytest.mark.parametrize("spot", ["prefer", True])
def test_what_is_sold_as_spot_alone_has_no_made_up_price(
    file: Path, capsys: pytest.CaptureFixture[str], spot: Any
) -> None:
    write(file, spot=spot)
    with served(SPOT_ONLY):
        assert cli.run(["plan", str(file), "--task-time", "3600", "--json"]) == 0
        facts = told(capsys)
    assert 0 < facts["experiments"][1]["cost_usd"]["mean"] < 1.0
    assert facts["on_demand_usd"] == 0


def test_what_fits_nowhere_has_no_price(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(file, gpu=1)
    with served():
        assert cli.run(["plan", str(file)]) == 0
        text = capsys.readouterr().out
        assert cli.run(["plan", str(file), "--json"]) == 0
        facts = told(capsys)
    assert "cost and finish are not known: no offer is to be had for second" in text
    assert "has 0 of 1 GPUs" in text
    assert (facts["cost_usd"], facts["finish_s"]) == (None, None)
    first, second = facts["experiments"]
    assert first["cost_usd"]["mean"] > 0
    assert second["cost_usd"] is None


def test_a_plan_of_offers_that_are_sold_out_says_so(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(OFFERS.replace("max: 2", "max: 0")):
        assert cli.run(["plan", str(file), "--json"]) == 0
        facts = told(capsys)
    assert facts["cost_usd"] is None
    assert "can be had" in facts["experiments"][0]["message"]


def test_wrong_plans_are_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served():
        assert cli.run(["plan", str(file), "--tasks", "first"]) == 2
        assert cli.run(["plan", str(file), "--tasks", "third=2"]) == 2
        assert "third" in capsys.readouterr().err
    with served(None):
        assert cli.run(["plan", str(file)]) != 0
        assert "offers.yaml" in capsys.readouterr().err


def test_a_plan_that_takes_too_long_is_ended(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasts, "LIMIT_S", 0.01)
    monkeypatch.setenv("HYPER_PATIENCE_S", "0")
    with served():
        assert cli.run(["plan", str(file)]) != 0
    assert "fewer samples" in capsys.readouterr().err


def test_many_experiments_share_the_samples() -> None:
    assert forecasts.allowed(1000, 1) == 1000
    assert forecasts.allowed(1000, 100) * 100 <= forecasts.TOTAL_MAX
    assert forecasts.allowed(60, 10_000) == forecasts.LEAST


def test_what_was_spent(capsys: pytest.CaptureFixture[str]) -> None:
    with served() as scaler:
        assert cli.run(["cost"]) == 0
        assert "nothing was spent" in capsys.readouterr().out
        w = "tenants/default/workflows/w-1"
        scaler.ledger = Ledger()
        for number, (experiment, spot) in enumerate((("a", True), ("b", False))):
            entry = Machine("dear", w, experiment, "good", spot, 1.0 + number, 3.0, 2, 0.0, 0.0)
            scaler.ledger.open(f"m-{number}", entry)
            scaler.ledger.see(f"m-{number}", 3600.0, busy_slots=1)
        scaler.ledger.rework("m-0", 7200.0)
        scaler.ledger.close("m-0", preempted=True)
        scaler.ledger.open("m-9", Machine("dear", "tenants/other/workflows/w", "a", "good", True,
                                          1.0, 1.0, 1, 0.0, 0.0))  # fmt: skip
        assert cli.run(["cost"]) == 0
        text = capsys.readouterr().out
        assert cli.run(["cost", "--json"]) == 0
        facts = told(capsys)
    (workflow,) = facts["workflows"]
    assert (workflow["usd"], workflow["on_demand_usd"], workflow["rework_usd"]) == (3.0, 6.0, 1.0)
    assert workflow["idle_usd"] == 1.5
    a, b = workflow["experiments"]
    assert (a["experiment"], a["usd"], a["rework_usd"], a["preemptions"]) == ("a", 1.0, 1.0, "1")
    assert (b["experiment"], b["usd"], b["on_demand_usd"]) == ("b", 2.0, 3.0)
    assert "EXPERIMENT" in text
    (machine,) = facts["machines"]
    assert (machine["machine"], machine["experiment"]) == ("m-1", "b")
    assert "w-1" in text and "m-1" in text
