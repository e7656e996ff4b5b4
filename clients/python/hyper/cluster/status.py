"""`hyper status`: what runs, where, and how it is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psutil

from hyper.cluster import plan, probes
from hyper.cluster.home import Home
from hyper.cluster.processes import log_tail, marked
from hyper.cluster.state import MARK, Cluster, Member, load

RUNNING = "running"
DEAD = "dead"
UNHEALTHY = "unhealthy"
STOPPED = "stopped"
STARTING = "starting"
DEGRADED = "degraded"


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One process now.

    Args:
        member: what `cluster.json` says of it.
        state: "running", "unhealthy" (alive but not serving) or "dead".
        memory_bytes: resident, of the process and its children.
        uptime_s: since its start.
        log: path of its log.
        log_tail: its last lines if it is not running well.
    """

    member: Member
    state: str
    memory_bytes: int
    uptime_s: float
    log: str
    log_tail: str


@dataclass(frozen=True, slots=True)
class Status:
    """A cluster now: state is "running", "degraded", "starting" or "stopped"."""

    home: Home
    state: str
    cluster: Cluster | None
    members: tuple[MemberStatus, ...]
    strays: tuple[int, ...]

    def facts(self) -> dict[str, Any]:
        """For `--json`; the keys are stable."""
        facts: dict[str, Any] = {
            "state": self.state,
            "home": str(self.home.root),
            "disk_free_bytes": self.home.free_bytes() if self.home.root.exists() else None,
            "endpoint": None,
            "etcd": None,
            "s3": None,
            "services": {},
            "strays": list(self.strays),
        }
        if self.cluster is not None:
            layout = self.cluster.layout
            facts["endpoint"] = self.cluster.endpoint
            facts["workers"], facts["slots"] = layout.workers, layout.slots
            facts["s3"] = self.cluster.s3_facts()
            facts["etcd"] = {
                "endpoint": layout.etcd_ports.endpoint,
                "version": layout.etcd_version,
                "source": layout.etcd_source,
            }
            facts["services"] = {one.member.name: _member_facts(one) for one in self.members}
        return facts


def _member_facts(one: MemberStatus) -> dict[str, Any]:
    facts = {
        "role": one.member.role,
        "state": one.state,
        "pid": one.member.process.pid,
        "address": one.member.address or None,
        "metrics_address": one.member.metrics_address or None,
        "memory_bytes": one.memory_bytes,
        "uptime_s": round(one.uptime_s, 1),
        "log": one.log,
    }
    if one.log_tail:
        facts["log_tail"] = one.log_tail.splitlines()
    return facts


def status(home: Home) -> Status:
    """Look at every process of the cluster.

    Raises:
        FailedPreconditionError: `cluster.json` cannot be understood.
    """
    cluster = load(home)
    if cluster is None:
        strays = tuple(process.pid for process in marked(MARK, str(home.root)))
        return Status(home, STARTING if home.busy() else STOPPED, None, (), strays)
    members = tuple(_look_at(cluster, member) for member in cluster.members.values())
    states = {one.state for one in members}
    if states == {RUNNING}:
        state = RUNNING
    else:
        state = STOPPED if states == {DEAD} else DEGRADED
    return Status(home, state, cluster, members, ())


def _look_at(cluster: Cluster, member: Member) -> MemberStatus:
    log = cluster.layout.home.log(member.name)
    state, memory_bytes, uptime_s = DEAD, 0, 0.0
    if member.process.alive:
        state = RUNNING if _serves(cluster, member) else UNHEALTHY
        try:
            process = psutil.Process(member.process.pid)
            uptime_s = max(0.0, time.time() - process.create_time())
            memory_bytes = sum(
                one.memory_info().rss for one in [process, *process.children(recursive=True)]
            )
        except psutil.Error:  # it, or a child, has ended meanwhile: its size is not known
            memory_bytes = 0
    tail = "" if state == RUNNING else log_tail(log)
    return MemberStatus(member, state, memory_bytes, uptime_s, str(log), tail)


def _serves(cluster: Cluster, member: Member) -> bool:
    """Whether a living process answers."""
    layout = cluster.layout
    if member.role == plan.ETCD:
        return probes.etcd_member(layout.etcd_ports.client) == layout.etcd_name
    if member.metrics_address:
        return probes.answers(member.metrics_address, "/healthz")
    port = member.address.rpartition(":")[2]
    return not port or probes.listens(int(port))
