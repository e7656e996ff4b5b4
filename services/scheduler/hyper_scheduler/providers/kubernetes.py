"""Agents as pods of a Kubernetes cluster.

Credentials come from the pod that the scheduler runs in, else from the kubeconfig (KUBECONFIG).
Options of the provider: `namespace` (default: that of the credentials), `context` (of the
kubeconfig). Options of an offer: `image` (with hyper-dl[worker]), `command` (instead of its own),
`cpus`, `memory_bytes`, `gpus` (limits, and what the pod asks for), `node_selector`
("key=value,key=value"), `tolerations` ("key=value:Effect,..."), `service_account`. An offer's zone
and instance type become node selectors where it names them.

What the agent is told, its token too, is in a Secret that goes with the pod. A cluster's autoscaler
adds nodes for pods that wait; a node that is taken away says so by the pod's `DisruptionTarget`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hyper_scheduler.placement.offers import LOCAL
from hyper_scheduler.providers.base import (
    CLUSTER_TAG,
    MACHINE_TAG,
    Instance,
    Order,
    RefusedError,
    Threads,
    all_of,
    plain_name,
    unreachable,
)

GRACE_S = 30
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
_LIVE = ("Pending", "Running", "Unknown")
_TIMEOUT_S = 30
_ZONE, _TYPE = "topology.kubernetes.io/zone", "node.kubernetes.io/instance-type"


class KubernetesProvider:
    """Starts pods.

    Args:
        cluster: label that all of them carry.
        options: of the provider.
    """

    def __init__(self, cluster: str, options: Mapping[str, str]) -> None:
        import kubernetes

        self._cluster, self._threads = cluster, Threads("kubernetes")
        try:
            configuration, namespace = _credentials(options.get("context"))
        except kubernetes.config.ConfigException as error:
            raise unreachable("kubernetes", error) from error
        self._namespace = options.get("namespace") or namespace
        self._client = kubernetes.client.ApiClient(configuration)
        self._api: Any = kubernetes.client.CoreV1Api(self._client)

    async def launch(self, order: Order) -> str:
        """Create a pod; its name makes a repeat harmless."""
        return str(await self._call(self._launch, order))

    def _launch(self, order: Order) -> str:
        name = plain_name(f"hyper-{self._cluster}-{order.machine}")
        labels = {CLUSTER_TAG: self._cluster, MACHINE_TAG: order.machine}
        metadata = {"name": name, "labels": labels}
        secret = {"metadata": metadata, "stringData": dict(order.environment)}
        self._make(self._api.create_namespaced_secret, secret)
        try:
            self._make(
                self._api.create_namespaced_pod, {"metadata": metadata, "spec": pod(order, name)}
            )
        except BaseException:
            self._gone(self._api.delete_namespaced_secret, name)
            raise
        return name

    def _make(self, create: Any, body: dict[str, Any]) -> None:
        """Create an object; fine where an earlier try has."""
        from kubernetes.client import ApiException

        try:
            create(self._namespace, body, _request_timeout=_TIMEOUT_S)
        except ApiException as error:
            if error.status != 409:
                raise

    def _gone(self, delete: Any, name: str, **more: Any) -> None:
        """Delete an object; fine where there is none."""
        from kubernetes.client import ApiException

        try:
            delete(name, self._namespace, _request_timeout=_TIMEOUT_S, **more)
        except ApiException as error:
            if error.status != 404:
                raise

    async def instances(self) -> Sequence[Instance]:
        """Pods with the cluster's label that have not ended."""
        return [
            Instance(
                each.metadata.name, each.metadata.labels.get(MACHINE_TAG, ""),
                each.status.phase == "Running",
            )
            for each in await self._call(self._pods)
            if each.status.phase in _LIVE
        ]  # fmt: skip

    def _pods(self) -> list[Any]:
        found: list[Any] = []
        more: str | None = None
        while True:
            page = self._api.list_namespaced_pod(
                self._namespace, label_selector=f"{CLUSTER_TAG}={self._cluster}", limit=500,
                _continue=more, _request_timeout=_TIMEOUT_S,
            )  # fmt: skip
            found += page.items
            # "continue" is a word of Python's: the client calls the field `_continue`
            more = page.metadata._continue
            if not more:
                return found

    async def terminate(self, ids: Sequence[str]) -> None:
        """SIGTERM, then SIGKILL."""
        await all_of(lambda each: self._call(self._end, each), ids)

    def _end(self, name: str) -> None:
        self._gone(self._api.delete_namespaced_pod, name, grace_period_seconds=GRACE_S)
        self._gone(self._api.delete_namespaced_secret, name)

    async def notices(self) -> Sequence[str]:
        """Pods that are about to be evicted: their node is drained, or taken away."""
        return [
            each.metadata.name
            for each in await self._call(self._pods)
            if any(
                c.type == "DisruptionTarget" and c.status == "True"
                for c in each.status.conditions or ()
            )
        ]

    async def tidy(self, networks: Sequence[str]) -> None:
        """Remove pods that have ended, and secrets whose pod is gone."""
        await self._call(self._tidy)

    def _tidy(self) -> None:
        live = set()
        for each in self._pods():
            if each.status.phase in _LIVE:
                live.add(each.metadata.name)
            else:
                self._gone(self._api.delete_namespaced_pod, each.metadata.name)
        secrets = self._api.list_namespaced_secret(
            self._namespace, label_selector=f"{CLUSTER_TAG}={self._cluster}",
            _request_timeout=_TIMEOUT_S,
        )  # fmt: skip
        for each in secrets.items:
            if each.metadata.name not in live:
                self._gone(self._api.delete_namespaced_secret, each.metadata.name)

    async def close(self) -> None:
        """Pods go on: the next leader finds them."""
        self._threads.close()
        self._client.close()

    async def _call(self, function: Any, *arguments: Any) -> Any:
        """In a thread, with the API's errors as ours."""
        import urllib3
        from kubernetes.client import ApiException

        try:
            return await self._threads.run(function, *arguments)
        except ApiException as error:
            if error.status in (400, 403, 422):
                name = "QuotaExceeded" if "exceeded quota" in str(error.body) else error.reason
                raise RefusedError(name or "Refused", _message(error)) from error
            raise unreachable("kubernetes", _message(error)) from error
        except urllib3.exceptions.HTTPError as error:
            raise unreachable("kubernetes", error) from error


