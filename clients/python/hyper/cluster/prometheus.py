"""Prometheus on a local cluster: its command line, and whom it scrapes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from hyper.cluster.ports import LOOPBACK
from hyper.cluster.programs import Program
from hyper.cluster.state import Member

SCRAPE_INTERVAL = "5s"
RETENTION = "2d"
RETENTION_SIZE = "512MB"


def prometheus_command(program: Program, *, config: Path, data: Path, port: int) -> list[str]:
    """The command line of a Prometheus on loopback with bounded storage."""
    return [
        str(program.path),
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        f"--storage.tsdb.retention.time={RETENTION}",
        f"--storage.tsdb.retention.size={RETENTION_SIZE}",
        f"--web.listen-address={LOOPBACK}:{port}",
    ]


def prometheus_config(members: Iterable[Member]) -> str:
    """The text of its configuration (JSON, which is YAML): everybody who has /metrics."""
    targets = [
        {
            "targets": [member.metrics_address],
            "labels": {"job": member.role, "instance": member.name},
        }
        for member in members
        if member.metrics_address
    ]
    return json.dumps(
        {
            "global": {"scrape_interval": SCRAPE_INTERVAL},
            "scrape_configs": [{"job_name": "hyper", "static_configs": targets}],
        },
        indent=1,
    )
