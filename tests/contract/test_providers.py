"""What every provider does: one suite, run against each that can run here.

`process` starts real agents; `ssh` uses a real sshd; `slurm` a real slurmctld, slurmd and munged;
`aws` EC2's API as moto's server plays it; `kubernetes` and `gcp` theirs as servers of ours play it;
`docker` a real daemon (opt-in). The agents dial an address where nobody is, and go on trying.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyper.errors import UnavailableError
from hyper_scheduler.placement.offers import Offer
from hyper_scheduler.providers.aws_network import AwsNetwork
from hyper_scheduler.providers.base import Order, Provider, RefusedError, agent_environment
from tests.support import fake_gcp as gcp_api
from tests.support import provider_servers as servers
from tests.support.fake_gcp import FakeGcp, fake_gcp
from tests.support.fake_kubernetes import FakeKubernetes, fake_kubernetes

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).parents[2]


@dataclass
class Place:
    """A provider, another of the same cluster, and what can be asked of both."""

    make: Callable[[str], Provider]
    offer: Offer
    may_refuse: dict[str, Any] = field(default_factory=dict)  # changes that make it refuse

    def order(self, machine: str, **changes: Any) -> Order:
        environment = agent_environment(
            machine=machine, endpoint="127.0.0.1:1", slots=1, labels={"offer": self.offer.name},
            token="a secret; 'quoted' $HOME",
        )  # fmt: skip
        environment["PYTHONPATH"] = os.pathsep.join(each for each in sys.path if each)
        order = Order(
            machine, self.offer.name, self.offer.instance_type, self.offer.region,
            self.offer.zone, True, "workflow-1", environment, self.offer.options,
        )  # fmt: skip
        return Order(**{name: changes.get(name, getattr(order, name))
                        for name in Order.__dataclass_fields__})  # fmt: skip


@pytest.fixture(params=["process", "ssh", "slurm", "aws", "docker", "kubernetes", "gcp"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield _PLACES[request.param](stack, tmp_path)


def _process(stack: ExitStack, folder: Path) -> Place:
    from hyper_scheduler.providers.process import ProcessProvider

    return Place(lambda cluster: ProcessProvider(cluster, folder), Offer("here", "process"))


def _ssh(stack: ExitStack, folder: Path) -> Place:
    from hyper_scheduler.providers.ssh import SshProvider

    options = stack.enter_context(servers.sshd(folder))
    offer = Offer("rack", "ssh", options=options | {"python": sys.executable})
    return Place(lambda cluster: SshProvider(cluster, [offer]), offer)


def _slurm(stack: ExitStack, folder: Path) -> Place:
    from hyper_scheduler.providers.slurm import SlurmProvider

    environment = stack.enter_context(servers.slurm(folder))
    offer = Offer("batch", "slurm", options={"python": sys.executable, "partition": "main"})
    wrong = {"options": {**offer.options, "partition": "absent"}}
    return Place(lambda cluster: SlurmProvider(cluster, environment), offer, wrong)


def _aws(stack: ExitStack, folder: Path) -> Place:
    from hyper_scheduler.providers.aws import AwsProvider

    endpoint, image = stack.enter_context(servers.moto())
    offer = Offer("t4", "aws", "aws", "us-east-1", "us-east-1a", "g4dn.xlarge",
                  options={"image": image})  # fmt: skip
    return Place(
        lambda cluster: AwsProvider(cluster, ["us-east-1"], endpoint), offer,
        {"zone": "us-east-1z"},
    )  # fmt: skip


def _docker(stack: ExitStack, folder: Path) -> Place:
    if os.environ.get("HYPER_TEST_DOCKER") != "1":
        pytest.skip("opt-in: HYPER_TEST_DOCKER=1, and a Docker daemon")
    from hyper_scheduler.providers.docker import DockerProvider

    image = os.environ.get("HYPER_TEST_IMAGE", "python:3.11-slim-bookworm")
    offer = Offer("box", "docker", options={"image": image, "command": "sleep 600"})
    wrong = {"options": {**offer.options, "network": "hyper-no-such-network"}}
    return Place(lambda cluster: DockerProvider(cluster), offer, wrong)


def _kubernetes(stack: ExitStack, folder: Path) -> Place:
    pytest.importorskip("kubernetes", reason="needs hyper-dl[kubernetes]")
    from hyper_scheduler.providers.kubernetes import KubernetesProvider

    state, config = stack.enter_context(fake_kubernetes(folder))
    stack.enter_context(pytest.MonkeyPatch.context()).setenv("KUBECONFIG", str(config))
    offer = Offer("pods", "kubernetes", "k8s", "", "zone-a", "", options={
        "image": "hyper/worker", "cpus": "2", "memory_bytes": "1000000000", "gpus": "1",
        "node_selector": "pool=spot", "tolerations": "spot=true:NoSchedule,any",
    })  # fmt: skip
    _FAKES[offer.name] = state
    return Place(lambda cluster: KubernetesProvider(cluster, {}), offer, {"zone": "full"})


def _gcp(stack: ExitStack, folder: Path) -> Place:
    pytest.importorskip("google.cloud.compute_v1", reason="needs hyper-dl[gcp]")
    from hyper_scheduler.providers.gcp import GcpProvider

    state, endpoint = stack.enter_context(fake_gcp())
    offer = Offer("l4", "gcp", "gcp", "us-central1", "us-central1-a", "g2-standard-4", options={
        "image": "projects/debian-cloud/global/images/family/debian-12", "setup": "true",
    })  # fmt: skip
    _CLOUDS[offer.name] = state
    return Place(
        lambda cluster: GcpProvider(cluster, {"project": gcp_api.PROJECT}, endpoint), offer,
        {"zone": "full-1-a"},
    )  # fmt: skip


_CLOUDS: dict[str, FakeGcp] = {}
_FAKES: dict[str, FakeKubernetes] = {}
_PLACES = {"process": _process, "ssh": _ssh, "slurm": _slurm, "aws": _aws, "docker": _docker,
           "kubernetes": _kubernetes, "gcp": _gcp}  # fmt: skip


async def until_listed(provider: Provider, count: int) -> list[str]:
    async with asyncio.timeout(40):
        while True:
            found = await provider.instances()
            if len(found) == count:
                return [each.machine for each in found]
            await asyncio.sleep(0.2)


async def test_life_of_a_machine(place: Place):
    cluster, machine = f"c-{uuid.uuid4().hex[:8]}", f"m-{uuid.uuid4().hex[:12]}"
    provider, stranger = place.make(cluster), place.make("another")
    try:
        assert await provider.instances() == []
        launched = await provider.launch(place.order(machine))
        assert await provider.launch(place.order(machine)) == launched  # asked for again
        assert await until_listed(provider, 1) == [machine]
        assert [each.id for each in await provider.instances()] == [launched]
        # a scheduler that comes after a crash finds it by its tag; another cluster's does not
        await provider.close()
        provider = place.make(cluster)
        assert [each.id for each in await provider.instances()] == [launched]
        assert await stranger.instances() == []
        assert not await provider.notices()
        await provider.tidy(["workflow-1"])  # the network of a live workflow stays
        assert await until_listed(provider, 1) == [machine]
        await provider.terminate([launched])
        await until_listed(provider, 0)
        await provider.terminate([launched])  # it is gone: fine
    finally:
        await provider.terminate([each.id for each in await provider.instances()])
        await until_listed(provider, 0)
        await provider.tidy([])
        await provider.close()
        await stranger.close()


async def test_a_refusal_is_called_by_its_name(place: Place):
    if not place.may_refuse:
        pytest.skip("this provider's orders cannot be wrong")
    provider = place.make(f"c-{uuid.uuid4().hex[:8]}")
    with pytest.raises(RefusedError) as caught:
        await provider.launch(place.order("m-refused", **place.may_refuse))
    assert caught.value.name
    assert await provider.instances() == []
    await provider.tidy([])
    await provider.close()


async def test_aws_networks_notices_and_nothing_left(tmp_path: Path):
    import boto3

    with ExitStack() as stack:
        place = _aws(stack, tmp_path)
        provider = place.make("c-1")
        endpoint, _ = servers.moto_of(place.offer)
        client = boto3.client("ec2", region_name="us-east-1", endpoint_url=endpoint)
        vpcs = len(client.describe_vpcs()["Vpcs"])
        first = await provider.launch(place.order("m-1"))
        second = await provider.launch(place.order("m-2", zone="us-east-1b"))
        other = await provider.launch(place.order("m-3", network="workflow-2"))
        found = {
            each["InstanceId"]: each
            for page in client.describe_instances()["Reservations"]
            for each in page["Instances"]
        }
        one, two, three = (found[each.rpartition("/")[2]] for each in (first, second, other))
        assert one["InstanceLifecycle"] == "spot"
        assert one["VpcId"] == two["VpcId"] != three["VpcId"]
        assert one["SubnetId"] != two["SubnetId"]
        (interface,) = one["NetworkInterfaces"]
        group = interface["Groups"][0]["GroupId"]
        rules = client.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]
        assert [pair["GroupId"] for rule in rules["IpPermissions"]
                for pair in rule["UserIdGroupPairs"]] == [group]  # fmt: skip
        assert not any(rule["IpRanges"] for rule in rules["IpPermissions"])  # from outside: nobody
        data = client.describe_instance_attribute(
            InstanceId=one["InstanceId"], Attribute="userData"
        )["UserData"]["Value"]  # fmt: skip
        assert data
        await provider.terminate([first, second])
        await provider.tidy(["workflow-2"])
        assert len(client.describe_vpcs()["Vpcs"]) == vpcs + 1
        await provider.terminate([other])
        await provider.tidy([])
        assert len(client.describe_vpcs()["Vpcs"]) == vpcs
        assert client.describe_internet_gateways()["InternetGateways"] == []


async def test_what_google_is_told_and_nothing_left(tmp_path: Path):
    with ExitStack() as stack:
        place = _gcp(stack, tmp_path)
        there = _CLOUDS[place.offer.name].objects
        provider = place.make("c-1")
        first = await provider.launch(place.order("m-1"))
        other = await provider.launch(place.order("m-2", network="workflow-2", spot=False))
        one, two = (there["instances"][each.partition("/")[2]] for each in (first, other))
        assert one["scheduling"]["provisioningModel"] == "SPOT" and "scheduling" not in two
        networks = [each["networkInterfaces"][0]["network"] for each in (one, two)]
        assert len(set(networks)) == 2
        for rule in there["firewalls"].values():
            assert rule["sourceRanges"] == ["10.128.0.0/9"]  # from outside: nobody
        script = one["metadata"]["items"][0]["value"]
        assert "export HYPER_WORKER__CLOUD=gcp" in script and "'a secret; '" in script
        await provider.terminate([first])
        await provider.tidy(["workflow-2"])
        assert len(there["networks"]) == 1
        await provider.tidy([])  # a machine is still in it: it stays
        assert len(there["networks"]) == 1
        # its agent has ended: the boot script has turned it off
        _CLOUDS[place.offer.name].end(other.partition("/")[2])
        assert await provider.instances() == []
        await provider.tidy([])
        assert there == {"instances": {}, "networks": {}, "firewalls": {}}
        with pytest.raises(RefusedError) as caught:
            await provider.launch(place.order("m-3", zone="full-1-a"))
        assert caught.value.name == "ZONE_RESOURCE_POOL_EXHAUSTED"
        await provider.close()
    with pytest.raises(UnavailableError, match="gcp"):
        await place.make("c-1").instances()


async def test_what_a_pod_is_told_and_nothing_left(tmp_path: Path):
    with ExitStack() as stack:
        place = _kubernetes(stack, tmp_path)
        there = _FAKES[place.offer.name].objects
        provider = place.make("c-1")
        name = await provider.launch(place.order("m-1"))
        spec = there["pods"][name]["spec"]
        assert spec["nodeSelector"] == {"topology.kubernetes.io/zone": "zone-a", "pool": "spot"}
        assert spec["tolerations"] == [
            {"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
            {"key": "any", "operator": "Exists"},
        ]
        (container,) = spec["containers"]
        assert container["resources"]["limits"] == {
            "cpu": "2", "memory": "1000000000", "nvidia.com/gpu": "1",
        }  # fmt: skip
        assert "secret" not in str(spec).replace("secretRef", "")  # the token is in the Secret
        assert there["secrets"][name]["stringData"]["HYPER_TOKEN"] == "a secret; 'quoted' $HOME"
        _FAKES[place.offer.name].evict(name)
        assert await provider.notices() == [name]
        _FAKES[place.offer.name].end(name)
        assert await provider.instances() == []
        await provider.tidy([])
        assert there == {"pods": {}, "secrets": {}}
        roles = yaml.safe_load_all((ROOT / "deploy/kubernetes/machines/access.yaml").read_text())
        (role,) = [each for each in roles if each["kind"] == "Role"]
        allowed = {
            (kind, verb) for rule in role["rules"] for kind in rule["resources"]
            for verb in rule["verbs"]
        }  # fmt: skip
        assert _FAKES[place.offer.name].asked == allowed  # no less, and no more
        with pytest.raises(RefusedError, match="exceeded quota") as caught:
            await provider.launch(place.order("m-2", zone="full"))
        assert caught.value.name == "QuotaExceeded" and there["secrets"] == {}
        await provider.close()
    with pytest.raises(UnavailableError, match="kubernetes"):
        await place.make("c-1").instances()


async def test_aws_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from hyper_scheduler.providers.aws import AwsProvider

    with ExitStack() as stack:
        _aws(stack, tmp_path)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        provider = AwsProvider("c-1", ["us-east-1"], "http://127.0.0.1:1")
        with pytest.raises(UnavailableError, match="aws"):
            await provider.instances()


@pytest.mark.parametrize("text", ["", '{"id": "1', "[]", None])
async def test_an_agent_whose_file_was_not_finished_is_found(tmp_path: Path, text: str | None):
    """Whoever started it died before it knew the process, or while it wrote."""
    place = _process(ExitStack(), tmp_path / "agents")
    provider = place.make("c-1")
    launched = await provider.launch(place.order("m-1"))
    file = tmp_path / "agents" / "m-1.json"
    facts = json.dumps({"id": "", "machine": "m-1", "cluster": "c-1"})
    file.write_text(facts if text is None else text)
    (tmp_path / "agents" / "m-2.json").write_text(facts.replace("m-1", "m-2"))  # none was started
    after = place.make("c-1")
    try:
        assert [each.id for each in await after.instances()] == [launched]
        assert not (tmp_path / "agents" / "m-2.json").exists()
    finally:
        await after.terminate([launched])
    assert await after.instances() == []
    assert list((tmp_path / "agents").glob("*.json")) == []


async def test_a_dead_host_hides_no_other(tmp_path: Path):
    from hyper_scheduler.providers.ssh import SshProvider

    with ExitStack() as stack:
        place = _ssh(stack, tmp_path)
        # the same name with another port is another host, and nobody is there
        dead = Offer("dead", "ssh", options={**place.offer.options, "port": "1"})
        provider = SshProvider("c-1", [place.offer, dead])
        launched = await provider.launch(place.order("m-1"))
        try:
            assert [each.id for each in await provider.instances()] == [launched]
        finally:
            await provider.terminate([launched])
        assert await provider.instances() == []
        with pytest.raises(RefusedError, match="NoFreeHost"):
            await provider.launch(place.order("m-2", offer="dead"))
        with pytest.raises(UnavailableError, match="no host answers"):
            await SshProvider("c-1", [dead]).instances()


async def test_a_host_takes_one_of_two_launches_at_once(tmp_path: Path):
    with ExitStack() as stack:
        place = _ssh(stack, tmp_path)
        provider = place.make("c-1")
        both = await asyncio.gather(
            provider.launch(place.order("m-1")), provider.launch(place.order("m-2")),
            return_exceptions=True,
        )  # fmt: skip
        try:
            assert sorted(isinstance(each, RefusedError) for each in both) == [False, True]
        finally:
            await provider.terminate([each.id for each in await provider.instances()])


def test_an_offer_without_zone_and_type_fits_every_node(tmp_path: Path):
    from hyper_scheduler.providers.kubernetes import pod

    place = Place(lambda cluster: None, Offer("pods", "kubernetes", options={"image": "i"}))  # type: ignore[arg-type,return-value]
    assert pod(place.order("m-1"), "secret")["nodeSelector"] == {}


class Refusing:
    """A client of EC2 that refuses some calls, as Amazon does and moto does not."""

    def __init__(self, client: Any, *verbs: str, code: str = "DependencyViolation") -> None:
        self._client, self._code, self.verbs = client, code, set(verbs)

    def __getattr__(self, name: str) -> Any:
        if name in self.verbs:
            return self._refuse
        return getattr(self._client, name)

    def _refuse(self, **request: Any) -> None:
        from botocore.exceptions import ClientError

        answer = {"Error": {"Code": self._code, "Message": str(request)}}
        raise ClientError(answer | {"ResponseMetadata": {"HTTPStatusCode": 400}}, "refused")


def test_a_network_that_was_cut_short_is_finished(tmp_path: Path):
    import boto3
    from botocore.exceptions import ClientError

    with ExitStack() as stack:
        endpoint, _ = stack.enter_context(servers.moto())
        client = boto3.client("ec2", region_name="us-east-1", endpoint_url=endpoint)
        vpcs = len(client.describe_vpcs()["Vpcs"])
        refusing = Refusing(client, "create_route")
        network = AwsNetwork(refusing, "c-1")
        with pytest.raises(ClientError):
            network.ensure("w", "us-east-1a")
        refusing.verbs = {"authorize_security_group_ingress"}
        with pytest.raises(ClientError):
            network.ensure("w", "us-east-1a")
        refusing.verbs = set()
        subnet, group = network.ensure("w", "us-east-1a")
        (found,) = client.describe_security_groups(GroupIds=[group])["SecurityGroups"]
        assert found["IpPermissions"]
        tables = client.describe_route_tables(
            Filters=[{"Name": "vpc-id", "Values": [found["VpcId"]]}]
        )["RouteTables"]
        assert "0.0.0.0/0" in [route.get("DestinationCidrBlock") for route in tables[0]["Routes"]]
        # what cannot be taken down is tried again, keeps no other, and is not used again
        network.ensure("other", "us-east-1a")
        refusing.verbs = {"delete_vpc"}
        with pytest.raises(ClientError):
            network.remove_others(set())
        assert (
            client.describe_subnets(Filters=[{"Name": "tag:hyper-cluster", "Values": ["c-1"]}])[
                "Subnets"
            ]
            == []
        )
        refusing.verbs = set()
        assert network.ensure("w", "us-east-1a")[0] != subnet
        network.remove_others(set())
        assert len(client.describe_vpcs()["Vpcs"]) == vpcs


async def test_every_refusal_of_ec2_is_called_by_its_name(tmp_path: Path):
    with ExitStack() as stack:
        place = _aws(stack, tmp_path)
        provider = place.make("c-1")
        clients = provider._clients  # type: ignore[attr-defined]
        for code in ("AuthFailure", "RequestLimitExceeded", "InternetGatewayLimitExceeded"):
            clients["us-east-1"] = Refusing(clients["us-east-1"], "run_instances", code=code)
            with pytest.raises(RefusedError) as caught:
                await provider.launch(place.order("m-1"))
            assert caught.value.name == code
        await provider.tidy([])


async def test_many_machines_of_one_workflow_share_a_network(tmp_path: Path):
    import boto3

    with ExitStack() as stack:
        place = _aws(stack, tmp_path)
        provider = place.make("c-1")
        names = [f"m-{number}" for number in range(6)]
        launched = await asyncio.gather(*(provider.launch(place.order(each)) for each in names))
        assert sorted(await until_listed(provider, 6)) == names
        endpoint, _ = servers.moto_of(place.offer)
        client = boto3.client("ec2", region_name="us-east-1", endpoint_url=endpoint)
        mine = [{"Name": "tag:hyper-cluster", "Values": ["c-1"]}]
        assert len(client.describe_vpcs(Filters=mine)["Vpcs"]) == 1
        # one that is gone keeps none of the others
        await provider.terminate([launched[0]])
        await provider.terminate([*launched, "us-east-1/i-0123456789abcdef0"])
        await until_listed(provider, 0)
        await provider.tidy([])
        assert client.describe_vpcs(Filters=mine)["Vpcs"] == []


async def test_ec2_tells_what_spot_machines_cost(tmp_path: Path):
    with ExitStack() as stack:
        place = _aws(stack, tmp_path)
        provider = place.make("c-1")
        nowhere = replace(place.offer, name="nowhere", instance_type="m1.none")
        far = replace(place.offer, name="far", region="eu-west-9", zone="eu-west-9a")
        found = await provider.prices([place.offer, nowhere, far])  # type: ignore[attr-defined]
        assert found == {place.offer.name: 0.00001}  # moto's price of everything
