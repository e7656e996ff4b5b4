"""Pages, roots and merging, against a dict."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.errors import DataLossError
from hyper_servicekit.objects import MemoryStore
from hyper_storage.diff import file_differences
from hyper_storage.files.entries import Entries, Entry, decode_page, encode_page, gone, sources
from hyper_storage.files.listing import found_at, listed
from hyper_storage.files.merge import (
    Keep,
    array_conflicts,
    file_conflicts,
    merge,
    merged_pages,
    page_of,
    plan,
    split,
    without_gone,
)
from hyper_storage.files.root import (
    ArrayRef,
    Changes,
    PageRef,
    Root,
    decode_root,
    encode_root,
)
from hyper_storage.manifests import Manifests, digest_of, object_of

SESSIONS = ["a" * 32, "b" * 32]
paths = st.text("abc/é", min_size=1, max_size=6)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    return Entry(
        path=draw(paths),
        size_bytes=draw(st.integers(0, 2**40)),
        object=f"blobs/{draw(st.sampled_from(SESSIONS))}/{draw(st.sampled_from('xyz'))}",
        offset=draw(st.integers(0, 2**40)),
        sha256=draw(st.binary(min_size=32, max_size=32)),
        crc32c=draw(st.integers(0, 2**32 - 1)),
        modified_ns=draw(st.integers(0, 2**62)),
    )


files = st.dictionaries(paths, entries()).map(
    lambda found: [entry._replace(path=path) for path, entry in sorted(found.items())]
)


@given(files)
def test_page_round_trip(page: list[Entry]) -> None:
    data = encode_page(Entries.of(page))
    assert list(decode_page(data)) == page
    assert encode_page(decode_page(data)) == data
    assert set(sources(decode_page(data).objects())) == {
        entry.object.split("/")[1] for entry in page
    }


def _ref(page: list[Entry], pages: dict[str, list[Entry]]) -> PageRef:
    digest = f"page-{len(pages)}"
    pages[digest] = page
    size = sum(entry.size_bytes for entry in page)
    return PageRef(
        digest, page[0].path, page[-1].path, len(page), size, sources({e.object for e in page})
    )


@given(st.lists(files, max_size=5), st.integers(1, 4))
def test_merging_is_a_dict_update(commits: list[list[Entry]], limit: int) -> None:
    stored: dict[str, list[Entry]] = {}
    refs: list[PageRef] = []
    model: dict[str, Entry] = {}
    for changes in commits:
        after: list[PageRef] = []
        for step in plan(refs, [entry.path for entry in changes]):
            if isinstance(step, Keep):
                after.append(step.page)
                continue
            old = stored[step.page.digest] if step.page else []
            filled = merged_pages(old, changes[step.start : step.stop], limit)
            after += [_ref(list(part), stored) for part in filled]
        refs = after
        model.update((entry.path, entry) for entry in changes)
        everything = [entry for ref in refs for entry in stored[ref.digest]]
        assert everything == [model[path] for path in sorted(model)]
        assert all(0 < ref.count <= limit for ref in refs)
        for path in model:
            page = page_of(refs, path)
            assert page is not None
            assert path in [entry.path for entry in stored[page.digest]]


@st.composite
def roots(draw: st.DrawFn, stored: dict[str, list[Entry]], base: list[Entry]) -> Root:
    """Pages of `base`, with drawn changes over them."""
    pages = tuple(_ref(list(part), stored) for part in split(base, 3))
    changed = {
        path: draw(st.one_of(entries().map(lambda e, p=path: e._replace(path=p)),
                             st.just(gone(path, 5))))
        for path in draw(st.sets(paths, max_size=6))
    }  # fmt: skip
    return Root(pages, {}, Changes(tuple(changed[path] for path in sorted(changed))))


def _model(root: Root, stored: dict[str, list[Entry]]) -> dict[str, Entry]:
    paged = [entry for page in root.pages for entry in stored[page.digest]]
    return {entry.path: entry for entry in without_gone(merge(paged, root.changes.entries))}


@given(st.data(), files, paths | st.just(""), paths | st.just(""))
async def test_changes_lie_over_pages(
    data: st.DataObject, base: list[Entry], prefix: str, after: str
) -> None:
    stored: dict[str, list[Entry]] = {}
    root, other = data.draw(roots(stored, base)), data.draw(roots(stored, base))
    other = replace(other, pages=root.pages)  # as versions share pages

    async def read(page: PageRef) -> list[Entry]:
        return stored[page.digest]

    def wanted(path: str) -> bool:
        return path.startswith(prefix) and path > after

    own = [gone(path, 9) for path in sorted(data.draw(st.sets(paths, max_size=3)))]
    layers = (root.changes.entries, own)
    model = _model(root, stored)
    hidden = {entry.path for entry in own}
    found = [e async for e in listed(root.pages, layers, read, prefix=prefix, after=after)]
    assert found == [model[path] for path in sorted(model) if wanted(path) and path not in hidden]
    for entry in root.changes.entries:
        assert found_at(root.changes.entries, entry.path) == entry
    assert found_at(root.changes.entries, "zz") is None

    before, now = _model(root, stored), _model(other, stored)
    differing = [d async for d in file_differences(root, other, read, prefix=prefix, after=after)]
    expected = [
        (before.get(path), now.get(path))
        for path in sorted(before.keys() | now.keys())
        if wanted(path) and _content(before.get(path)) != _content(now.get(path))
    ]
    assert [(d.before, d.after) for d in differing] == expected


def _content(entry: Entry | None) -> tuple[bytes, int] | None:
    return None if entry is None else (entry.sha256, entry.size_bytes)


async def test_roots_share_an_object_and_are_checked_each() -> None:
    store = MemoryStore()
    some = [Root((), {name: ArrayRef(f"arrays/{name}/v1", "r")}) for name in "abc"]
    refs = await Manifests(store, cache_entries=0).put_roots(some)
    (key,) = [info.key async for info in store.list()]
    assert {f"manifests/{object_of(ref)}" for ref in refs} == {key}
    manifests = Manifests(store, cache_entries=0)
    assert [await manifests.root(ref) for ref in refs] == some
    (alone,) = await manifests.put_roots(some[:1])
    assert alone == object_of(alone) == digest_of(alone) == digest_of(refs[0])
    data = bytearray(await store.get(key))
    data[-1] ^= 1
    await store.put(key, bytes(data))
    damaged = Manifests(store, cache_entries=0)
    assert await damaged.root(refs[0]) == some[0]
    with pytest.raises(DataLossError, match="does not match"):
        await damaged.root(refs[2])


def test_only_touched_pages_are_rewritten() -> None:
    pages = [PageRef(f"p{i}", f"{i}0", f"{i}9", 10, 0, ()) for i in range(4)]
    steps = plan(pages, ["15", "199", "35", "99"])
    assert [isinstance(step, Keep) for step in steps] == [True, False, True, False]


def test_root_round_trip() -> None:
    page = PageRef("d", "a", "b", 2, 30, (SESSIONS[0],))
    root = Root(
        (page, replace(page, sources=(SESSIONS[1],))), {"x/y": ArrayRef("arrays/1/v1", "r")}
    )
    assert decode_root(encode_root(root)) == root
    assert (root.files, root.file_bytes) == (4, 60)
    assert root.sources == frozenset(SESSIONS)
    assert root.prefixes == {"arrays/1/v1"}
    assert b'"format":1,' in encode_root(root)
    entry = Entry("p", 7, f"blobs/{'c' * 32}/x", 0, bytes(32), 0, 0)
    changed = replace(root, changes=Changes((entry, gone("q", 3)), -1, 7))
    assert decode_root(encode_root(changed)) == changed
    assert (changed.files, changed.file_bytes) == (3, 67)
    assert changed.sources == {*SESSIONS, "c" * 32}


@pytest.mark.parametrize("decode", [decode_root])
def test_a_later_format_is_refused(decode: object) -> None:
    with pytest.raises(ValueError, match="format 9"):
        decode_root(b'{"format": 9}')


def test_conflicts() -> None:
    a, b = ArrayRef("1", "1"), ArrayRef("2", "2")
    base = Root((), {"kept": a, "gone": a})
    head = Root((), {"kept": a, "made": b})
    assert array_conflicts(base, head, ["kept", "gone", "made", "new"]) == ["gone", "made"]
    old = Entry("p", 1, f"blobs/{SESSIONS[0]}/x", 0, bytes(32), 0, 0)
    new = old._replace(size_bytes=2)
    assert file_conflicts({"p": old}, {"p": old}, ["p"]) == []
    assert file_conflicts({"p": old}, {"p": new}, ["p"]) == ["p"]
    assert file_conflicts({}, {"p": new}, ["p", "q"]) == ["p"]
