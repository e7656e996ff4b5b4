"""What several gateways know of one session's fragments, against a dict."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hyper_servicekit.objects import MemoryStore, ObjectInfo
from hyper_storage.files.entries import Entry
from hyper_storage.files.fragments import Fragments, Mark, _in_order

SESSION = "a" * 32


class CountingStore(MemoryStore):
    lists = 0
    reads = 0

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        self.lists += 1
        async for info in super().list(prefix):
            yield info

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        self.reads += 1
        return await super().get(key, start, stop)


class Marks:
    """The count in etcd; `forget` is its lease's end."""

    def __init__(self) -> None:
        self.mark: Mark | None = None
        self.revision = 0

    async def put(self, session: str, name: str) -> Mark:
        self.revision += 1
        before = self.mark
        if before is None:
            self.mark = Mark(self.revision, 1, name)
        else:
            self.mark = Mark(before.created, before.count + 1, name)
        return self.mark

    async def get(self, session: str) -> Mark | None:
        return self.mark

    def forget(self) -> None:
        self.mark = None


def gateway(store: MemoryStore, marks: Marks) -> Fragments:
    return Fragments(store, readers=4, put_mark=marks.put, get_mark=marks.get)


def entry(path: str, size: int) -> Entry:
    return Entry(path, size, f"blobs/{SESSION}/x", 0, bytes(32), 0, 0)


@pytest.mark.parametrize("seed", range(10))
async def test_every_gateway_shows_what_was_acknowledged(seed: int) -> None:
    rng = random.Random(seed)
    store, marks = MemoryStore(), Marks()
    gateways = [gateway(store, marks) for _ in range(3)]
    model: dict[str, Entry] = {}
    for step in range(80):
        chosen = rng.choice(gateways)
        match rng.randrange(6):
            case 0 | 1 | 2:
                new = [entry(rng.choice("abcdefgh"), step) for _ in range(rng.randrange(1, 3))]
                await chosen.add(SESSION, new, now_ns=step, unique=f"{step}")
                model.update((e.path, e) for e in new)
            case 3:
                assert await chosen.find(SESSION, list("abcz")) == {
                    path: model[path] for path in "abc" if path in model
                }
            case 4:
                marks.forget()
            case _:
                expected = [model[path] for path in sorted(model)]
                assert list(await chosen.overlay(SESSION)) == expected


async def test_a_late_fragment_with_an_early_key_loses() -> None:
    store, marks = MemoryStore(), Marks()
    a, b = gateway(store, marks), gateway(store, marks)
    await a.add(SESSION, [entry("x", 2)], now_ns=2, unique="two")
    assert (await b.find(SESSION, ["x"]))["x"].size_bytes == 2
    await a.add(SESSION, [entry("x", 1), entry("y", 1)], now_ns=1, unique="one")
    for one in (a, b, gateway(store, marks)):
        assert [e.size_bytes for e in await one.overlay(SESSION)] == [2, 1]


async def test_reading_asks_s3_nothing_for_what_is_known() -> None:
    store, marks = CountingStore(), Marks()
    mine, other = gateway(store, marks), gateway(store, marks)
    for number in range(50):
        await mine.add(SESSION, [entry(f"{number}", 1)], now_ns=number, unique=f"{number}")
        await mine.find(SESSION, ["0"])
        await other.find(SESSION, ["0"])
    assert store.lists == 2  # the first look of each
    assert store.reads == 1 + 50  # the other one reads each once, as the mark names it
    before = store.reads
    await asyncio.gather(*(other.find(SESSION, ["7"]) for _ in range(20)))
    assert (store.lists, store.reads) == (2, before)


async def test_memory_is_bounded_by_sessions_and_files() -> None:
    store, marks = MemoryStore(), Marks()
    small = Fragments(store, readers=4, put_mark=marks.put, get_mark=marks.get, cache_entries=3)
    for session in ("b" * 32, "c" * 32, "d" * 32):
        await small.add(session, [entry("x", 1), entry("y", 1)], now_ns=1, unique="u")
        marks.forget()
        assert len(await small.overlay(session)) == 2
    assert list(small._sessions) == ["d" * 32]


async def test_what_is_added_while_a_listing_is_sorted_is_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, marks = MemoryStore(), Marks()
    one = gateway(store, marks)
    await one.add(SESSION, [entry("a", 1)], now_ns=1, unique="1", young=True)
    plain = asyncio.to_thread

    async def overtaken(function: Any, *arguments: Any) -> Any:
        """A sort that ends after others have added and looked up."""
        result = await plain(function, *arguments)
        if function is _in_order:
            monkeypatch.setattr(asyncio, "to_thread", plain)
            await one.add(SESSION, [entry("b", 2)], now_ns=2, unique="2")
            assert set(await one.find(SESSION, ["b"])) == {"b"}
        return result

    monkeypatch.setattr(asyncio, "to_thread", overtaken)
    assert [e.path for e in await one.overlay(SESSION)] == ["a"]
    assert [e.path for e in await one.overlay(SESSION)] == ["a", "b"]
