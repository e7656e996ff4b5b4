"""Chunks and shards as bytes: the codecs of Zarr v3, and those of the formats that are registered.

An array's document is Zarr v3 metadata. Besides the codecs of the specification it may name
`numcodecs.*` (Zarr v2), `n5_block` (N5's header before each block) and `jpeg` (precomputed); the
gateway writes such documents for arrays of other formats. Nothing decodes to more bytes than a
chunk has, whatever the data say.

Source: https://zarr-specs.readthedocs.io (core v3, sharding codec), RFC 8878 (zstd frames).
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import google_crc32c
import numpy as np

Buffer = bytes | bytearray | memoryview
MISSING = 2**64 - 1
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_WINDOW = 31
_EXPANDS_BYTES = 65_536  # by so much, and 1/16, a codec may grow what it is given


class CodecError(ValueError):
    """Stored bytes are not what their metadata say."""


class Step(Protocol):
    """A codec from bytes to bytes."""

    def encode(self, data: Buffer) -> bytes:
        """The stored form."""

    def decode(self, data: Buffer, limit: int, out: np.ndarray | None = None) -> Buffer:
        """What `encode` was given, at most `limit` bytes, written to `out` where that is given."""


def checksum(data: bytes) -> bytes:
    """crc32c as it is stored."""
    return int(google_crc32c.value(data)).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class Crc32c:
    """Four bytes of checksum behind the data."""

    def encode(self, data: Buffer) -> bytes:
        """See `Step`."""
        plain = bytes(data)
        return plain + checksum(plain)

    def decode(self, data: Buffer, limit: int, out: np.ndarray | None = None) -> Buffer:
        """See `Step`."""
        view = memoryview(data)
        body, stored = view[:-4], view[-4:]
        # google_crc32c takes bytes and numpy arrays: this way without a copy.
        if google_crc32c.value(np.frombuffer(body, np.uint8)) != int.from_bytes(stored, "little"):
            raise CodecError("crc32c does not match")
        return body


@dataclass(frozen=True, slots=True)
class Zstd:
    """Zstandard frames."""

    level: int
    checksum: bool

    def encode(self, data: Buffer) -> bytes:
        """See `Step`."""
        from numcodecs import zstd

        packed: bytes = zstd.compress(data, self.level, self.checksum)
        return packed

    def decode(self, data: Buffer, limit: int, out: np.ndarray | None = None) -> Buffer:
        """See `Step`."""
        from numcodecs import zstd

        size = zstd_content_bytes(data)
        if size is not None and (size > limit or (out is not None and size != out.nbytes)):
            raise CodecError(f"a zstd frame of {size} bytes where {limit} are expected")
        if out is None:
            out = np.empty(limit if size is None else size, np.uint8)
        try:
            zstd.decompress(data, out)
        except (RuntimeError, ValueError) as error:
            raise CodecError(str(error)) from error
        return out.data.cast("B")


def zstd_content_bytes(data: Buffer) -> int | None:
    """The size that a frame's header declares; None if it declares none.

    Raises:
        CodecError: it is not one frame.
    """
    head = bytes(data[:18])
    if head[:4] != _ZSTD_MAGIC or len(head) < 6:
        raise CodecError("not a zstd frame")
    descriptor = head[4]
    single = bool(descriptor & 0x20)
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    flag = descriptor >> 6
    width = (1 if single else 0, 2, 4, 8)[flag]
    if not width:
        return None
    size = int.from_bytes(head[at : at + width], "little")
    return size + 256 if flag == 1 else size


@dataclass(frozen=True, slots=True)
class Gzip:
    """RFC 1952 (window bits 31) or zlib's form (15)."""

    level: int
    window: int = _GZIP_WINDOW

    def encode(self, data: Buffer) -> bytes:
        """See `Step`."""
        packer = zlib.compressobj(self.level, zlib.DEFLATED, self.window)
        return packer.compress(data) + packer.flush()

    def decode(self, data: Buffer, limit: int, out: np.ndarray | None = None) -> Buffer:
        """See `Step`."""
        unpacker = zlib.decompressobj(self.window)
        try:
            plain = unpacker.decompress(data, limit + 1)
        except zlib.error as error:
            raise CodecError(str(error)) from error
        if len(plain) > limit or not unpacker.eof:
            raise CodecError(f"does not end within {limit} bytes")
        return plain


