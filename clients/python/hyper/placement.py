"""Machines that the scheduler launches: what a recipe would cost, and what was spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from hyper.config import SCHEDULER
from hyper.recipe_files import inline_files
from hyper.workflows import recipe_folder, recipe_text
from hyperapi.scheduler.v1 import placement_service_pb2 as pb
from hyperapi.scheduler.v1.placement_service_pb2_grpc import PlacementServiceStub

if TYPE_CHECKING:
    from hyper.client import Client

_PLAN_S = 120.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Over samples of the market: mean, tenth and ninetieth percentile."""

    mean: float
    p10: float
    p90: float


@dataclass(frozen=True, slots=True)
class OfferScore:
    """One way to buy one offer.

    Args:
        offer: its name in the catalogue.
        spot: whether it may be taken away.
        usd_h: price of an hour.
        usd_per_unit: of an hour of useful work on the fastest machine; infinite: unfit.
        machines: of it that would be launched first.
        reason: what the score is made of, or why it does not fit.
        price_age_s: since its price was heard from its provider; None: it is the catalogue's.
        utilization: part of its machines' slots that has work; None: not known.
    """

    offer: str
    spot: bool
    usd_h: float
    usd_per_unit: float
    machines: int
    reason: str
    price_age_s: float | None
    utilization: float | None


@dataclass(frozen=True, slots=True)
class ExperimentPlan:
    """What one experiment would run on.

    Args:
        experiment: its name.
        tasks: how many.
        task_s: what one takes on the fastest machine.
        measured: whether that was measured; else it was given, or is a guess of a minute.
        offers: the cheapest for work first.
        cost_usd: of all its tasks; None: nothing fits.
        finish_s: from its start; None: never.
        message: why nothing fits; "".
    """

    experiment: str
    tasks: int
    task_s: float
    measured: bool
    offers: tuple[OfferScore, ...]
    cost_usd: Estimate | None
    finish_s: Estimate | None
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe would cost.

    Args:
        experiments: in the order of the graph.
        cost_usd: of all; None: nothing fits one of them.
        finish_s: from its start; None: never.
        on_demand_usd: all of it on demand; 0: none is sold so.
        late_probability: that it misses its deadline.
        catalogue_date: of the prices.
    """

    experiments: tuple[ExperimentPlan, ...]
    cost_usd: Estimate | None
    finish_s: Estimate | None
    on_demand_usd: float
    late_probability: float
    catalogue_date: str

    def _repr_html_(self) -> str:
        from hyper import notebooks

        return notebooks.plan(self)


@dataclass(frozen=True, slots=True)
class OfferCost:
    """What a workflow has spent on one offer.

    Args:
        offer: its name in the catalogue.
        usd: spent.
        machine_h: hours of machines.
        on_demand_usd: what the same hours cost on demand.
        rework_usd: of it, work that was done again.
        idle_usd: of it, machines that waited.
        launches: of machines.
        preemptions: machines that were taken away.
        egress_usd: of it, data between machines and storage.
    """

    offer: str
    usd: float
    machine_h: float
    on_demand_usd: float
    rework_usd: float
    idle_usd: float
    launches: int
    preemptions: int
    egress_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkflowCost:
    """What one workflow has spent on machines.

    Args:
        name: resource name.
        usd: spent.
        on_demand_usd: what the same hours cost on demand.
        rework_usd: of it, work that was done again.
        idle_usd: of it, machines that waited.
        budget_usd: of its recipe; None: it has none.
        message: that the budget is used up; "".
        offers: the same, offer by offer.
        egress_usd: of it, data between machines and storage.
    """

    name: str
    usd: float
    on_demand_usd: float
    rework_usd: float
    idle_usd: float
    budget_usd: float | None
    message: str
    offers: tuple[OfferCost, ...]
    egress_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class PaidMachine:
    """A machine that is paid for now.

    Args:
        machine: its name.
        offer: in the catalogue.
        spot: whether it may be taken away.
        usd_h: price of an hour.
        workflow: resource name of the workflow it was launched for.
        ending: whether it is about to be given back.
    """

    machine: str
    offer: str
    spot: bool
    usd_h: float
    workflow: str
    ending: bool


@dataclass(frozen=True, slots=True)
class Cost:
    """What a tenant's workflows have spent, and what is paid for now."""

    workflows: tuple[WorkflowCost, ...]
    machines: tuple[PaidMachine, ...]

    @property
    def usd(self) -> float:
        """Spent by all."""
        return sum(each.usd for each in self.workflows)

    def _repr_html_(self) -> str:
        from hyper import notebooks

        return notebooks.cost(self)


