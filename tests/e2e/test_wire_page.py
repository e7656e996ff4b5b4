"""docs/wire.md: its commands work as they stand there, by reflection alone."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import grpc
import pytest

from hyper.client import Client
from tests.support.local_cluster import LocalCluster
from tests.support.reflected import Reflected

pytestmark = pytest.mark.timeout(180)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "wire.md"
COMMANDS = [shlex.split(line) for line in PAGE.read_text().splitlines() if line[:8] == "grpcurl "]


def test_the_pages_commands(local_cluster: LocalCluster) -> None:
    with Client(local_cluster.endpoint) as client:
        name = client.submit(
            {"version": 1, "name": "wire", "experiments": {"e": {"command": "true"}}}
        ).name
    answers = []
    with grpc.insecure_channel(local_cluster.endpoint) as channel:
        seen = Reflected(channel)
        for command in COMMANDS:
            program, plain, *data, place, method = command
            assert (program, plain, place) == ("grpcurl", "-plaintext", "HOST:PORT")
            body = json.loads(data[1]) if data[:1] == ["-d"] else {}
            answers.append(seen.services() if method == "list" else seen.call(method, body))
    services, cluster, workflows = answers
    assert "hyperapi.scheduler.v1.WorkflowService" in services
    assert {each["service"] for each in cluster["instances"]} >= {"scheduler", "storage-gateway"}
    assert name in [each["name"] for each in workflows["workflows"]]


def test_every_service_describes_itself(local_cluster: LocalCluster) -> None:
    """All that a service offers can be called from what it tells."""
    with Client(local_cluster.endpoint) as client:
        addresses = {each.service: each.address for each in client.cluster().instances}
    assert {"scheduler", "storage-gateway", "inference", "matcher"} <= set(addresses)
    for service, address in addresses.items():
        if service == "worker":
            continue  # it only dials out
        with grpc.insecure_channel(address) as channel:
            for version in ("v1", "v1alpha"):
                seen = Reflected(channel, version)
                for name in seen.services():
                    assert seen.describe(name).methods, f"{service}: {name}"
