"""What a cluster consists of: each process's command, environment, order and sign of readiness."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hyper.cluster import probes
from hyper.cluster.home import Home, load_or_make_secrets_key
from hyper.cluster.ports import LOOPBACK, HeldPorts
from hyper.cluster.programs import (
    Program,
    S3Credentials,
    etcd_command,
    weed_command,
)
from hyper.cluster.prometheus import prometheus_command, prometheus_config
from hyper.cluster.state import BUCKET, MARK, REGION, Layout, Member

ETCD = "etcd"
S3 = "s3"
PROMETHEUS = "prometheus"
OFFERS_FILE = "offers.yaml"  # in HYPER_HOME: machines that the scheduler may launch
SERVERS = (ETCD, S3)
SERVICE_GRACE_S = 15.0  # more than a service's own `drain_grace_s`
# SeaweedFS takes 15-25 s to end by itself and loses nothing when killed; etcd 3.5.0-3.5.2 may.
_GRACES_S = {S3: 0.0, ETCD: 20.0, PROMETHEUS: 3.0}


@dataclass(frozen=True, slots=True)
class Service:
    """One of our own services.

    Args:
        role: as it is known in the cluster.
        module: run as `python -m MODULE`.
        variable: the SCHEDULER of HYPER_SCHEDULER__LISTEN.
        after: roles that must be ready before it starts.
    """

    role: str
    module: str
    variable: str
    after: tuple[str, ...]


SERVICES = (
    Service("scheduler", "hyper_scheduler", "SCHEDULER", (ETCD, S3)),
    Service("storage-gateway", "hyper_storage", "STORAGE", (ETCD, S3)),
    Service("inference", "hyper_inference", "INFERENCE", ("scheduler", "storage-gateway")),
    Service("matcher", "hyper_matcher", "MATCHER", ("scheduler", "storage-gateway")),
    Service("worker", "hyper_worker", "WORKER", ("scheduler", "storage-gateway")),
)
WORKER = "worker"
_OTHER_CLUSTERS = {
    "HYPER_ENDPOINT",
    "HYPER_STORAGE_ENDPOINT",
    "HYPER_INFERENCE_ENDPOINT",
    "HYPER_MATCHER_ENDPOINT",
}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_NEED_S3 = ("scheduler", "storage-gateway")

Members = Mapping[str, Member]
# The addresses of a process that is ready: (address, metrics_address).
Ready = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Spec:
    """One process to start.

    Args:
        name: of the process and its log.
        role: what it is.
        title: for people, with the version.
        after: roles that must be ready first.
        command: its command line, given the members that are ready.
        environment: the same for its environment.
        ready: its addresses once it serves, None before; given its pid.
        timeout_s: how long it may take to get ready.
        optional: the cluster is of use without it.
        held: its ports, released when it starts.
    """

    name: str
    role: str
    title: str
    after: tuple[str, ...]
    command: Callable[[Members], list[str]]
    environment: Callable[[Members], dict[str, str]]
    ready: Callable[[int], Ready | None]
    timeout_s: float
    held: HeldPorts | None = None
    optional: bool = False


def grace_s(role: str, service_grace_s: float = SERVICE_GRACE_S) -> float:
    """How long a process of this role may take to end by itself."""
    return _GRACES_S.get(role, service_grace_s)


def base_environment(home: Home) -> dict[str, str]:
    """What every process inherits: the caller's settings, but no other cluster's addresses."""
    kept = {k: v for k, v in os.environ.items() if k not in _OTHER_CLUSTERS}
    kept.update({MARK: str(home.root), "HYPER_HOME": str(home.root), "PYTHONUNBUFFERED": "1"})
    return kept


def etcd_spec(layout: Layout, program: Program, held: HeldPorts | None = None) -> Spec:
    """The one etcd."""
    command = etcd_command(
        program, name=layout.etcd_name, data=layout.home.etcd_data, ports=layout.etcd_ports
    )

    def ready(pid: int) -> Ready | None:
        if probes.etcd_member(layout.etcd_ports.client) != layout.etcd_name:
            return None
        return layout.etcd_ports.endpoint, layout.etcd_ports.endpoint

    return Spec(
        name=ETCD,
        role=ETCD,
        title=f"etcd {program.version} ({program.source})",
        after=(),
        command=lambda _: command,
        environment=lambda _: base_environment(layout.home),
        ready=ready,
        timeout_s=60.0,
        held=held,
    )


def s3_spec(
    layout: Layout, program: Program, credentials: S3Credentials, held: HeldPorts | None = None
) -> Spec:
    """The S3 server; it is ready when its bucket takes objects."""
    command = weed_command(
        program,
        data=layout.home.s3_data,
        config=layout.home.s3_config,
        sockets=layout.sockets,
        ports=layout.weed_ports,
    )

    def ready(pid: int) -> Ready | None:
        if probes.make_bucket(layout.weed_ports, credentials, BUCKET) is not None:
            return None
        return f"{LOOPBACK}:{layout.weed_ports.s3}", ""

    return Spec(
        name=S3,
        role=S3,
        title=f"S3 server (SeaweedFS {program.version})",
        after=(),
        command=lambda _: command,
        environment=lambda _: base_environment(layout.home),
        ready=ready,
        timeout_s=90.0,
        held=held,
    )


def prometheus_spec(layout: Layout, program: Program, held: HeldPorts | None = None) -> Spec:
    """Prometheus, if it is installed; it scrapes every process of the cluster."""
    config = layout.home.run / "prometheus.json"  # JSON is YAML

    def command(members: Members) -> list[str]:
        config.write_text(prometheus_config(members.values()))
        return prometheus_command(
            program,
            config=config,
            data=layout.home.root / PROMETHEUS,
            port=layout.prometheus_port,
        )

    def ready(pid: int) -> Ready | None:
        address = f"{LOOPBACK}:{layout.prometheus_port}"
        return (address, "") if probes.answers(address, "/-/ready") else None

    return Spec(
        name=PROMETHEUS,
        role=PROMETHEUS,
        title=f"Prometheus {program.version}",
        after=(ETCD, *(service.role for service in SERVICES)),
        command=command,
        environment=lambda _: base_environment(layout.home),
        ready=ready,
        timeout_s=30.0,
        held=held,
        optional=True,
    )


def service_spec(
    layout: Layout,
    service: Service,
    name: str,
    credentials: S3Credentials,
    previous: Member | None = None,
) -> Spec:
    """One of our services; on a restart it gets its `previous` addresses again."""
    home = layout.home

    def environment(members: Members) -> dict[str, str]:
        return {
            **base_environment(home),
            **_service_environment(layout, service, name, credentials, members, previous),
        }

    return Spec(
        name=name,
        role=service.role,
        title=name,
        after=service.after,
        command=lambda _: [sys.executable, "-m", service.module],
        environment=environment,
        ready=lambda pid: _read_ready_file(home.ready_file(name), pid),
        timeout_s=90.0,
    )


def service_specs(layout: Layout, credentials: S3Credentials) -> list[Spec]:
    """All of our services, N workers among them."""
    specs = []
    for service in SERVICES:
        many = service.role == WORKER
        names = [f"{WORKER}-{i}" for i in range(layout.workers)] if many else [service.role]
        specs += [service_spec(layout, service, name, credentials) for name in names]
    return specs


def _service_environment(
    layout: Layout,
    service: Service,
    name: str,
    credentials: S3Credentials,
    members: Members,
    previous: Member | None,
) -> dict[str, str]:
    """HYPER_<SERVICE>__... for one process."""
    settings = {
        "READY_FILE": str(layout.home.ready_file(name)),
        "LISTEN": f"{LOOPBACK}:{layout.port if service.role == 'scheduler' else 0}",
        "METRICS_LISTEN": f"{LOOPBACK}:0",
        "LOG_FORMAT": "console",
        "INSTANCE": name,
    }
    if previous is not None:
        settings["LISTEN"] = previous.address or settings["LISTEN"]
        settings["METRICS_LISTEN"] = previous.metrics_address or settings["METRICS_LISTEN"]
    environment = {}
    if service.role == WORKER:
        settings["SLOTS"] = str(layout.slots)
        settings["WORKDIR"] = str(layout.home.root / "workers" / name)
        environment.update(_thread_shares(layout.workers * layout.slots))
        # "python" in a task's command is the one that runs the cluster, activated or not.
        own = str(Path(sys.executable).parent)
        environment["PATH"] = os.pathsep.join([own, os.environ.get("PATH", os.defpath)])
    else:
        settings["ETCD_ENDPOINTS"] = json.dumps([layout.etcd_ports.endpoint])
    if service.role in _NEED_S3:
        settings.update(
            {
                "S3__ENDPOINT": layout.weed_ports.endpoint,
                "S3__BUCKET": BUCKET,
                "S3__REGION": REGION,
                "S3__ACCESS_KEY": credentials.access_key,
                "S3__SECRET_KEY": credentials.secret_key,
            }
        )
    if service.role == "scheduler":
        settings["SECRETS_KEY"] = load_or_make_secrets_key(layout.home)
        settings |= _placement_settings(layout)
    scheduler = members.get("scheduler")
    if scheduler is not None and service.role != "scheduler":
        settings["SCHEDULER_ENDPOINT"] = scheduler.address
        environment["HYPER_ENDPOINT"] = scheduler.address
    environment.update({f"HYPER_{service.variable}__{k}": v for k, v in settings.items()})
    return environment


def _placement_settings(layout: Layout) -> dict[str, str]:
    """Where measurements are, and the catalogue of offers if this home has one."""
    found = {"PLACEMENT__CLUSTER": layout.etcd_name}
    if layout.prometheus_port:
        found["PLACEMENT__PROMETHEUS"] = f"http://{LOOPBACK}:{layout.prometheus_port}"
    offers = layout.home.root / OFFERS_FILE
    if offers.exists():
        folder = str(layout.home.root / "agents")
        found["PLACEMENT__OFFERS"] = str(offers)
        found["PLACEMENT__OPTIONS"] = json.dumps({"process": {"folder": folder}})
    return found


def _thread_shares(tasks: int) -> dict[str, str]:
    """Each task's numeric libraries get their share of the cores, unless the caller has set it."""
    share = str(max(1, len(os.sched_getaffinity(0)) // tasks))
    return {name: os.environ.get(name, share) for name in _THREAD_VARIABLES}


def _read_ready_file(path: Path, pid: int) -> Ready | None:
    """The addresses in a ready file that process `pid` wrote."""
    try:
        facts = json.loads(path.read_text())
        return (facts["address"], facts["metrics_address"]) if facts["pid"] == pid else None
    except (OSError, ValueError, KeyError):
        return None
