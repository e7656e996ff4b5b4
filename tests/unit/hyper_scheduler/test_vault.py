"""Secrets at rest: only the right key and the right name give the value back."""

from __future__ import annotations

import base64
import json
import secrets

import pytest

from hyper.errors import DataLossError, FailedPreconditionError
from hyper_scheduler.vault import decrypt, encrypt, read_keys

KEY, OTHER = secrets.token_bytes(32), secrets.token_bytes(32)
NAME = "tenants/a/secrets/s"


def test_there_and_back() -> None:
    stored = encrypt(KEY, NAME, "hunter2 ü", 1.0)
    assert b"hunter2" not in stored
    assert stored != encrypt(KEY, NAME, "hunter2 ü", 1.0)
    assert decrypt((OTHER, KEY), NAME, stored) == "hunter2 ü"


def test_another_tenant_cannot_have_it() -> None:
    stored = encrypt(KEY, NAME, "value", 1.0)
    with pytest.raises(DataLossError, match="tampered"):
        decrypt((KEY,), "tenants/b/secrets/s", stored)


def test_a_changed_byte_is_seen() -> None:
    fields = json.loads(encrypt(KEY, NAME, "value", 1.0))
    data = bytearray(base64.b64decode(fields["data"]))
    data[0] ^= 1
    fields["data"] = base64.b64encode(bytes(data)).decode()
    with pytest.raises(DataLossError):
        decrypt((KEY,), NAME, json.dumps(fields).encode())


def test_a_lost_key_is_said() -> None:
    with pytest.raises(FailedPreconditionError, match="does not have"):
        decrypt((OTHER,), NAME, encrypt(KEY, NAME, "value", 1.0))


def test_keys_are_read() -> None:
    text = ",".join(base64.b64encode(key).decode() for key in (KEY, OTHER))
    assert read_keys(text) == (KEY, OTHER)
    assert read_keys("") == ()
    for bad in ("short", base64.b64encode(b"x" * 31).decode()):
        with pytest.raises(ValueError, match="32 bytes"):
            read_keys(bad)
