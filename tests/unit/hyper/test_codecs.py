"""Codecs of chunks and shards: what numcodecs and zarr write is read, bombs are refused."""

from __future__ import annotations

import bz2
import gzip
import threading
import zlib
from typing import Any

import numcodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper._blocks import Blocks, is_fill, pieces
from hyper._chunk_cache import ChunkCache
from hyper.codecs import CodecError, Layout, Zstd, zstd_content_bytes

DATA = np.random.default_rng(0).integers(0, 9, (6, 5, 4)).astype(np.int32)


def layout(*codecs: dict[str, Any], dtype: str = "int32") -> Layout:
    return Layout.of(
        {
            "shape": (6, 5, 4), "data_type": dtype, "fill_value": 0, "codecs": codecs,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": (6, 5, 4)}},
        }
    )  # fmt: skip


LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
BIG = {"name": "bytes", "configuration": {"endian": "big"}}
CHAINS = [
    [LITTLE],
    [BIG],
    [LITTLE, {"name": "crc32c"}],
    [LITTLE, {"name": "gzip", "configuration": {"level": 1}}],
    [LITTLE, {"name": "zstd", "configuration": {"level": 1, "checksum": True}}],
    [LITTLE, {"name": "zstd", "configuration": {"level": 1}}, {"name": "crc32c"}],
    [{"name": "transpose", "configuration": {"order": [2, 0, 1]}}, BIG, {"name": "numcodecs.zlib"}],
    [LITTLE, {"name": "blosc", "configuration": {"cname": "lz4", "shuffle": "shuffle"}}],
    [LITTLE, {"name": "numcodecs.lz4"}],
    [LITTLE, {"name": "numcodecs.bz2"}],
]


@pytest.mark.parametrize("chain", CHAINS, ids=map(str, range(len(CHAINS))))
def test_what_is_encoded_is_decoded(chain: list[dict[str, Any]]) -> None:
    codec = layout(*chain).codec
    stored = b"".join(codec.encode(DATA))
    np.testing.assert_array_equal(codec.decode(stored), DATA)
    scratch = np.empty(codec.nbytes, np.uint8)
    np.testing.assert_array_equal(codec.decode(stored, None, scratch), DATA)
    assert len(stored) <= codec.stored_max
    for damaged in (b"", stored[:3], stored[:-1], stored + stored, b"\x00" * len(stored)):
        if damaged != stored and not (chain[0] in (LITTLE, BIG) and len(chain) == 1):
            try:
                found = codec.decode(damaged)
            except CodecError:
                continue
            assert found.shape == DATA.shape  # formats without checksums cannot tell


BOMB = bytes(10_000_000)


@pytest.mark.parametrize(
    ("name", "bomb"),
    [
        ("zstd", numcodecs.zstd.compress(BOMB, 1)),
        ("gzip", gzip.compress(BOMB)),
        ("numcodecs.zlib", zlib.compress(BOMB)),
        ("numcodecs.bz2", bz2.compress(BOMB)),
        ("blosc", numcodecs.Blosc(shuffle=0).encode(BOMB)),
        ("numcodecs.lz4", numcodecs.LZ4().encode(BOMB)),
        ("unzipped", gzip.compress(BOMB)),
    ],
)
def test_bombs_are_refused(name: str, bomb: bytes) -> None:
    with pytest.raises(CodecError):
        layout(LITTLE, {"name": name}).codec.decode(bomb)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_chunk_or_refused(data: bytes) -> None:
    for chain in CHAINS:
        codec = layout(*chain).codec
        try:
            assert codec.decode(data).shape == DATA.shape
        except CodecError:
            continue


@given(st.integers(0, 70_000), st.booleans())
def test_a_zstd_frame_says_its_size(size: int, checksum: bool) -> None:
    frame = Zstd(1, checksum).encode(bytes(size))
    assert zstd_content_bytes(frame) in (size, None)


@given(st.integers(-50, 50), st.integers(0, 60), st.integers(1, 9), st.integers(1, 20))
def test_pieces_cover_a_selection_once(start: int, length: int, step: int, edge: int) -> None:
    chosen = range(abs(start), abs(start) + length * step, step)
    found = pieces(chosen, edge)
    rebuilt = [
        piece.chunk * edge + at
        for piece in found
        for at in range(piece.inside.start, piece.inside.stop, piece.inside.step)
    ]
    assert rebuilt == list(chosen)
    assert [i for p in found for i in range(p.outside.start, p.outside.stop)] == list(
        range(len(chosen))
    )
    assert all(0 <= p.inside.start < p.inside.stop <= edge for p in found)


