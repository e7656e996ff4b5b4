"""A workflow on machines of EC2: moto's API, real agents run by the user data, a fake of the IMDS.

Launch, network, interruption notice, adoption after a crash of the scheduler, the end: nothing is
left over.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hyper.client import Client
from tests.integration.test_placement import recipe
from tests.support import placed
from tests.support import provider_servers as servers
from tests.support.aws_machines import machines
from tests.support.scheduler_process import Make, make_scheduler

__all__ = ["make_scheduler"]

pytestmark = pytest.mark.timeout(300)
REGION = "us-east-1"


async def test_a_life_on_ec2(make_scheduler: Make, tmp_path: Path):
    import boto3

    with servers.moto() as (endpoint, image):
        client = boto3.client("ec2", region_name=REGION, endpoint_url=endpoint)
        vpcs = len(client.describe_vpcs()["Vpcs"])
        offer = placed.offer(
            "t4", provider="aws", cloud="aws", region=REGION, zone=f"{REGION}a",
            instance_type="g4dn.xlarge", options={"image": image},
        )  # fmt: skip
        changes = placed.settings(
            tmp_path, [offer], options={"aws": {"endpoint": endpoint}}, cluster=""
        )
        scheduler = await make_scheduler("s", changes)
        with machines(client, tmp_path / "machines") as ec2:
            with Client(scheduler.address) as hyper:
                workflow = await asyncio.to_thread(hyper.submit, recipe(tmp_path, 60, 0.5, 1))
                await placed.until(
                    lambda: workflow.refresh().tasks.succeeded >= 1, 90, "a machine works"
                )
                (first,) = ec2.live()
                (found,) = client.describe_instances(InstanceIds=[first])["Reservations"]
                (one,) = found["Instances"]
                assert one["InstanceLifecycle"] == "spot"
                tags = {each["Key"]: each["Value"] for each in one["Tags"]}
                assert tags["hyper-cluster"].startswith("hyper-")  # of this deployment alone
                assert len(client.describe_vpcs()["Vpcs"]) == vpcs + 1
                await scheduler.kill()
            scheduler.environment["HYPER_SCHEDULER__LISTEN"] = scheduler.address
            await scheduler.start()
            with Client(scheduler.address) as hyper:
                workflow = hyper.workflow(workflow.name)
                done = workflow.refresh().tasks.succeeded
                await placed.until(
                    lambda: workflow.refresh().tasks.succeeded > done, 60, "it goes on"
                )
                assert ec2.live() == [first]  # adopted
                ec2.there[first].metadata.preempted = True
                await placed.until(
                    lambda: bool(ec2.live()) and first not in ec2.live(),
                    90, "another takes its place",
                )  # fmt: skip
                status = await asyncio.to_thread(workflow.wait, timeout_s=120)
                assert (status.tasks.succeeded, status.tasks.failed) == (60, 0)
                await placed.until(lambda: not placed.cost(hyper).machines, 60, "all are ended")
                (spent,) = placed.cost(hyper).workflows[0].offers
                assert (spent.launches, spent.preemptions) == (2, 1)
                await placed.until(
                    lambda: len(client.describe_vpcs()["Vpcs"]) == vpcs, 60, "the network goes"
                )
            assert ec2.live() == []
            assert client.describe_internet_gateways()["InternetGateways"] == []
            mine = [{"Name": "tag:hyper-network", "Values": ["*"]}]
            assert client.describe_security_groups(Filters=mine)["SecurityGroups"] == []
