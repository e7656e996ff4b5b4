"""Arrays of other writers, described as Zarr v3 with a few codecs more (pure).

What comes in was written by anybody: it is checked as if it were hostile. What goes out is the
document of `hyper.codecs` and how the array's objects are named. Axes of N5 and precomputed, which
run (x, y, z), are turned: here they are (z, y, x).

Sources: the specifications of Zarr v2 and v3; N5's (github.com/saalfeldlab/n5, README);
precomputed's (github.com/google/neuroglancer, src/datasource/precomputed/volume.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyper.array_spec import (
    DTYPES,
    MAX_CHUNK_BYTES,
    ArraySpec,
    check,
    read_attributes,
    read_fill_value,
)
from hyper.codecs import Layout
from hyper.errors import InvalidArgumentError

MAX_METADATA_BYTES = 2**20
_WRONG = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)
_N5_COMPRESSION = {"raw": None, "gzip": "gzip", "bzip2": "numcodecs.bz2", "zstd": "zstd"}
_KNOWN_CODECS = ("zstd", "gzip", "blosc", "crc32c")
_V2_COMPRESSORS = ("zlib", "gzip", "zstd", "blosc", "bz2", "lz4")
_METRES_NM = {"nm": 1.0, "nanometer": 1.0, "um": 1e3, "µm": 1e3, "micrometer": 1e3, "m": 1e9}


@dataclass(frozen=True, slots=True)
class Foreign:
    """An array of somebody.

    Args:
        document: Zarr v3 metadata, with the codecs of `hyper.codecs`.
        naming: how its objects are called, for `object_name`.
    """

    document: dict[str, Any]
    naming: dict[str, Any]


def object_name(naming: Mapping[str, Any], index: Sequence[int]) -> str:
    """Below the array's path, the object that holds the chunk or shard of this index."""
    match naming["form"]:
        case "zarr":
            text = [str(i) for i in index] or ["0"]
            separator: str = naming["separator"]
            return str(naming["lead"]) + separator.join(text)
        case "n5":
            return "/".join(str(i) for i in reversed(index))
        case "precomputed":
            spans = []
            axes = zip(
                reversed(index[-3:]), naming["chunk"], naming["size"], naming["offset"], strict=True
            )
            for i, edge, size, offset in axes:
                spans.append(f"{offset + i * edge}-{offset + min((i + 1) * edge, size)}")
            return f"{naming['scale']}/" + "_".join(spans)
        case _:
            raise ValueError(f"objects named in form {naming['form']!r}")


