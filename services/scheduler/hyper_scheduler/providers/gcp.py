"""Agents on machines of Google Compute Engine.

Credentials are the application default ones. Options of the provider: `project` (default: that of
the credentials). Options of an offer: `image` (such as
"projects/debian-cloud/global/images/family/debian-12"), `disk_gb`, `setup` (shell, before the agent
starts), `service_account` (an e-mail address; none by default). Spot machines are deleted when
Google takes them; their agents hear of it thirty seconds before (`hyper_worker.notices`).

The machines of a workflow are in a network of their own, in which they reach one another and which
nobody reaches from outside; it goes with the last of them.
"""

from __future__ import annotations

import hashlib
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hyper_scheduler.providers.base import (
    CLUSTER_TAG,
    MACHINE_TAG,
    Instance,
    Order,
    RefusedError,
    Threads,
    all_of,
    boot_script,
    plain_name,
    unreachable,
)

_LIVE = frozenset({"PROVISIONING", "STAGING", "RUNNING", "REPAIRING", "STOPPING", "SUSPENDING"})
_ENDED = frozenset({"TERMINATED", "STOPPED", "SUSPENDED"})  # off, but not gone: a disk costs
_TIMEOUT_S = 60.0
_INSIDE = "10.128.0.0/9"  # where networks of Google's making have their subnets
_IN_USE = "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE"


