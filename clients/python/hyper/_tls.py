"""TLS towards a cluster: its authority `HYPER_TLS_CA`; ours `HYPER_TLS_CERT`, `HYPER_TLS_KEY`.

`HYPER_S3_CA` is the authority of its S3 server, where that is none that the machine knows.
"""

from __future__ import annotations

import os
import ssl
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


def s3_context() -> ssl.SSLContext | None:
    """How https URLs of S3 are checked; None: as this machine does by itself.

    Raises:
        InvalidArgumentError: the file cannot be read, or holds no certificate.
    """
    path = os.environ.get("HYPER_S3_CA", "")
    if not path:
        return None
    try:
        return trusting(Path(path))
    except OSError as error:  # SSLError is one
        raise InvalidArgumentError(f"HYPER_S3_CA: {path} cannot be used ({error})") from error


def trusting(authority: Path) -> ssl.SSLContext:
    """What trusts the authorities of this machine, and this one.

    Raises:
        OSError: the file cannot be read, or holds no certificate.
    """
    context = ssl.create_default_context()
    context.load_verify_locations(authority)
    return context


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
