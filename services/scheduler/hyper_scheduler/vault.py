"""Secrets of tenants, encrypted at rest.

Under `{etcd_prefix}/scheduler/secrets/{tenant}/{name}`: JSON with the key's id, the nonce and the
ciphertext (AES-256-GCM) in base64. The resource name is authenticated with the value, so that a
value moved to another name, or to another tenant, cannot be decrypted. Keys never reach etcd.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from Crypto.Cipher import AES

from hyper.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from hyper_servicekit.clock import Clock
from hyper_servicekit.etcd import Etcd

KEY_BYTES = 32
VALUE_BYTES_MAX = 65_536
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """A secret without its value."""

    name: str
    update_time: float


def read_keys(text: str) -> tuple[bytes, ...]:
    """Keys in base64, separated by commas: the first encrypts, all of them decrypt.

    Raises:
        ValueError: one is not 32 bytes in base64.
    """
    keys = []
    for part in filter(None, text.split(",")):
        try:
            key = base64.b64decode(part.strip(), validate=True)
        except binascii.Error:
            key = b""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of secrets is {KEY_BYTES} bytes in base64")
        keys.append(key)
    return tuple(keys)


def encrypt(key: bytes, name: str, value: str, update_time: float) -> bytes:
    """What is stored of a secret."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    cipher = AES.new(key, AES.MODE_GCM, nonce=nonce)
    cipher.update(name.encode())
    data, tag = cipher.encrypt_and_digest(value.encode())
    stored = {
        "key": _id(key),
        "nonce": base64.b64encode(nonce).decode(),
        "data": base64.b64encode(data + tag).decode(),
        "update_time": update_time,
    }
    return json.dumps(stored).encode()


def decrypt(keys: Sequence[bytes], name: str, stored: bytes) -> str:
    """A secret's value.

    Raises:
        FailedPreconditionError: it was encrypted with a key that is not here.
        DataLossError: it has been changed, or moved from another name.
    """
    fields = json.loads(stored)
    key = next((key for key in keys if _id(key) == fields["key"]), None)
    if key is None:
        raise FailedPreconditionError(
            f"{name} was encrypted with a key that this scheduler does not have; store it again, "
            "or add the old key to HYPER_SCHEDULER__SECRETS_KEY"
        )
    data = base64.b64decode(fields["data"])
    cipher = AES.new(key, AES.MODE_GCM, nonce=base64.b64decode(fields["nonce"]))
    cipher.update(name.encode())
    try:
        return cipher.decrypt_and_verify(data[:-16], data[-16:]).decode()
    except ValueError:
        raise DataLossError(f"{name} has been tampered with, or is damaged") from None


class Vault:
    """Stores and reads secrets.

    Args:
        etcd: entered.
        etcd_prefix: of the cluster.
        keys: as `read_keys` gives them; without any, nothing can be stored.
        clock: for the time of updates.
    """

    def __init__(self, etcd: Etcd, etcd_prefix: str, keys: Sequence[bytes], clock: Clock) -> None:
        self._etcd, self._root = etcd, f"{etcd_prefix}/scheduler/secrets/"
        self._keys, self._clock = tuple(keys), clock

    async def put(self, tenant: str, secret: str, value: str) -> SecretInfo:
        """Store or replace a secret."""
        if not self._keys:
            raise FailedPreconditionError(
                "this cluster keeps no secrets: give the schedulers a key "
                "(HYPER_SCHEDULER__SECRETS_KEY, 32 bytes in base64)"
            )
        if len(value.encode()) > VALUE_BYTES_MAX or "\0" in value or not value:
            raise InvalidArgumentError(
                f"a secret is 1 to {VALUE_BYTES_MAX} bytes of text without NUL", field="value"
            )
        name, now = resource_name(tenant, secret), self._clock.now()
        await self._etcd.put(self._key(tenant, secret), encrypt(self._keys[0], name, value, now))
        return SecretInfo(name, now)

    async def get(self, tenant: str, secret: str) -> str:
        """A secret's value: for workers, never for people."""
        name = resource_name(tenant, secret)
        found = await self._etcd.get(self._key(tenant, secret))
        if found is None:
            raise NotFoundError(f"there is no {name}; store it with `hyper secret put {secret}`")
        return decrypt(self._keys, name, found.value)

    async def list(self, tenant: str) -> list[SecretInfo]:
        """All of a tenant, in order of name."""
        found, _ = await self._etcd.get_prefix(f"{self._root}{tenant}/")
        return [
            SecretInfo(
                resource_name(tenant, item.key.rpartition("/")[2]),
                json.loads(item.value)["update_time"],
            )
            for item in found
        ]

    async def delete(self, tenant: str, secret: str) -> None:
        """Forget a secret; one that does not exist is fine."""
        await self._etcd.delete(self._key(tenant, secret))

    def _key(self, tenant: str, secret: str) -> str:
        return f"{self._root}{tenant}/{secret}"


def resource_name(tenant: str, secret: str) -> str:
    """tenants/{t}/secrets/{s}"""
    return f"tenants/{tenant}/secrets/{secret}"


def _id(key: bytes) -> str:
    return hashlib.sha256(b"id of a key of secrets\n" + key).hexdigest()[:16]
