"""Errors as they travel: a gRPC status with `google.rpc` details, and back."""

from __future__ import annotations

import itertools

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from hyper.errors import (
    AlreadyExistsError,
    CancelledError,
    ConflictError,
    DataLossError,
    DeadlineError,
    FailedPreconditionError,
    HyperError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from hyperapi.common.v1 import errors_pb2

DOMAIN = "hyper"

# A status travels in trailing metadata, where peers accept 8 KiB; characters beyond ASCII are
# sent three times as long.
_MAX_MESSAGE_BYTES = 1024
_MAX_VALUE_BYTES = 128
_MAX_METADATA = 8

_CLASSES: dict[str, type[HyperError]] = {
    kind.code: kind
    for kind in (
        InvalidArgumentError, NotFoundError, AlreadyExistsError, FailedPreconditionError,
        UnauthenticatedError, PermissionDeniedError, ConflictError, ResourceExhaustedError,
        DataLossError, CancelledError, InternalError, DeadlineError, UnavailableError,
    )
}  # fmt: skip


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
    return status_pb2.Status(code=code_pb2.Code.Value(error.code), message=message, details=details)


def from_rpc_error(error: grpc.RpcError, *, peer: str | None = None) -> HyperError:
    """The exception that a failed call stands for; `peer` names the service for people."""
    code = error.code()
    kind = _CLASSES.get(code.name, InternalError)
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
