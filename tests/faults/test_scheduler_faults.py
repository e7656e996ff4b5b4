"""SIGKILL, SIGSTOP and a bad network, on real processes, while a workflow runs.

`FAULT_ROUNDS=20` repeats each; what really ran is checked against what the cluster promises.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyper.client import Client
from hyper.workflows import Workflow
from tests.faults.cluster import LEASE_S, FaultCluster, run_cluster
from tests.faults.history import check
from tests.support.servers import S3Server

TASKS = 60
ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server
) -> Iterator[FaultCluster]:
    folder = tmp_path_factory.mktemp("faults")
    with run_cluster(folder, s3_server.settings(f"faults-{secrets.token_hex(6)}")) as running:
        yield running


def kill_leader(cluster: FaultCluster, client: Client) -> None:
    leader = cluster.leader(client)
    leader.stop(signal.SIGKILL)
    leader.start()


def kill_etcd(cluster: FaultCluster, client: Client) -> None:
    cluster.etcd.kill()
    cluster.etcd.start()


def kill_worker(cluster: FaultCluster, client: Client) -> None:
    cluster.workers[0].stop(signal.SIGKILL)
    cluster.workers[0].start()


def stop_worker(cluster: FaultCluster, client: Client) -> None:
    """It stands still for longer than its lease, then goes on as if nothing had happened."""
    _stand_still(cluster.workers[1].pid, 1.5 * LEASE_S)


def stop_leader(cluster: FaultCluster, client: Client) -> None:
    """Deposed meanwhile, it must do no harm when it goes on."""
    _stand_still(cluster.leader(client).pid, 1.5 * LEASE_S)


def _stand_still(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        threading.Event().wait(seconds)  # the fault itself, not a wait for something
    finally:
        os.kill(pid, signal.SIGCONT)


def cut_connections(cluster: FaultCluster, client: Client) -> None:
    cluster.proxy.do("cut")
    threading.Event().wait(0.5)
    cluster.proxy.do("restore")


def silent_network(cluster: FaultCluster, client: Client) -> None:
    """Nothing passes and nothing is closed, for longer than the lease."""
    cluster.proxy.do("stall")
    threading.Event().wait(1.5 * LEASE_S)
    cluster.proxy.do("restore")


def late_replies(cluster: FaultCluster, client: Client) -> None:
    cluster.proxy.do("stall_replies")
    threading.Event().wait(0.5 * LEASE_S)
    cluster.proxy.do("restore")


FAULTS = [
    kill_leader, kill_etcd, kill_worker, stop_worker, stop_leader, cut_connections,
    silent_network, late_replies,
]  # fmt: skip


def submit(client: Client, journal: Path) -> Workflow:
    return client.submit(
        {
            "version": 1,
            "name": "faults",
            "experiments": {
                "first": {
                    "function": "tests.faults.work:trace",
                    "parameters": {
                        "i": {"range": [0, TASKS]}, "journal": str(journal), "seconds": 0.15,
                    },
                    "retries": 0,
                },
            },
        }
    )  # fmt: skip


@pytest.mark.timeout(300 + 60 * ROUNDS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_workflow_survives(
    cluster: FaultCluster,
    fault: Callable[[FaultCluster, Client], None],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    for turn in range(ROUNDS):
        journal = tmp_path / f"journal-{turn}"
        with cluster.client() as client:
            workflow = submit(client, journal)
            for status in workflow.watch():
                if status.tasks.succeeded >= TASKS // 6:
                    break
            fault(cluster, client)
            begin = time.monotonic()
            workflow.wait(timeout_s=100, check=True)
            record_property("seconds_after_fault", round(time.monotonic() - begin, 2))
            check(journal, [workflow.task("first", index) for index in range(TASKS)])
