"""What `hyper plan` says before anything is launched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.duration_pb2 import Duration

from hyper_scheduler.placement_servicer import PlacementServicer
from hyper_servicekit.clock import ManualClock
from hyperapi.scheduler.v1 import placement_service_pb2 as pb
from tests.unit.hyper_scheduler.cores import Core
from tests.unit.hyper_scheduler.scaling import DEAR, Provider, autoscaler

STAGES = """
name: staged
deadline: {deadline}
experiments:
  first: {{command: "true", parameters: {{i: {{range: [0, 10]}}}}, workers: 1}}
  second: {{command: "true", parameters: {{i: {{range: [0, 10]}}}}, workers: 1,
            depends_on: [first]}}
"""


async def plan(deadline: str, stages: str = STAGES, offers: str = DEAR) -> pb.PlanWorkflowResponse:
    scaler, _ = autoscaler(Core(), offers, ManualClock(), good=Provider())

    async def leading() -> object:
        return SimpleNamespace(ended=False)

    driver = SimpleNamespace(autoscaler=scaler, leading=leading)
    request = pb.PlanWorkflowRequest(
        parent="tenants/t", recipe_yaml=stages.format(deadline=deadline), samples=3,
        task_time=Duration(seconds=600),
    )  # fmt: skip
    return await PlacementServicer(cast(Any, driver)).PlanWorkflow(request, None)


def bought(planned: pb.ExperimentPlan) -> list[bool]:
    """Whether each offer that gives machines gives them on spot."""
    return [each.spot for each in planned.offers if each.machines]


async def test_a_stage_leaves_the_next_one_its_time() -> None:
    """Each stage takes 100 minutes: within 210 there is no time to lose a machine."""
    relaxed, tight = await plan("600m"), await plan("210m")
    assert [bought(each) for each in relaxed.experiments] == [[True], [True]]
    assert bought(tight.experiments[0]) == [False]


async def test_data_that_leaves_its_cloud_is_in_the_plan() -> None:
    stages = STAGES.replace("workers: 1", "workers: 1, hardware: {{data: 3GB}}")
    far = DEAR.replace("max: 2}", "max: 2, egress: 0.09}")
    near, dear = await plan("600m", stages), await plan("600m", stages, far)
    data_usd = 20 * 3 * 0.09
    assert dear.on_demand_usd == pytest.approx(near.on_demand_usd + data_usd)
    more = dear.cost_usd.mean - near.cost_usd.mean
    assert data_usd <= more < 1.2 * data_usd  # tasks that are lost move theirs again
