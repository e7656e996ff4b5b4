"""One exception tree for the SDK, the CLI and the services.

A service raises one of these; `hyper_servicekit.server` turns it into a gRPC status with
`google.rpc.ErrorInfo`; the client turns that back into the same class.

==================== ======================== =========
gRPC code            class                    exit code
==================== ======================== =========
INVALID_ARGUMENT     InvalidArgumentError     2
NOT_FOUND            NotFoundError            2
ALREADY_EXISTS       AlreadyExistsError       2
FAILED_PRECONDITION  FailedPreconditionError  2
UNAUTHENTICATED      UnauthenticatedError     2
PERMISSION_DENIED    PermissionDeniedError    2
ABORTED              ConflictError            1
RESOURCE_EXHAUSTED   ResourceExhaustedError   1
DATA_LOSS            DataLossError            1
CANCELLED            CancelledError           1
INTERNAL             InternalError            1
DEADLINE_EXCEEDED    DeadlineError            3
UNAVAILABLE          UnavailableError         3
==================== ======================== =========

A full disk, and etcd or S3 that a service cannot reach, end a command with 2 whatever the class: it
is the cluster's set-up that must change first.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from hyperapi.common.v1 import errors_pb2

DOMAIN = "hyper"

# A status travels in trailing metadata, where peers accept 8 KiB; characters beyond ASCII are
# sent three times as long.
_MAX_MESSAGE_BYTES = 1024
_MAX_VALUE_BYTES = 128
_MAX_METADATA = 8


# What the operator of the cluster must put right first, as with bad input.
_SETUP_REASONS = frozenset({"DISK_FULL", "ETCD_UNREACHABLE", "S3_UNREACHABLE"})


class HyperError(Exception):
    """Anything that Hyper reports; `str()` is one sentence that says what to do.

    Args:
        message: what happened and what to do about it.
        reason: a name of `hyperapi.common.v1.Reason` without `REASON_`.
        metadata: facts for programs ("line", "key", "file", ...).
        field: the request's field at fault, if one is.
        retry_after_s: when it makes sense to try again.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    exit_code: int = 1
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        if self.reason in _SETUP_REASONS:
            self.exit_code = 2
        self.metadata = dict(metadata or {})
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidArgumentError(HyperError):
    """Wrong whatever the state; never retried."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    exit_code = 2
    default_reason = "INVALID_REQUEST"


class NotFoundError(HyperError):
    """The named thing does not exist."""

    code = grpc.StatusCode.NOT_FOUND
    exit_code = 2
    default_reason = "NOT_FOUND"


class AlreadyExistsError(HyperError):
    """The named thing exists already."""

    code = grpc.StatusCode.ALREADY_EXISTS
    exit_code = 2
    default_reason = "ALREADY_EXISTS"


class FailedPreconditionError(HyperError):
    """The state must change first."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    exit_code = 2
    default_reason = "SESSION_CLOSED"


class UnauthenticatedError(HyperError):
    """No valid token came with the call."""

    code = grpc.StatusCode.UNAUTHENTICATED
    exit_code = 2
    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(HyperError):
    """The token does not allow it."""

    code = grpc.StatusCode.PERMISSION_DENIED
    exit_code = 2
    default_reason = "PERMISSION_DENIED"


class ConflictError(HyperError):
    """Lost a race; read again, then retry."""

    code = grpc.StatusCode.ABORTED
    default_reason = "CONFLICT"


class ResourceExhaustedError(HyperError):
    """A quota or queue is full; `retry_after_s` says when to come back."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "QUEUE_FULL"


class DataLossError(HyperError):
    """Stored bytes do not match their checksum."""

    code = grpc.StatusCode.DATA_LOSS
    default_reason = "CHECKSUM_MISMATCH"


class CancelledError(HyperError):
    """The call was cancelled."""

    code = grpc.StatusCode.CANCELLED


class InternalError(HyperError):
    """A bug on the other side; its log has the stack."""

    code = grpc.StatusCode.INTERNAL


class DeadlineError(HyperError):
    """No answer in time."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    exit_code = 3
    default_reason = "SERVICE_UNREACHABLE"


class UnavailableError(HyperError):
    """Transient: a service cannot be reached; safe to retry with the same request_id."""

    code = grpc.StatusCode.UNAVAILABLE
    exit_code = 3
    default_reason = "SERVICE_UNREACHABLE"


