"""Tokens that the scheduler makes on request and for machines; those of tasks: `task_tokens`."""

from __future__ import annotations

import re

from hyper.errors import InvalidArgumentError
from hyper.names import check_part
from hyper_scheduler.config import SchedulerSettings
from hyper_servicekit.tokens import ANY_TENANT, LIFETIME_MAX_S, Claims, Role, Signer
from hyperapi.scheduler.v1 import cluster_service_pb2 as cluster

_SUBJECT_MAX = 120
WORKER_S = 30 * 86_400.0  # a worker that stays connected has a newer one long before
_TOKEN_ID = re.compile(r"[0-9a-f]{16}\Z")


def signer_of(settings: SchedulerSettings) -> Signer | None:
    """The first of the keys; None where calls need no token.

    Raises:
        InvalidArgumentError: that one signs nothing.
    """
    for name, key in settings.auth_keys.items():
        try:
            return Signer(name, key.get_secret_value())
        except ValueError as error:
            setting = f"HYPER_SCHEDULER__AUTH_KEYS__{name.upper()}"
            raise InvalidArgumentError(f"{setting}: {error}") from error
    return None


def machine_token(signer: Signer | None, machine: str, now_s: float) -> str:
    """What lets in the agent of a machine that the scheduler has launched, and nothing more."""
    if signer is None:
        return ""
    return signer.sign(
        ANY_TENANT, subject=f"machine {machine}", expires_s=now_s + WORKER_S, role=Role.WORKER
    )


def worker_token(signer: Signer | None, joined_with: Claims | None, now_s: float) -> str:
    """What a worker shows once it has joined; "" for who is no worker, or needs none.

    It has the id of what the worker joined with, so that this is revoked with it.
    """
    if signer is None or joined_with is None or joined_with.role is not Role.WORKER:
        return ""
    return signer.sign(
        joined_with.tenant, subject=joined_with.subject, expires_s=now_s + WORKER_S,
        role=Role.WORKER, token_id=joined_with.id,
    )  # fmt: skip


def token_request(request: cluster.CreateTokenRequest) -> tuple[str, Role, float]:
    """Whom a token is for, in which role, for how many seconds."""
    prefix, _, tenant = request.parent.partition("/")
    if prefix != "tenants" or (tenant != ANY_TENANT and check_part(tenant, "tenant") != tenant):
        raise InvalidArgumentError("parent: write tenants/NAME, or tenants/*", field="parent")
    try:
        role = Role(request.role)
    except ValueError:
        raise InvalidArgumentError(
            f"role: {request.role[:40]!r} is none of {', '.join(Role)}", field="role"
        ) from None
    lifetime_s = request.lifetime.ToNanoseconds() / 1e9
    if not 0 < lifetime_s <= LIFETIME_MAX_S:
        raise InvalidArgumentError("lifetime: more than 0, at most 366 days", field="lifetime")
    if len(request.subject) > _SUBJECT_MAX:
        raise InvalidArgumentError(f"subject: at most {_SUBJECT_MAX} letters", field="subject")
    return tenant, role, lifetime_s


def token_to_revoke(request: cluster.RevokeTokenRequest) -> str:
    """The id of a token to refuse from now on."""
    if not _TOKEN_ID.fullmatch(request.id):
        raise InvalidArgumentError("id: that of a token, 16 hexadecimal digits", field="id")
    return request.id
