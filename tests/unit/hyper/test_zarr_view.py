"""Keys of arrays with more chunks than could be walked."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hyper import zarr_view
from hyper.filesystem import HyperFileSystem
from hyper.zarr_store import HyperStore

HUGE = (10**7, 10**7, 10**7)


def array(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Any:
    """What is asked of an array to name its chunks."""
    return SimpleNamespace(shape=shape, chunks=chunks, ndim=len(shape), dtype=np.dtype("u1"))


@pytest.mark.parametrize(
    ("key", "there"),
    [
        ("c/0/0/0", True), ("c/9999999/0/9999999", True), ("c/10000000/0/0", False),
        ("c/0/0", False), ("c/0/0/0/0", False), ("c/00/0/0", False), ("c/-1/0/0", False),
        ("c", False), ("zarr.json", False), ("d/0/0/0", False),
    ],
)  # fmt: skip
async def test_a_chunk_is_told_from_the_shape(key: str, there: bool) -> None:
    huge = array(HUGE, (1, 1, 1))
    assert zarr_view.has_chunk(huge, key) is there
    store = HyperStore(huge)
    store._split = lambda asked: (huge, asked)  # type: ignore[method-assign]
    if key != "zarr.json":
        assert await store.exists(key) is there


async def test_the_first_key_of_a_huge_array_is_had_at_once() -> None:
    store = Chunks(array(HUGE, (1, 1, 1)))
    assert await anext(store.list_prefix("c/")) == "c/0/0/0"
    assert [key async for key in Chunks(array((3, 2), (1, 1))).list_prefix("c/2")] == [
        "c/2/0", "c/2/1"
    ]  # fmt: skip


class Chunks(HyperStore):
    """The keys of the chunks alone."""

    def _keys(self, *, chunks: bool = True) -> Iterator[str]:
        yield from zarr_view.chunk_keys(self._source)  # type: ignore[arg-type]  # a stand-in


def test_the_keys_of_an_array() -> None:
    assert list(zarr_view.chunk_keys(array((3, 4), (2, 2)))) == [
        "c/0/0", "c/0/1", "c/1/0", "c/1/1"
    ]  # fmt: skip
    assert list(zarr_view.chunk_keys(array((), ()))) == ["c"]
    assert list(zarr_view.chunk_keys(array((0, 4), (2, 2)))) == []


def test_what_is_below_a_key_is_told_from_the_shape() -> None:
    small = array((5, 4), (2, 4))
    assert zarr_view.children(small, "c") == (range(3), False)
    assert zarr_view.children(small, "c/2") == (range(1), True)
    for nothing in ("c/3", "c/0/0", "d", "c/x", "zarr.json"):
        assert zarr_view.children(small, nothing) is None
    assert zarr_view.children(array((), ()), "c") is None
    assert zarr_view.has_chunk(array((), ()), "c")
    assert zarr_view.children(array((0, 4), (2, 4)), "c") is None
    below = zarr_view.children(array(HUGE, (1, 1, 1)), "c/7/8")
    assert below == (range(10**7), True)


def test_a_folder_of_an_array_is_listed_without_walking_it() -> None:
    fs = HyperFileSystem(skip_instance_cache=True)
    huge = array((10**9, 3, 10**9), (1, 1, 1))
    found = fs._list_array("t/d/a/c/7", huge, "c/7")
    assert [each["name"] for each in found] == [f"t/d/a/c/7/{n}" for n in range(3)]
    assert {each["type"] for each in found} == {"directory"}
    (chunk,) = fs._list_array("t/d/a/c/0/2/5", huge, "c/0/2/5")
    assert (chunk["type"], chunk["size"]) == ("file", 1)
    with pytest.raises(FileNotFoundError):
        fs._list_array("t/d/a/c/0/3", huge, "c/0/3")
