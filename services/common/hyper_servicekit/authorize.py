"""May this caller make this call? Every name in a request must be of the caller's tenant.

Requests name things by paths (`tenants/{t}/...`) in a few fields that are called alike everywhere.
A request that names nothing is for operators, unless its method is listed here: what a new method
does not say is refused.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from google.protobuf.message import Message

from hyper.errors import PermissionDeniedError, UnauthenticatedError
from hyper_servicekit.tokens import (
    ANY_TENANT,
    Claims,
    Role,
    Verifier,
    check_revoked,
    check_time,
)

_FIELDS = frozenset({"name", "parent", "session", "base", "target", "task", "store", "model"})
_NESTED = frozenset({"tag", "store", "source", "destination", "mask", "array", "header"})
# Where services are, and images that come with the call: nothing of anybody.
_OPEN = frozenset({"GetCluster", "Match"})
_ADMINS = frozenset({"CollectGarbage", "CreateToken", "DrainWorker", "RevokeToken"})
# What agents call for themselves and for their tasks.
_WORKERS = frozenset({
    "Connect", "ReadSecrets", "GetCluster",
    "GetDataset", "ListDatasets", "GetVersion", "ListVersions", "ListFiles", "GetFiles",
    "CreateSession", "GetSession", "CommitSession", "AbortSession", "AddFiles", "DeleteFiles",
    "CreateArray", "GetArray", "ListArrays", "UpdateArray", "EditArray", "ListShards",
    "LeaseShards", "ReleaseShards", "SignUrls", "ReadObject", "WriteObject",
    "AppendLog", "AppendLogs", "ReadLog", "GetModel", "Predict", "InferVolume", "Match",
    "MatchSections",
})  # fmt: skip


# What the compute services call for those who call them.
_SERVICES = frozenset({
    "GetCluster", "GetDataset", "GetVersion", "ListFiles", "GetFiles", "GetSession", "GetArray",
    "ListArrays", "ListShards", "LeaseShards", "ReleaseShards", "SignUrls", "ReadObject",
    "WriteObject",
})  # fmt: skip
_ONLY = {Role.WORKER: _WORKERS, Role.SERVICE: _SERVICES}


# Of the call that is being served, in its context; None where calls need no token.
caller: ContextVar[Claims | None] = ContextVar("caller", default=None)


class Authorizer:
    """Checks calls of one service.

    Args:
        keys: of tokens, by their ids.
        revoked: ids of tokens that are good no more; may change.
    """

    def __init__(self, keys: Mapping[str, str], revoked: Container[str] = ()) -> None:
        self._verifier, self._revoked = Verifier(keys), revoked

    def caller(self, metadata: Mapping[str, Any]) -> Claims:
        """Who calls.

        Raises:
            UnauthenticatedError: there is no good token in the call's metadata.
        """
        given = metadata.get("authorization", "")
        kind, _, token = (given if isinstance(given, str) else "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise UnauthenticatedError(
                "this cluster wants a token; set HYPER_TOKEN or HYPER_TOKEN_FILE"
            )
        claims = self._verifier.read(token.strip(), time.time())
        check_revoked(claims, self._revoked)
        return claims

    def still(self, claims: Claims) -> None:
        """Raise UnauthenticatedError if a token that was good is so no more."""
        check_time(claims, time.time())
        check_revoked(claims, self._revoked)

    def check(self, claims: Claims, method: str, request: Message, *, first: bool = True) -> None:
        """Raise PermissionDeniedError unless the caller may make this call.

        Of a stream of requests the first one must name something, others may.
        """
        if claims.role in _ONLY and method not in _ONLY[claims.role]:
            raise PermissionDeniedError(f"{method} is not for {claims.role}s")
        if claims.role is not Role.ADMIN and method in _ADMINS:
            raise PermissionDeniedError(f"{method} is for operators, with the role admin")
        if claims.tenant == ANY_TENANT:
            return
        tenants = set(_tenants(request))
        if not tenants and first and method not in _OPEN:
            raise PermissionDeniedError(f"{method} is for operators of the cluster")
        if others := {tenant for tenant in tenants if not claims.may_use(tenant)}:
            raise PermissionDeniedError(
                f"your token is for tenant {claims.tenant}, not for {min(others)[:80]}"
            )


def names(message: Message) -> Iterator[tuple[str, str]]:
    """All names in a request, with the field that each is in."""
    for field, value in message.ListFields():
        if field.name in _NESTED and field.message_type is not None:
            nested = value if _repeated(value) else (value,)
            for part in nested:
                yield from names(part)
        elif field.name in _FIELDS and field.message_type is None:
            for text in value if _repeated(value) else (value,):
                if isinstance(text, str):
                    yield field.name, text


def _tenants(message: Message) -> Iterator[str]:
    """The tenants of all names in a request; "" for a name of another form."""
    for field, text in names(message):
        yield _tenant(text, address=field == "model")


def _repeated(value: Any) -> bool:
    return not isinstance(value, str | bytes | int | float | Message)


def _tenant(text: str, *, address: bool) -> str:
    kind, _, rest = text.partition("/")
    if kind == "tenants":
        return rest.partition("/")[0]
    if kind == "hyper:":
        return rest.lstrip("/").partition("/")[0]
    return kind if address else ""