@dataclass(frozen=True, slots=True)
class Unzipped:
    """Gzip where the data begin like it: what stores do to objects without saying so."""

    def encode(self, data: Buffer) -> bytes:
        """See `Step`."""
        return bytes(data)

    def decode(self, data: Buffer, limit: int, out: np.ndarray | None = None) -> Buffer:
        """See `Step`."""
        zipped = bytes(data[:3]) == b"\x1f\x8b\x08" and len(data) != limit
        return Gzip(5).decode(data, limit) if zipped else data


@dataclass(frozen=True, slots=True)
class Numcodec:
    """A compressor of `numcodecs` by its id: blosc, lz4, bz2, lzma."""

    config: str  # JSON, so that it can be compared

    def _codec(self) -> Any:
        import numcodecs

        return numcodecs.get_codec(json.loads(self.config))

    def encode(self, data: Buffer) -> bytes:
        """See `Step`."""
        return bytes(self._codec().encode(data))

    def decode(self, data: Buffer, limit: int, out: np.ndarray | None = None) -> Buffer:
        """See `Step`."""
        kind = json.loads(self.config)["id"]
        if kind == "bz2":
            return _bounded_bz2(data, limit)
        declared = int.from_bytes(data[4:8] if kind == "blosc" else data[:4], "little")
        if declared > limit:
            raise CodecError(f"{kind} data of {declared} bytes where {limit} are expected")
        try:
            return memoryview(self._codec().decode(bytes(data))).cast("B")
        except (RuntimeError, ValueError) as error:
            raise CodecError(str(error)) from error


def _bounded_bz2(data: Buffer, limit: int) -> bytes:
    import bz2

    unpacker = bz2.BZ2Decompressor()
    try:
        plain = unpacker.decompress(bytes(data), limit + 1)
    except OSError as error:
        raise CodecError(str(error)) from error
    if len(plain) > limit or not unpacker.eof:
        raise CodecError(f"does not end within {limit} bytes")
    return plain


