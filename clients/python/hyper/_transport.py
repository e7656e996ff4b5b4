"""Channels to services: load balancing, keepalive, bounded waits.

Retries are the client's (ADR 0006); the channel's own are off, since a streaming call that a dying
server never saw can be lost by them, deadline and all (ADR 0009). Deadlines come with each call.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio

from hyper import _fork_support, _tls
from hyper.errors import InvalidArgumentError

_fork_support.restore()
log = logging.getLogger("hyper")

UNARY_TIMEOUT_S = 30.0

_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
]


def target(addresses: Sequence[str]) -> str:
    """One gRPC target for several addresses of replicas ("host:port").

    gRPC takes a list of IP addresses alone, so that names are looked up here when there are
    several; those that nobody knows are left to the others.
    """
    if not addresses:
        raise ValueError("no address")
    if len(addresses) == 1:
        return addresses[0]
    known = [found for address in addresses if (found := _resolved(address)) is not None]
    return "ipv4:" + ",".join(known) if known else addresses[0]


def _resolved(address: str) -> str | None:
    host, _, port = address.rpartition(":")
    try:
        (*_, (number, *_)), *_ = socket.getaddrinfo(
            host, None, family=socket.AF_INET, type=socket.SOCK_STREAM
        )
    except OSError:
        return None
    return f"{number}:{port}"


def channel(addresses: Sequence[str]) -> grpc.Channel:
    """A blocking channel that spreads its calls over the replicas and shows our token.

    In a process that was forked from one that had made channels, the calls are made by a relay
    (`hyper._forked`).
    """
    if _forked:
        if _fork_support.came_too_late:
            log.warning(
                "gRPC was imported before hyper, which may end processes made by fork(), such as "
                "this one: import hyper first, or set GRPC_ENABLE_FORK_SUPPORT=0, or use spawn"
            )
        from hyper._forked import RelayChannel

        return RelayChannel(target(addresses))
    return grpc.intercept_channel(plain_channel(target(addresses)), _ShowToken())


def aio_channel(addresses: Sequence[str]) -> grpc.aio.Channel:
    """An asyncio channel to replicas; its calls must bear `call_metadata`."""
    secret = _tls.credentials()
    if secret is None:
        return grpc.aio.insecure_channel(target(addresses), options=OPTIONS)
    return grpc.aio.secure_channel(target(addresses), secret, options=_tls.with_name(OPTIONS))


def is_relayed() -> bool:
    """Whether this process was forked from one that had made channels, so that a relay calls."""
    return _forked


def plain_channel(to: str) -> grpc.Channel:
    """A blocking channel to a `target`, without a token."""
    global _used
    _used = True
    secret = _tls.credentials()
    if secret is None:
        made = grpc.insecure_channel(to, options=OPTIONS)
    else:
        made = grpc.secure_channel(to, secret, options=_tls.with_name(OPTIONS))
    _channels.add(made)
    return made


_used = False  # gRPC: by this process, or by one that it was forked from
_forked = False  # from one that had used gRPC
_channels: weakref.WeakSet[grpc.Channel] = weakref.WeakSet()
_inherited: list[grpc.Channel] = []  # kept: what frees a channel is gRPC too


def _after_fork() -> None:
    global _forked
    _forked = _used
    _inherited.extend(_channels)


os.register_at_fork(after_in_child=_after_fork)


def token() -> str:
    """What proves who we are: `HYPER_TOKEN`, or what `HYPER_TOKEN_FILE` holds now; "" for none.

    What `show_token` was given goes before both.

    Raises:
        InvalidArgumentError: the file cannot be read.
    """
    if _given_token:
        return _given_token
    given = os.environ.get("HYPER_TOKEN", "") or _kept.get("HYPER_TOKEN", "")
    path = os.environ.get("HYPER_TOKEN_FILE", "") or _kept.get("HYPER_TOKEN_FILE", "")
    if given or not path:
        return given
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise InvalidArgumentError(
            f"HYPER_TOKEN_FILE: {path} cannot be read ({error.strerror})"
        ) from error


_given_token = ""


def show_token(text: str) -> None:
    """Prove who we are with this one from now on; "": with what the environment says."""
    global _given_token
    _given_token = text


_kept: dict[str, str] = {}


def keep_token() -> None:
    """Take our token, or where it is, out of the environment: children shall not inherit it."""
    for name in ("HYPER_TOKEN", "HYPER_TOKEN_FILE"):
        if found := os.environ.pop(name, ""):
            _kept[name] = found


def token_metadata() -> tuple[tuple[str, str], ...]:
    """The token as a call carries it."""
    known = token()
    return (("authorization", f"Bearer {known}"),) if known else ()


def call_metadata() -> tuple[tuple[str, str], ...]:
    """What every call carries: the token, and the trace that it is a part of."""
    return (*token_metadata(), *_trace_metadata())


def _trace_metadata() -> tuple[tuple[str, str], ...]:
    """W3C trace context: of OpenTelemetry where the program uses it, else of the task, if any."""
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry import propagate

        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        if carrier:
            return tuple(carrier.items())
    parent = os.environ.get("TRACEPARENT", "")
    return (("traceparent", parent),) if _TRACEPARENT.match(parent) else ()


class _ShowToken(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the token, and the trace, to every call."""

    def _intercept(self, proceed: Any, details: Any, request: Any) -> Any:
        shown = call_metadata()
        if shown:
            metadata = (*(details.metadata or ()), *shown)
            details = _Details(
                details.method, details.timeout, metadata, details.credentials,
                details.wait_for_ready, details.compression,
            )  # fmt: skip
        return proceed(details, request)

    intercept_unary_unary: Any = _intercept
    intercept_unary_stream: Any = _intercept
    intercept_stream_unary: Any = _intercept
    intercept_stream_stream: Any = _intercept


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any
