"""The page of benchmarks: what is alike stands side by side."""

from __future__ import annotations

from benchmarks.__main__ import figures


def test_peers_are_columns_and_the_rest_is_rows() -> None:
    result = {
        "ours": {"cpc": 0.5, "t": {"s": 1}},
        "peer": {"cpc": 0.4, "t": {"s": 2}},
        "x": 3,
        "why": {},
    }
    assert figures(result) == [
        "| figure | ours | peer |", "| --- | --- | --- |", "| cpc | 0.5 | 0.4 |",
        "| t.s | 1 | 2 |", "", "| figure | value |", "| --- | --- |", "| x | 3 |",
    ]  # fmt: skip


def test_objects_that_have_little_in_common_are_rows() -> None:
    assert figures({"a": {"p": 1}, "b": {"q": None}}) == [
        "| figure | value |", "| --- | --- |", "| a.p | 1 |", "| b.q | null |",
    ]  # fmt: skip


def test_lists_of_objects_are_columns() -> None:
    lines = figures({"stacks": [{"edge": 1, "s": 0.123456}, {"edge": 2}], "k": [1, 2]})
    assert lines == [
        "| figure | value |", "| --- | --- |", "| k | [1, 2] |", "\nstacks:\n",
        "| figure | 1 | 2 |", "| --- | --- | --- |", "| edge | 1 | 2 |", "| s | 0.1235 |  |",
    ]  # fmt: skip
    assert figures([{"a": 1}, {"a": 2}])[2] == "| a | 1 | 2 |"


def test_many_cases_are_a_table_for_each_figure() -> None:
    one = {"ours": {"cost": 0.25, "late": 0}, "bound": {"cost": 0.125}}
    lines = figures({**{f"case {i}": one for i in range(9)}, "limits": {"kept": True}})
    assert lines[:4] == [
        "cost:\n", "| figure | ours | bound |", "| --- | --- | --- |", "| case 0 | 0.25 | 0.125 |",
    ]  # fmt: skip
    assert lines[12:16] == ["", "late:\n", "| figure | ours |", "| --- | --- |"]
    assert lines[-1] == "| limits.kept | true |"
    assert len(lines) == 12 + 1 + 12 + 1 + 3


def test_what_a_case_has_beside_its_parts_is_a_part() -> None:
    one = {"ours": {"s": 1}, "peer": {"s": 2}, "threads": 2}
    lines = figures({f"net {i}": one for i in range(9)})
    assert lines[:4] == [
        "s:\n", "| figure | ours | peer |", "| --- | --- | --- |", "| net 0 | 1 | 2 |",
    ]  # fmt: skip
    assert lines[12:17] == [
        "", "threads:\n", "| figure | value |", "| --- | --- |", "| net 0 | 2 |",
    ]  # fmt: skip
    assert len(lines) == 12 + 1 + 12


def test_a_long_series_is_a_table_of_its_own() -> None:
    minutes = [{"s": i, "mb": {"a": 2 * i}} for i in range(9)]
    lines = figures({"steady": {"calls": 3, "minutes": minutes}})
    assert lines[:3] == ["| figure | value |", "| --- | --- |", "| steady.calls | 3 |"]
    assert lines[3:6] == ["\nsteady.minutes:\n", "| figure | s | mb.a |", "| --- | --- | --- |"]
    assert lines[6] == "| 1 | 0 | 0 |" and lines[-1] == "| 9 | 8 | 16 |" and len(lines) == 15