@dataclass(frozen=True, slots=True)
class ChunkCodec:
    """One chunk: an array to bytes and back.

    Args:
        dtype: of an element, native.
        stored: the same with the byte order of the stored form.
        shape: of a chunk.
        order: axes of the stored form, in terms of the array's; None: the same.
        steps: codecs of bytes, in the order of encoding.
        frame: "" or what a chunk is wrapped in: "n5_block", "jpeg".
    """

    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    shape: tuple[int, ...]
    order: tuple[int, ...] | None
    steps: tuple[Step, ...]
    frame: str = ""

    @property
    def nbytes(self) -> int:
        """Of a whole chunk, decoded."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def copies(self) -> bool:
        """Whether a decoded chunk has memory of its own, not that of the bytes it came from."""
        return bool(self.steps) and not isinstance(self.steps[0], Crc32c | Unzipped)

    @property
    def stored_max(self) -> int:
        """Bytes that the stored form of a chunk has at most."""
        size = self.nbytes
        for _ in range(len(self.steps) + 1):
            size += size // 16 + _EXPANDS_BYTES
        return size

    def encode(self, chunk: np.ndarray) -> list[Buffer]:
        """The stored form of a chunk, in pieces."""
        if self.order is not None:
            chunk = chunk.transpose(self.order)
        data: Buffer
        if self.steps[:1] == (Crc32c(),):  # wants bytes: one copy for both
            data = chunk.astype(self.stored, copy=False).tobytes()
        else:
            plain = np.ascontiguousarray(chunk, dtype=self.stored)
            data = plain.reshape(-1).view(np.uint8).data
        for step in self.steps[:-1]:
            data = step.encode(data)
        if self.steps and isinstance(self.steps[-1], Crc32c):
            data = bytes(data)
            return [data, checksum(data)]
        return [self.steps[-1].encode(data) if self.steps else data]

    def decode(
        self, data: Buffer, shape: tuple[int, ...] | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """The chunk that these bytes hold, read-only or in `out`'s memory.

        Args:
            data: stored form.
            shape: of a chunk that the array's end has cut; by default whole.
            out: bytes that may be used for the result.

        Raises:
            CodecError: they hold none.
        """
        if self.frame == "jpeg":
            return _decode_jpeg(data, shape or self.shape)
        if self.frame == "n5_block":
            shape, data = _n5_block(data, self.shape)
        wanted = self.shape if shape is None else shape
        size = math.prod(wanted) * self.dtype.itemsize
        limits = [size]
        for _ in self.steps[:-1]:
            limits.append(limits[-1] + limits[-1] // 16 + _EXPANDS_BYTES)
        steps = list(zip(self.steps, limits, strict=False))
        for step, limit in reversed(steps):
            last = step is self.steps[0]
            data = step.decode(data, limit, out[:size] if last and out is not None else None)
        if len(data) != size:
            raise CodecError(f"a chunk of {len(data)} bytes where {size} are expected")
        flat = np.frombuffer(data, self.stored)
        if self.order is None:
            chunk = flat.reshape(wanted)
        else:
            inverse = np.argsort(self.order)
            chunk = flat.reshape([wanted[a] for a in self.order]).transpose(inverse)
        return chunk


def _n5_block(data: Buffer, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Buffer]:
    """(shape, the rest) of a block; its own order of axes is ours backwards."""
    mode, axes = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")
    if mode != 0 or axes != len(shape) or len(data) < 4 + 4 * axes:
        raise CodecError("not an N5 block of this array")
    edges = np.frombuffer(bytes(data[4 : 4 + 4 * axes]), ">u4")[::-1]
    found = tuple(int(n) for n in edges)
    if any(n > m for n, m in zip(found, shape, strict=True)):
        raise CodecError(f"an N5 block of shape {found} in an array of blocks of {shape}")
    return found, memoryview(data)[4 + 4 * axes :]


def _decode_jpeg(data: Buffer, shape: tuple[int, ...]) -> np.ndarray:
    """A precomputed chunk: any image with as many pixels, row by row."""
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(bytes(data)), formats=("JPEG",)) as image:
            if image.width * image.height != math.prod(shape[-3:]):
                raise CodecError(f"a JPEG of {image.width} x {image.height} for {shape}")
            pixels = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise CodecError(str(error)) from error
    if pixels.ndim == 3:
        pixels = np.moveaxis(pixels, -1, 0)
    if pixels.size != math.prod(shape):
        raise CodecError(f"a JPEG of {pixels.size} values for {shape}")
    return pixels.reshape(shape)


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Where the chunks of a shard lie.

    Args:
        grid: chunks along each axis.
        steps: codecs of the index.
        at_end: or at the start.
    """

    grid: tuple[int, ...]
    steps: tuple[Step, ...]
    at_end: bool

    @property
    def nbytes(self) -> int:
        """Of the stored index."""
        return 16 * math.prod(self.grid) + 4 * len(self.steps)

    def decode(self, data: Buffer) -> np.ndarray:
        """(offset, length) of every chunk, uint64 of shape (*grid, 2)."""
        if len(data) != self.nbytes:
            raise CodecError(f"a shard index of {len(data)} bytes, not {self.nbytes}")
        for step in reversed(self.steps):
            data = step.decode(data, self.nbytes)
        return np.frombuffer(data, "<u8").reshape(*self.grid, 2)

    def encode(self, index: np.ndarray) -> bytes:
        """The stored form."""
        data: Buffer = index.astype("<u8").tobytes()
        for step in self.steps:
            data = step.encode(data)
        return bytes(data)


