"""`hyper status` of a cluster that is not this machine's: what its scheduler says of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hyper import config
from hyper.cli import output
from hyper.cli.visible import shown, visible_workflows
from hyper.client import Client
from hyper.errors import HyperError, PermissionDeniedError
from hyper.status import ClusterInfo, WorkerInfo, WorkerState, to_json

RUNNING, DEGRADED = "running", "degraded"
_LOOKED_AT = 50  # newest workflows, whose waiting is told
_PATIENCE_S = 10.0


def look(endpoint: str) -> tuple[dict[str, Any], str]:
    """What there is, for programs and for people.

    It is degraded while no scheduler leads, or a service that work needs has no replica.

    Raises:
        UnavailableError: nobody answers there.
    """
    with Client(patience_s=_PATIENCE_S) as client:
        cluster = client.cluster()
        workers = _workers(client) if cluster.leader else None
        waiting = waits(client) if cluster.leader else []
    lacks = [] if cluster.leader else ["no scheduler leads"]
    services = {each.service for each in cluster.instances}
    if config.STORAGE not in services:
        lacks.append("no storage gateway has announced itself")
    facts = {
        "state": DEGRADED if lacks else RUNNING,
        "endpoint": endpoint,
        "version": cluster.version,
        "leader": cluster.leader or None,
        "instances": [to_json(each) for each in cluster.instances],
        "workers": None if workers is None else [to_json(each) for each in workers],
        "waiting": waiting,
    }
    return facts, _text(endpoint, cluster, workers, lacks, waiting)


def _workers(client: Client) -> list[WorkerInfo] | None:
    try:
        return client.workers()
    except PermissionDeniedError:  # a tenant's token: machines are the operators'
        return None


def waits(client: Client) -> list[str]:
    """Why workflows wait, a line each."""
    try:
        newest = itertools.islice(visible_workflows(client), _LOOKED_AT)
        return [f"{shown(each)}: {each.waiting}" for each in newest if each.waiting]
    except HyperError as error:
        return [f"unknown, for workflows cannot be listed: {error}"]


def _text(
    endpoint: str, cluster: ClusterInfo, workers: Sequence[WorkerInfo] | None,
    lacks: Sequence[str], waiting: Sequence[str],
) -> str:  # fmt: skip
    rows = [
        (
            each.service,
            "leads" if each.address == cluster.leader else "runs",
            each.address,
            each.metrics_address or "-",
        )
        for each in sorted(cluster.instances, key=lambda each: (each.service, each.address))
    ]
    lines = [
        f"cluster {DEGRADED if lacks else RUNNING} at {endpoint}, version {cluster.version}",
        *(f"problem: {each}" for each in lacks),
        "",
        output.table(("SERVICE", "STATE", "ADDRESS", "METRICS"), rows),
    ]
    if workers is not None:
        there = [each for each in workers if each.state is not WorkerState.LOST]
        slots, busy = sum(each.slots for each in there), sum(each.running for each in there)
        noun = "worker" if len(there) == 1 else "workers"
        lost = f", {len(workers) - len(there)} lost" if len(there) < len(workers) else ""
        lines += ["", f"{len(there)} {noun}, {busy} of {slots} slots busy{lost}: `hyper nodes`"]
    return "\n".join([*lines, *(f"waiting: {line}" for line in waiting)])
