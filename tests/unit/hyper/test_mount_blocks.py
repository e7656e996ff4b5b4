"""The cache of a mount: read-ahead, single flight, caps, a full disk."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.errors import DataLossError
from hyper.mount.blocks import BLOCK, BlockCache
from hyper.mount.checksums import combined
from tests.support.waiting import until


class Bucket:
    """Objects, and which ranges were asked for."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.asked: list[tuple[str, int, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()

    def fetch(self, key: str, start: int, stop: int) -> bytes | None:
        with self._lock:
            self.asked.append((key, start, stop))
        assert self.gate.wait(20)
        data = self.objects.get(key)
        return None if data is None else data[start:stop]


@pytest.fixture
def bucket() -> Bucket:
    picks = random.Random(1)
    return Bucket({f"o/{i}": picks.randbytes(12 * BLOCK + 77 * i) for i in range(4)})


@pytest.fixture
def make(bucket: Bucket, tmp_path: Path) -> Iterator[Any]:
    made: list[BlockCache] = []

    def make(disk: int = 2**30, memory: int = 64 * BLOCK, **more: Any) -> BlockCache:
        notices: list[str] = more.setdefault("notices", [])
        cache = BlockCache(
            bucket.fetch, tmp_path / "c", disk_bytes=disk, memory_bytes=memory,
            notice=notices.append,
        )  # fmt: skip
        made.append(cache)
        return cache

    yield make
    for cache in made:
        cache.close()


def _check(cache: BlockCache, bucket: Bucket, seed: int, reads: int = 60) -> None:
    picks = random.Random(seed)
    for _ in range(reads):
        key = picks.choice(sorted(bucket.objects))
        data = bucket.objects[key]
        start = picks.randrange(len(data))
        stop = min(len(data), start + picks.randrange(3 * BLOCK))
        assert bytes(cache.read(key, start, stop)) == data[start:stop]


def test_reads_of_any_range(make: Any, bucket: Bucket) -> None:
    cache = make(memory=4 * BLOCK)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda seed: _check(cache, bucket, seed), range(6)))
    size = len(bucket.objects["o/1"])
    assert bytes(cache.read("o/1", size - 5, size + 100)) == bucket.objects["o/1"][-5:]
    with pytest.raises(DataLossError):
        cache.read("none", 0, 5)


def test_a_block_is_fetched_once_for_all(make: Any, bucket: Bucket) -> None:
    cache = make()
    bucket.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(cache.read, "o/0", 5, 500) for _ in range(8)]
        bucket.gate.set()
        assert {bytes(read.result()) for read in reads} == {bucket.objects["o/0"][5:500]}
    assert sum(start <= 0 < stop for _, start, stop in bucket.asked) == 1


def test_who_reads_on_gets_ever_more_ahead(make: Any, bucket: Bucket) -> None:
    cache = make()
    for block in range(6):
        cache.read("o/0", block * BLOCK, (block + 1) * BLOCK)
    until(
        lambda: max(stop for _, _, stop in list(bucket.asked)) >= 13 * BLOCK,
        "it is fetched to the object's end, long before it is asked for",
        timeout_s=10.0,
    )
    bucket.asked.clear()
    cache.read("o/1", 9 * BLOCK, 9 * BLOCK + 10)
    cache.read("o/1", 2 * BLOCK, 2 * BLOCK + 10)
    others = [where for where in bucket.asked if where[0] == "o/1"]
    assert others == [("o/1", 9 * BLOCK, 10 * BLOCK), ("o/1", 2 * BLOCK, 3 * BLOCK)]


def test_the_disk_keeps_to_its_cap_and_serves_the_next_mount(
    make: Any, bucket: Bucket, tmp_path: Path
) -> None:
    cache = make(disk=28 * BLOCK, memory=2 * BLOCK)
    for key, data in bucket.objects.items():
        assert bytes(cache.read(key, 0, len(data))) == data
    cache.close()
    used = sum(path.stat().st_size for path in (tmp_path / "c").rglob("*.whole"))
    assert 0 < used <= 28 * BLOCK
    again = make(disk=28 * BLOCK)
    bucket.asked.clear()
    _check(again, Bucket({"o/3": bucket.objects["o/3"]}), 3)
    assert not [key for key, _, _ in bucket.asked if key == "o/3"]


def test_a_full_disk_costs_the_cache_not_the_read(
    make: Any, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = [5 * BLOCK]
    real = os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if len(data) > room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= len(data)
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    notices: list[str] = []
    cache = make(notices=notices, memory=2 * BLOCK)
    for seed in range(3):
        _check(cache, bucket, seed)
    cache.close()
    assert len(notices) == 1 and "No space left" in notices[0]


def test_a_slow_disk_costs_the_cache_not_the_read(
    make: Any, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, write = threading.Event(), os.pwrite

    def slowly(fd: int, data: Any, offset: int) -> int:
        assert gate.wait(20)
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", slowly)
    cache, objects = make(memory=2 * BLOCK), bucket.objects
    for key, whole in objects.items():
        for at in range(0, len(whole), BLOCK):
            assert bytes(cache.read(key, at, at + BLOCK)) == whole[at : at + BLOCK]
    gate.set()
    assert cache.read("o/3", 5, 9) == objects["o/3"][5:9]
    cache.close()
    on_disk = sum(path.stat().st_size for path in cache._folder.glob("*.whole"))
    assert on_disk < sum(map(len, objects.values())), "what waits for the disk has a bound"


def test_what_cannot_be_fetched_is_asked_for_again(make: Any, bucket: Bucket) -> None:
    cache = make()
    data = bucket.objects.pop("o/2")
    with pytest.raises(DataLossError):
        cache.read("o/2", 0, 10)
    bucket.objects["o/2"] = data
    assert bytes(cache.read("o/2", 0, 10)) == data[:10]


def test_an_object_is_summed_as_it_is_fetched(make: Any, bucket: Bucket) -> None:
    cache = make(disk=0, memory=4 * BLOCK)
    data = bucket.objects["o/2"]
    order = list(range(0, len(data), BLOCK))
    random.Random(3).shuffle(order)
    for at in order[1:]:
        cache.read("o/2", at, at + BLOCK)
    held = cache.crc32c("o/2", len(data))
    cache.read("o/2", order[0], order[0] + BLOCK)
    assert held in (None, google_crc32c.value(data))  # the last block may have come ahead
    assert cache.crc32c("o/2", len(data)) in (None, google_crc32c.value(data))
    for at in range(0, len(data), BLOCK):
        cache.read("o/1", at, at + BLOCK)
    assert cache.crc32c("o/1", len(bucket.objects["o/1"])) == google_crc32c.value(
        bucket.objects["o/1"]
    )
    assert cache.crc32c("o/1", len(bucket.objects["o/1"]) + 1) is None
    assert cache.crc32c("never", 1) is None


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_sums_of_parts_make_that_of_the_whole(first: bytes, second: bytes) -> None:
    sums = google_crc32c.value(first), google_crc32c.value(second)
    assert combined(*sums, len(second)) == google_crc32c.value(first + second)
