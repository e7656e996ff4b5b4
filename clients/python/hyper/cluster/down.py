"""`hyper down`: stop all of a cluster, however much of it is still alive."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from hyper.cluster import plan
from hyper.cluster.home import Home
from hyper.cluster.launch import Say
from hyper.cluster.processes import ProcessId, marked, stop_all
from hyper.cluster.signals import signals_ignored
from hyper.cluster.state import MARK, Cluster, load
from hyper.errors import FailedPreconditionError, InternalError

_SWEEPS = 5
# Stopped in this order; those of one line at the same time.
_ORDER: tuple[tuple[str, ...], ...] = (
    (plan.PROMETHEUS, plan.WORKER),
    ("matcher", "inference"),
    ("storage-gateway", "scheduler"),
    (plan.S3, plan.ETCD),
)


@dataclass(frozen=True, slots=True)
class Stopped:
    """What `down` did.

    Args:
        stopped: names of the processes that it ended.
        dead: names of those that had died before.
        strays: how many processes it ended that no record named.
    """

    stopped: tuple[str, ...]
    dead: tuple[str, ...]
    strays: int


def down(home: Home, say: Say, service_grace_s: float = plan.SERVICE_GRACE_S) -> Stopped:
    """Stop every process of the cluster; the data stay. Nothing runs afterwards.

    Services and workers have `service_grace_s` to finish what they do.

    Raises:
        FailedPreconditionError: another command is changing the cluster.
    """
    if not home.root.is_dir():
        return Stopped((), (), 0)
    with home.locked(), signals_ignored():
        try:
            cluster = load(home)
        except FailedPreconditionError as error:
            say(f"warning: {error}; stopping whatever belongs to {home.root}")
            cluster = None
        alive, dead = (
            _stop_members(cluster, say, service_grace_s) if cluster is not None else ((), ())
        )
        strays = sweep(home)
        home.cluster_file.unlink(missing_ok=True)
        shutil.rmtree(home.run, ignore_errors=True)
        if cluster is not None and cluster.layout.sockets != home.run:
            shutil.rmtree(cluster.layout.sockets, ignore_errors=True)
    return Stopped(alive, dead, strays)


def _stop_members(
    cluster: Cluster, say: Say, service_grace_s: float
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Stop what `cluster.json` names; returns who was alive and who was dead."""
    dead = tuple(m.name for m in cluster.members.values() if not m.process.alive)
    alive: list[str] = []
    for roles in _ORDER:
        members = [m for m in cluster.members.values() if m.role in roles]
        living = [m.name for m in members if m.name not in dead]
        if living:
            say(f"stopping {', '.join(living)}")
        alive += living
        stop_all({m.process: plan.grace_s(m.role, service_grace_s) for m in members})
    return tuple(alive), dead


def sweep(home: Home) -> int:
    """Kill processes that carry the cluster's mark, such as a dead worker's; returns how many.

    Raises:
        InternalError: some cannot be killed.
    """
    killed: set[ProcessId] = set()
    for _ in range(_SWEEPS):  # a stray may have started another meanwhile
        strays = list(marked(MARK, str(home.root)))
        if not strays:
            return len(killed)
        killed.update(strays)
        stop_all(dict.fromkeys(strays, 0.0))
    pids = ", ".join(str(process.pid) for process in strays)
    raise InternalError(f"processes of the cluster do not end (pid {pids}): see `ps -l {pids}`")
