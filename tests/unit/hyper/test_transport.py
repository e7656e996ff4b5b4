"""Targets of channels."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from hyper._transport import target

NAMES = {"one": "10.0.0.1", "two": "10.0.0.2", "10.0.0.3": "10.0.0.3"}


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(host: str, port: None, **kinds: Any) -> list[Any]:
        if host not in NAMES:
            raise socket.gaierror(f"no {host}")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (NAMES[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["anything:1"], "anything:1"),
        (["one:1", "two:2", "10.0.0.3:3"], "ipv4:10.0.0.1:1,10.0.0.2:2,10.0.0.3:3"),
        (["one:1", "nobody:2"], "ipv4:10.0.0.1:1"),
        (["nobody:1", "no-one:2"], "nobody:1"),
    ],
)
def test_several_addresses_are_numbers(addresses: list[str], expected: str) -> None:
    assert target(addresses) == expected


def test_no_address() -> None:
    with pytest.raises(ValueError, match="no address"):
        target([])
