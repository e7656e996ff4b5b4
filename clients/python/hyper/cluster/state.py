"""`cluster.json`: what runs now, for clients, for `status` and for `down`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hyper.cluster.home import Home, write_private
from hyper.cluster.processes import ProcessId
from hyper.cluster.programs import EtcdPorts, WeedPorts
from hyper.errors import FailedPreconditionError

VERSION = 1
BUCKET = "hyper"
REGION = "us-east-1"
MARK = "HYPER_CLUSTER_OF"  # in the environment of every process of a cluster: its HYPER_HOME


@dataclass(frozen=True, slots=True)
class Member:
    """One process of the cluster.

    Args:
        name: e.g. "scheduler", "worker-0".
        role: e.g. "scheduler", "worker".
        process: pid and start time.
        address: host:port that it serves, empty if it serves nothing.
        metrics_address: host:port of /metrics, empty if it has none.
    """

    name: str
    role: str
    process: ProcessId
    address: str = ""
    metrics_address: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the processes of a cluster are told, and what a restart tells them again.

    Args:
        home: the data folder.
        etcd_version: of the program that runs.
        etcd_source: "system" or "wheel".
        etcd_path: the executable.
        etcd_name: the member's name, proof of its identity.
        etcd_ports: where it listens.
        weed_ports: where the S3 server listens.
        sockets: folder of the S3 server's Unix sockets.
        workers: how many.
        slots: of each worker.
        port: of the scheduler; 0: any free one.
        prometheus_port: where Prometheus listens; 0: it is not installed.
    """

    home: Home
    etcd_version: str
    etcd_source: str
    etcd_path: Path
    etcd_name: str
    etcd_ports: EtcdPorts
    weed_ports: WeedPorts
    sockets: Path
    workers: int
    slots: int
    port: int = 0
    prometheus_port: int = 0


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that was started; members in the order of their start."""

    layout: Layout
    members: Mapping[str, Member]

    @property
    def endpoint(self) -> str:
        """host:port of the scheduler; clients learn the rest from it."""
        return self.members["scheduler"].address

    def with_member(self, member: Member) -> Cluster:
        """The same with one process replaced."""
        return replace(self, members={**self.members, member.name: member})

    def s3_facts(self) -> dict[str, str]:
        """What a program needs to open the bucket itself."""
        return {
            "endpoint": self.layout.weed_ports.endpoint,
            "bucket": BUCKET,
            "region": REGION,
            "credentials_file": str(self.layout.home.credentials),
        }

    def save(self) -> None:
        """Write `cluster.json`, readable by its owner only."""
        layout = self.layout
        facts = {
            "version": VERSION,
            "endpoint": self.endpoint,
            "home": str(layout.home.root),
            "workers": layout.workers,
            "slots": layout.slots,
            "port": layout.port,
            "prometheus_port": layout.prometheus_port,
            "etcd": {
                "endpoint": layout.etcd_ports.endpoint,
                "version": layout.etcd_version,
                "source": layout.etcd_source,
                "path": str(layout.etcd_path),
                "name": layout.etcd_name,
                "client_port": layout.etcd_ports.client,
                "peer_port": layout.etcd_ports.peer,
            },
            "s3": {
                **self.s3_facts(),
                "master_port": layout.weed_ports.master,
                "volume_port": layout.weed_ports.volume,
                "filer_port": layout.weed_ports.filer,
                "s3_port": layout.weed_ports.s3,
                "sockets": str(layout.sockets),
            },
            "services": {m.name: m.address for m in self.members.values() if m.address},
            "processes": [_member_facts(member) for member in self.members.values()],
        }
        write_private(layout.home.cluster_file, json.dumps(facts, indent=1) + "\n")


def _member_facts(member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        "role": member.role,
        "pid": member.process.pid,
        "started": member.process.started,
        "address": member.address,
        "metrics_address": member.metrics_address,
    }


def load(home: Home) -> Cluster | None:
    """The cluster that `cluster.json` tells of; None if there is no such file.

    Raises:
        FailedPreconditionError: the file cannot be understood.
    """
    try:
        facts = json.loads(home.cluster_file.read_text())
        if facts["version"] != VERSION:
            raise ValueError(f"format {facts['version']} is not {VERSION}")
        etcd, s3 = facts["etcd"], facts["s3"]
        layout = Layout(
            home=home,
            etcd_version=etcd["version"],
            etcd_source=etcd["source"],
            etcd_path=Path(etcd["path"]),
            etcd_name=etcd["name"],
            etcd_ports=EtcdPorts(etcd["client_port"], etcd["peer_port"]),
            weed_ports=WeedPorts(
                s3["master_port"], s3["volume_port"], s3["filer_port"], s3["s3_port"]
            ),
            sockets=Path(s3["sockets"]),
            workers=facts["workers"],
            slots=facts["slots"],
            port=facts["port"],
            prometheus_port=facts["prometheus_port"],
        )
        members = {
            one["name"]: Member(
                one["name"],
                one["role"],
                ProcessId(one["pid"], one["started"]),
                one["address"],
                one["metrics_address"],
            )
            for one in facts["processes"]
        }
        return Cluster(layout, members)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FailedPreconditionError(
            f"{home.cluster_file} cannot be read ({type(error).__name__}: {error}): "
            "run `hyper down`, then `hyper up`"
        ) from error
