"""Channels to services: one retry policy, keepalive, bounded waits.

Retries of UNAVAILABLE come from the channel's service config; deadlines come with each call.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

UNARY_TIMEOUT_S = 30.0

_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.enable_retries", 1),
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


# For callers that try again themselves, and want to hear of a refusal at once.
OPTIONS_WITHOUT_RETRIES = [
    *((name, value) for name, value in OPTIONS if name != "grpc.enable_retries"),
    ("grpc.enable_retries", 0),
]


def channel(addresses: Sequence[str], *, retries: bool = True) -> grpc.Channel:
    """A blocking channel that spreads its calls over the replicas."""
    options = OPTIONS if retries else OPTIONS_WITHOUT_RETRIES
    return grpc.insecure_channel(target(addresses), options=options)


def aio_channel(addresses: Sequence[str]) -> grpc.aio.Channel:
    """The same for asyncio."""
    return grpc.aio.insecure_channel(target(addresses), options=OPTIONS)