def read_json(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object of bounded size and depth.

    Raises:
        InvalidArgumentError: it is none.
    """
    if len(data) > MAX_METADATA_BYTES:
        raise _bad(what, "is larger than 1 MiB")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _bad(what, f"is not JSON: {str(error)[:80]}") from error
    if not isinstance(value, dict):
        raise _bad(what, "is not a JSON object")
    return value


def zarr3(data: bytes) -> Foreign:
    """From `zarr.json`."""
    return _read("zarr.json", lambda: _zarr3(read_json(data, "zarr.json")))


def zarr2(data: bytes, attributes: bytes | None) -> Foreign:
    """From `.zarray` and `.zattrs`."""

    def read() -> Foreign:
        user = read_json(attributes, ".zattrs") if attributes else {}
        return _zarr2(read_json(data, ".zarray"), user)

    return _read(".zarray", read)


def n5(data: bytes) -> Foreign:
    """From `attributes.json`."""
    return _read("attributes.json", lambda: _n5(read_json(data, "attributes.json")))


def precomputed(data: bytes, scale: str) -> Foreign:
    """One scale of a volume, from `info`; the first one by default."""
    return _read("info", lambda: _precomputed(read_json(data, "info"), scale))


def _read(what: str, read: Callable[[], Foreign]) -> Foreign:
    try:
        foreign = read()
        Layout.of(foreign.document)  # every codec is known
    except InvalidArgumentError:
        raise
    except _WRONG as error:
        raise _bad(what, f"describes no array that can be read ({str(error)[:120]})") from error
    return foreign


def _zarr3(document: dict[str, Any]) -> Foreign:
    if document["zarr_format"] != 3 or document["node_type"] != "array":
        raise ValueError("not a Zarr v3 array")
    if document.get("storage_transformers"):
        raise ValueError("storage transformers")
    grid = document["chunk_grid"]
    if grid["name"] != "regular":
        raise ValueError("its chunk grid is not regular")
    shards = _lengths(grid["configuration"]["chunk_shape"])
    codecs, chunks = document["codecs"], shards
    if codecs[0]["name"] == "sharding_indexed":
        inner = codecs[0]["configuration"]
        chunks = _lengths(inner["chunk_shape"])
        if len(codecs) != 1 or inner.get("index_location", "end") not in ("start", "end"):
            raise ValueError("codecs around its shards")
        _check_index_codecs(inner["index_codecs"])
        _check_codecs(inner["codecs"], len(chunks))
        codecs = [{"name": "sharding_indexed", "configuration": inner}]
    else:
        _check_codecs(codecs, len(shards))
    encoding = document["chunk_key_encoding"]
    separator = (encoding.get("configuration") or {}).get(
        "separator", "/" if encoding["name"] == "default" else "."
    )
    if encoding["name"] not in ("default", "v2") or separator not in ("/", "."):
        raise ValueError("its chunk keys")
    lead = f"c{separator}" if encoding["name"] == "default" else ""
    naming = {"form": "zarr", "lead": lead, "separator": separator}
    attributes = document.get("attributes") or {}
    names = document.get("dimension_names") or ()
    found = _document(
        _lengths(document["shape"]), document["data_type"], (shards, chunks),
        document.get("fill_value"), codecs, attributes, names=names,
    )  # fmt: skip
    return Foreign(found, naming)


def _check_codecs(codecs: Any, axes: int) -> None:
    names = [codec["name"] for codec in codecs]
    if names.count("bytes") != 1:
        raise ValueError("no `bytes` codec")
    for at, codec in enumerate(codecs):
        name, options = codec["name"], codec.get("configuration") or {}
        if name == "transpose":
            if at > names.index("bytes") or sorted(options["order"]) != list(range(axes)):
                raise ValueError("its transpose codec")
        elif name == "bytes":
            if options.get("endian", "little") not in ("little", "big"):
                raise ValueError("its byte order")
        elif name not in _KNOWN_CODECS or at < names.index("bytes"):
            raise ValueError(f"codec {str(name)[:40]!r}")


def _check_index_codecs(codecs: Any) -> None:
    names = [codec["name"] for codec in codecs]
    little = (codecs[0].get("configuration") or {}).get("endian", "little") == "little"
    if names not in (["bytes"], ["bytes", "crc32c"]) or not little:
        raise ValueError("the codecs of its shard index")


def _zarr2(meta: dict[str, Any], attributes: dict[str, Any]) -> Foreign:
    if meta["zarr_format"] != 2:
        raise ValueError("not Zarr v2")
    if meta.get("filters"):
        raise ValueError("filters")
    stored = np.dtype(str(meta["dtype"]))
    shape, chunks = _lengths(meta["shape"]), _lengths(meta["chunks"])
    codecs: list[dict[str, Any]] = []
    if meta["order"] == "F":
        codecs.append(
            {"name": "transpose", "configuration": {"order": list(range(len(shape)))[::-1]}}
        )
    elif meta["order"] != "C":
        raise ValueError("its order")
    endian = "big" if stored.str[0] == ">" else "little"
    codecs.append({"name": "bytes", "configuration": {"endian": endian}})
    compressor = meta.get("compressor")
    if compressor is not None:
        if compressor["id"] not in _V2_COMPRESSORS:
            raise ValueError(f"compressor {str(compressor['id'])[:40]!r}")
        options = {k: v for k, v in compressor.items() if k != "id"}
        codecs.append({"name": f"numcodecs.{compressor['id']}", "configuration": options})
    separator = meta.get("dimension_separator", ".")
    if separator not in ("/", "."):
        raise ValueError("its chunk keys")
    names = attributes.get("_ARRAY_DIMENSIONS") or ()
    document = _document(
        shape, stored.newbyteorder("=").name, (chunks, chunks), meta.get("fill_value"), codecs,
        attributes, names=names if len(names) == len(shape) else (),
    )  # fmt: skip
    return Foreign(document, {"form": "zarr", "lead": "", "separator": separator})


def _n5(meta: dict[str, Any]) -> Foreign:
    shape = _lengths(meta["dimensions"])[::-1]
    chunks = _lengths(meta["blockSize"])[::-1]
    compression = meta.get("compression") or {"type": meta.get("compressionType", "raw")}
    kind = compression["type"]
    if kind == "gzip" and compression.get("useZlib"):
        name: str | None = "numcodecs.zlib"
    elif kind == "blosc":
        name = "numcodecs.blosc"
    else:
        name = _N5_COMPRESSION[kind]
    codecs: list[dict[str, Any]] = [
        {"name": "n5_block"},
        {"name": "bytes", "configuration": {"endian": "big"}},
    ]
    if name is not None:
        codecs.append({"name": name, "configuration": {}})
    attributes = {
        k: v
        for k, v in meta.items()
        if k not in ("dimensions", "blockSize", "dataType", "compression", "compressionType")
    }
    document = _document(
        shape, meta["dataType"], (chunks, chunks), 0, codecs, attributes, voxel=_n5_voxel(meta)
    )
    return Foreign(document, {"form": "n5"})


def _n5_voxel(meta: Mapping[str, Any]) -> list[float] | None:
    """(z, y, x) in nm, of what writers put beside the array; None if nobody says."""
    resolution, units = meta.get("resolution"), meta.get("units")
    unit = units[0] if isinstance(units, list) and units else "nm"
    if isinstance(pixel := meta.get("pixelResolution"), dict):
        resolution, unit = pixel.get("dimensions"), pixel.get("unit", "nm")
    if not isinstance(resolution, list) or len(resolution) != 3 or unit not in _METRES_NM:
        return None
    return [float(size) * _METRES_NM[unit] for size in reversed(resolution)]


def _precomputed(info: dict[str, Any], wanted: str) -> Foreign:
    scales = info["scales"]
    found = [s for s in scales if not wanted or s["key"] == wanted]
    if not found:
        keys = ", ".join(str(s["key"])[:40] for s in scales[:10])
        raise _bad("info", f"has no scale {wanted[:80]!r}; it has {keys}")
    scale = found[0]
    if scale.get("sharding"):
        raise ValueError("sharded precomputed volumes")
    if scale["encoding"] not in ("raw", "jpeg"):
        raise ValueError(f"encoding {str(scale['encoding'])[:40]!r}")
    channels = int(info["num_channels"])
    lead = () if channels == 1 else (channels,)
    size, chunk = _lengths(scale["size"]), _lengths(scale["chunk_sizes"][0])
    offset = [int(n) for n in scale.get("voxel_offset", (0, 0, 0))]
    if not len(size) == len(chunk) == len(offset) == 3:
        raise ValueError("its axes")
    chunks = (*lead, *reversed(chunk))
    codecs: list[dict[str, Any]] = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "unzipped"},
    ]
    if scale["encoding"] == "jpeg":
        codecs.insert(0, {"name": "jpeg"})
    document = _document(
        (*lead, *reversed(size)), info["data_type"], (chunks, chunks), 0, codecs,
        {"type": info.get("type")}, voxel=[float(n) for n in reversed(scale["resolution"])],
    )  # fmt: skip
    document["chunk_grid"]["configuration"]["clipped"] = True
    naming = {
        "form": "precomputed", "scale": str(scale["key"]), "chunk": chunk, "size": size,
        "offset": offset,
    }  # fmt: skip
    return Foreign(document, naming)


def _document(
    shape: tuple[int, ...],
    dtype: str,
    grids: tuple[tuple[int, ...], tuple[int, ...]],
    fill_value: Any,
    codecs: Sequence[Mapping[str, Any]],
    attributes: Mapping[str, Any],
    *,
    names: Sequence[str] = (),
    voxel: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The document, once it is one that we would have made ourselves."""
    shards, chunks = grids
    if dtype not in DTYPES:
        raise ValueError(f"data type {str(dtype)[:40]!r}")
    user = read_attributes(json.dumps(dict(attributes)))
    known = voxel if voxel is not None else user.get("voxel_size_nm")
    usable = isinstance(known, list | tuple) and len(known) == 3
    size = tuple(float(n) for n in known) if usable and known is not None else None
    spec = check(
        ArraySpec(
            shape=shape, dtype=dtype, chunks=chunks, shards=shards,
            fill_value=_fill(fill_value, dtype), compressor="zstd",
            dimension_names=tuple(str(name) for name in names if name is not None)
            if names and None not in names
            else (),
            voxel_size_nm=size if size is not None and all(n > 0 for n in size) else None,  # type: ignore[arg-type]
            attributes=user,
        )
    )  # fmt: skip
    if spec.voxel_size_nm is not None:
        user["voxel_size_nm"] = list(spec.voxel_size_nm)
    document: dict[str, Any] = {
        "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shards}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": spec.fill_value, "codecs": codecs, "attributes": user,
        "storage_transformers": [],
    }  # fmt: skip
    if spec.dimension_names:
        document["dimension_names"] = spec.dimension_names
    return document


def _fill(value: Any, dtype: str) -> Any:
    """A fill value that Zarr allows: numbers, and the hexadecimal form of floats."""
    if isinstance(value, str) and value.startswith("0x"):
        bits = int(value, 16).to_bytes(DTYPES[dtype], "little")
        value = np.frombuffer(bits, np.dtype(dtype).newbyteorder("<"))[0].item()
    elif isinstance(value, float) and value.is_integer() and dtype[:1] in "iu":
        value = int(value)
    return read_fill_value(json.dumps(0 if value is None else value), dtype)


def _lengths(values: Any) -> tuple[int, ...]:
    """Lengths of axes; whether they are sensible is checked with the rest."""
    if not isinstance(values, list | tuple) or len(values) > 32:
        raise ValueError("its shape")
    if any(isinstance(n, bool) or not isinstance(n, int) for n in values):
        raise ValueError("its shape")
    if values and math.prod(max(1, n) for n in values) > MAX_CHUNK_BYTES**4:
        raise ValueError("its shape")
    return tuple(values)


def _bad(what: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{what} {problem}", reason="INVALID_REQUEST", field="path")
