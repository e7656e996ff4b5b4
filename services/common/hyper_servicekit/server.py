"""Running a service, from settings to a clean end.

Order: logs, metrics, the parts (stores, loops), gRPC server, announce, health SERVING. On SIGTERM
or SIGINT: health NOT_SERVING, withdraw, drain, stop, then the parts close in reverse order.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from hyper.errors import HyperError, InvalidArgumentError
from hyper_servicekit import failpoints
from hyper_servicekit.admission import Admission
from hyper_servicekit.authorize import Authorizer
from hyper_servicekit.config import ServiceSettings, is_loopback, split_address
from hyper_servicekit.interceptor import CallInterceptor
from hyper_servicekit.logs import configure_logs, get_logger
from hyper_servicekit.metrics import MetricsServer, Pages
from hyper_servicekit.owned import owned
from hyper_servicekit.reflecting import enable_reflection
from hyper_servicekit.tls import server_context, server_credentials
from hyper_servicekit.tracing import start_tracing, stop_tracing

log = get_logger(__name__)
_NEVER = 1 << 30  # collections of the middle generation


@dataclass(frozen=True, slots=True)
class Served:
    """One gRPC service of this process.

    Args:
        full_name: e.g. "hyperapi.scheduler.v1.WorkflowService".
        add: the generated `add_...Servicer_to_server`.
        servicer: its implementation.
    """

    full_name: str
    add: Callable[[Any, Any], None]
    servicer: Any


@dataclass(slots=True)
class Running:
    """What `build` is told about the process it is part of.

    Enter async context managers on `stack`; they close after the server has drained.
    Set `stop` to end the service (a loop cannot go on, say), with the reason in `failure`.
    A stream that has no end of its own should end when `stop` is set: draining waits for calls in
    flight, at most `drain_grace_s`. `address` is known once the server is bound: empty inside
    `build`, set when `on_bound` runs; it stays empty where `build` returns None. `pages` are served
    beside the metrics.
    """

    service: str
    instance: str
    stack: AsyncExitStack
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    address: str = ""
    metrics_address: str = ""
    etcd_prefix: str = "/hyper"
    failure: str | None = None
    pages: Pages | None = None
    revoked: set[str] = field(default_factory=set)  # ids of tokens; see `hyper_servicekit.revoked`
    on_bound: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    on_drain: list[Callable[[], Awaitable[None]]] = field(default_factory=list)


# None: the process serves no gRPC; it has metrics, the ready file and the clean end all the same.
Build = Callable[[Running], Awaitable[Sequence[Served] | None]]


def run_service(
    service: str, settings: ServiceSettings, build: Build, *, collect_every_s: float | None = None
) -> int:
    """Serve until a signal or `Running.stop`; returns the process's exit status.

    Args:
        service: its name.
        settings: what every service is told.
        build: makes its parts.
        collect_every_s: cyclic garbage among old objects is looked for only so often, where a walk
            over millions of them (streams of thousands of workers) stops all calls for a second.

    What the world did wrong is one line on stderr (status 2 or 3, see `hyper.errors`); what we
    did wrong is logged with its stack (status 1).
    """
    instance = settings.instance or f"{socket.gethostname()}-{os.getpid()}"
    configure_logs(service, instance, form=settings.log_format, level=settings.log_level)
    try:
        return asyncio.run(_serve(service, instance, settings, build, collect_every_s))
    except Exception as error:  # the last stop of every error of this process
        cause = only_cause(error)
        match cause:
            case HyperError():
                status = cause.exit_code
            case OSError():
                status = 3
            case _:
                log.error("service failed", exc_info=error)
                status = 1
        print(f"error: {service}: {cause}", file=sys.stderr)
        return status


def only_cause(error: BaseException) -> BaseException:
    """The one error inside groups of one, as task groups wrap it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _serve(
    service: str,
    instance: str,
    settings: ServiceSettings,
    build: Build,
    collect_every_s: float | None,
) -> int:
    if settings.ready_file is not None:
        settings.ready_file.unlink(missing_ok=True)
    async with AsyncExitStack() as stack:
        if settings.traces_endpoint is not None:
            start_tracing(settings.traces_endpoint, service, instance)
            stack.push_async_callback(asyncio.to_thread, stop_tracing)
        running = Running(service, instance, stack, etcd_prefix=settings.etcd_prefix)
        serving = False
        metrics = MetricsServer(
            settings.metrics_listen,
            lambda: serving,
            None if settings.tls is None else server_context(settings.tls),
        )
        metrics.start()
        stack.callback(metrics.stop)
        running.metrics_address = dialable(metrics.address, None)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.stop.set)
            stack.callback(loop.remove_signal_handler, number)

        served = await build(running)
        metrics.pages = running.pages
        failpoints.check_armed()
        checker = None if served is None else await _start_grpc(running, settings, served)
        for hook in running.on_bound:
            await hook()
        if checker is not None and served is not None:
            for name in [*(part.full_name for part in served), ""]:
                await checker.set(name, health_pb2.HealthCheckResponse.SERVING)
        serving = True
        gc.collect()
        gc.freeze()  # what was imported stays: walking it would stop all calls for 50 ms each time
        if collect_every_s is not None:
            gc.set_threshold(*gc.get_threshold()[:2], _NEVER)
            await stack.enter_async_context(owned(_collect(collect_every_s), "garbage"))
        _write_ready_file(settings.ready_file, running)
        log.info("serving", address=running.address, metrics=running.metrics_address)

        await running.stop.wait()
        serving = False
        log.info("draining", reason=running.failure or "asked to stop")
        if checker is not None:
            await checker.enter_graceful_shutdown()
        await _drain(running, settings.drain_grace_s)
    log.info("stopped")
    return 0 if running.failure is None else 1