@dataclass(frozen=True)
class Layout:
    """How an array lies in its objects.

    Args:
        shape: elements along each axis.
        shards: of one object.
        chunks: of one decoded unit; the same as `shards` where there is no index.
        fill: of what is not there, one element.
        codec: of chunks.
        index: None: an object is one chunk.
        clipped: objects at the array's end hold only what is inside it.
    """

    shape: tuple[int, ...]
    shards: tuple[int, ...]
    chunks: tuple[int, ...]
    fill: np.ndarray
    codec: ChunkCodec
    index: ShardIndex | None
    clipped: bool

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Layout:
        """The layout that Zarr v3 metadata describe.

        Raises:
            CodecError: with a codec that is not known here.
        """
        shape = tuple(document["shape"])
        grid = document["chunk_grid"]["configuration"]
        shards = tuple(grid["chunk_shape"])
        dtype = np.dtype(document["data_type"])
        codecs: Sequence[Mapping[str, Any]] = document["codecs"]
        index, chunks = None, shards
        if codecs[0]["name"] == "sharding_indexed":
            inner = codecs[0]["configuration"]
            chunks, codecs = tuple(inner["chunk_shape"]), inner["codecs"]
            counts = tuple(s // c for s, c in zip(shards, chunks, strict=True))
            steps = _steps(inner["index_codecs"])
            index = ShardIndex(counts, steps, inner.get("index_location", "end") == "end")
        return cls(
            shape,
            shards,
            chunks,
            fill_of(document.get("fill_value"), dtype),
            _chunk_codec(dtype, chunks, codecs),
            index,
            bool(grid.get("clipped")),
        )

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each axis of a shard."""
        return tuple(s // c for s, c in zip(self.shards, self.chunks, strict=True))


def fill_of(value: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """The fill value of Zarr's JSON as an array of no axes."""
    if dtype.kind == "c":
        real, imaginary = value if isinstance(value, list) else (value or 0, 0)
        return np.array(complex(float(real), float(imaginary)), dtype)
    if isinstance(value, str):
        if value.startswith("0x"):
            bits = int(value, 16).to_bytes(dtype.itemsize, "little")
            return np.frombuffer(bits, dtype.newbyteorder("<")).astype(dtype).reshape(())
        return np.array(float(value), dtype)
    return np.array(0 if value is None else value, dtype)


def _chunk_codec(
    dtype: np.dtype[Any], shape: tuple[int, ...], codecs: Sequence[Mapping[str, Any]]
) -> ChunkCodec:
    order, stored, frame, rest = None, dtype, "", []
    for codec in codecs:
        options = codec.get("configuration") or {}
        match codec["name"]:
            case "transpose":
                axes = tuple(options["order"])
                order = axes if order is None else tuple(order[a] for a in axes)
            case "bytes":
                big = options.get("endian") == "big"
                stored = dtype.newbyteorder(">" if big else "<")
            case "n5_block" | "jpeg" as wrapped:
                frame = wrapped
            case _:
                rest.append(codec)
    return ChunkCodec(dtype, stored, shape, order, _steps(rest), frame)


def _steps(codecs: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    return tuple(_step(c["name"], c.get("configuration") or {}) for c in codecs if not _plain(c))


def _plain(codec: Mapping[str, Any]) -> bool:
    return bool(codec["name"] == "bytes")


def _step(name: str, options: Mapping[str, Any]) -> Step:
    match name:
        case "zstd" | "numcodecs.zstd":
            return Zstd(int(options.get("level", 1)), bool(options.get("checksum", False)))
        case "crc32c":
            return Crc32c()
        case "unzipped":
            return Unzipped()
        case "gzip" | "numcodecs.gzip":
            return Gzip(int(options.get("level", 5)))
        case "numcodecs.zlib":
            return Gzip(int(options.get("level", 5)), 15)
        case "blosc":
            return Numcodec(json.dumps(_blosc(options), sort_keys=True))
        case "numcodecs.blosc" | "numcodecs.lz4" | "numcodecs.bz2":
            config = {**options, "id": name.partition(".")[2]}
            return Numcodec(json.dumps(config, sort_keys=True))
        case _:
            raise CodecError(f"codec {name[:40]!r} is not known")


def _blosc(options: Mapping[str, Any]) -> dict[str, Any]:
    """numcodecs' names for what the Zarr v3 codec says."""
    shuffle = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}[options.get("shuffle", "noshuffle")]
    return {
        "id": "blosc",
        "cname": options.get("cname", "zstd"),
        "clevel": options.get("clevel", 5),
        "shuffle": shuffle,
        "blocksize": options.get("blocksize", 0),
    }
