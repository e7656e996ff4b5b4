"""Pages, roots and merging, against a dict."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper_storage.files.entries import Entry, decode_page, encode_page, sources
from hyper_storage.files.merge import (
    Keep,
    array_conflicts,
    file_conflicts,
    merge,
    page_of,
    plan,
    split,
)
from hyper_storage.files.root import ArrayRef, PageRef, Root, decode_root, encode_root

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
    data = encode_page(page)
    assert decode_page(data) == page
    assert encode_page(decode_page(data)) == data
    assert set(sources(page)) == {entry.object.split("/")[1] for entry in page}


def _ref(page: list[Entry], pages: dict[str, list[Entry]]) -> PageRef:
    digest = f"page-{len(pages)}"
    pages[digest] = page
    size = sum(entry.size_bytes for entry in page)
    return PageRef(digest, page[0].path, page[-1].path, len(page), size, sources(page))


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
            merged = merge(old, changes[step.start : step.stop])
            after += [_ref(list(part), stored) for part in split(merged, limit)]
        refs = after
        model.update((entry.path, entry) for entry in changes)
        everything = [entry for ref in refs for entry in stored[ref.digest]]
        assert everything == [model[path] for path in sorted(model)]
        assert all(0 < ref.count <= limit for ref in refs)
        for path in model:
            page = page_of(refs, path)
            assert page is not None
            assert path in [entry.path for entry in stored[page.digest]]


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
