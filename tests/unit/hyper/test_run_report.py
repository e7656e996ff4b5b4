"""The report of workflows: what is counted, and that nothing in it is markup of others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyper.run_report import Run, Span, chart, render, speedup, timeline


def run(workers: int, seconds: float, tasks: int = 4) -> Run:
    """A stage of equal tasks on so many workers."""
    spans = []
    for index in range(tasks):
        start = index // workers * seconds
        spans.append(Span("stage", index, f"w{index % workers}", start, start + seconds))
    return Run("tenants/t/workflows/w", "name", "SUCCEEDED", spans[-1].end_s + 1,
               {"before": 0, "stage": tasks}, tuple(spans))  # fmt: skip


def test_speed_up() -> None:
    assert run(2, 1.0).peak("stage") == 2
    assert run(2, 1.0).stage_s("stage") == pytest.approx(2)
    found = speedup([run(2, 1.0), run(1, 1.0), run(4, 1.0)], "stage")
    assert found == [(1, 4.0, 1.0), (2, 2.0, 2.0), (4, 1.0, 4.0)]
    assert speedup([run(1, 1.0)], "nothing") == []


def test_what_two_experiments_use_at_once_is_paid_for() -> None:
    spans = (Span("a", 0, "w0", 0, 10), Span("b", 0, "w1", 0, 10))
    both = Run("n", "t", "SUCCEEDED", 10.0, {"a": 1, "b": 1}, spans)
    assert (both.peak("a"), both.peak()) == (1, 2)
    page = render("t", [both], usd_per_hour=3.6)
    assert "<td>100%</td>" in page and "<td>0.020000</td>" in page  # 20 slot-seconds


def test_the_ledgers_sum_beats_a_price() -> None:
    spent = replace(run(1, 1.0), usd=1.25)
    page = render("t", [run(1, 1.0), spent], usd_per_hour=3.6)
    assert "<td>1.25</td>" in page and "<td>none launched</td>" in page
    assert "slot-hour" not in page and "hyper cost" in page


def test_everything_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    spans = (Span(evil, 0, evil, 0, 1, failed=True),)
    one = Run(evil, evil, evil, 2.0, {evil: 1}, spans)
    page = render(evil, [one, one], usd_per_hour=0.1)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page


def test_a_workflow_that_ran_nothing() -> None:
    empty = Run("tenants/t/workflows/w", "n", "CANCELLED", 0.0, {"a": 3}, ())
    assert "a" in render("t", [empty])
    assert chart({}, x_label="x", y_label="y") == ""


def test_tasks_side_by_side_have_lanes_of_their_own() -> None:
    spans = (Span("a", 0, "w", 0, 2), Span("a", 1, "w", 1, 3), Span("a", 2, "w", 2, 4))
    drawn = timeline(Run("n", "t", "SUCCEEDED", 4, {"a": 3}, spans))
    rows = {part.split('"')[0] for part in drawn.split(' y="')[1:]}
    assert drawn.count("<rect") == 3
    assert {"3", "21"} <= rows