class NoClusterError(UnavailableError):
    """There is no cluster to call: nothing that waiting would change."""


class WorkFailedError(HyperError):
    """A workflow ended without success."""

    code = grpc.StatusCode.UNKNOWN
    exit_code = 1


_CLASSES: dict[grpc.StatusCode, type[HyperError]] = {
    kind.code: kind
    for kind in (
        InvalidArgumentError, NotFoundError, AlreadyExistsError, FailedPreconditionError,
        UnauthenticatedError, PermissionDeniedError, ConflictError, ResourceExhaustedError,
        DataLossError, CancelledError, InternalError, DeadlineError, UnavailableError,
    )
}  # fmt: skip

CLASS_OF_REASON: dict[str, type[HyperError]] = {
    "INVALID_REQUEST": InvalidArgumentError,
    "INVALID_RECIPE": InvalidArgumentError,
    "INVALID_NAME": InvalidArgumentError,
    "INVALID_IMAGE": InvalidArgumentError,
    "INVALID_MODEL": InvalidArgumentError,
    "SHAPE_MISMATCH": InvalidArgumentError,
    "NOT_FOUND": NotFoundError,
    "ALREADY_EXISTS": AlreadyExistsError,
    "STALE_ATTEMPT": FailedPreconditionError,
    "SESSION_CLOSED": FailedPreconditionError,
    "WORKFLOW_FINISHED": FailedPreconditionError,
    "NOT_LEADER": UnavailableError,
    "EMPTY_DATASET": FailedPreconditionError,
    "CONFLICT": ConflictError,
    "QUEUE_FULL": ResourceExhaustedError,
    "QUOTA_EXCEEDED": ResourceExhaustedError,
    "DISK_FULL": ResourceExhaustedError,
    "ETCD_UNREACHABLE": UnavailableError,
    "S3_UNREACHABLE": UnavailableError,
    "SERVICE_UNREACHABLE": UnavailableError,
    "DRAINING": UnavailableError,
    "CHECKSUM_MISMATCH": DataLossError,
    "INTERNAL": InternalError,
    "UNAUTHENTICATED": UnauthenticatedError,
    "PERMISSION_DENIED": PermissionDeniedError,
}
"""The class, and so the gRPC code, with which each reason travels."""


def _cut(text: str, limit_bytes: int) -> str:
    """`text` as valid UTF-8 of at most `limit_bytes`, its middle left out if need be."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit_bytes:
        return data.decode()
    half = limit_bytes // 2 - 3
    return f"{data[:half].decode(errors='ignore')} ... {data[-half:].decode(errors='ignore')}"


def to_status(error: HyperError) -> status_pb2.Status:
    """The rich gRPC status that carries `error` over the wire."""
    errors_pb2.Reason.Value(f"REASON_{error.reason}")  # a reason outside the enum is a bug
    message = _cut(error.message, _MAX_MESSAGE_BYTES)
    metadata = {
        key: _cut(value, _MAX_VALUE_BYTES)
        for key, value in itertools.islice(error.metadata.items(), _MAX_METADATA)
    }
    details: list[any_pb2.Any] = []

    def add(message: Message) -> None:
        packed = any_pb2.Any()
        packed.Pack(message)
        details.append(packed)

    add(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(error.field, _MAX_VALUE_BYTES), description=_cut(message, _MAX_VALUE_BYTES)
        )
        add(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=error.code.value[0], message=message, details=details)


def from_rpc_error(error: grpc.RpcError, *, peer: str | None = None) -> HyperError:
    """The exception that a failed call stands for; `peer` names the service for people."""
    code = error.code()
    kind = _CLASSES.get(code, InternalError)
    message = error.details() or code.name
    status = None
    try:
        status = rpc_status.from_call(error)
    except ValueError as mismatch:  # details of another protocol: keep the plain message
        message = f"{message} ({mismatch})"
    reason: str | None = None
    metadata: dict[str, str] = {}
    field: str | None = None
    retry_after_s: float | None = None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    if reason is None and code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    ):
        message = f"cannot reach {peer or 'the service'}: {message}; see `hyper status`"
    return kind(message, reason=reason, metadata=metadata, field=field, retry_after_s=retry_after_s)