async def _collect(every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        gc.collect()


async def _start_grpc(
    running: Running, settings: ServiceSettings, served: Sequence[Served]
) -> health.aio.HealthServicer:
    """Bind and start the gRPC server; it stops with the stack. Returns its health, not yet set."""
    server = grpc.aio.server(
        interceptors=[
            CallInterceptor(
                _authorizer(settings, running.revoked),
                Admission(settings.max_concurrent_rpcs, settings.calls_per_s),
            )
        ],
        # above our own bound, whose refusals say when to try again
        maximum_concurrent_rpcs=2 * settings.max_concurrent_rpcs + 100,
        options=[
            ("grpc.so_reuseport", 0),  # a port in use is an error, not a second listener
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    checker = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    for part in served:
        part.add(part.servicer, server)
    names = [part.full_name for part in served]
    enable_reflection([*names, health.SERVICE_NAME], server)
    running.address = _bind(server, settings)
    await server.start()
    running.stack.push_async_callback(server.stop, settings.drain_grace_s)
    return checker


def _authorizer(settings: ServiceSettings, revoked: set[str]) -> Authorizer | None:
    """Who may call what; None in the single-user mode, where no keys are set.

    Raises:
        InvalidArgumentError: no keys are set, and others than this machine could call.
    """
    if not settings.auth_keys:
        if is_loopback(split_address(settings.listen)[0]):
            return None
        prefix = settings.model_config.get("env_prefix", "")
        if not settings.allow_anyone:
            raise InvalidArgumentError(
                f"whoever reaches {settings.listen} could do everything: no token is asked for. "
                f"Set {prefix}AUTH_KEYS__K1 to a key (`openssl rand -hex 32`), or {prefix}LISTEN "
                f"to 127.0.0.1, or {prefix}ALLOW_ANYONE=true if that is wanted"
            )
        log.warning("anyone who reaches this service may do everything", listen=settings.listen)
        return None
    keys = {name: key.get_secret_value() for name, key in settings.auth_keys.items()}
    return Authorizer(keys, revoked)


async def _drain(running: Running, grace_s: float) -> None:
    """Run the drain hooks, each in bounded time; a failing one does not stop the others."""
    for hook in running.on_drain:
        try:
            async with asyncio.timeout(grace_s):
                await hook()
        except (HyperError, OSError, TimeoutError) as error:
            log.warning("drain hook failed", error=str(error) or type(error).__name__)


def _bind(server: grpc.aio.Server, settings: ServiceSettings) -> str:
    """Bind the listening address; returns what others dial."""
    try:
        if settings.tls is None:
            port = server.add_insecure_port(settings.listen)
        else:
            port = server.add_secure_port(settings.listen, server_credentials(settings.tls))
    except RuntimeError as error:
        raise OSError(
            f"cannot listen on {settings.listen}: the port is in use or the address is not this "
            "machine's; choose another `listen` (port 0 takes any free one)"
        ) from error
    host = settings.listen.rpartition(":")[0]
    return dialable(f"{host}:{port}", settings.advertise)


def dialable(bound: str, advertise: str | None) -> str:
    """The address that others dial: `advertise`, else what is bound, a wildcard by `own_host`."""
    host, port = split_address(bound)
    if advertise is not None:
        name, advertised = split_address(advertise)
        return f"{name}:{advertised or port}"
    if host in ("", "0.0.0.0", "::"):
        return f"{own_host()}:{port}"
    return bound


def own_host() -> str:
    """This machine's address on the network that leads elsewhere, else its name.

    Names of containers and pods are known to few of those who dial them.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737; nothing is sent
        except OSError:  # no such network
            return socket.gethostname()
        host: str = probe.getsockname()[0]
        return host


def _write_ready_file(path: Path | None, running: Running) -> None:
    """Tell whoever started this process where it listens; complete or not there at all."""
    if path is None:
        return
    facts = {
        "service": running.service,
        "instance": running.instance,
        "pid": os.getpid(),
        "address": running.address,
        "metrics_address": running.metrics_address,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(facts))
    partial.replace(path)
