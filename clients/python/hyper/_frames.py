"""Frames between a process that was forked and its relay: a JSON header and raw bytes.

    u32 bytes of header | u32 bytes of body | header | body

A process sends CALL, MORE, CANCEL and CLOSE (`hyper._forked`); its relay answers each CALL with
any number of RESPONSE and then one STATUS (`hyper._relay`).
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

WINDOW = 8  # responses of a call that are under way: what a reader that dawdles costs in memory

_SIZES = struct.Struct(">II")
_BINARY = "-bin"

Metadata = tuple[tuple[str, str | bytes], ...]


class Kind(StrEnum):
    """What a frame says."""

    CALL = "call"  # facts: channel, target, method, until, metadata; body: the request
    MORE = "more"  # facts: count; so many more responses may be sent
    CANCEL = "cancel"
    CLOSE = "close"  # number: of the channel
    RESPONSE = "response"  # body: one response
    STATUS = "status"  # facts: code, details, trailing; nothing more comes


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Args:
        kind: what it says.
        number: of the call, by which its frames are told from those of others.
        facts: the rest of the header; JSON.
        body: raw bytes.
    """

    kind: Kind
    number: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    body: bytes = b""


def pack(frame: Frame) -> bytes:
    """`frame` as it travels.

    Raises:
        UnicodeEncodeError: text that is not Unicode, as gRPC says of such metadata.
    """
    facts = {**frame.facts, "kind": frame.kind, "number": frame.number}
    header = json.dumps(facts, ensure_ascii=False).encode()
    return b"".join((_SIZES.pack(len(header), len(frame.body)), header, frame.body))


def read(connection: socket.socket) -> Iterator[Frame]:
    """Frames as they come, until the peer is gone; half a frame is not handed out."""
    while (sizes := _exactly(connection, _SIZES.size)) is not None:
        header_bytes, body_bytes = _SIZES.unpack(sizes)
        header = _exactly(connection, header_bytes)
        body = _exactly(connection, body_bytes)
        if header is None or body is None:
            return
        facts = json.loads(header)
        yield Frame(Kind(facts.pop("kind")), facts.pop("number"), facts, body)


def _exactly(connection: socket.socket, size_bytes: int) -> bytes | None:
    data = bytearray(size_bytes)
    view = memoryview(data)
    while view:
        try:
            count = connection.recv_into(view)
        except ConnectionResetError:  # it ended before it had read all that it was sent
            return None
        if not count:
            return None
        view = view[count:]
    return bytes(data)


def metadata_to_json(metadata: Iterable[tuple[str, str | bytes]]) -> list[list[str]]:
    """Metadata of gRPC for a header; the values of `...-bin` are bytes."""
    return [
        [key, value.decode("latin-1") if isinstance(value, bytes) else value]
        for key, value in metadata
    ]


def metadata_from_json(pairs: Iterable[Iterable[str]]) -> Metadata:
    """What `metadata_to_json` was given."""
    return tuple(
        (key, value.encode("latin-1") if key.endswith(_BINARY) else value) for key, value in pairs
    )
