"""Channels to services: load balancing, keepalive, bounded waits.

Retries are the client's (ADR 0006); the channel's own are off, since a streaming call that a dying
server never saw can be lost by them, deadline and all (ADR 0009). Deadlines come with each call.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from hyper.errors import InvalidArgumentError

UNARY_TIMEOUT_S = 30.0

_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})

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
    """A blocking channel that spreads its calls over the replicas and shows our token."""
    plain = grpc.insecure_channel(target(addresses), options=OPTIONS)
    return grpc.intercept_channel(plain, _ShowToken())


def token() -> str:
    """What proves who we are: `HYPER_TOKEN`, or what `HYPER_TOKEN_FILE` holds now; "" for none.

    Raises:
        InvalidArgumentError: the file cannot be read.
    """
    given = os.environ.get("HYPER_TOKEN", "")
    path = os.environ.get("HYPER_TOKEN_FILE", "")
    if given or not path:
        return given
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise InvalidArgumentError(
            f"HYPER_TOKEN_FILE: {path} cannot be read ({error.strerror})"
        ) from error


def token_metadata() -> tuple[tuple[str, str], ...]:
    """The token as a call carries it."""
    known = token()
    return (("authorization", f"Bearer {known}"),) if known else ()


class _ShowToken(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the token to every call."""

    def _intercept(self, proceed: Any, details: Any, request: Any) -> Any:
        shown = token_metadata()
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
