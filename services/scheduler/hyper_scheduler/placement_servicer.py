"""PlacementService: proto in, proto out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hyper.errors import FailedPreconditionError, InvalidArgumentError
from hyper_scheduler import convert, forecasts
from hyper_scheduler.autoscaler import Autoscaler
from hyper_scheduler.core.model import Experiment, Recipe
from hyper_scheduler.core.state import ExperimentRun, experiment_runs
from hyper_scheduler.demands import tail_s
from hyper_scheduler.driver import Driver
from hyper_scheduler.forecasting import Question
from hyper_scheduler.forecasts import Forecasts, allowed
from hyper_scheduler.placement.demand import Demand, Known
from hyper_scheduler.placement.fleet import UNKNOWN_TASK_S, plan, view_of
from hyper_scheduler.placement.forecast import Spread
from hyper_scheduler.placement.ledger import Account, Machine
from hyper_scheduler.placement.simulation import Outcome
from hyper_scheduler.recipe import parse_recipe
from hyperapi.scheduler.v1 import placement_service_pb2 as pb

SAMPLES, SAMPLES_MAX = 60, 1_000
LANES_MAX = 40  # of a forecast; more lanes behave like these


class PlacementServicer:
    """What machines would cost, and have cost."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._forecasts = Forecasts()

    async def _autoscaler(self) -> Autoscaler:
        term = await self._driver.leading()
        found = self._driver.autoscaler
        if found is None or term.ended:
            raise FailedPreconditionError(
                "this cluster launches no machines: it has no catalogue of offers; set "
                "HYPER_SCHEDULER__PLACEMENT__OFFERS, or write HYPER_HOME/offers.yaml before "
                "`hyper up`"
            )
        return found

    async def PlanWorkflow(  # noqa: N802  (gRPC's name)
        self, request: pb.PlanWorkflowRequest, context: Any
    ) -> pb.PlanWorkflowResponse:
        """Scores, and a forecast of cost and end."""
        tenant = convert.tenant(request.parent)
        if not 0 <= request.samples <= SAMPLES_MAX:
            raise InvalidArgumentError(f"samples must be up to {SAMPLES_MAX}", field="samples")
        task_s = request.task_time.ToNanoseconds() / 1e9 if request.HasField("task_time") else 0.0
        if task_s < 0:
            raise InvalidArgumentError("task_time must not be below 0", field="task_time")
        recipe = await asyncio.to_thread(parse_recipe, request.recipe_yaml, tenant)
        unknown = set(request.tasks) - {each.name for each in recipe.experiments}
        if unknown or any(count < 1 for count in request.tasks.values()):
            raise InvalidArgumentError(
                f"tasks must be at least 1, of the recipe's experiments ({', '.join(unknown)})",
                field="tasks",
            )
        autoscaler = await self._autoscaler()
        response = await self._plan(
            autoscaler, recipe, dict(request.tasks), task_s, request.samples or SAMPLES
        )
        response.catalogue_date = str(autoscaler.catalogue.as_of)
        response.now.FromNanoseconds(int(autoscaler.now() * 1e9))
        return response

    async def _plan(
        self, autoscaler: Autoscaler, recipe: Recipe, tasks: Mapping[str, int], task_s: float,
        samples: int,
    ) -> pb.PlanWorkflowResponse:  # fmt: skip
        """Wave by wave: what comes later is planned with the time that is left to it then."""
        runs = experiment_runs(recipe)
        samples = allowed(samples, len(runs))
        whole, waiting = _Whole(recipe, samples), dict(runs)
        end = asyncio.get_running_loop().time() + forecasts.LIMIT_S
        while waiting:
            parts = [
                await asyncio.to_thread(
                    _part, autoscaler, recipe, runs, name, tasks.get(name, 0), task_s,
                    sum(whole.starts_s(run.spec)) / samples,
                )
                for name, run in waiting.items()
                if not waiting.keys() & set(run.spec.depends_on)
            ]  # fmt: skip
            asked = {each.spec.name: each.question for each in parts if each.question is not None}
            left_s = end - asyncio.get_running_loop().time()
            answers = await self._forecasts.outcomes(list(asked.values()), samples, left_s)
            found = dict(zip(asked, answers, strict=True))
            for part in parts:
                whole.take(part, found.get(part.spec.name))
                del waiting[part.spec.name]
        return whole.response()

    async def GetCost(  # noqa: N802
        self, request: pb.GetCostRequest, context: Any
    ) -> pb.GetCostResponse:
        """Sums by workflow, experiment and offer, and what is paid for now."""
        prefix = f"tenants/{convert.tenant(request.parent)}/"
        autoscaler = await self._autoscaler()
        term = await self._driver.leading()
        response = pb.GetCostResponse()
        for name, offers in autoscaler.ledger.accounts.items():
            if not name.startswith(prefix):
                continue
            workflow = term.state.workflows.get(name)
            cost = response.workflows.add(
                name=name,
                usd=sum(each.usd for each in offers.values()),
                on_demand_usd=sum(each.on_demand_usd for each in offers.values()),
                rework_usd=sum(each.rework_usd for each in offers.values()),
                idle_usd=sum(each.idle_usd for each in offers.values()),
                egress_usd=sum(each.egress_usd for each in offers.values()),
                message=autoscaler.over_budget.get(name, ""),
                offers=[pb.OfferCost(offer=offer, **_sums(each)) for offer, each in offers.items()],
                experiments=[
                    pb.ExperimentCost(experiment=experiment, **_sums(each))
                    for experiment, each in autoscaler.ledger.experiments.get(name, {}).items()
                ],
            )
            if workflow is not None and workflow.recipe.budget_usd is not None:
                cost.budget_usd = workflow.recipe.budget_usd
        for machine, entry in autoscaler.ledger.machines.items():
            if entry.workflow.startswith(prefix):
                response.machines.append(_machine_cost(machine, entry))
        return response


