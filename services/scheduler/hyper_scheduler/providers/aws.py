"""EC2, on demand and spot.

Credentials, region and endpoint come from boto3's own chain. Options of an offer: `image` (an AMI
with Python and hyper-dl[worker]), `setup` (shell commands before the agent starts), `key_name`,
`instance_profile`. A workflow's machines share a network of their own: a VPC with a subnet a zone,
a gateway, and a security group whose members reach one another and nobody reaches from outside.
It is removed once the workflow has no machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hyper.errors import UnavailableError
from hyper_scheduler.placement.offers import Offer
from hyper_scheduler.providers.aws_network import AwsNetwork
from hyper_scheduler.providers.base import (
    AT_ONCE,
    CLUSTER_TAG,
    MACHINE_TAG,
    Instance,
    Order,
    RefusedError,
    Threads,
    all_of,
    boot_script,
    unreachable,
)

_SERVER_ERROR = 500  # and above: what became of the request is not known
_GONE = frozenset({"InvalidInstanceID.NotFound"})
_CONNECT_S, _READ_S = 5, 30
_LINUX = "Linux/UNIX"
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
        from botocore.config import Config

        self._cluster, self._threads = cluster, Threads("aws")
        patience = Config(
            connect_timeout=_CONNECT_S, read_timeout=_READ_S, max_pool_connections=AT_ONCE
        )
        self._clients: dict[str, Any] = {
            region: boto3.client("ec2", region_name=region, endpoint_url=endpoint, config=patience)
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
        # EC2 knows the token for two days, and not everybody's EC2 does
        for each in self._list_of(order.region, order.machine):
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
        return [each for region in self._clients for each in self._list_of(region)]

    def _list_of(self, region: str, machine: str = "") -> list[Instance]:
        """Of a region: all, or that of one name."""
        filters = [{"Name": f"tag:{CLUSTER_TAG}", "Values": [self._cluster]},
                   {"Name": "instance-state-name", "Values": _LIVE}]  # fmt: skip
        if machine:
            filters.append({"Name": f"tag:{MACHINE_TAG}", "Values": [machine]})
        found = []
        pages = self._clients[region].get_paginator("describe_instances")
        for page in pages.paginate(Filters=filters):
            for each in (each for part in page["Reservations"] for each in part["Instances"]):
                tags = {tag["Key"]: tag["Value"] for tag in each.get("Tags", [])}
                running = each["State"]["Name"] == "running"
                name = f"{region}/{each['InstanceId']}"
                found.append(Instance(name, tags.get(MACHINE_TAG, ""), running))
        return found

    async def terminate(self, ids: Sequence[str]) -> None:
        """End instances; those that are gone are fine."""
        by_region: dict[str, list[str]] = defaultdict(list)
        for region, instance in map(_split, ids):
            if region in self._clients:
                by_region[region].append(instance)
        await all_of(lambda each: self._call(self._terminate, *each), by_region.items())

    def _terminate(self, region: str, instances: list[str]) -> None:
        """All at once, or, where EC2 does not know one and so ends none, one by one."""
        from botocore.exceptions import ClientError

        try:
            self._clients[region].terminate_instances(InstanceIds=instances)
        except ClientError as error:
            if error.response["Error"]["Code"] not in _GONE:
                raise
            for each in instances if len(instances) > 1 else ():
                self._terminate(region, [each])

    async def notices(self) -> Sequence[str]:
        """Spot instances that EC2 has marked: their request says so before they are gone.

        The machine's own metadata say it too, and first: see `hyper_worker.notices`.
        """
        found: list[str] = await self._call(self._notices)
        return found

    def _notices(self) -> list[str]:
        found = []
        for region, client in self._clients.items():
            marked = {"Name": "status-code",
                      "Values": ["marked-for-termination", "marked-for-stop"]}  # fmt: skip
            pages = client.get_paginator("describe_spot_instance_requests")
            for page in pages.paginate(Filters=[marked]):
                for each in page["SpotInstanceRequests"]:
                    if "InstanceId" in each:
                        found.append(f"{region}/{each['InstanceId']}")
        return found

    async def prices(self, offers: Sequence[Offer]) -> Mapping[str, float]:
        """What EC2 asks for spot machines now, by offer."""
        found: dict[str, float] = {}
        by_region: dict[str, list[Offer]] = defaultdict(list)
        for each in offers:
            if each.region in self._clients:
                by_region[each.region].append(each)

        async def ask(region: str) -> None:
            newest = await self._call(self._prices, region, by_region[region])
            for each in by_region[region]:
                if (each.zone, each.instance_type) in newest:
                    found[each.name] = newest[each.zone, each.instance_type]

        await all_of(ask, by_region)
        return found

    def _prices(self, region: str, offers: list[Offer]) -> dict[tuple[str, str], float]:
        """By zone and instance type."""
        newest: dict[tuple[str, str], tuple[datetime, float]] = {}
        pages = (
            self._clients[region]
            .get_paginator("describe_spot_price_history")
            .paginate(
                InstanceTypes=sorted({each.instance_type for each in offers}),
                ProductDescriptions=[_LINUX],
                StartTime=datetime.now(
                    UTC
                ),  # since when none has changed, so that the last one counts
            )
        )
        for page in pages:
            for each in page["SpotPriceHistory"]:
                key = each["AvailabilityZone"], each["InstanceType"]
                told = each["Timestamp"], float(each["SpotPrice"])
                newest[key] = max(newest.get(key, told), told)
        return {key: usd_h for key, (_, usd_h) in newest.items()}

    async def tidy(self, networks: Sequence[str]) -> None:
        """Remove networks of workflows that have no machine."""
        for region, network in self._networks.items():
            busy = await self._call(self._networks_in_use, region)
            await self._call(network.remove_others, set(networks) | busy)

    def _networks_in_use(self, region: str) -> set[str]:
        return self._networks[region].in_use([*_LIVE, "shutting-down"])

    async def close(self) -> None:
        """Instances go on: the next leader finds them."""
        self._threads.close()
        for client in self._clients.values():
            client.close()

    async def _call(self, function: Any, *arguments: Any) -> Any:
        """In a thread, with EC2's errors as ours."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return await self._threads.run(function, *arguments)
        except ClientError as error:
            told = error.response["Error"]
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
            if status < _SERVER_ERROR:  # refused, by EC2's name for it
                raise RefusedError(told["Code"], told.get("Message", "")) from error
            raise unreachable("aws", error) from error
        except BotoCoreError as error:
            raise UnavailableError(f"provider aws cannot be reached: {error}") from error


def _split(name: str) -> tuple[str, str]:
    region, _, instance = name.rpartition("/")
    return region, instance
