"""The private network of a workflow on EC2; everything carries its tag, and all of it goes."""

from __future__ import annotations

import threading
from typing import Any

from hyper_scheduler.providers.base import CLUSTER_TAG

NETWORK_TAG = "hyper-network"
_RANGE = "10.77.0.0/16"
_ALL = "0.0.0.0/0"
_SUBNETS = 64  # of 1,024 addresses


class AwsNetwork:
    """Networks of one region.

    Args:
        client: boto3's, of EC2.
        cluster: whose networks.
    """

    def __init__(self, client: Any, cluster: str) -> None:
        self._client, self._cluster = client, cluster
        self._known: dict[tuple[str, str], tuple[str, str]] = {}
        self._lock = threading.Lock()  # machines of a workflow start at once

    def ensure(self, network: str, zone: str) -> tuple[str, str]:
        """Subnet and security group of a workflow in a zone; made when first asked for.

        What an earlier try has made is found by its tags, and what it has left out is made up for.
        """
        with self._lock:
            return self._ensure(network, zone)

    def _ensure(self, network: str, zone: str) -> tuple[str, str]:
        known = self._known.get((network, zone))
        if known is not None:
            return known
        vpc = self._vpc(network)
        group = self._group(network, vpc)
        subnets = self._find("describe_subnets", "Subnets", network)
        subnet = next((s["SubnetId"] for s in subnets if s["AvailabilityZone"] == zone), None)
        if subnet is None:
            third = 4 * (len(subnets) % _SUBNETS)
            subnet = self._client.create_subnet(
                VpcId=vpc, AvailabilityZone=zone, CidrBlock=f"10.77.{third}.0/22",
                TagSpecifications=self._tags("subnet", network),
            )["Subnet"]["SubnetId"]  # fmt: skip
        self._known[network, zone] = str(subnet), group
        return self._known[network, zone]

    def _vpc(self, network: str) -> str:
        found = self._find("describe_vpcs", "Vpcs", network)
        if found:
            vpc = str(found[0]["VpcId"])
        else:
            vpc = str(self._client.create_vpc(
                CidrBlock=_RANGE, TagSpecifications=self._tags("vpc", network)
            )["Vpc"]["VpcId"])  # fmt: skip
        gateways = self._find("describe_internet_gateways", "InternetGateways", network)
        if not gateways:
            gateway = self._client.create_internet_gateway(
                TagSpecifications=self._tags("internet-gateway", network)
            )["InternetGateway"]
        else:
            gateway = gateways[0]
        name = gateway["InternetGatewayId"]
        if not gateway.get("Attachments"):
            self._client.attach_internet_gateway(InternetGatewayId=name, VpcId=vpc)
        table = self._client.describe_route_tables(
            Filters=[{"Name": "vpc-id", "Values": [vpc]},
                     {"Name": "association.main", "Values": ["true"]}]
        )["RouteTables"][0]  # fmt: skip
        if not any(each.get("DestinationCidrBlock") == _ALL for each in table["Routes"]):
            self._client.create_route(
                RouteTableId=table["RouteTableId"], DestinationCidrBlock=_ALL, GatewayId=name
            )
        return vpc

    def _group(self, network: str, vpc: str) -> str:
        found = self._find("describe_security_groups", "SecurityGroups", network)
        if found:
            group, rules = str(found[0]["GroupId"]), found[0]["IpPermissions"]
        else:
            group, rules = str(self._client.create_security_group(
                GroupName=f"hyper-{self._cluster}-{network}", VpcId=vpc,
                Description="Hyper: machines of one workflow reach one another",
                TagSpecifications=self._tags("security-group", network),
            )["GroupId"]), []  # fmt: skip
        if not rules:
            self._client.authorize_security_group_ingress(
                GroupId=group,
                IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}],
            )
        return group

    def in_use(self, states: list[str]) -> set[str]:
        """Networks with instances."""
        used = set()
        for each in self._all("describe_vpcs", "Vpcs"):
            answer = self._client.describe_instances(
                Filters=[{"Name": "vpc-id", "Values": [each["VpcId"]]},
                         {"Name": "instance-state-name", "Values": states}]
            )  # fmt: skip
            if answer["Reservations"]:
                used.add(_network(each))
        return used

    def remove_others(self, kept: set[str]) -> None:
        """Take down every network but these; one that cannot be keeps no other from it.

        Raises:
            ClientError: the first of EC2's refusals, once all were tried.
        """
        from botocore.exceptions import ClientError

        refusal: ClientError | None = None
        for vpc in self._all("describe_vpcs", "Vpcs"):
            if _network(vpc) in kept:
                continue
            try:
                with self._lock:
                    self._remove(_network(vpc), vpc["VpcId"])
            except ClientError as error:
                refusal = refusal or error
        if refusal is not None:
            raise refusal

    def _remove(self, network: str, vpc: str) -> None:
        """From the inside out."""
        self._known = {key: each for key, each in self._known.items() if key[0] != network}
        for each in self._find("describe_security_groups", "SecurityGroups", network):
            self._client.delete_security_group(GroupId=each["GroupId"])
        for each in self._find("describe_subnets", "Subnets", network):
            self._client.delete_subnet(SubnetId=each["SubnetId"])
        for each in self._find("describe_internet_gateways", "InternetGateways", network):
            gateway = each["InternetGatewayId"]
            if each.get("Attachments"):
                self._client.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
            self._client.delete_internet_gateway(InternetGatewayId=gateway)
        self._client.delete_vpc(VpcId=vpc)

    def _tags(self, kind: str, network: str) -> list[dict[str, Any]]:
        tags = [{"Key": CLUSTER_TAG, "Value": self._cluster},
                {"Key": NETWORK_TAG, "Value": network}]  # fmt: skip
        return [{"ResourceType": kind, "Tags": tags}]

    def _find(self, verb: str, key: str, network: str) -> list[dict[str, Any]]:
        return self._all(verb, key, [{"Name": f"tag:{NETWORK_TAG}", "Values": [network]}])

    def _all(
        self, verb: str, key: str, more: list[dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        mine = [{"Name": f"tag:{CLUSTER_TAG}", "Values": [self._cluster]}]
        found: list[dict[str, Any]] = []
        for page in self._client.get_paginator(verb).paginate(Filters=mine + (more or [])):
            found += page[key]
        return found


def _network(resource: dict[str, Any]) -> str:
    return str(next(t["Value"] for t in resource["Tags"] if t["Key"] == NETWORK_TAG))