def _sums(account: Account) -> dict[str, Any]:
    return {
        name: getattr(account, name)
        for name in ("usd", "machine_h", "on_demand_usd", "rework_s", "rework_usd", "idle_usd",
                     "egress_usd", "launches", "preemptions")
    }  # fmt: skip


def _machine_cost(machine: str, entry: Machine) -> pb.MachineCost:
    found = pb.MachineCost(
        machine=machine,
        offer=entry.offer,
        provider=entry.provider,
        provider_id=entry.provider_id,
        spot=entry.spot,
        usd_h=entry.usd_h,
        workflow=entry.workflow,
        experiment=entry.experiment,
        launch_time=convert.timestamp(entry.launched),
        ending=entry.ending,
    )
    if entry.ready:
        found.cold_start.CopyFrom(convert.duration(max(0.0, entry.ready - entry.launched)))
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """One experiment of a plan.

    Args:
        spec: of the experiment.
        planned: what is told of it.
        question: for the forecast; None: nothing fits.
        share: of the lanes that the forecast is of.
        sure_usd: all of it on demand.
    """

    spec: Experiment
    planned: pb.ExperimentPlan
    question: Question | None = None
    share: float = 1.0
    sure_usd: float = 0.0


class _Whole:
    """A plan that grows: experiments one after another, as the graph has them.

    Costs and ends are told of what is known; of the whole, only if all of it is.

    Args:
        recipe: that is planned.
        samples: of each forecast.
    """

    def __init__(self, recipe: Recipe, samples: int) -> None:
        self._recipe, self._samples = recipe, samples
        self._finish: dict[str, list[float]] = {}
        self._cost = [0.0] * samples
        self._told: dict[str, pb.ExperimentPlan] = {}
        self._on_demand_usd = 0.0

    def starts_s(self, spec: Experiment) -> list[float]:
        """When an experiment can start, sample by sample; those side by side end together."""
        before = [self._finish[each] for each in spec.depends_on if each in self._finish]
        return [max((each[i] for each in before), default=0.0) for i in range(self._samples)]

    def take(self, part: _Part, outcomes: list[Outcome] | None) -> None:
        """One experiment more; None: nothing fits."""
        self._told[part.spec.name] = planned = part.planned
        if outcomes is None:
            return
        if all(each.late and not each.launches for each in outcomes):
            planned.message = planned.message or "no offer that fits can be had"
            return
        usd = [each.usd / part.share for each in outcomes]
        planned.cost_usd.CopyFrom(_estimate(usd))
        planned.finish_s.CopyFrom(_estimate([each.end_h * 3600 for each in outcomes]))
        starts = self.starts_s(part.spec)
        self._finish[part.spec.name] = [
            start + each.end_h * 3600 for start, each in zip(starts, outcomes, strict=True)
        ]
        self._cost = [sum_ + each for sum_, each in zip(self._cost, usd, strict=True)]
        self._on_demand_usd += part.sure_usd

    def response(self) -> pb.PlanWorkflowResponse:
        """All that is known, in the recipe's order."""
        found = pb.PlanWorkflowResponse(
            experiments=[self._told[each.name] for each in self._recipe.experiments],
            on_demand_usd=self._on_demand_usd,
        )
        if len(self._finish) < len(self._told):
            return found
        ends = [max(each[i] for each in self._finish.values()) for i in range(self._samples)]
        found.cost_usd.CopyFrom(_estimate(self._cost))
        found.finish_s.CopyFrom(_estimate(ends))
        deadline_s = self._recipe.deadline_s
        if deadline_s is not None:
            found.late_probability = sum(end > deadline_s for end in ends) / self._samples
        return found


