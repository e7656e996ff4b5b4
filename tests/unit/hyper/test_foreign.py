"""Metadata of others: what TensorStore and zarr write is understood, what is hostile is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper import foreign
from hyper.errors import InvalidArgumentError

ZARR3: dict[str, Any] = {
    "zarr_format": 3, "node_type": "array", "shape": [10, 20], "data_type": "uint8",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8, 8]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0, "codecs": [{"name": "bytes"}], "attributes": {},
}  # fmt: skip
ZARR2: dict[str, Any] = {
    "zarr_format": 2, "shape": [10, 20], "chunks": [8, 8], "dtype": "<u2", "order": "C",
    "fill_value": None, "filters": None, "compressor": None,
}  # fmt: skip
N5: dict[str, Any] = {
    "dimensions": [20, 10], "blockSize": [8, 8], "dataType": "uint8",
    "compression": {"type": "raw"},
}  # fmt: skip
INFO: dict[str, Any] = {
    "data_type": "uint8", "num_channels": 1, "type": "image",
    "scales": [{"key": "4_4_40", "size": [20, 10, 5], "resolution": [4, 4, 40],
                "chunk_sizes": [[8, 8, 8]], "encoding": "raw", "voxel_offset": [3, 0, 0]}],
}  # fmt: skip
READERS = {
    "zarr3": (lambda d: foreign.zarr3(d), ZARR3),
    "zarr2": (lambda d: foreign.zarr2(d, None), ZARR2),
    "n5": (lambda d: foreign.n5(d), N5),
    "precomputed": (lambda d: foreign.precomputed(d, ""), INFO),
}


@pytest.mark.parametrize("form", list(READERS))
def test_good_metadata_are_understood(form: str) -> None:
    read, good = READERS[form]
    found = read(json.dumps(good).encode())
    assert tuple(found.document["shape"])[-2:] == (10, 20)
    json.dumps(found.document)


def test_objects_are_called_as_their_writers_call_them() -> None:
    def name(form: str, index: tuple[int, ...]) -> str:
        read, good = READERS[form]
        return foreign.object_name(read(json.dumps(good).encode()).naming, index)

    assert name("zarr3", (0, 2)) == "c/0/2"
    assert name("zarr2", (0, 2)) == "0.2"
    assert name("n5", (0, 2)) == "2/0"
    assert name("precomputed", (0, 1, 2)) == "4_4_40/19-23_8-10_0-5"


NESTED = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
DEEP = json.loads('{"a":' * 40 + "1" + "}" * 40)
BAD = [
    ("zarr3", change)
    for change in (
        {"shape": [0, 20]}, {"shape": [2**41, 20]}, {"shape": [10]}, {"shape": [-1, 20]},
        {"shape": [1e3, 20]}, {"shape": []}, {"shape": [1] * 17}, {"shape": "ab"},
        {"data_type": "object"}, {"data_type": ["uint8"]}, {"zarr_format": 2},
        {"node_type": "group"}, {"codecs": []}, {"codecs": [{"name": "evil"}]}, {"codecs": None},
        {"codecs": [{"name": "bytes"}, {"name": "bytes"}]}, {"fill_value": "nothing"},
        {"fill_value": 300}, {"storage_transformers": [{}]}, {"attributes": DEEP},
        {"chunk_grid": {"name": "rectilinear"}}, {"chunk_key_encoding": {"name": "../.."}},
        {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "/../"}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**30, 2**30]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 8]}}},
        {"codecs": [{"name": "sharding_indexed", "configuration": {
            "chunk_shape": [3, 3], "codecs": [{"name": "bytes"}],
            "index_codecs": [{"name": "bytes"}, {"name": "crc32c"}]}}]},
        {"codecs": [{"name": "sharding_indexed", "configuration": {
            "chunk_shape": [4, 4], "codecs": [{"name": "bytes"}],
            "index_codecs": [{"name": "bytes"}, {"name": "gzip"}]}}]},
        {"codecs": [{"name": "transpose", "configuration": {"order": [0, 0]}}, {"name": "bytes"}]},
    )
] + [
    ("zarr2", change)
    for change in (
        {"dtype": "|O"}, {"dtype": "|V8"}, {"dtype": [["a", "<u2"]]}, {"chunks": [0, 1]},
        {"filters": [{"id": "pickle"}]}, {"compressor": {"id": "pickle"}}, {"order": "Z"},
        {"dimension_separator": "../"}, {"shape": None},
    )
] + [
    ("n5", change)
    for change in (
        {"dimensions": [0, 1]}, {"blockSize": [8]}, {"dataType": "string"},
        {"compression": {"type": "lua"}}, {"dimensions": {"a": 1}},
    )
] + [
    ("precomputed", change)
    for change in (
        {"scales": []}, {"scales": [{}]}, {"num_channels": 0}, {"num_channels": 10**9},
        {"data_type": "bfloat16"}, {"scales": [{**INFO["scales"][0], "encoding": "lua"}]},
        {"scales": [{**INFO["scales"][0], "sharding": {"@type": "x"}}]},
    )
]  # fmt: skip


@pytest.mark.parametrize(("form", "change"), BAD, ids=map(str, range(len(BAD))))
def test_hostile_metadata_are_refused(form: str, change: dict[str, Any]) -> None:
    read, good = READERS[form]
    with pytest.raises(InvalidArgumentError):
        read(json.dumps({**good, **change}).encode())


@pytest.mark.parametrize("form", list(READERS))
@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", NESTED, b"\xff", b"{" * 100_000, b'{"x":"' + b"y" * 2**20 + b'"}']
)
def test_what_is_no_metadata_is_refused(form: str, data: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        READERS[form][0](data)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.sampled_from(list(READERS)), st.data())
def test_metadata_with_anything_in_them_are_understood_or_refused(
    form: str, data: st.DataObject
) -> None:
    read, good = READERS[form]
    changed = json.loads(json.dumps(good))
    spot: Any = changed
    while True:
        key = data.draw(st.sampled_from(list(spot) if isinstance(spot, dict) else range(len(spot))))
        inner = spot[key]
        if isinstance(inner, dict | list) and inner and data.draw(st.booleans()):
            spot = inner
            continue
        spot[key] = data.draw(values)
        break
    try:
        found = read(json.dumps(changed).encode())
    except InvalidArgumentError:
        return
    assert all(n >= 1 for n in found.document["shape"])
