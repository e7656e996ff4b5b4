"""Signed tokens: who calls, in which role, for which tenant, until when.

A token is `hyp1.KEY.CLAIMS.SIGNATURE`: the id of the key, the claims as JSON in base64url, and a
signature over all before it, of the kind that the key is of (`hyper_servicekit.signing`). Services
hold keys (`auth_keys`, several while one replaces another); schedulers sign with the first of
theirs, the others need the public part alone. Whoever holds a key that signs can make tokens:

    python -m hyper_servicekit.tokens --new-key     # two lines: the private key, the public one
    python -m hyper_servicekit.tokens --key-file FILE --key-id k1 --tenant lab --hours 24

so can operators, of a running cluster, with `hyper tokens create`.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import re
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import Container, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hyper.errors import UnauthenticatedError
from hyper.names import check_part
from hyper_servicekit.signing import new_key, public_key, read_key

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
_VERIFIED_MAX = 10_000  # tokens whose signatures are not looked at again
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
        if not _KEY_ID.match(key_id):
            raise ValueError("a key has an id of at most 32 letters and digits")
        self._key_id, self._key = key_id, read_key(key)
        self._key.sign(b"")  # a key that cannot is refused now

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
        return f"{head}.{_encode(self._key.sign(head.encode()))}"


class Verifier:
    """Reads tokens.

    Args:
        keys: by their ids; without any, no token is good.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._keys = {key_id: read_key(key) for key_id, key in keys.items()}
        self._verified: OrderedDict[str, Claims] = OrderedDict()

    def read(self, token: str, now_s: float) -> Claims:
        """The claims of a good token.

        Raises:
            UnauthenticatedError: without a word of the token itself.
        """
        if (claims := self._verified.get(token)) is None:
            claims = self._verified[token] = self._verify(token)
            if len(self._verified) > _VERIFIED_MAX:
                self._verified.popitem(last=False)
        check_time(claims, now_s)
        return claims

    def _verify(self, token: str) -> Claims:
        parts = token.split(".")
        if len(token) > _MAX_CHARS or len(parts) != 4 or parts[0] != _FORM:
            raise _refused("is not one of ours")
        key, signed = self._keys.get(parts[1]), ".".join(parts[:3])
        try:
            good = key is not None and key.verify(signed.encode(), _decode(parts[3]))
        except ValueError:  # no base64, or no text at all
            good = False
        if not good or _encode(_decode(parts[3])) != parts[3]:  # one way to write a signature
            raise _refused("was signed with a key that is not known here")
        try:
            facts = json.loads(_decode(parts[2]))
            tenant = str(facts["t"])
            return Claims(
                tenant, str(facts["s"]), float(facts["e"]), str(facts["i"]),
                Role(facts.get("r", default_role(tenant))),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise _refused("says nothing that can be read") from error


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
    parser.add_argument("--new-key", action="store_true", help="print a private and a public key")
    making = "--new-key" not in sys.argv
    parser.add_argument("--key-file", type=Path, required=making, help="holds the key")
    parser.add_argument("--key-id", required=making, help="under which services know the key")
    parser.add_argument("--tenant", required=making, help="whose names may be used; '*' for all")
    parser.add_argument("--role", type=Role, choices=list(Role), help="what its bearer is")
    parser.add_argument("--subject", default="", help="who it is for, shown in logs")
    parser.add_argument("--hours", type=float, default=24.0, help="how long it is good")
    given = parser.parse_args()
    if given.new_key:
        private = new_key()
        print(f"{private}\n{public_key(private)}")
        return 0
    if not 0 < given.hours * 3600 <= LIFETIME_MAX_S:
        parser.error("--hours: more than 0, at most 366 days (8784)")
    signer = Signer(given.key_id, given.key_file.read_text().strip())
    expires_s = time.time() + given.hours * 3600
    print(signer.sign(given.tenant, subject=given.subject, expires_s=expires_s, role=given.role))
    return 0


if __name__ == "__main__":
    sys.exit(main())