def pod(order: Order, secret: str) -> dict[str, Any]:
    """The specification of an agent's pod.

    Args:
        order: the machine.
        secret: whose entries become its environment.
    """
    options = order.options
    amounts = {
        "cpu": options.get("cpus"), "memory": options.get("memory_bytes"),
        "nvidia.com/gpu": options.get("gpus"),
    }  # fmt: skip
    resources = {name: str(amount) for name, amount in amounts.items() if amount}
    wanted = {_ZONE: order.zone, _TYPE: order.instance_type}
    selector = {key: value for key, value in wanted.items() if value not in ("", LOCAL)}
    for pair in filter(None, options.get("node_selector", "").split(",")):
        key, _, value = pair.partition("=")
        selector[key.strip()] = value.strip()
    made: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "automountServiceAccountToken": False,
        "nodeSelector": selector,
        "tolerations": [_toleration(t) for t in options.get("tolerations", "").split(",") if t],
        "containers": [
            {
                "name": "worker",
                "image": options.get("image", ""),
                "command": shlex.split(options.get("command", "python3 -m hyper_worker")),
                "envFrom": [{"secretRef": {"name": secret}}],
                "resources": {"requests": resources, "limits": resources},
                "securityContext": {"allowPrivilegeEscalation": False},
            }
        ],
    }
    if "service_account" in options:
        made["serviceAccountName"] = options["service_account"]
    return made


def _toleration(text: str) -> dict[str, str]:
    """Of "key=value:Effect"; without a value any, without an effect all."""
    rest, _, effect = text.strip().partition(":")
    key, has_value, value = rest.partition("=")
    made = {"key": key, "operator": "Equal" if has_value else "Exists"}
    return made | ({"value": value} if has_value else {}) | ({"effect": effect} if effect else {})


def _credentials(context: str | None) -> tuple[Any, str]:
    """How the API is reached, and the namespace that goes with it.

    Raises:
        ConfigException: there are no credentials.
    """
    from kubernetes import client, config

    made = client.Configuration()
    if context is None:
        try:
            config.load_incluster_config(client_configuration=made)
        except config.ConfigException:
            pass  # not in a pod: the kubeconfig says
        else:
            with open(NAMESPACE_FILE, encoding="utf-8") as file:  # noqa: PTH123
                return made, file.read().strip()
    file_name = os.environ.get("KUBECONFIG")  # the client looks at it when it is imported
    config.load_kube_config(file_name, context, made)
    contexts, active = config.list_kube_config_contexts(file_name)
    chosen = next((c for c in contexts if c["name"] == context), active)
    return made, chosen["context"].get("namespace") or "default"


def _message(error: Any) -> str:
    """What the API says, in a line."""
    found = re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', str(error.body or ""))
    return found.group(1) if found else f"{error.status} {error.reason}"
