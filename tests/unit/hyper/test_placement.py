"""Plans and costs as the SDK gives them."""

from __future__ import annotations

from typing import Any

import pytest

from hyper.client import Client
from hyperapi.scheduler.v1 import placement_service_pb2 as pb

RECIPE = {"version": 1, "name": "p", "experiments": {"e": {"command": "true"}}}


class Answering(Client):
    """Answers every call with one message, and keeps what it was asked."""

    def __init__(self, answer: Any) -> None:
        super().__init__("127.0.0.1:1", tenant="lab")
        self.answer, self.asked = answer, []  # type: ignore[var-annotated]  # requests of any kind

    def call(self, service: str, stub: Any, method: str, request: Any, **how: Any) -> Any:
        self.asked.append((method, request))
        return self.answer


def test_what_was_spent() -> None:
    answer = pb.GetCostResponse()
    one = answer.workflows.add(name="w", usd=1.5, on_demand_usd=4.5, rework_usd=0.5, budget_usd=40)
    one.egress_usd = 0.3
    one.offers.add(
        offer="m5.large", usd=1.5, machine_h=3, launches=2, preemptions=1, egress_usd=0.3
    )
    answer.workflows.add(name="v", usd=0.25, message="the budget is used up")
    answer.machines.add(machine="i-1", offer="m5.large", spot=True, usd_h=0.04, workflow="w")
    with Answering(answer) as client:
        found = client.cost()
    assert client.asked[0][1].parent == "tenants/lab"
    assert found.usd == pytest.approx(1.75)
    first, second = found.workflows
    assert (first.budget_usd, second.budget_usd) == (40, None)  # none is not a budget of nothing
    assert (first.on_demand_usd, first.rework_usd, second.message) == (
        4.5, 0.5, "the budget is used up"
    )  # fmt: skip
    (offer,) = first.offers
    assert (first.egress_usd, offer.egress_usd, second.egress_usd) == (0.3, 0.3, 0.0)
    assert (offer.offer, offer.machine_h, offer.launches, offer.preemptions) == (
        "m5.large",
        3,
        2,
        1,
    )
    (machine,) = found.machines
    assert (machine.machine, machine.spot, machine.usd_h, machine.ending) == (
        "i-1",
        True,
        0.04,
        False,
    )


def test_a_plan() -> None:
    answer = pb.PlanWorkflowResponse(on_demand_usd=4.5, late_probability=0.25)
    answer.cost_usd.CopyFrom(pb.Estimate(mean=1.25, p10=1, p90=2))
    answer.experiments.add(experiment="e", tasks=7, task_s=60).offers.add(offer="m5.large")
    with Answering(answer) as client:
        found = client.plan(RECIPE, task_s=1.5, tasks={"e": 7}, samples=3)
    ((method, request),) = client.asked
    assert (method, request.samples, dict(request.tasks)) == ("PlanWorkflow", 3, {"e": 7})
    assert request.task_time.ToTimedelta().total_seconds() == 1.5
    assert (found.cost_usd.p90, found.on_demand_usd, found.late_probability) == (2, 4.5, 0.25)
    assert [each.offer for each in found.experiments[0].offers] == ["m5.large"]
