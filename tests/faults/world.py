"""A cluster whose every part can be killed, stopped, restarted, slowed, cut off."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyper.client import Client
from scripts.fetch_etcd import CannotFetchError, fetch
from tests.support import placed
from tests.support.servers import run_etcd, run_s3
from tests.support.services import ServiceProcess, s3_environment, started

HEARTBEAT_S, LEASE_S, LEADER_TTL_S = 0.5, 3.0, 2.0
FAULT_S = 5.0
"""How long a fault lasts that does not end by itself: longer than every lease here."""
DOWN_S = 1.0
"""From a kill to the new start."""
_ON_S, _OFF_S = 0.05, 0.45
"""A slow process runs for a tenth of the time."""
_FIRST_GROUP = 48_100


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the cluster.

    Args:
        name: of the component.
        pids: of its processes now.
        kill: SIGKILL.
        end: SIGTERM, until it is gone.
        start: again, on the same addresses.
        port: where others reach it; 0 where they do not.
        group: of its process, which the firewall knows; 0 where it dials nobody.
    """

    name: str
    pids: Callable[[], list[int]]
    kill: Callable[[], None]
    end: Callable[[], None]
    start: Callable[[], None]
    port: int = 0
    group: int = 0


class World:
    """The cluster, and its parts by name of the component.

    Args:
        client: makes a client.
        parts: of every component, the one that a fault hits; a scheduler's depends on who leads.
    """

    def __init__(self, client: Callable[[], Client], parts: dict[str, Callable[[], Part]]) -> None:
        self.client, self._parts = client, parts

    def part(self, component: str) -> Part:
        """What a fault of this component hits now."""
        return self._parts[component]()


def kill(part: Part) -> None:
    """SIGKILL, and a new start a second later."""
    part.kill()
    _wait(DOWN_S)
    part.start()


def stop(part: Part) -> None:
    """SIGSTOP for longer than every lease: it goes on as if nothing had happened."""
    pids = part.pids()
    _signal(pids, signal.SIGSTOP)
    try:
        _wait(FAULT_S)
    finally:
        _signal(pids, signal.SIGCONT)


def restart(part: Part) -> None:
    """SIGTERM, a clean end, a new start."""
    part.end()
    part.start()


def slow(part: Part) -> None:
    """It gets a tenth of the time."""
    pids, end = part.pids(), time.monotonic() + 2 * FAULT_S
    try:
        while time.monotonic() < end:
            _signal(pids, signal.SIGSTOP)
            _wait(_OFF_S)
            _signal(pids, signal.SIGCONT)
            _wait(_ON_S)
    finally:
        _signal(pids, signal.SIGCONT)


def cut(part: Part) -> None:
    """No packet reaches it or leaves it; no connection is closed."""
    rules = []
    if part.port:
        rules += [["-p", "tcp", way, str(part.port)] for way in ("--dport", "--sport")]
    if part.group:
        rules.append(["-m", "owner", "--gid-owner", str(part.group)])
    with ExitStack() as stack:
        for rule in rules:
            iptables("-I", "OUTPUT", *rule, "-j", "DROP")
            stack.callback(iptables, "-D", "OUTPUT", *rule, "-j", "DROP")
        _wait(FAULT_S)


FAULTS = {each.__name__: each for each in (kill, stop, restart, slow, cut)}


def iptables(*arguments: str) -> None:
    """Change the firewall of this machine."""
    subprocess.run(["iptables", "-w", *arguments], check=True, capture_output=True)


def cannot_cut() -> str:
    """Why no process can be cut off here; "" where it can."""
    if os.geteuid() != 0:
        return "only root may change the firewall"
    rule = ["OUTPUT", "-m", "owner", "--gid-owner", str(_FIRST_GROUP - 1), "-j", "DROP"]
    try:
        iptables("-I", *rule)
        iptables("-D", *rule)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"iptables does not work here: {error}"
    return ""


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)  # the fault itself, not a wait for something