@pytest.mark.parametrize(
    ("fill", "dtype"),
    [(0, "uint8"), (np.nan, "float32"), (-0.0, "float64"), (1 + 2j, "complex128")],
)
def test_fill_is_told_bit_by_bit(fill: Any, dtype: str) -> None:
    value = np.array(fill, dtype)
    chunk = np.full((3, 4), value)
    assert is_fill(chunk, value)
    chunk[1, 2] = 7
    assert not is_fill(chunk, value)
    assert not is_fill(np.zeros((2, 2)), np.array(-0.0))


def test_the_cache_holds_no_more_than_its_limit() -> None:
    cache = ChunkCache(10_000)
    chunks = [np.full(1000, i, np.uint8) for i in range(30)]
    for i, chunk in enumerate(chunks):
        cache.put(i, chunk)
        assert cache.used_bytes <= cache.limit_bytes
    assert cache.get(0) == (False, None)
    known, newest = cache.get(29)
    assert known
    assert newest is chunks[29]
    cache.put("too large", np.zeros(20_000, np.uint8))
    assert cache.get("too large") == (False, None)
    cache.put("absent", None)
    assert cache.get("absent") == (True, None)


class _Objects:
    """A bucket in memory that counts reads; what it lends is overwritten by the next loan."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.reads = 0
        self._lent = threading.local()

    def sign(self, objects: Any, method: str) -> None:
        """Nothing is to be signed."""

    def put(self, key: str, body: Any) -> None:
        self.stored[key] = b"".join(body)

    def get(
        self,
        key: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        last: int | None = None,
    ) -> bytes | None:
        self.reads += 1
        data = self.stored.get(key)
        return None if data is None else data[-last:] if last else data[start:stop]

    def borrow(self, key: str, start: int, stop: int) -> memoryview | None:
        data = self.get(key, start, stop)
        if data is None:
            return None
        room = self._lent.__dict__.setdefault("room", bytearray(4096))
        room[:] = b"\xee" * len(room)
        room[: len(data)] = data
        return memoryview(room)[: len(data)]


def test_patches_from_the_cache_are_what_was_written_and_read_nothing() -> None:
    inner = [LITTLE, {"name": "zstd", "configuration": {"level": 1, "checksum": True}}]
    sharding = {
        "chunk_shape": (3, 5, 2), "codecs": inner,
        "index_codecs": [{"name": "bytes"}, {"name": "crc32c"}],
    }  # fmt: skip
    objects: Any = _Objects()
    blocks = Blocks(
        objects, "p", "", layout({"name": "sharding_indexed", "configuration": sharding}),
        mutable=False, cache=ChunkCache(10**6),
    )  # fmt: skip
    everything = [range(n) for n in (6, 5, 4)]
    blocks.write([range(6), range(5), range(4)], DATA)
    np.testing.assert_array_equal(blocks.read(everything), DATA)
    before = objects.reads
    for z, y, step in ((0, 0, 1), (1, 2, 2), (5, 4, 1)):
        found = blocks.read([range(z, 6, step), range(y, 5), range(0, 4, step)])
        np.testing.assert_array_equal(found, DATA[z::step, y:, ::step])
    assert objects.reads == before


@pytest.mark.parametrize("inner", [[], [{"name": "crc32c"}]])
@pytest.mark.parametrize("where", ["start", "end"])
def test_a_small_shard_that_is_wanted_whole_is_one_request(
    inner: list[dict[str, Any]], where: str
) -> None:
    sharding = {
        "chunk_shape": (3, 5, 2), "codecs": [LITTLE, *inner], "index_location": where,
        "index_codecs": [{"name": "bytes"}, {"name": "crc32c"}],
    }  # fmt: skip
    objects: Any = _Objects()
    blocks = Blocks(
        objects, "p", "", layout({"name": "sharding_indexed", "configuration": sharding}),
        mutable=False, cache=ChunkCache(0),
    )  # fmt: skip
    everything = [range(n) for n in DATA.shape]
    blocks.write(everything, DATA)
    np.testing.assert_array_equal(blocks.read(everything), DATA)
    assert objects.reads == len(objects.stored)
    for z in range(6):  # by the indexes that came along
        np.testing.assert_array_equal(
            blocks.read([range(z, z + 1), *everything[1:]]), DATA[z : z + 1]
        )
    objects.stored["p/c/0/0/0"] = objects.stored["p/c/0/0/0"][:-1]
    blocks.forget()
    with pytest.raises(CodecError):
        blocks.read(everything)
