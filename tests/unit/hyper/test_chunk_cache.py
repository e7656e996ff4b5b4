"""Patches from cached chunks are what the array itself gives."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from hyper.chunk_cache import CachedArray
from hyper.errors import InvalidArgumentError


class Fake:
    """What the cache needs of an array; counts the reads."""

    name, url = "fake", "s3://bucket/a"

    def __init__(self, data: np.ndarray, chunks: tuple[int, ...]) -> None:
        self.data, self.chunks, self.reads = data, chunks, 0
        self.shape, self.dtype = data.shape, data.dtype

    def __getitem__(self, key: Any) -> Any:
        self.reads += 1
        return self.data[key].copy()


@pytest.fixture
def array() -> Any:
    return Fake(np.arange(23 * 31 * 17, dtype=np.int32).reshape(23, 31, 17), (8, 8, 5))


def test_any_selection_is_the_arrays(array: Any) -> None:
    cached, picks = CachedArray(array, 6000), random.Random(4)
    for _ in range(200):
        key: list[Any] = []
        for n in array.shape:
            a, b = sorted(picks.randrange(-n, n + 3) for _ in range(2))
            key.append(picks.choice([slice(a, b), slice(None), a % n, slice(None, None, -1)]))
        found = cached[tuple(key)]
        assert np.array_equal(found, array.data[tuple(key)])
        assert np.shape(found) == np.shape(array.data[tuple(key)])


def test_a_chunk_is_read_once_while_there_is_room(array: Any) -> None:
    cached = CachedArray(array, 2**20)
    assert np.array_equal(cached[...], array.data)
    before = array.reads
    assert np.array_equal(cached[3:20, 1:30, 2:16], array.data[3:20, 1:30, 2:16])
    assert array.reads == before
    small = CachedArray(array, 1)
    assert np.array_equal(small[:9, :9, :9], array.data[:9, :9, :9])


def test_what_may_change_is_not_cached(array: Any) -> None:
    array.url = ""
    with pytest.raises(InvalidArgumentError):
        CachedArray(array, 10)