def plan(
    client: Client,
    recipe: str | Path | Mapping[str, Any],
    *,
    task_s: float | None = None,
    tasks: Mapping[str, int] | None = None,
    samples: int = 0,
) -> Plan:
    """What a recipe would run on and cost; nothing is launched.

    Args:
        client: of the cluster.
        recipe: a path, YAML text or a mapping.
        task_s: seconds of one task, instead of what was measured.
        tasks: experiment -> tasks, to plan another size than the recipe's.
        samples: of the Monte Carlo estimate; 0: the scheduler's choice.

    Raises:
        FailedPreconditionError: the cluster launches no machines.
        InvalidArgumentError: the recipe is wrong.
    """
    request = pb.PlanWorkflowRequest(
        parent=f"tenants/{client.tenant}",
        recipe_yaml=inline_files(recipe_text(recipe), recipe_folder(recipe)),
        tasks=dict(tasks or {}),
        samples=samples,
    )
    if task_s is not None:
        duration = Duration()
        duration.FromNanoseconds(int(task_s * 1e9))
        request.task_time.CopyFrom(duration)
    response: pb.PlanWorkflowResponse = client.call(
        SCHEDULER, PlacementServiceStub, "PlanWorkflow", request, timeout_s=_PLAN_S
    )
    return Plan(
        tuple(_experiment(each, response.now) for each in response.experiments),
        _estimate(response, "cost_usd"),
        _estimate(response, "finish_s"),
        response.on_demand_usd,
        response.late_probability,
        response.catalogue_date,
    )


def cost(client: Client) -> Cost:
    """What the tenant's workflows have spent, and the machines that are paid for now.

    Raises:
        FailedPreconditionError: the cluster launches no machines.
    """
    response = cost_message(client)
    workflows = tuple(
        WorkflowCost(
            each.name, each.usd, each.on_demand_usd, each.rework_usd, each.idle_usd,
            each.budget_usd if each.HasField("budget_usd") else None, each.message,
            tuple(
                OfferCost(
                    one.offer, one.usd, one.machine_h, one.on_demand_usd, one.rework_usd,
                    one.idle_usd, one.launches, one.preemptions, one.egress_usd,
                )
                for one in each.offers
            ),
            each.egress_usd,
        )
        for each in response.workflows
    )  # fmt: skip
    machines = tuple(
        PaidMachine(
            each.machine, each.offer, each.spot, each.usd_h, each.workflow, each.ending
        )
        for each in response.machines
    )  # fmt: skip
    return Cost(workflows, machines)


def cost_message(client: Client) -> pb.GetCostResponse:
    """The same as the scheduler says it, for `hyper cost --json`."""
    request = pb.GetCostRequest(parent=f"tenants/{client.tenant}")
    response: pb.GetCostResponse = client.call(SCHEDULER, PlacementServiceStub, "GetCost", request)
    return response


def _experiment(message: pb.ExperimentPlan, now: Timestamp) -> ExperimentPlan:
    offers = tuple(
        OfferScore(
            each.offer, each.spot, each.usd_h, each.usd_per_unit, each.machines, each.reason,
            max(0.0, (now.ToNanoseconds() - each.price_time.ToNanoseconds()) / 1e9)
            if each.HasField("price_time") else None,
            each.utilization if each.HasField("utilization") else None,
        )
        for each in message.offers
    )  # fmt: skip
    return ExperimentPlan(
        message.experiment,
        message.tasks,
        message.task_s,
        message.task_time_measured,
        offers,
        _estimate(message, "cost_usd"),
        _estimate(message, "finish_s"),
        message.message,
    )


def _estimate(message: Any, field: str) -> Estimate | None:
    if not message.HasField(field):
        return None
    found: pb.Estimate = getattr(message, field)
    return Estimate(found.mean, found.p10, found.p90)
