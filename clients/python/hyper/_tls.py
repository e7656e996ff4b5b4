"""TLS towards a cluster: its authority `HYPER_TLS_CA`; ours `HYPER_TLS_CERT`, `HYPER_TLS_KEY`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc

from hyper.errors import InvalidArgumentError

SERVER_NAME = "hyper"  # in the certificate of every service


def credentials() -> grpc.ChannelCredentials | None:
    """What channels are made with; None where TLS is not set.

    Raises:
        InvalidArgumentError: a file cannot be read.
    """
    ca = os.environ.get("HYPER_TLS_CA", "")
    if not ca:
        return None
    return grpc.ssl_channel_credentials(
        _read("HYPER_TLS_CA"), _read("HYPER_TLS_KEY"), _read("HYPER_TLS_CERT")
    )


def with_name(options: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Channel options with the name that the peer's certificate must bear."""
    return [*options, ("grpc.ssl_target_name_override", SERVER_NAME)]


def _read(variable: str) -> bytes | None:
    path = os.environ.get(variable, "")
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgumentError(
            f"{variable}: {path} cannot be read ({error.strerror})"
        ) from error
