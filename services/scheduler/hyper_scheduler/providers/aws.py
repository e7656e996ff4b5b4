"""EC2, on demand and spot.

Credentials, region and endpoint come from boto3's own chain. Options of an offer: `image` (an AMI
with Python and hyper-dl[worker]), `setup` (shell commands before the agent starts), `key_name`,
`instance_profile`. A workflow's machines share a network of their own: a VPC with a subnet a zone,
a gateway, and a security group whose members reach one another and nobody reaches from outside.
It is removed once the workflow has no machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from hyper.errors import UnavailableError
from hyper_scheduler.providers.aws_network import AwsNetwork
from hyper_scheduler.providers.base import (
    CLUSTER_TAG,
    MACHINE_TAG,
    Instance,
    Order,
    RefusedError,
    boot_script,
    unreachable,
)

# EC2's names for "not now": of capacity and of quotas. They are reported as they are.
_REFUSALS = frozenset({
    "InsufficientInstanceCapacity", "InsufficientHostCapacity",
    "InsufficientReservedInstanceCapacity",
    "InstanceLimitExceeded", "VcpuLimitExceeded", "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow", "UnfulfillableCapacity", "Unsupported", "InvalidAMIID.NotFound",
    "UnauthorizedOperation", "VpcLimitExceeded", "InvalidParameterValue",
})  # fmt: skip
_GONE = frozenset({"InvalidInstanceID.NotFound"})
_LIVE = ["pending", "running", "stopping"]


class AwsProvider:
    """Starts instances of EC2.

    Args:
        cluster: tag that all of them carry.
        regions: to look in.
        endpoint: another URL of the API; None: Amazon's.
    """

    def __init__(self, cluster: str, regions: Sequence[str], endpoint: str | None = None) -> None:
        import boto3

        self._cluster = cluster
        self._clients: dict[str, Any] = {
            region: boto3.client("ec2", region_name=region, endpoint_url=endpoint)
            for region in sorted(set(regions))
        }
        self._networks = {
            region: AwsNetwork(client, cluster) for region, client in self._clients.items()
        }

    async def launch(self, order: Order) -> str:
        """Run an instance; the order's name makes a repeat harmless."""
        return str(await self._call(self._launch, order))

    def _launch(self, order: Order) -> str:
        client = self._clients[order.region]
        for each in self._list():  # EC2 knows the token for two days, and not everybody's EC2 does
            if each.machine == order.machine:
                return each.id
        subnet, group = self._networks[order.region].ensure(order.network, order.zone)
        tags = [{"Key": "Name", "Value": f"hyper {order.machine}"},
                {"Key": CLUSTER_TAG, "Value": self._cluster},
                {"Key": MACHINE_TAG, "Value": order.machine}]  # fmt: skip
        request: dict[str, Any] = {
            "ImageId": order.options.get("image", ""),
            "InstanceType": order.instance_type,
            "MinCount": 1,
            "MaxCount": 1,
            "ClientToken": order.machine,
            "UserData": boot_script(order, "aws"),
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled"},
            "NetworkInterfaces": [
                {"DeviceIndex": 0, "SubnetId": subnet, "Groups": [group],
                 "AssociatePublicIpAddress": True}
            ],
            "TagSpecifications": [{"ResourceType": "instance", "Tags": tags}],
        }  # fmt: skip
        if order.spot:
            request["InstanceMarketOptions"] = {
                "MarketType": "spot",
                "SpotOptions": {"SpotInstanceType": "one-time",
                                "InstanceInterruptionBehavior": "terminate"},
            }  # fmt: skip
        if "key_name" in order.options:
            request["KeyName"] = order.options["key_name"]
        if "instance_profile" in order.options:
            request["IamInstanceProfile"] = {"Name": order.options["instance_profile"]}
        made = client.run_instances(**request)["Instances"][0]
        return f"{order.region}/{made['InstanceId']}"

    async def instances(self) -> Sequence[Instance]:
        """Instances with the cluster's tag, of all regions."""
        found: list[Instance] = await self._call(self._list)
        return found

    def _list(self) -> list[Instance]:
        found = []
        filters = [{"Name": f"tag:{CLUSTER_TAG}", "Values": [self._cluster]},
                   {"Name": "instance-state-name", "Values": _LIVE}]  # fmt: skip
        for region, client in self._clients.items():
            for page in client.get_paginator("describe_instances").paginate(Filters=filters):
                for reservation in page["Reservations"]:
                    for each in reservation["Instances"]:
                        tags = {tag["Key"]: tag["Value"] for tag in each.get("Tags", [])}
                        running = each["State"]["Name"] == "running"
                        name = f"{region}/{each['InstanceId']}"
                        found.append(Instance(name, tags.get(MACHINE_TAG, ""), running))
        return found

    async def terminate(self, ids: Sequence[str]) -> None:
        """End instances; those that are gone are fine."""
        await self._call(self._terminate, list(ids))

    def _terminate(self, ids: list[str]) -> None:
        from botocore.exceptions import ClientError

        for region, instance in map(_split, ids):
            try:
                self._clients[region].terminate_instances(InstanceIds=[instance])
            except ClientError as error:
                if error.response["Error"]["Code"] not in _GONE:
                    raise

    async def notices(self) -> Sequence[str]:
        """Spot instances that EC2 has marked: their request says so before they are gone."""
        found: list[str] = await self._call(self._notices)
        return found

    def _notices(self) -> list[str]:
        found = []
        for region, client in self._clients.items():
            answer = client.describe_spot_instance_requests(
                Filters=[{"Name": "status-code", "Values": ["marked-for-termination",
                                                            "marked-for-stop"]}]
            )  # fmt: skip
            for each in answer["SpotInstanceRequests"]:
                if "InstanceId" in each:
                    found.append(f"{region}/{each['InstanceId']}")
        return found

    async def tidy(self, networks: Sequence[str]) -> None:
        """Remove networks of workflows that have no machine."""
        for region, network in self._networks.items():
            busy = await self._call(self._networks_in_use, region)
            await self._call(network.remove_others, set(networks) | busy)

    def _networks_in_use(self, region: str) -> set[str]:
        return self._networks[region].in_use([*_LIVE, "shutting-down"])

    async def close(self) -> None:
        """Instances go on: the next leader finds them."""
        for client in self._clients.values():
            client.close()

    async def _call(self, function: Any, *arguments: Any) -> Any:
        """In a thread, with EC2's errors as ours."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return await asyncio.to_thread(partial(function, *arguments))
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in _REFUSALS:
                raise RefusedError(code, error.response["Error"].get("Message", "")) from error
            raise unreachable("aws", error) from error
        except BotoCoreError as error:
            raise UnavailableError(f"provider aws cannot be reached: {error}") from error


def _split(name: str) -> tuple[str, str]:
    region, _, instance = name.rpartition("/")
    return region, instance
