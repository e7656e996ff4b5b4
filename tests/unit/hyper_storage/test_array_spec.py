"""What an array may be, how it is laid out, and that zarr understands what we write."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zarr
import zarr.storage
from hypothesis import given
from hypothesis import strategies as st

from hyper.array_spec import (
    COMPRESSORS,
    DTYPES,
    ArraySpec,
    check,
    read_attributes,
    read_fill_value,
    zarr_json,
)
from hyper.errors import InvalidArgumentError
from hyper_storage.arrays.layout import SHARD_BYTES, default_chunks, default_shards

SPEC = ArraySpec(
    shape=(5, 60, 70),
    dtype="uint16",
    chunks=(1, 16, 16),
    shards=(1, 64, 64),
    fill_value=3,
    compressor="zstd",
    dimension_names=("z", "y", "x"),
    voxel_size_nm=(40.0, 4.0, 4.0),
    attributes={"a": [1, {"b": None}]},
)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_zarr_reads_and_writes_it(dtype: str, compressor: str) -> None:
    assert np.dtype(dtype).itemsize == DTYPES[dtype]
    fill = read_fill_value("1", dtype)
    spec = check(replace(SPEC, dtype=dtype, compressor=compressor, fill_value=fill))
    store = zarr.storage.MemoryStore()
    buffer = zarr.core.buffer.default_buffer_prototype().buffer
    asyncio.run(store.set("zarr.json", buffer.from_bytes(zarr_json(spec))))
    array: Any = zarr.open_array(store, mode="r+")
    assert (array.shape, array.chunks, array.shards) == (spec.shape, spec.chunks, spec.shards)
    assert array.dtype == np.dtype(dtype)
    assert array.attrs["voxel_size_nm"] == [40, 4, 4]
    assert array[4, 0, 0] == np.ones((), dtype)
    block = np.arange(60 * 70).reshape(60, 70).astype(dtype)
    array[2] = block
    np.testing.assert_array_equal(array[2], block)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": ()},
        {"shape": (0, 60, 70)},
        {"shape": (-5, 60, 70)},
        {"shape": (2**41, 60, 70)},
        {"shape": (2**40, 2**40, 2**40)},
        {"dtype": "object"},
        {"dtype": "uint7"},
        {"chunks": (1, 16)},
        {"chunks": (1, 15, 16)},
        {"chunks": (0, 16, 16)},
        {"shards": (1, 65, 64)},
        {"chunks": (2**15, 2**15, 1), "shards": (2**15, 2**15, 1)},
        {"chunks": (1, 1, 1), "shards": (1, 2**11, 2**10)},
        {"compressor": "gzip"},
        {"dimension_names": ("z",)},
        {"dimension_names": ("z", "", "x")},
        {"voxel_size_nm": (0.0, 1.0, 1.0)},
        {"voxel_size_nm": (math.nan, 1.0, 1.0)},
    ],
)
def test_bad_specs_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        check(replace(SPEC, **change))


@pytest.mark.parametrize(
    ("text", "dtype", "value"),
    [
        ("", "uint8", 0),
        ("255", "uint8", 255),
        ("-1", "int8", -1),
        ("true", "bool", True),
        ("1", "bool", True),
        ("0.5", "float32", 0.5),
        ('"NaN"', "float32", "NaN"),
        ("NaN", "float64", "NaN"),
        ("-Infinity", "float64", "-Infinity"),
        ("[1, 2]", "complex64", [1.0, 2.0]),
        ("3", "complex128", [3.0, 0.0]),
    ],
)
def test_fill_values(text: str, dtype: str, value: Any) -> None:
    assert read_fill_value(text, dtype) == value


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("256", "uint8"),
        ("-1", "uint8"),
        ("0.5", "int16"),
        ("true", "int16"),
        ('"x"', "float32"),
        ("null", "float32"),
        ("[1]", "complex64"),
        ("{", "uint8"),
        ("[" * 100_000, "uint8"),
        ("1" * 400, "float32"),
        ("0", "datetime64"),
    ],
)
def test_bad_fill_values(text: str, dtype: str) -> None:
    with pytest.raises(InvalidArgumentError):
        read_fill_value(text, dtype)


def test_attributes_are_bounded() -> None:
    assert read_attributes("") == {}
    assert read_attributes('{"a": 1}') == {"a": 1}
    deep = '{"a":' * 40 + "1" + "}" * 40
    for bad in ("[]", "1", "{", deep, '{"a":' + "[" * 50_000 + "]" * 50_000 + "}", " " * 2**19):
        with pytest.raises(InvalidArgumentError):
            read_attributes(bad)


lengths = st.lists(st.integers(1, 200_000), min_size=1, max_size=4)


@given(lengths, st.sampled_from([1, 2, 4, 16]))
def test_default_layout_is_sound(shape: list[int], itemsize: int) -> None:
    chunks = default_chunks(shape)
    shards = default_shards(shape, chunks, itemsize)
    assert len(chunks) == len(shards) == len(shape)
    assert all(s % c == 0 for s, c in zip(shards, chunks, strict=True))
    assert math.prod(shards) * itemsize <= max(SHARD_BYTES, math.prod(chunks) * itemsize)
    assert math.prod(chunks) <= 2**22
    assert all(s < n + c for s, n, c in zip(shards, shape, chunks, strict=True))


@pytest.mark.parametrize(
    ("shape", "itemsize", "chunks", "shards"),
    [
        ((10, 1024, 1024), 1, (1, 1024, 1024), (1, 1024, 1024)),
        ((10, 4096, 4096), 1, (1, 1024, 1024), (1, 4096, 4096)),
        ((1000, 16384, 16384), 1, (1, 1024, 1024), (1, 8192, 8192)),
        ((512, 512, 512), 1, (128, 128, 128), (512, 512, 256)),
        ((2048, 2048), 1, (1024, 1024), (2048, 2048)),
        ((3, 512, 512, 512), 4, (1, 128, 128, 128), (1, 256, 256, 256)),
    ],
)
def test_default_layouts(
    shape: tuple[int, ...], itemsize: int, chunks: tuple[int, ...], shards: tuple[int, ...]
) -> None:
    found = default_chunks(shape)
    assert found == chunks
    assert math.prod(default_shards(shape, found, itemsize)) == math.prod(shards)


def test_chunks_divide_given_shards() -> None:
    assert default_chunks((100, 5000, 5000), (1, 5000, 3000)) == (1, 1000, 1000)


def test_zarr_json_is_plain_json() -> None:
    document = json.loads(zarr_json(SPEC))
    assert document["node_type"] == "array"
    assert document["codecs"][0]["name"] == "sharding_indexed"