class GcpProvider:
    """Starts machines.

    Args:
        cluster: label that all of them carry.
        options: of the provider.
        endpoint: "http://host:port" of another API, which is asked without credentials.
    """

    def __init__(
        self, cluster: str, options: Mapping[str, str], endpoint: str | None = None
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Google's, about coming versions
            import google.auth
            from google.cloud import compute_v1

        self._cluster = plain_name(cluster)
        self._threads, self._lock = Threads("gcp"), threading.Lock()
        digest = hashlib.sha256(cluster.encode()).hexdigest()[:8]
        self._prefix = f"hyper-{self._cluster[:30]}-{digest}-"  # of the names of networks
        try:
            credentials, project = (
                google.auth.default()
                if endpoint is None
                else (google.auth.credentials.AnonymousCredentials(), None)
            )
        except google.auth.exceptions.DefaultCredentialsError as error:
            raise unreachable("gcp", error) from error
        self._project = options.get("project") or project or ""
        where = {} if endpoint is None else {
            "host": endpoint.partition("//")[2], "url_scheme": endpoint.partition("://")[0],
        }  # fmt: skip

        def client(kind: Any) -> Any:
            transport = kind.get_transport_class("rest")(credentials=credentials, **where)
            return kind(transport=transport)

        self._made: set[str] = set()  # networks that are known to be there
        self._instances: Any = client(compute_v1.InstancesClient)
        self._networks: Any = client(compute_v1.NetworksClient)
        self._firewalls: Any = client(compute_v1.FirewallsClient)
        self._in_zone: Any = client(compute_v1.ZoneOperationsClient)
        self._in_all: Any = client(compute_v1.GlobalOperationsClient)

    async def launch(self, order: Order) -> str:
        """Insert an instance; its name makes a repeat harmless."""
        return str(await self._call(self._launch, order))

    def _launch(self, order: Order) -> str:
        from google.api_core.exceptions import Conflict

        name = plain_name(f"hyper-{self._cluster}-{order.machine}")
        with self._lock:  # several machines of a workflow start at once
            network = self._network(order.network)
        body = machine(order, name, network, self._cluster)
        try:
            made = self._instances.insert_unary(
                project=self._project, zone=order.zone, instance_resource=body, timeout=_TIMEOUT_S
            )
        except Conflict:  # an earlier try has made it
            return f"{order.zone}/{name}"
        self._finish(made, order.zone)
        return f"{order.zone}/{name}"

    def _network(self, workflow: str) -> str:
        """The network of a workflow, made when first asked for."""
        from google.api_core.exceptions import Conflict

        name = self._network_name(workflow)
        if name in self._made:
            return name
        rule = {
            "name": name, "network": f"global/networks/{name}", "direction": "INGRESS",
            "source_ranges": [_INSIDE],
            "allowed": [{"I_p_protocol": each} for each in ("tcp", "udp", "icmp")],
        }  # fmt: skip
        for client, key, body in (
            (self._networks, "network", {"name": name, "auto_create_subnetworks": True}),
            (self._firewalls, "firewall", rule),
        ):
            try:
                resource = {f"{key}_resource": body}
                made = client.insert_unary(project=self._project, timeout=_TIMEOUT_S, **resource)
            except Conflict:  # it is there
                continue
            self._finish(made)
        self._made.add(name)
        return name

    def _network_name(self, workflow: str) -> str:
        digest = hashlib.sha256(workflow.encode()).hexdigest()[:12]
        return f"{self._prefix}{digest}"

    def _finish(self, operation: Any, zone: str = "") -> None:
        """Wait for an operation.

        Raises:
            RefusedError: it failed; by the name that Google gives to that.
        """
        while operation.status.name != "DONE":
            asked = {"project": self._project, "operation": operation.name, "timeout": 130.0}
            operation = (
                self._in_zone.wait(zone=zone, **asked) if zone else self._in_all.wait(**asked)
            )
        for error in operation.error.errors:
            if error.code != _IN_USE:
                raise RefusedError(error.code, error.message)

    async def instances(self) -> Sequence[Instance]:
        """Instances with the cluster's label, of all zones."""
        found: list[Instance] = await self._call(lambda: list(self._list(_LIVE)))
        return found

    def _list(self, states: frozenset[str]) -> Iterator[Instance]:
        pages = self._instances.aggregated_list(
            request={"project": self._project, "filter": f"labels.{CLUSTER_TAG}={self._cluster}"},
            timeout=_TIMEOUT_S,
        )
        for zone, part in pages:
            for each in part.instances:
                if each.status in states:
                    name = f"{zone.removeprefix('zones/')}/{each.name}"
                    labels = dict(each.labels)
                    yield Instance(name, labels.get(MACHINE_TAG, ""), each.status == "RUNNING")

    async def terminate(self, ids: Sequence[str]) -> None:
        """Delete instances; those that are gone are fine."""
        await all_of(lambda each: self._call(self._delete, each), ids)

    def _delete(self, name: str) -> None:
        from google.api_core.exceptions import NotFound

        zone, _, instance = name.partition("/")
        try:
            made = self._instances.delete_unary(
                project=self._project, zone=zone, instance=instance, timeout=_TIMEOUT_S
            )
        except NotFound:
            return
        self._finish(made, zone)

    async def notices(self) -> Sequence[str]:
        """Google tells the machine alone; its agent leaves (`hyper_worker.notices`)."""
        return ()

    async def tidy(self, networks: Sequence[str]) -> None:
        """Remove instances that have ended, and networks of workflows that have no machine."""
        ended = await self._call(lambda: [each.id for each in self._list(_ENDED)])
        await self.terminate(ended)
        await self._call(self._tidy, {self._network_name(each) for each in networks})

    def _tidy(self, kept: set[str]) -> None:
        from google.api_core.exceptions import BadRequest, NotFound

        mine = re.compile(re.escape(self._prefix) + "[0-9a-f]{12}")
        for each in self._networks.list(project=self._project, timeout=_TIMEOUT_S):
            if not mine.fullmatch(each.name) or each.name in kept:
                continue
            self._made.discard(each.name)
            for client, key in ((self._firewalls, "firewall"), (self._networks, "network")):
                try:
                    made = client.delete_unary(
                        project=self._project, timeout=_TIMEOUT_S, **{key: each.name}
                    )
                except (NotFound, BadRequest):  # gone, or a machine is still in it: next time
                    continue
                self._finish(made)

    async def close(self) -> None:
        """Instances go on: the next leader finds them."""
        self._threads.close()
        for client in (
            self._instances, self._networks, self._firewalls, self._in_zone, self._in_all,
        ):  # fmt: skip
            client.transport.close()

    async def _call(self, function: Any, *arguments: Any) -> Any:
        """In a thread, with Google's errors as ours."""
        import google.auth.exceptions
        import requests
        from google.api_core.exceptions import ClientError, GoogleAPICallError, RetryError

        try:
            return await self._threads.run(function, *arguments)
        except ClientError as error:
            reasons = [e.get("reason", "") for e in error.errors if isinstance(e, dict)]
            raise RefusedError(next(filter(None, reasons), type(error).__name__),
                               error.message or "") from error  # fmt: skip
        except (
            GoogleAPICallError, RetryError, google.auth.exceptions.GoogleAuthError,
            requests.RequestException,
        ) as error:  # fmt: skip
            raise unreachable("gcp", error) from error


def machine(order: Order, name: str, network: str, cluster: str) -> dict[str, Any]:
    """The resource that is inserted."""
    options = order.options
    made: dict[str, Any] = {
        "name": name,
        "machine_type": f"zones/{order.zone}/machineTypes/{order.instance_type}",
        "labels": {CLUSTER_TAG: cluster, MACHINE_TAG: plain_name(order.machine)},
        "disks": [{
            "boot": True, "auto_delete": True,
            "initialize_params": {
                "source_image": options.get("image", ""),
                "disk_size_gb": int(options.get("disk_gb", "50")),
            },
        }],
        "network_interfaces": [{
            "network": f"global/networks/{network}",
            "access_configs": [{"name": "out", "type_": "ONE_TO_ONE_NAT"}],
        }],
        "metadata": {"items": [{"key": "startup-script", "value": boot_script(order, "gcp")}]},
    }  # fmt: skip
    if order.spot:
        made["scheduling"] = {
            "provisioning_model": "SPOT", "instance_termination_action": "DELETE",
            "automatic_restart": False, "on_host_maintenance": "TERMINATE",
        }  # fmt: skip
    if "service_account" in options:
        scope = "https://www.googleapis.com/auth/cloud-platform"
        made["service_accounts"] = [{"email": options["service_account"], "scopes": [scope]}]
    return made
