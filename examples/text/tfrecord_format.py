"""TFRecord files of `tf.train.Example` messages, without TensorFlow.

A record is: length (8 bytes, little-endian), its masked crc32c, the message, its masked crc32c
(tensorflow.org/tutorials/load_data/tfrecord). An `Example` is a map from names to lists of bytes,
floats or integers (tensorflow/core/example/example.proto and feature.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import google_crc32c

_MASK_DELTA = 0xA282EAD8


def frame(message: bytes) -> bytes:
    """One record of a file."""
    length = struct.pack("<Q", len(message))
    return length + _masked(length) + message + _masked(message)


def unframe(data: bytes) -> Iterator[bytes]:
    """The messages of a file.

    Raises:
        ValueError: it is cut off, or a checksum does not match.
    """
    at = 0
    while at < len(data):
        head, check = data[at : at + 8], data[at + 8 : at + 12]
        if len(head) < 8 or _masked(head) != check:
            raise ValueError(f"no record begins at byte {at}")
        (size,) = struct.unpack("<Q", head)
        message = data[at + 12 : at + 12 + size]
        if _masked(message) != data[at + 12 + size : at + 16 + size]:
            raise ValueError(f"the record at byte {at} is damaged")
        yield message
        at += 16 + size


def encode_example(features: Mapping[str, str | bytes | int | float]) -> bytes:
    """A serialized `tf.train.Example` with one value a feature."""
    entries = b""
    for name in sorted(features):
        entries += _field(1, _field(1, name.encode()) + _field(2, _feature(features[name])))
    return _field(1, entries)


def _feature(value: str | bytes | int | float) -> bytes:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return _field(1, _field(1, value))  # bytes_list
    if isinstance(value, float):
        return _field(2, _field(1, struct.pack("<f", value)))  # float_list, packed
    return _field(3, _field(1, _varint(value & 0xFFFFFFFFFFFFFFFF)))  # int64_list, packed


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _masked(data: bytes) -> bytes:
    crc: Any = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF)
