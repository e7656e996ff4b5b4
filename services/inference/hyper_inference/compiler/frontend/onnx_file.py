"""ONNX files, read without a second copy of their weights.

A parsed protobuf holds all bytes of a message, and hands out copies. Weights are most of a file, so
the raw bytes of large ones are taken out before the rest is parsed: ModelProto.graph (field 7),
GraphProto.initializer (5), TensorProto.raw_data (9); see onnx.proto and the encoding of protobuf.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError

from hyper_inference.errors import InvalidModelError

Bytes: TypeAlias = npt.NDArray[np.uint8]
"""Read-only."""
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_LARGE_BYTES = 4096
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A model, and apart from it the bytes of its large weights.

    Args:
        proto: without these bytes.
        raw: for each initializer of the graph, in order; None: they are in `proto`.
    """

    proto: onnx.ModelProto
    raw: tuple[Bytes | None, ...]


def of_proto(model: onnx.ModelProto) -> OnnxModel:
    """A model that somebody else has parsed."""
    return OnnxModel(model, (None,) * len(model.graph.initializer))


def read_model(stream: Any) -> OnnxModel:
    """The model in a file, or another seekable stream of bytes with `readinto`.

    Raises:
        InvalidModelError: these bytes are no ONNX model.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    raw: list[Bytes | None] = []
    try:
        skeleton = b"".join(_model(_Reader(stream, size), raw))
        model = onnx.ModelProto.FromString(skeleton)
    except (DecodeError, _MalformedError) as error:
        raise InvalidModelError(
            "the model file is not ONNX, or it is cut off; export it again"
        ) from error
    if not model.graph.node or not model.graph.output:
        raise InvalidModelError("the model file holds no graph; export it again")
    if len(model.graph.initializer) != len(raw):
        raise InvalidModelError("the model file is not ONNX; export it again")
    return OnnxModel(model, tuple(raw))


class _MalformedError(Exception):
    """Not the encoding of protobuf."""


class _Reader:
    """Fields of a message that ends at `end`."""

    def __init__(self, stream: Any, end: int) -> None:
        self._stream, self._end = stream, end

    def fields(self) -> Iterator[tuple[int, int, bytes, int]]:
        """(number, wire type, its encoding up to its content, bytes of content that follow)."""
        while self._stream.tell() < self._end:
            tag, head = self._varint()
            number, kind = tag >> 3, tag & 7
            if kind == _VARINT:
                yield number, kind, head + self._varint()[1], 0
            elif kind == _BYTES:
                size, encoded = self._varint()
                yield number, kind, head + encoded, size
            elif kind in (_FIXED64, _FIXED32):
                yield number, kind, head, 8 if kind == _FIXED64 else 4
            else:
                raise _MalformedError

    def take(self, size: int) -> bytes:
        """The next bytes."""
        data = self._stream.read(size) if size <= self._end - self._stream.tell() else b""
        if len(data) != size:
            raise _MalformedError
        return data

    def take_apart(self, size: int) -> Bytes:
        """The next bytes, in memory of their own that the system gives in large pages."""
        if size > self._end - self._stream.tell():
            raise _MalformedError
        data = np.empty(size, np.uint8)
        if self._stream.readinto(data) != size:
            raise _MalformedError
        data.setflags(write=False)
        return data

    def inside(self, size: int) -> _Reader:
        """Of a message in this one."""
        end = self._stream.tell() + size
        if end > self._end:
            raise _MalformedError
        return _Reader(self._stream, end)

    def _varint(self) -> tuple[int, bytes]:
        value, encoded = 0, b""
        for shift in range(0, 70, 7):
            byte = self.take(1)
            encoded += byte
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return value, encoded
        raise _MalformedError


def _model(reader: _Reader, raw: list[Bytes | None]) -> Iterator[bytes]:
    for number, kind, head, size in reader.fields():
        if (number, kind) == (_GRAPH, _BYTES):
            yield _message(number, b"".join(_graph(reader.inside(size), raw)))
        else:
            yield head + reader.take(size)


def _graph(reader: _Reader, raw: list[Bytes | None]) -> Iterator[bytes]:
    for number, kind, head, size in reader.fields():
        if (number, kind) == (_INITIALIZER, _BYTES):
            raw.append(None)
            yield _message(number, b"".join(_tensor(reader.inside(size), raw)))
        else:
            yield head + reader.take(size)


def _tensor(reader: _Reader, raw: list[Bytes | None]) -> Iterator[bytes]:
    for number, kind, head, size in reader.fields():
        if (number, kind) == (_RAW_DATA, _BYTES):
            raw[-1] = reader.take_apart(size) if size >= _LARGE_BYTES else None
            if size < _LARGE_BYTES:
                yield head + reader.take(size)
        else:
            yield head + reader.take(size)


def _message(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
