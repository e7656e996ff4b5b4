"""Keys that sign tokens, and keys that can only tell whether one has signed.

As text, in settings:

    ed25519:SEED            signs and verifies (base64url of 32 bytes): the schedulers' alone
    ed25519-public:POINT    verifies what that one has signed, and signs nothing
    anything else           a secret of at least 16 bytes (HMAC-SHA256): whoever verifies can sign
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import Any, Protocol

PRIVATE, PUBLIC = "ed25519:", "ed25519-public:"
_SECRET_BYTES_MIN = 16
_BYTES = 32


class Key(Protocol):
    """What a key does; the algorithm is the key's, never the token's to choose."""

    def sign(self, data: bytes) -> bytes:
        """Sign; ValueError for a key that only verifies."""

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether this key, or the one that it belongs to, has signed this."""


class _Secret:
    def __init__(self, text: str) -> None:
        self._secret = text.encode()
        if len(self._secret) < _SECRET_BYTES_MIN:
            raise ValueError(f"a key has at least {_SECRET_BYTES_MIN} bytes")

    def sign(self, data: bytes) -> bytes:
        return hmac.digest(self._secret, data, hashlib.sha256)

    def verify(self, data: bytes, signature: bytes) -> bool:
        return hmac.compare_digest(self.sign(data), signature)


class _Ed25519:
    def __init__(self, text: str) -> None:
        from Crypto.PublicKey import ECC
        from Crypto.Signature import eddsa

        self._private = text.startswith(PRIVATE)
        data = _bytes(text.partition(":")[2])
        if self._private:
            key = ECC.construct(curve="Ed25519", seed=data)
        else:
            key = eddsa.import_public_key(data)
        self._key: Any = eddsa.new(key, "rfc8032")
        self.public = key.public_key().export_key(format="raw")

    def sign(self, data: bytes) -> bytes:
        if not self._private:
            raise ValueError("this key verifies tokens, and signs none: give schedulers the other")
        return bytes(self._key.sign(data))

    def verify(self, data: bytes, signature: bytes) -> bool:
        try:
            self._key.verify(data, signature)
        except ValueError:
            return False
        return True


def read_key(text: str) -> Key:
    """A key from a setting.

    Raises:
        ValueError: it is none.
    """
    return _Ed25519(text) if text.startswith((PRIVATE, PUBLIC)) else _Secret(text)


def new_key() -> str:
    """A private key."""
    return PRIVATE + _text(secrets.token_bytes(_BYTES))


def public_key(text: str) -> str:
    """What those need who only verify; of a secret, which has no such part, it is the secret."""
    key = read_key(text)
    return PUBLIC + _text(key.public) if isinstance(key, _Ed25519) else text


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        data = b""
    if len(data) != _BYTES:
        raise ValueError(f"an ed25519 key is {_BYTES} bytes in base64url")
    return data
