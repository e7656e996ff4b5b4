"""What an array is, checked, and how it is written down as Zarr v3 metadata (pure).

Arrays are Zarr v3 with the sharding codec: the regular chunk grid is the grid of shards (one object
each, the unit of concurrent writing), and each shard holds compressed inner chunks with an index
under crc32c. Every inner chunk carries a checksum too: zstd's own, or crc32c where nothing is
compressed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyper.errors import ConflictError, InvalidArgumentError

DTYPES = {  # bytes an element
    "bool": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
    "float16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip
COMPRESSORS = ("zstd", "none")
MAX_AXES = 16
MAX_LENGTH = 2**40
MAX_SHARDS = 2**40
MAX_CHUNKS_PER_SHARD = 2**20
MAX_CHUNK_BYTES = 2**29
MAX_SHARD_BYTES = 2**31
MAX_ATTRIBUTES_BYTES = 2**18
MAX_ATTRIBUTES_DEPTH = 32
ZSTD_LEVEL = 1

_SPECIAL_FLOATS = ("NaN", "Infinity", "-Infinity")


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """An array that can be made.

    Args:
        shape: elements along each axis.
        dtype: numpy's name.
        chunks: inner chunks, the unit of reading.
        shards: outer chunks, one object each; a multiple of `chunks`.
        fill_value: as Zarr v3 writes it in JSON.
        compressor: "zstd" or "none".
        dimension_names: one an axis, or none at all.
        voxel_size_nm: (z, y, x), if known.
        attributes: of the user.
    """

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    fill_value: Any
    compressor: str
    dimension_names: tuple[str, ...]
    voxel_size_nm: tuple[float, float, float] | None
    attributes: Mapping[str, Any]

    @property
    def grid(self) -> tuple[int, ...]:
        """Shards along each axis."""
        return tuple(-(-n // s) for n, s in zip(self.shape, self.shards, strict=True))


def check(spec: ArraySpec) -> ArraySpec:
    """Return `spec` if it describes an array that can be stored.

    Raises:
        InvalidArgumentError: SHAPE_MISMATCH or INVALID_REQUEST, with the field.
    """
    if spec.dtype not in DTYPES:
        raise _bad("dtype", f"dtype {spec.dtype[:40]!r} is not one of {', '.join(DTYPES)}")
    if spec.compressor not in COMPRESSORS:
        raise _bad("compressor", f"compressor {spec.compressor[:40]!r} is not zstd or none")
    axes = len(spec.shape)
    if not 1 <= axes <= MAX_AXES:
        raise _bad("shape", f"an array has 1 to {MAX_AXES} axes, not {axes}", shape=True)
    if any(not 1 <= n <= MAX_LENGTH for n in spec.shape):
        raise _bad(
            "shape", f"shape {_short(spec.shape)}: an axis has 1 to 2^40 elements", shape=True
        )
    itemsize = DTYPES[spec.dtype]
    for field, lengths in (("chunk_shape", spec.chunks), ("shard_shape", spec.shards)):
        if len(lengths) != axes or any(not 1 <= n <= MAX_LENGTH for n in lengths):
            raise _bad(
                field,
                f"{field} {_short(lengths)} must have {axes} lengths of 1 or more",
                shape=True,
            )
    if any(s % c for s, c in zip(spec.shards, spec.chunks, strict=True)):
        raise _bad(
            "shard_shape",
            f"shard_shape {_short(spec.shards)} must be a multiple of chunk_shape "
            f"{_short(spec.chunks)}",
            shape=True,
        )
    if math.prod(spec.chunks) * itemsize > MAX_CHUNK_BYTES:
        raise _bad("chunk_shape", "an inner chunk may have at most 512 MiB", shape=True)
    if math.prod(spec.shards) * itemsize > MAX_SHARD_BYTES:
        raise _bad("shard_shape", "a shard may have at most 2 GiB", shape=True)
    inner = math.prod(s // c for s, c in zip(spec.shards, spec.chunks, strict=True))
    if inner > MAX_CHUNKS_PER_SHARD:
        raise _bad(
            "chunk_shape", f"a shard may hold at most 2^20 inner chunks, not {inner}", shape=True
        )
    if math.prod(spec.grid) > MAX_SHARDS:
        raise _bad("shape", "an array may have at most 2^40 shards; use larger shards", shape=True)
    if spec.dimension_names and len(spec.dimension_names) != axes:
        raise _bad("dimension_names", f"{axes} axes need as many dimension_names", shape=True)
    if any(not 1 <= len(name) <= 64 or not name.isprintable() for name in spec.dimension_names):
        raise _bad("dimension_names", "a dimension name has 1 to 64 printable characters")
    voxel = spec.voxel_size_nm
    if voxel is not None and not all(math.isfinite(v) and v > 0 for v in voxel):
        raise _bad("voxel_size", "voxel sizes are positive numbers of nanometres")
    return spec


def read_fill_value(text: str, dtype: str) -> Any:
    """The fill value of JSON `text` ("" is zero) as Zarr v3 writes it for `dtype`."""
    try:
        value = json.loads(text) if text else 0
    except (ValueError, RecursionError) as error:
        raise _bad("fill_value_json", f"fill_value_json is not JSON: {error}") from error
    if dtype not in DTYPES:
        raise _bad("dtype", f"dtype {dtype[:40]!r} is not one of {', '.join(DTYPES)}")
    kind = np.dtype(dtype).kind
    good: Any = None
    if kind == "b" and (isinstance(value, bool) or value in (0, 1)):
        good = bool(value)
    elif kind in "iu" and isinstance(value, int) and not isinstance(value, bool):
        limits = np.iinfo(dtype)
        good = value if limits.min <= value <= limits.max else None
    elif kind == "f":
        good = _float(value)
    elif kind == "c":
        pair = value if isinstance(value, list) and len(value) == 2 else [value, 0.0]
        parts = [_float(part) for part in pair]
        good = parts if None not in parts else None
    if good is None:
        raise _bad("fill_value_json", f"{text[:40]!r} is not a fill value of {dtype}")
    return good


def _float(value: Any) -> float | str | None:
    """A float as Zarr writes it, or None."""
    if isinstance(value, str):
        return value if value in _SPECIAL_FLOATS else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number


def read_attributes(text: str) -> dict[str, Any]:
    """The user's attributes: a JSON object of bounded size and depth."""
    if len(text) > MAX_ATTRIBUTES_BYTES:
        raise _bad("attributes_json", "attributes may have at most 256 KiB of JSON")
    try:
        value = json.loads(text) if text else {}
        deep = _depth(value) > MAX_ATTRIBUTES_DEPTH
    except RecursionError:
        deep, value = True, {}
    except ValueError as error:
        raise _bad("attributes_json", f"attributes_json is not JSON: {error}") from error
    if deep:
        raise _bad("attributes_json", f"attributes are nested over {MAX_ATTRIBUTES_DEPTH} deep")
    if not isinstance(value, dict):
        raise _bad("attributes_json", "attributes must be a JSON object")
    return value


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def zarr_json(spec: ArraySpec) -> bytes:
    """The array's `zarr.json`."""
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    if spec.compressor == "zstd":
        check_or_pack = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}}
    else:
        check_or_pack = {"name": "crc32c"}
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": spec.chunks,
            "codecs": [little, check_or_pack],
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        },
    }
    attributes = dict(spec.attributes)
    if spec.voxel_size_nm is not None:
        attributes["voxel_size_nm"] = list(spec.voxel_size_nm)
    elif "voxel_size_nm" in attributes:
        del attributes["voxel_size_nm"]
    document: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": spec.shape,
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": spec.shards}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": spec.fill_value,
        "codecs": [sharding],
        "attributes": attributes,
        "storage_transformers": [],
    }
    if spec.dimension_names:
        document["dimension_names"] = spec.dimension_names
    return json.dumps(document, indent=1).encode()