def _part(
    autoscaler: Autoscaler, recipe: Recipe, runs: Mapping[str, ExperimentRun], name: str,
    tasks: int, task_s: float, begins_s: float,
) -> _Part:  # fmt: skip
    run = runs[name]
    count = tasks or run.total or 1
    known = autoscaler.known(run.kind)
    measured = max((each.throughput for each in known.values()), default=0.0)
    seconds = task_s or (3600 / measured if measured else UNKNOWN_TASK_S)
    left_s = deadline_s = math.inf
    if recipe.deadline_s is not None:
        deadline_s = recipe.deadline_s
        left_s = deadline_s - begins_s - tail_s(runs, run, seconds, autoscaler.max_machines)
    demand = Demand(
        workflow="", experiment=run.spec.name, tasks=count, total=count,
        hardware=run.spec.hardware, limit=run.spec.workers, gang=run.spec.gang, task_s=seconds,
        step_s=run.spec.around.checkpoint_every_s, left_s=left_s, deadline_s=deadline_s,
        labels=run.spec.labels, egress_gb=run.spec.hardware.data_bytes / 1e9,
    )  # fmt: skip
    offers, refusals, now = autoscaler.catalogue.offers, autoscaler.refusals, autoscaler.now()
    most = autoscaler.max_machines
    drawn = plan(demand, offers, known, (), refusals, now, most)
    found = pb.ExperimentPlan(
        experiment=run.spec.name,
        tasks=count,
        task_s=seconds,
        task_time_measured=not task_s and measured > 0,
        message=drawn.message,
    )
    heard, used = autoscaler.price_times, autoscaler.utilization
    for row in sorted(drawn.rows, key=lambda each: each.usd_per_task_h):
        told = found.offers.add(
            offer=row.offer, spot=row.spot, usd_h=row.usd_h, usd_per_unit=row.usd_per_task_h,
            machines=row.machines, reason=row.reason,
        )  # fmt: skip
        if row.spot and row.offer in heard:
            told.price_time.FromNanoseconds(int(heard[row.offer] * 1e9))
        if row.offer in used:
            told.utilization = used[row.offer]
    if drawn.message:
        return _Part(run.spec, found)
    # what is refused now is not for the whole of a job that has not begun
    view, names = view_of(demand, offers, known, {}, now, most)
    if not any(each.capacity for each in view.markets):
        found.message = "no offer that fits can be had: of each the most is 0"
        return _Part(run.spec, found)
    few = min(view.lanes, LANES_MAX)
    share = few / view.lanes
    smaller = replace(
        view, lanes=few, work_h=view.work_h * share, total_h=view.total_h * share
    )  # fmt: skip
    hazards = tuple(
        known.get(name, Known()).hazard
        for name, market in zip(names, view.markets, strict=True)
        if not market.on_demand
    )
    sure = view.cheapest_on_demand()
    sure_usd = 0.0
    if sure is not None:
        market = view.markets[sure]
        sure_usd = view.work_h * (market.usd_h / view.useful(sure) + market.egress_usd)
    return _Part(run.spec, found, Question(smaller, hazards), share, sure_usd)


def _estimate(values: list[float]) -> pb.Estimate:
    spread = Spread.of(values)
    return pb.Estimate(mean=spread.mean, p10=spread.p10, p90=spread.p90)
