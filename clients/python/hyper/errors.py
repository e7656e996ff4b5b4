"""One exception tree for the SDK, the CLI and the services.

A service raises one of these; `hyper_servicekit.server` turns it into a gRPC status with
`google.rpc.ErrorInfo`; the client turns that back into the same class (`hyper._wire_errors`).

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

from collections.abc import Mapping
from typing import ClassVar

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

    code: ClassVar[str] = "UNKNOWN"
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

    code = "INVALID_ARGUMENT"
    exit_code = 2
    default_reason = "INVALID_REQUEST"


class NotFoundError(HyperError):
    """The named thing does not exist."""

    code = "NOT_FOUND"
    exit_code = 2
    default_reason = "NOT_FOUND"


class AlreadyExistsError(HyperError):
    """The named thing exists already."""

    code = "ALREADY_EXISTS"
    exit_code = 2
    default_reason = "ALREADY_EXISTS"


class FailedPreconditionError(HyperError):
    """The state must change first."""

    code = "FAILED_PRECONDITION"
    exit_code = 2
    default_reason = "SESSION_CLOSED"


class UnauthenticatedError(HyperError):
    """No valid token came with the call."""

    code = "UNAUTHENTICATED"
    exit_code = 2
    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(HyperError):
    """The token does not allow it."""

    code = "PERMISSION_DENIED"
    exit_code = 2
    default_reason = "PERMISSION_DENIED"


class ConflictError(HyperError):
    """Lost a race; read again, then retry."""

    code = "ABORTED"
    default_reason = "CONFLICT"


class ResourceExhaustedError(HyperError):
    """A quota or queue is full; `retry_after_s` says when to come back."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = "QUEUE_FULL"


class DataLossError(HyperError):
    """Stored bytes do not match their checksum."""

    code = "DATA_LOSS"
    default_reason = "CHECKSUM_MISMATCH"


class CancelledError(HyperError):
    """The call was cancelled."""

    code = "CANCELLED"


class InternalError(HyperError):
    """A bug on the other side; its log has the stack."""

    code = "INTERNAL"


class DeadlineError(HyperError):
    """No answer in time."""

    code = "DEADLINE_EXCEEDED"
    exit_code = 3
    default_reason = "SERVICE_UNREACHABLE"


class UnavailableError(HyperError):
    """Transient: a service cannot be reached; safe to retry with the same request_id."""

    code = "UNAVAILABLE"
    exit_code = 3
    default_reason = "SERVICE_UNREACHABLE"


class NoClusterError(UnavailableError):
    """There is no cluster to call: nothing that waiting would change."""


class WorkFailedError(HyperError):
    """A workflow ended without success."""

    code = "UNKNOWN"
    exit_code = 1


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