def _of_service(name: str, process: ServiceProcess) -> Part:
    def pids() -> list[int]:
        return [process.pid]

    port = int(process.address.rpartition(":")[2]) if process.address else 0
    return Part(
        name, pids, lambda: _ignored(process.stop(signal.SIGKILL)),
        lambda: _ignored(process.stop()), process.start, port, process.group or 0,
    )  # fmt: skip


def _ignored(status: int) -> None:
    del status


@contextmanager
def run_world(folder: Path) -> Iterator[World]:
    """etcd, S3, Prometheus, two schedulers, two gateways, three workers, inference, matcher."""
    try:
        program = fetch()
    except CannotFetchError as error:
        pytest.skip(f"tests that kill etcd need one that survives it: {error}")
    groups = iter(range(_FIRST_GROUP, _FIRST_GROUP + 100)) if os.geteuid() == 0 else iter(())
    for name in ("etcd", "s3"):
        (folder / name).mkdir()
    with ExitStack() as stack:
        etcd = stack.enter_context(run_etcd(folder / "etcd", program))
        s3 = stack.enter_context(run_s3(folder / "s3"))
        prometheus = stack.enter_context(placed.prometheus_server(folder / "prometheus"))
        common = {
            "ETCD_ENDPOINTS": json.dumps([etcd.endpoint]), "ETCD_PREFIX": "/matrix",
            "LOG_FORMAT": "console",
        }  # fmt: skip
        stored = common | s3_environment(s3.settings(f"matrix-{secrets.token_hex(6)}"))

        def start(name: str, module: str, prefix: str, more: dict[str, str]) -> ServiceProcess:
            return started(stack, folder, name, module, prefix, more, next(groups, None))

        timing = {
            "HEARTBEAT_S": str(HEARTBEAT_S), "LEASE_S": str(LEASE_S),
            "LEADER_TTL_S": str(LEADER_TTL_S),
        }  # fmt: skip
        looked_at = placed.settings(folder, [placed.offer("none", max=0)], prometheus.url)
        own = {name.partition("__")[2]: value for name, value in looked_at.items()}
        schedulers = [
            start(f"scheduler-{i}", "hyper_scheduler", "SCHEDULER", stored | timing | own)
            for i in range(2)
        ]
        prometheus.scrape(schedulers[0].facts["metrics_address"])
        gateways = [start(f"gateway-{i}", "hyper_storage", "STORAGE", stored) for i in range(2)]
        addresses = ",".join(each.address for each in schedulers)
        for name in ("inference", "matcher"):
            start(name, f"hyper_{name}", name.upper(), common | {"SCHEDULER_ENDPOINT": addresses})
        workers = [
            start(
                f"worker-{i}", "hyper_worker", "WORKER",
                {"SCHEDULER_ENDPOINT": addresses, "SLOTS": "3", "WORKDIR": str(folder / "work"),
                 "LOG_FORMAT": "console", "INSTANCE": f"worker-{i}"},
            )
            for i in range(3)
        ]  # fmt: skip

        def client() -> Client:
            return Client(addresses, tenant="test", patience_s=90.0)

        def leader() -> Part:
            with client() as asked:
                address = asked.cluster().leader
            process = next(each for each in schedulers if each.address == address)
            return _of_service("scheduler", process)

        yield World(client, {
            "scheduler": leader,
            "gateway": lambda: _of_service("gateway", gateways[0]),
            "worker": lambda: _of_service("worker", workers[0]),
            "etcd": lambda: Part(
                "etcd", lambda: [etcd.server.process.pid], etcd.kill,
                lambda: etcd.server.stop(10.0), etcd.start, etcd.port,
            ),
            "s3": lambda: Part(
                "s3", lambda: [s3.server.process.pid], s3.kill,
                lambda: s3.server.stop(10.0), s3.start, int(s3.endpoint.rpartition(":")[2]),
            ),
            "prometheus": lambda: Part(
                "prometheus", lambda: [prometheus.server.process.pid], prometheus.server.kill,
                lambda: prometheus.server.stop(10.0), prometheus.start,
                int(prometheus.url.rpartition(":")[2]),
            ),
        })  # fmt: skip
