"""`hyper up` and `hyper restart`: start a cluster on this machine, or one process of it again."""

from __future__ import annotations

import errno
import platform
import secrets
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hyper.cluster import plan
from hyper.cluster.down import sweep
from hyper.cluster.home import (
    Home,
    disk_full,
    load_made_by,
    load_or_make_credentials,
    record_made_by,
    write_private,
)
from hyper.cluster.launch import Launcher, Say
from hyper.cluster.ports import HeldPorts, is_free
from hyper.cluster.processes import marked, stop
from hyper.cluster.programs import (
    EtcdPorts,
    WeedPorts,
    find_etcd,
    find_prometheus,
    find_weed,
    sockets_fit,
    weed_config,
)
from hyper.cluster.signals import signals_ignored, signals_interrupt
from hyper.cluster.state import MARK, Cluster, Layout, load
from hyper.errors import FailedPreconditionError, NotFoundError, UnavailableError


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What a user chooses.

    Args:
        workers: how many worker processes.
        slots: tasks that one worker runs at once.
        port: of the scheduler's gRPC; 0: any free one.
    """

    workers: int = 2
    slots: int = 1
    port: int = 0


def up(home: Home, options: UpOptions, say: Say) -> Cluster:
    """Start a cluster and return once all of it serves; it goes on when this process ends.

    Raises:
        HyperError: it cannot be started; whatever had been started is stopped again.
    """
    if platform.system() != "Linux":
        raise FailedPreconditionError("`hyper up` needs Linux: use one, or set HYPER_ENDPOINT")
    home.make()
    with signals_interrupt(), home.locked():
        _refuse_running(home)
        home.check_room()
        if options.port and not is_free(options.port):
            raise FailedPreconditionError(
                f"port {options.port} is in use: choose another with --port, or leave it out"
            )
        try:
            return _start(home, options, say)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise disk_full(home.root) from error
            raise


def _start(home: Home, options: UpOptions, say: Say) -> Cluster:
    made_by = load_made_by(home)
    etcd = (
        find_etcd() if made_by is None else find_etcd(made_by.series, made_by.source, made_by.path)
    )
    weed, prometheus = find_weed(), find_prometheus()
    if etcd.may_lose_data:
        say(
            f"warning: etcd {etcd.version} can lose acknowledged data when it is killed; "
            "install another, such as Debian's etcd-server, before the first `hyper up`"
        )
    credentials = load_or_make_credentials(home)
    write_private(home.s3_config, weed_config(credentials))
    with ExitStack() as stack:
        held = [stack.enter_context(HeldPorts()) for _ in range(3)]
        layout = Layout(
            home=home,
            etcd_version=etcd.version,
            etcd_source=etcd.source,
            etcd_path=etcd.path,
            etcd_name=made_by.name if made_by else f"hyper-{secrets.token_hex(8)}",
            etcd_ports=EtcdPorts.hold(held[0]),
            weed_ports=WeedPorts.hold(held[1]),
            sockets=_sockets(home),
            workers=options.workers,
            slots=options.slots,
            port=options.port,
            prometheus_port=held[2].one() if prometheus is not None else 0,
        )
        specs = [
            plan.etcd_spec(layout, etcd, held[0]),
            plan.s3_spec(layout, weed, credentials, held[1]),
            *plan.service_specs(layout, credentials),
        ]
        if prometheus is not None:
            specs.append(plan.prometheus_spec(layout, prometheus, held[2]))
        record_made_by(home, etcd, layout.etcd_name)
        launcher = Launcher(home, say)
        try:
            launcher.run(specs)
            started = launcher.members  # in the order of readiness; shown in that of the plan
            cluster = Cluster(layout, {s.name: started[s.name] for s in specs if s.name in started})
            cluster.save()
        except BaseException:
            with signals_ignored():
                say("stopping what was started")
                launcher.stop_all()
                sweep(home)
                home.cluster_file.unlink(missing_ok=True)
            raise
    return cluster


def restart(home: Home, name: str, say: Say) -> Cluster:
    """Start one process of a running cluster again, on its addresses, dead or alive.

    Raises:
        NotFoundError: there is no such process.
        HyperError: it does not start.
    """
    cluster = load(home)
    if cluster is None:
        raise UnavailableError(f"no cluster is running in {home.root}: start one with `hyper up`")
    member = cluster.members.get(name)
    if member is None:
        raise NotFoundError(
            f"no process is called {name!r}: choose from {', '.join(cluster.members)}"
        )
    with signals_interrupt(), home.locked():
        home.check_room()
        spec = _spec_again(cluster, name)  # first, for it may be impossible
        if member.process.alive:
            say(f"stopping {name}")
        stop(member.process, grace_s=plan.grace_s(member.role))
        others = {key: value for key, value in cluster.members.items() if key != name}
        launcher = Launcher(home, say, others)
        try:
            launcher.run([spec])
        except BaseException:
            with signals_ignored():
                launcher.stop_all()
            raise
        cluster = cluster.with_member(launcher.members[name])
        cluster.save()
    return cluster


def _spec_again(cluster: Cluster, name: str) -> plan.Spec:
    """How the process `name` is started a second time."""
    layout, member = cluster.layout, cluster.members[name]
    credentials = load_or_make_credentials(layout.home)
    if member.role == plan.ETCD:
        series = ".".join(layout.etcd_version.split(".")[:2])
        return plan.etcd_spec(layout, find_etcd(series, layout.etcd_source, layout.etcd_path))
    if member.role == plan.S3:
        return plan.s3_spec(layout, find_weed(), credentials)
    if member.role == plan.PROMETHEUS:
        prometheus = find_prometheus()
        if prometheus is None:
            raise NotFoundError("prometheus is no longer installed")
        return plan.prometheus_spec(layout, prometheus)
    service = next(s for s in plan.SERVICES if s.role == member.role)
    return plan.service_spec(layout, service, name, credentials, previous=member)


def _refuse_running(home: Home) -> None:
    """Refuse a second start; a cluster that is wholly dead is forgotten."""
    try:
        cluster = load(home)
    except FailedPreconditionError:
        cluster = None  # unreadable: the marks tell whether anything runs
    alive = [m.name for m in cluster.members.values() if m.process.alive] if cluster else []
    if alive:
        raise FailedPreconditionError(
            f"a cluster is already running in {home.root}: use it, stop it with `hyper down`, "
            "or choose another HYPER_HOME",
            reason="ALREADY_EXISTS",
        )
    leftovers = [str(process.pid) for process in marked(MARK, str(home.root))]
    if leftovers:
        raise FailedPreconditionError(
            f"processes of an earlier cluster in {home.root} are still running "
            f"(pid {', '.join(leftovers)}): run `hyper down` first",
            reason="ALREADY_EXISTS",
        )
    home.cluster_file.unlink(missing_ok=True)


def _sockets(home: Home) -> Path:
    """A private folder for Unix sockets, whose paths must be short."""
    if sockets_fit(home.run):
        return home.run
    return Path(tempfile.mkdtemp(prefix="hyper-"))
