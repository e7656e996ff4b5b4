"""Agents in containers of a Docker daemon.

The daemon is that of the environment (DOCKER_HOST). Options of an offer: `image` (with
hyper-dl[worker]), `command` (instead of its own), `network` (an existing one, instead of one a
workflow), `cpus`, `memory_bytes`. A container is removed by the daemon when it ends.
"""

from __future__ import annotations

import os
import shlex
import socket
import threading
from collections.abc import Sequence
from typing import Any

from hyper_scheduler.providers.base import (
    CLUSTER_TAG,
    MACHINE_TAG,
    Instance,
    Order,
    RefusedError,
    Threads,
    all_of,
    unreachable,
)

NETWORK_TAG = "hyper-network"
GRACE_S = 10
_TIMEOUT_S = 60
_USUAL_HOST = "unix:///var/run/docker.sock"


def _knock() -> None:
    """Refuse where no daemon listens: docker's own client would leave its socket open.

    Raises:
        UnavailableError: nobody answers.
    """
    kind, _, place = os.environ.get("DOCKER_HOST", _USUAL_HOST).partition("://")
    if kind == "unix":
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.settimeout(_TIMEOUT_S)
            try:
                knocking.connect(place)
            except OSError as error:
                raise unreachable("docker", error) from error


class DockerProvider:
    """Starts containers.

    Args:
        cluster: label that all of them carry.
    """

    def __init__(self, cluster: str) -> None:
        import docker

        self._cluster = cluster
        self._threads, self._lock = Threads("docker"), threading.Lock()
        _knock()
        try:
            self._client: Any = docker.from_env(timeout=_TIMEOUT_S)
        except docker.errors.DockerException as error:
            raise unreachable("docker", error) from error

    async def launch(self, order: Order) -> str:
        """Run a container; its name makes a repeat harmless."""
        return str(await self._call(self._launch, order))

    def _launch(self, order: Order) -> str:
        for each in self._containers(all_=True):
            if each.labels.get(MACHINE_TAG) == order.machine:
                return str(each.id)
        options = order.options
        network = options.get("network") or self._network(order.network)
        more: dict[str, Any] = {}
        if "cpus" in options:
            more["nano_cpus"] = int(float(options["cpus"]) * 1e9)
        if "memory_bytes" in options:
            more["mem_limit"] = int(options["memory_bytes"])
        command = shlex.split(options.get("command", "")) or None
        made = self._client.containers.run(
            options.get("image", ""), command, detach=True, auto_remove=True,
            name=f"hyper-{self._cluster}-{order.machine}", init=True,
            environment=dict(order.environment), network=network,
            labels={CLUSTER_TAG: self._cluster, MACHINE_TAG: order.machine}, **more,
        )  # fmt: skip
        return str(made.id)

    def _network(self, workflow: str) -> str:
        labels = {CLUSTER_TAG: self._cluster, NETWORK_TAG: workflow}
        name = f"hyper-{self._cluster}-{workflow}"
        with self._lock:  # several machines of a workflow start at once
            if not self._client.networks.list(names=[f"^{name}$"]):
                self._client.networks.create(name, labels=labels, check_duplicate=True)
        return name

    async def instances(self) -> Sequence[Instance]:
        """Containers with the cluster's label that live."""
        found = await self._call(self._containers)
        return [
            Instance(str(each.id), each.labels.get(MACHINE_TAG, ""), each.status == "running")
            for each in found
        ]

    def _containers(self, all_: bool = False) -> list[Any]:
        filters = {"label": f"{CLUSTER_TAG}={self._cluster}"}
        found = self._client.containers.list(all=True, filters=filters, ignore_removed=True)
        return [each for each in found if all_ or each.status not in ("exited", "dead")]

    async def terminate(self, ids: Sequence[str]) -> None:
        """SIGTERM, then SIGKILL; one that is paused goes on first, or it would hear neither."""
        await all_of(lambda each: self._call(self._end, each), ids)

    def _end(self, name: str) -> None:
        import docker

        try:
            container = self._client.containers.get(name)
            if container.status == "paused":
                container.unpause()
            container.stop(timeout=GRACE_S)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if error.status_code != 409:  # it is being removed
                raise

    async def notices(self) -> Sequence[str]:
        """A daemon tells nothing before; the agent gets SIGTERM."""
        return ()

    async def tidy(self, networks: Sequence[str]) -> None:
        """Remove networks of workflows that have no machine."""
        await self._call(self._tidy, set(networks))

    def _tidy(self, kept: set[str]) -> None:
        filters = {"label": f"{CLUSTER_TAG}={self._cluster}"}
        for each in self._client.networks.list(filters=filters, greedy=True):
            mine = each.attrs.get("Labels", {}).get(NETWORK_TAG)
            if mine not in kept and not each.attrs.get("Containers"):
                each.remove()

    async def close(self) -> None:
        """Containers go on: the next leader finds them."""
        self._threads.close()
        self._client.close()

    async def _call(self, function: Any, *arguments: Any) -> Any:
        """In a thread, with Docker's errors as ours."""
        import docker
        import requests

        try:
            return await self._threads.run(function, *arguments)
        except docker.errors.ImageNotFound as error:
            raise RefusedError("ImageNotFound", str(error.explanation)) from error
        except docker.errors.APIError as error:
            if error.is_client_error():
                raise RefusedError("DockerRefused", str(error.explanation)) from error
            raise unreachable("docker", error) from error
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise unreachable("docker", error) from error