def updated_zarr(
    zarr: bytes, *, expected: tuple[int, ...], shape: tuple[int, ...], attributes_json: str
) -> bytes:
    """An array's `zarr.json` after it has grown or got other attributes.

    Raises:
        ConflictError: its shape is not the expected one.
        InvalidArgumentError: an axis would shrink, or the result cannot be stored.
    """
    document = json.loads(zarr)
    now = tuple(document["shape"])
    attributes = document["attributes"]
    if attributes_json:
        voxel = attributes.get("voxel_size_nm")
        attributes = read_attributes(attributes_json)
        if voxel is not None:
            attributes["voxel_size_nm"] = voxel
    if shape:
        if expected and expected != now:
            raise ConflictError(f"the array has shape {_short(now)} by now, not {_short(expected)}")
        if len(shape) != len(now) or any(a < b for a, b in zip(shape, now, strict=True)):
            raise _bad(
                "shape",
                f"an array of shape {_short(now)} only grows, not to {_short(shape)}",
                shape=True,
            )
    sharding = document["codecs"][0]["configuration"]
    check(
        ArraySpec(
            shape=shape or now,
            dtype=document["data_type"],
            chunks=tuple(sharding["chunk_shape"]),
            shards=tuple(document["chunk_grid"]["configuration"]["chunk_shape"]),
            fill_value=document["fill_value"],
            compressor="zstd",
            dimension_names=(),
            voxel_size_nm=None,
            attributes=attributes,
        )
    )
    return json.dumps(
        {**document, "shape": shape or now, "attributes": attributes}, indent=1
    ).encode()


def _bad(field: str, message: str, *, shape: bool = False) -> InvalidArgumentError:
    reason = "SHAPE_MISMATCH" if shape else "INVALID_REQUEST"
    return InvalidArgumentError(message, reason=reason, field=field)


def _short(lengths: Sequence[int]) -> str:
    return str(tuple(lengths[:MAX_AXES]))[:120]
