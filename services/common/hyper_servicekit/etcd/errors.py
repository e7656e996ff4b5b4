"""What etcd's refusals mean here."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio

from hyper.errors import (
    ConflictError,
    FailedPreconditionError,
    HyperError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)

_AUTH = ("user name is empty", "authentication", "auth token", "user name not found")


class LeaseLostError(ConflictError):
    """The lease of a write has expired or was revoked; nothing was written."""


class CompactedError(UnavailableError):
    """The wanted revision is older than what etcd keeps; list again."""

    default_reason = "ETCD_UNREACHABLE"


def translate(
    error: grpc.aio.AioRpcError, endpoints: Sequence[str], *, write: bool = False
) -> HyperError:
    """The exception that a failed call stands for."""
    code, text = error.code(), error.details() or ""
    where = ", ".join(endpoints)
    match code:
        case (
            grpc.StatusCode.UNAVAILABLE
            | grpc.StatusCode.DEADLINE_EXCEEDED
            | grpc.StatusCode.CANCELLED
        ):
            unknown = "; the write may have happened, read back first" if write else ""
            return UnavailableError(
                f"etcd at {where} cannot be reached ({code.name}: {text or 'no detail'}){unknown}; "
                "check that it runs and that `etcd_endpoints` names it",
                reason="ETCD_UNREACHABLE",
                metadata={"endpoints": where},
            )
        case grpc.StatusCode.NOT_FOUND if "lease" in text:
            return LeaseLostError("the lease has expired; take a new one")
        case grpc.StatusCode.OUT_OF_RANGE if "compacted" in text:
            return CompactedError(f"etcd has compacted the wanted revision: {text}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "space" in text:
            return ResourceExhaustedError(
                f"etcd at {where} is out of space: compact and defragment it, or raise "
                "--quota-backend-bytes",
                reason="DISK_FULL",
                metadata={"endpoints": where},
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "too many requests" in text:
            return ResourceExhaustedError(f"etcd at {where} is overloaded", retry_after_s=1.0)
        case grpc.StatusCode.PERMISSION_DENIED:
            return FailedPreconditionError(
                f"etcd at {where} does not let us do this ({text}); check `etcd_user` and "
                "`etcd_password`, and grant that user readwrite on `etcd_prefix`"
            )
        case (
            grpc.StatusCode.UNAUTHENTICATED
            | grpc.StatusCode.INVALID_ARGUMENT
            | grpc.StatusCode.FAILED_PRECONDITION
        ) if any(said in text for said in _AUTH):
            return FailedPreconditionError(
                f"etcd at {where} does not let us in ({text}); check `etcd_user` and "
                "`etcd_password`, and that `etcdctl auth enable` was done if they are set"
            )
        case _:
            return InternalError(f"etcd at {where} refused a call: {code.name}: {text}")
