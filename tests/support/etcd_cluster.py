"""Three etcd members on loopback, any of which a test may kill."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyper.cluster.ports import HeldPorts
from hyper.cluster.programs import EtcdPorts, etcd_command, find_etcd
from tests.support.servers import EtcdServer, ServerProcess, _or_skip

MEMBERS = 3


@contextmanager
def run_etcd_cluster(folder: Path) -> Iterator[list[EtcdServer]]:
    """The members, all started, perhaps not yet serving; gone at the end."""
    program = _or_skip(find_etcd)
    token = secrets.token_hex(8)
    members: list[EtcdServer] = []
    with HeldPorts() as held:
        ports = [EtcdPorts.hold(held) for _ in range(MEMBERS)]
        names = [f"test-{token}-{i}" for i in range(MEMBERS)]
        peers = ",".join(
            f"{name}=http://127.0.0.1:{port.peer}" for name, port in zip(names, ports, strict=True)
        )
        for name, port in zip(names, ports, strict=True):
            command = [
                *etcd_command(program, name=name, data=folder / name, ports=port),
                f"--initial-cluster={peers}",  # the last flag counts
                f"--initial-cluster-token={token}",
                "--heartbeat-interval=50",
                "--election-timeout=500",
            ]
            server = ServerProcess("etcd", command, folder, folder / f"{name}.log")
            members.append(EtcdServer(port.endpoint, name, program, server, port.client))
    try:
        for member in members:
            member.server.start(lambda: True)  # none is ready before there are two
        yield members
    finally:
        for member in members:
            member.kill()
