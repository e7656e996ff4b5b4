"""TLS of a service's ports, where certificates are set; `hyper certs` makes them.

Whoever calls checks that the certificate is the cluster's: signed by its authority, for the name
that all services share (`hyper._tls.SERVER_NAME`), whatever address was dialled.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
from pydantic import BaseModel, ConfigDict, Field

from hyper._tls import trusting
from hyper.errors import FailedPreconditionError


class TlsSettings(BaseModel):
    """Certificates, as PEM files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cert: Path = Field(description="this service's certificate, and those between it and the CA")
    key: Path = Field(description="its private key")
    client_ca: Path | None = Field(
        default=None, description="callers must show a certificate that this authority has signed"
    )


class EtcdTlsSettings(BaseModel):
    """How etcd is spoken to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca: Path = Field(description="the authority that has signed etcd's certificate")
    cert: Path | None = Field(default=None, description="ours, where etcd wants one")
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel to etcd."""
        return grpc.ssl_channel_credentials(
            read(self.ca),
            None if self.key is None else read(self.key),
            None if self.cert is None else read(self.cert),
        )


def read(path: Path) -> bytes:
    """The bytes of a PEM file.

    Raises:
        FailedPreconditionError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise FailedPreconditionError(
            f"the certificate or key {path} cannot be read ({error.strerror})"
        ) from error


def client_context(authority: Path | None) -> ssl.SSLContext | None:
    """How https is spoken where an authority beside the machine's own counts; None: by default.

    Raises:
        FailedPreconditionError: the file is no certificate.
    """
    if authority is None:
        return None
    try:
        return trusting(authority)
    except OSError as error:  # SSLError is one
        raise FailedPreconditionError(
            f"the authority {authority} cannot be used ({error})"
        ) from error


def server_credentials(settings: TlsSettings) -> grpc.ServerCredentials:
    """For the gRPC port."""
    return grpc.ssl_server_credentials(
        [(read(settings.key), read(settings.cert))],
        root_certificates=None if settings.client_ca is None else read(settings.client_ca),
        require_client_auth=settings.client_ca is not None,
    )


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """For the port of the metrics; who scrapes needs no certificate there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.cert, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise FailedPreconditionError(
            f"{settings.cert} and {settings.key} are no certificate and its key ({error})"
        ) from error
    return context
