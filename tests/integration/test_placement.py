"""Machines that the scheduler launches: agents as processes, prices of a catalogue."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyper.cli.main import run
from hyper.client import Client
from hyper.cluster.programs import find_prometheus
from tests.support import placed
from tests.support.scheduler_process import Make, make_scheduler

__all__ = ["make_scheduler"]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def no_agents_left(tmp_path: Path) -> Iterator[None]:
    yield
    placed.end_agents(tmp_path)


def recipe(tmp_path: Path, tasks: int, seconds: float, workers: int, **top: Any) -> dict[str, Any]:
    function = "tests.integration.placement_functions:work"
    parameters = {"index": {"range": [0, tasks]}, "seconds": seconds,
                  "slow": str(tmp_path / "slow")}  # fmt: skip
    return {
        "version": 1,
        "name": "placed",
        "experiments": {
            "work": {"function": function, "parameters": parameters, "workers": workers}
        },
        **top,
    }


def offers(*names: str, **changes: Any) -> list[dict[str, Any]]:
    return [
        placed.offer(
            name,
            options={
                "environment": json.dumps({"TEST_OFFER": name, "PYTHONPATH": str(Path.cwd())})
            },
            **changes,
        )
        for name in names
    ]


def began(tmp_path: Path) -> list[tuple[str, float]]:
    """Offer and start of every task that has begun."""
    file = tmp_path / "slow.log"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(offer, float(start)) for offer, start in map(str.split, lines)]


async def test_machines_come_work_and_go(make_scheduler: Make, tmp_path: Path):
    scheduler = await make_scheduler("s", placed.settings(tmp_path, offers("a", "b", "c")))
    with Client(scheduler.address) as client:
        workflow = await asyncio.to_thread(client.submit, recipe(tmp_path, 30, 0.1, 3))
        await asyncio.to_thread(workflow.wait, timeout_s=120)
        await placed.until(lambda: not placed.cost(client).machines, 60, "machines are ended")
        assert placed.agents(tmp_path) == []
        spent = placed.cost(client).workflows[0]
    assert sum(each.launches for each in spent.offers) >= 3
    assert len(spent.offers) >= 2  # at most a third, here an even share, in one zone
    assert 0 < spent.usd < spent.on_demand_usd
    assert spent.on_demand_usd == pytest.approx(3 * spent.usd)


async def test_a_new_leader_adopts_and_a_lost_machine_is_replaced(
    make_scheduler: Make, tmp_path: Path
):
    changes = placed.settings(tmp_path, offers("a"))
    scheduler = await make_scheduler("s", changes)
    with Client(scheduler.address) as client:
        workflow = await asyncio.to_thread(client.submit, recipe(tmp_path, 60, 0.5, 1))
        await placed.until(
            lambda: workflow.refresh().tasks.succeeded >= 1, 60, "a machine works"
        )  # fmt: skip
        first = placed.agents(tmp_path)
        assert len(first) == 1
        await scheduler.kill()
    scheduler.environment["HYPER_SCHEDULER__LISTEN"] = scheduler.address
    await scheduler.start()
    with Client(scheduler.address) as client:
        workflow = client.workflow(workflow.name)
        done = workflow.refresh().tasks.succeeded
        await placed.until(
            lambda: workflow.refresh().tasks.succeeded > done, 60, "it goes on"
        )  # fmt: skip
        assert [each.pid for each in placed.agents(tmp_path)] == [first[0].pid]  # adopted
        first[0].kill()
        await asyncio.to_thread(workflow.wait, timeout_s=120)
        await placed.until(lambda: not placed.cost(client).machines, 60, "machines are ended")
        spent = placed.cost(client).workflows[0].offers[0]
    assert (spent.launches, spent.preemptions) == (2, 1)
    assert spent.rework_s > 0
    assert spent.rework_usd == pytest.approx(spent.rework_s / 3600 * 0.1)


async def test_a_drained_machine_finishes_its_task_and_is_replaced(
    make_scheduler: Make, tmp_path: Path
):
    changes = placed.settings(tmp_path, offers("a"), drain_s=0)  # nothing is cut all the same
    scheduler = await make_scheduler("s", changes)
    with Client(scheduler.address) as client:
        workflow = await asyncio.to_thread(client.submit, recipe(tmp_path, 3, 3.0, 1))
        await placed.until(lambda: bool(began(tmp_path)), 60, "a task runs")
        (first,) = placed.cost(client).machines
        (worker,) = client.workers()
        await asyncio.to_thread(client.drain, worker.name)
        await asyncio.to_thread(workflow.wait, timeout_s=120)
        await placed.until(lambda: not placed.cost(client).machines, 60, "machines are ended")
        spent = placed.cost(client).workflows[0].offers[0]
        assert workflow.refresh().tasks.lost == 0
    assert len(began(tmp_path)) == 3
    assert (first.offer, spent.launches, spent.preemptions, spent.rework_s) == ("a", 2, 0, 0.0)


async def test_the_budget_is_a_hard_stop(make_scheduler: Make, tmp_path: Path):
    costly = offers("a", spot=3600.0, on_demand=3600.0)  # a dollar a second
    scheduler = await make_scheduler("s", placed.settings(tmp_path, costly))
    with Client(scheduler.address) as client:
        what = recipe(tmp_path, 100_000, 0.1, 1, budget=4)
        workflow = await asyncio.to_thread(client.submit, what)
        await placed.until(
            lambda: any("budget" in each.message for each in placed.cost(client).workflows),
            60, "the budget is used up",
        )  # fmt: skip
        await placed.until(lambda: not placed.cost(client).machines, 60, "machines are ended")
        (spent,) = placed.cost(client).workflows
        assert not workflow.refresh().state.ended  # one's own machines may go on with it
        assert workflow.refresh().tasks.failed == 0
        await asyncio.to_thread(workflow.cancel, "enough")
    assert spent.budget_usd == 4.0
    assert spent.usd >= 4.0
    assert sum(each.launches for each in spent.offers) == 1


@pytest.mark.skipif(find_prometheus() is None, reason="needs Prometheus (apt-get install it)")
async def test_work_moves_to_what_was_measured_to_be_cheaper(make_scheduler: Make, tmp_path: Path):
    with placed.prometheus_server(tmp_path / "prometheus") as prometheus:
        both = offers("a", zone="rack", max=2) + offers("b", zone="rack", max=4)
        changes = placed.settings(tmp_path, both, prometheus.url)
        scheduler = await make_scheduler("s", changes)
        facts = json.loads(scheduler.ready_file.read_text())
        prometheus.scrape(facts["metrics_address"])
        with Client(scheduler.address) as client:
            workflow = await asyncio.to_thread(client.submit, recipe(tmp_path, 20_000, 0.3, 4))
            await placed.until(
                lambda: {offer for offer, _ in began(tmp_path)} == {"a", "b"}, 60, "both work"
            )
            (tmp_path / "slow").write_text("a")
            since = time.time() + 2 * placed.SCRAPE_S
            await placed.until(lambda: _since(tmp_path, since).total() >= 60, 60, "new tasks")
            new = _since(tmp_path, since)
            share = new["b"] / new.total()
            print(f"two scrapes after the throttle {share:.0%} of new tasks go to the other offer")
            await placed.until(lambda: _machines(client) == {"b": 4}, 60, "machines have moved")
            print(f"all machines are the other offer's {time.time() - since:.1f} s later")
            await asyncio.to_thread(workflow.cancel, "measured")
            await placed.until(lambda: not placed.cost(client).machines, 60, "machines are ended")
    assert share >= 0.7


def _since(tmp_path: Path, since: float) -> Counter[str]:
    """Tasks that began after a moment, by offer."""
    return Counter(offer for offer, start in began(tmp_path) if start > since)


def _machines(client: Client) -> Counter[str]:
    """Machines that are paid for, by offer."""
    return Counter(each.offer for each in placed.cost(client).machines)


async def test_machines_of_a_cluster_with_tls(
    make_scheduler: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The scheduler hands them its authority: they have none of its files."""
    certs = tmp_path / "certs"
    assert run(["certs", str(certs)]) == 0
    assert run(["certs", str(certs), "--client", "machines"]) == 0
    tls = {"ca": "ca.pem", "cert": "machines.pem", "key": "machines.key"}
    changes = placed.settings(tmp_path, offers("a")) | {
        f"HYPER_SCHEDULER__PLACEMENT__TLS__{name.upper()}": str(certs / file)
        for name, file in tls.items()
    }
    changes |= {
        "HYPER_SCHEDULER__TLS__CERT": str(certs / "service.pem"),
        "HYPER_SCHEDULER__TLS__KEY": str(certs / "service.key"),
        "HYPER_SCHEDULER__TLS__CLIENT_CA": str(certs / "ca.pem"),
    }
    scheduler = await make_scheduler("s", changes)
    for name, file in tls.items():
        monkeypatch.setenv(f"HYPER_TLS_{name.upper()}", str(certs / file))
    with Client(scheduler.address) as client:
        workflow = await asyncio.to_thread(client.submit, recipe(tmp_path, 4, 0.1, 1))
        status = await asyncio.to_thread(workflow.wait, timeout_s=120)
        await placed.until(lambda: not placed.cost(client).machines, 60, "machines are ended")
    assert status.tasks.succeeded == 4
