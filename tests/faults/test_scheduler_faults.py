"""SIGKILL, SIGSTOP and a bad network, on real processes, while a workflow runs.

`make faults REPEAT=20` repeats each, and more of them. What really ran, and when, is checked
against what the cluster promises: work goes on within the lease that a fault has to run out, and
5 s.
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
from tests.faults.cluster import LEADER_TTL_S, LEASE_S, FaultCluster, run_cluster
from tests.faults.history import check, longest_stall_s
from tests.support.servers import S3Server

TASKS = 60
REPEAT = int(os.environ.get("FAULT_REPEAT") or "0")  # 0: each once, the rarer ones not at all
RECOVERY_S = 5.0  # beyond the lease


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


def slow_network(cluster: FaultCluster, client: Client) -> None:
    cluster.proxy.do("slow")
    threading.Event().wait(LEASE_S)
    cluster.proxy.do("restore")


def kill_leader_and_worker(cluster: FaultCluster, client: Client) -> None:
    """The next leader waits for a worker that does not come."""
    leader = cluster.leader(client)
    cluster.workers[0].stop(signal.SIGKILL)
    leader.stop(signal.SIGKILL)
    leader.start()
    cluster.workers[0].start()


def kill_leader_twice(cluster: FaultCluster, client: Client) -> float:
    """The second as soon as it leads; returns when it was killed."""
    kill_leader(cluster, client)
    second = time.time()
    kill_leader(cluster, client)
    return second


def kill_everything(cluster: FaultCluster, client: Client) -> float:
    """All but the workers, at once; returns when a scheduler is there again."""
    services = [*cluster.schedulers, cluster.storage]
    for each in services:
        each.stop(signal.SIGKILL)
    cluster.etcd.kill()
    cluster.etcd.start()
    first, *others = services
    first.start()
    begin = time.time()
    for each in others:
        each.start()
    return begin


def stop_everybody(cluster: FaultCluster, client: Client) -> None:
    """Leader and workers stand still together: nobody may take the others for lost for ever."""
    pids = [cluster.leader(client).pid, *(each.pid for each in cluster.workers)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    threading.Event().wait(1.5 * LEASE_S)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


Fault = Callable[[FaultCluster, Client], float | None]
# with the leases that have to run out, one after the other, before work can go on
FAULTS: dict[Fault, float] = {
    kill_leader: LEADER_TTL_S,
    kill_etcd: LEADER_TTL_S,
    kill_worker: LEASE_S,
    stop_worker: LEASE_S,
    stop_leader: LEADER_TTL_S,
    cut_connections: LEASE_S,
    silent_network: LEASE_S,
    late_replies: LEASE_S,
}
RARER: dict[Fault, float] = {
    slow_network: LEASE_S,
    kill_leader_and_worker: LEADER_TTL_S + LEASE_S,
    kill_leader_twice: LEADER_TTL_S,
    kill_everything: LEADER_TTL_S,
    stop_everybody: LEADER_TTL_S + LEASE_S,
}


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


@pytest.mark.timeout(300 + 60 * REPEAT)
@pytest.mark.parametrize(
    "fault, lease_s",
    [
        pytest.param(fault, lease_s, id=fault.__name__)
        for fault, lease_s in (FAULTS | (RARER if REPEAT else {})).items()
    ],
)
def test_a_workflow_survives(
    cluster: FaultCluster,
    fault: Fault,
    lease_s: float,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    for turn in range(max(1, REPEAT)):
        journal = tmp_path / f"journal-{turn}"
        with cluster.client() as client:
            workflow = submit(client, journal)
            for status in workflow.watch():
                if status.tasks.succeeded >= TASKS // 6:
                    break
            begin = time.time()
            begin = fault(cluster, client) or begin
            workflow.wait(timeout_s=100, check=True)
            tasks = [workflow.task("first", index) for index in range(TASKS)]
            check(journal, tasks)
            stall_s = longest_stall_s(tasks, begin)
            record_property("stall_s", round(stall_s, 2))
            print(f"{fault.__name__}: nothing ended for {stall_s:.2f} s")
            assert stall_s < lease_s + RECOVERY_S
