"""Pages: bitmaps, records, result segments, and their stored form."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hyper_scheduler.core.model import Attempt
from hyper_scheduler.core.pages import (
    PAGE_TASKS,
    SEGMENT_BYTES,
    SEGMENT_LINES,
    Page,
    Record,
    Status,
    decode_page,
    encode_page,
)

RECORDS = st.builds(
    Record,
    st.sampled_from(Status),
    st.none() | st.builds(Attempt, st.integers(0, 2**62), st.integers(0, 2**62)),
    st.text(max_size=5),
    st.integers(0, 9),
    st.integers(0, 9),
    st.text(max_size=5),
    st.floats(0, 1e10),
    st.floats(0, 1e10),
    st.booleans(),
)


@given(
    st.sets(st.integers(0, PAGE_TASKS - 1), max_size=40),
    st.dictionaries(st.integers(PAGE_TASKS, 2 * PAGE_TASKS - 1), RECORDS, max_size=5),
    st.lists(st.text("abc0-", min_size=1), max_size=3),
)
def test_a_page_survives_being_stored(
    done: set[int], records: dict[int, Record], segments: list[str]
) -> None:
    page = Page(records=records, segments=segments)
    for index in done:
        if index + PAGE_TASKS not in records:
            page.set_done(index + PAGE_TASKS, "")
    again = decode_page(encode_page(page))
    assert (again.done, again.done_count) == (page.done, page.done_count)
    assert (again.records, again.segments) == (page.records, page.segments)


def test_ten_million_done_tasks_take_few_bytes() -> None:
    page = Page(done=bytearray(b"\xff" * (PAGE_TASKS // 8)), segments=["9-1"] * 16)
    assert len(encode_page(page)) * (10_000_000 // PAGE_TASKS) < 3_000_000


def test_a_page_of_failures_fits_into_etcd() -> None:
    record = Record(
        Status.PENDING,
        Attempt(2**40, 2**40),
        "w" * 128,
        3,
        3,
        "\N{CROSS MARK}" * 1024,
        1.7e9,
        1.7e9,
    )
    page = Page(records=dict.fromkeys(range(PAGE_TASKS), record))
    assert len(encode_page(page)) < 1_500_000
    alone = Page(records={0: record})
    assert decode_page(encode_page(alone)).records[0].message == record.message


def test_small_segments_are_written_anew_until_they_are_full() -> None:
    page = Page()
    assert page.cut_segment("s0") is None
    page.set_done(0, "a")
    assert page.cut_segment("s1") == ("s1", b"a\n", "")
    page.set_done(1, "b")
    assert page.cut_segment("s2") == ("s2", b"a\nb\n", "s1")
    assert page.segments == ["s2"]
    for index in range(2, SEGMENT_LINES):
        page.set_done(index, "c")
    cut = page.cut_segment("s3")
    assert cut is not None
    assert cut[2] == "s2"
    page.set_done(SEGMENT_LINES, "d")
    assert page.cut_segment("s4") == ("s4", b"d\n", "")
    assert page.segments == ["s3", "s4"]
    page.set_done(SEGMENT_LINES + 1, "x" * SEGMENT_BYTES)
    page.cut_segment("s5")
    page.set_done(SEGMENT_LINES + 2, "e")
    page.cut_segment("s6")
    assert page.segments == ["s3", "s5", "s6"]
