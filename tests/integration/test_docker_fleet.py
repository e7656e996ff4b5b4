"""Machines that are containers of a real daemon: killed, paused, cut off the network.

Opt-in: HYPER_TEST_DOCKER=1, a daemon, and the worker's image (`docker compose build worker`).
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest

from hyper.client import Client
from hyper_scheduler.providers.base import CLUSTER_TAG
from hyper_servicekit.config import S3Settings
from tests.support import placed
from tests.support.containers import NEEDS_DOCKER
from tests.support.proxy import fault_proxy
from tests.support.scheduler_process import Make, make_scheduler

__all__ = ["make_scheduler"]

IMAGE = os.environ.get("HYPER_TEST_WORKER_IMAGE", "hyper/worker:latest")
TASKS = 90
pytestmark = [*NEEDS_DOCKER, pytest.mark.timeout(400)]


def bridge() -> str:
    """This machine's address as containers reach it."""
    (address,) = (
        each.address for each in psutil.net_if_addrs()["docker0"] if each.family is socket.AF_INET
    )
    return str(address)


async def test_a_workflow_outlives_a_kill_a_pause_and_a_cut(
    make_scheduler: Make, s3_settings: S3Settings, tmp_path: Path
) -> None:
    daemon = docker.from_env()
    try:
        daemon.images.get(IMAGE)
    except docker.errors.ImageNotFound:
        pytest.skip(f"the image {IMAGE} is not here: docker compose build worker")
    here = bridge()
    cluster = {"label": f"{CLUSTER_TAG}={tmp_path.name}"}

    def machines() -> list[Any]:
        return list(daemon.containers.list(filters={**cluster, "status": "running"}))

    s3_endpoint = s3_settings.endpoint.removeprefix("http://")
    async with fault_proxy(s3_endpoint, on=here) as s3:
        offers = [placed.offer(name, provider="docker", options={"image": IMAGE}) for name in "abc"]
        changes = placed.settings(tmp_path, offers, silent_s=5) | {
            "HYPER_SCHEDULER__LISTEN": f"{here}:0",
            "HYPER_SCHEDULER__ALLOW_ANYONE": "true",  # on this machine's bridge
            "HYPER_SCHEDULER__S3__PUBLIC_ENDPOINT": f"http://{s3.endpoint}",
        }
        scheduler = await make_scheduler("s", changes)
        with Client(scheduler.address) as client:
            what = {"version": 1, "name": "drill", "experiments": {"work": {
                "command": "sleep 1", "parameters": {"i": {"range": [0, TASKS]}},
                "workers": 3}}}  # fmt: skip
            workflow = await asyncio.to_thread(client.submit, what)
            try:
                await placed.until(
                    lambda: len(machines()) == 3 and workflow.refresh().tasks.succeeded >= 6,
                    120, "three machines work",
                )  # fmt: skip
                killed, paused, lost = machines()
                killed.kill("SIGKILL")
                paused.pause()
                (network,) = lost.attrs["NetworkSettings"]["Networks"]
                daemon.networks.get(network).disconnect(lost)
                await asyncio.to_thread(workflow.wait, timeout_s=200)
                await placed.until(lambda: not placed.cost(client).machines, 90, "all are ended")
                assert workflow.refresh().tasks.succeeded == TASKS
                assert sum(e.launches for e in placed.cost(client).workflows[0].offers) >= 6
                await placed.until(
                    lambda: not daemon.containers.list(all=True, filters=cluster)
                    and not daemon.networks.list(filters=cluster),
                    60, "no container and no network is left",
                )  # fmt: skip
            finally:
                for each in daemon.containers.list(all=True, filters=cluster):
                    each.remove(force=True)
                daemon.close()
