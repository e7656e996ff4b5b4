"""Signed tokens: who calls, in which role, for which tenant, until when.

A token is `hyp1.KEY.CLAIMS.SIGNATURE`: the id of the key, the claims as JSON in base64url, and
HMAC-SHA256 over all before it. Services hold the keys (`auth_keys`, several while one replaces
another); whoever holds a key can make tokens:

    python -m hyper_servicekit.tokens --key-file FILE --key-id k1 --tenant lab --hours 24

so can operators, of a running cluster, with `hyper tokens create`.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import sys
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hyper.errors import UnauthenticatedError
from hyper.names import check_part

ANY_TENANT = "*"  # services, workers, operators
TASK = "task"  # subject of the tokens that tasks call with


class Role(StrEnum):
    """What a token's bearer is to the cluster."""

    ADMIN = "admin"  # everything, of its tenant; of any tenant: an operator, or a service
    USER = "user"  # what is its tenant's, but no tokens for others
    WORKER = "worker"  # an agent: the scheduler's stream, and data for its tasks
    SERVICE = "service"  # inference, matcher: data that they compute on, and where they write it


LIFETIME_MAX_S = 366 * 86_400.0  # of any token, and so of a revocation
_FORM = "hyp1"
_MAX_CHARS = 2048
_SKEW_S = 30.0
_MIN_KEY_BYTES = 16
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}\Z")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says.

    Args:
        tenant: whose names its bearer may use; "*" for every one's.
        subject: who that is, for logs.
        expires_s: Unix time.
        id: of this token.
        role: what the bearer may do with these names.
    """

    tenant: str
    subject: str
    expires_s: float
    id: str
    role: Role = Role.USER

    def may_use(self, tenant: str) -> bool:
        """Whether the bearer may name things of `tenant`."""
        return self.tenant in (ANY_TENANT, tenant)


class Signer:
    """Makes tokens with one key."""

    def __init__(self, key_id: str, key: str) -> None:
        if not _KEY_ID.match(key_id) or len(key.encode()) < _MIN_KEY_BYTES:
            raise ValueError(f"a key has an id of letters and digits and {_MIN_KEY_BYTES} bytes")
        self._key_id, self._key = key_id, key.encode()

    def sign(
        self,
        tenant: str,
        *,
        subject: str,
        expires_s: float,
        role: Role | None = None,
        token_id: str = "",
    ) -> str:
        """A token for `tenant` that is good until the Unix time `expires_s`.

        Without a role it is a user's, and an admin's if it is for all tenants; without an id it has
        one of its own.
        """
        role = role or default_role(tenant)
        if tenant != ANY_TENANT:
            check_part(tenant, "tenant")
        claims = {
            "t": tenant, "s": subject, "e": int(expires_s),
            "i": token_id or secrets.token_hex(8), "r": role,
        }  # fmt: skip
        body = _encode(json.dumps(claims, separators=(",", ":")).encode())
        head = f"{_FORM}.{self._key_id}.{body}"
        return f"{head}.{_encode(_mac(self._key, head))}"


class Verifier:
    """Reads tokens.

    Args:
        keys: by their ids; without any, no token is good.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._keys = {key_id: key.encode() for key_id, key in keys.items()}

    def read(self, token: str, now_s: float) -> Claims:
        """The claims of a good token.

        Raises:
            UnauthenticatedError: without a word of the token itself.
        """
        parts = token.split(".")
        if len(token) > _MAX_CHARS or len(parts) != 4 or parts[0] != _FORM:
            raise _refused("is not one of ours")
        key = self._keys.get(parts[1], b"")
        expected = _encode(_mac(key, ".".join(parts[:3])))
        if not hmac.compare_digest(expected.encode(), parts[3].encode("utf-8", "replace")) or (
            not key
        ):
            raise _refused("was signed with a key that is not known here")
        try:
            facts = json.loads(_decode(parts[2]))
            tenant = str(facts["t"])
            claims = Claims(
                tenant, str(facts["s"]), float(facts["e"]), str(facts["i"]),
                Role(facts.get("r", default_role(tenant))),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise _refused("says nothing that can be read") from error
        check_time(claims, now_s)
        return claims


def default_role(tenant: str) -> Role:
    """Of tokens that name none, as those of earlier releases do."""
    return Role.ADMIN if tenant == ANY_TENANT else Role.USER


def check_time(claims: Claims, now_s: float) -> None:
    """Raise UnauthenticatedError if the token has expired."""
    if claims.expires_s + _SKEW_S < now_s:
        raise _refused("has expired; get a new one")


def check_revoked(claims: Claims, revoked: Container[str]) -> None:
    """Raise UnauthenticatedError if the token has been revoked."""
    if claims.id in revoked:
        raise _refused("has been revoked; get a new one")


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode("utf-8", "replace"), hashlib.sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _refused(problem: str) -> UnauthenticatedError:
    return UnauthenticatedError(
        f"the token {problem}; set HYPER_TOKEN or HYPER_TOKEN_FILE to a good one"
    )


def main() -> int:
    """Print a token."""
    parser = argparse.ArgumentParser(description="Make a token.")
    parser.add_argument("--key-file", type=Path, required=True, help="holds the key")
    parser.add_argument("--key-id", required=True, help="under which services know the key")
    parser.add_argument("--tenant", required=True, help="whose names may be used; '*' for all")
    parser.add_argument("--role", type=Role, choices=list(Role), help="what its bearer is")
    parser.add_argument("--subject", default="", help="who it is for, shown in logs")
    parser.add_argument("--hours", type=float, default=24.0, help="how long it is good")
    given = parser.parse_args()
    if not 0 < given.hours * 3600 <= LIFETIME_MAX_S:
        parser.error("--hours: more than 0, at most 366 days (8784)")
    signer = Signer(given.key_id, given.key_file.read_text().strip())
    expires_s = time.time() + given.hours * 3600
    print(signer.sign(given.tenant, subject=given.subject, expires_s=expires_s, role=given.role))
    return 0


if __name__ == "__main__":
    sys.exit(main())
