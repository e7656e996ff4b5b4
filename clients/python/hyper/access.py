"""Tokens of a cluster: made and revoked by those with the role admin."""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hyper.config import SCHEDULER
from hyper.errors import InvalidArgumentError
from hyperapi.scheduler.v1.cluster_service_pb2 import CreateTokenRequest, RevokeTokenRequest
from hyperapi.scheduler.v1.cluster_service_pb2_grpc import ClusterServiceStub

if TYPE_CHECKING:
    from hyper.client import Client


@dataclass(frozen=True, slots=True)
class Token:
    """A token that has just been made; it is stored nowhere.

    Args:
        text: what its bearer shows; secret.
        id: what revokes it; no secret.
        expires: when it is good no more.
    """

    text: str
    id: str
    expires: datetime


def create_token(
    client: Client, tenant: str, *, role: str, subject: str, lifetime_s: float
) -> Token:
    """A token for `tenant` ("*": all), with the role admin, user, worker or service.

    Raises:
        PermissionDeniedError: the caller is no admin, or not of that tenant.
    """
    request = CreateTokenRequest(parent=f"tenants/{tenant}", role=role, subject=subject)
    request.lifetime.FromNanoseconds(int(lifetime_s * 1e9))
    response = client.call(SCHEDULER, ClusterServiceStub, "CreateToken", request)
    expires = response.expire_time.ToDatetime(tzinfo=UTC)
    return Token(response.token, response.id, expires)


def token_id(text: str) -> str:
    """The id of a token, which is no secret; a text without dots is an id already.

    Raises:
        InvalidArgumentError: it is no token.
    """
    parts = text.split(".")
    if len(parts) == 1:
        return text
    try:
        padded = parts[2] + "=" * (-len(parts[2]) % 4)
        return str(json.loads(base64.urlsafe_b64decode(padded))["i"])
    except (IndexError, ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError("this is no token of ours") from error


def revoke_token(client: Client, token: str) -> None:
    """Have every service refuse this token, or the one with this id, within seconds."""
    request = RevokeTokenRequest(request_id=str(uuid.uuid4()), id=token_id(token))
    client.call(SCHEDULER, ClusterServiceStub, "RevokeToken", request)
