from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np

from hyper_matcher import report_charts as charts
from hyper_matcher.align.geometry import Mesh
from hyper_matcher.align.lengths import Lengths
from hyper_matcher.report import (
    NeighbourScore,
    Overlay,
    Parameter,
    ReportData,
    SectionMesh,
    Stage,
    WorkerShare,
    render_report,
)
from tests.support.sections import texture

_VOID = {"meta", "img", "br"}
_EVIL = "<script>alert('x')</script>&\""


class _Checker(HTMLParser):
    """Notes elements and complains about ones that do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _check(page: str) -> _Checker:
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def _full() -> ReportData:
    a, b = texture((900, 1000), 1), texture((900, 1000), 2)
    mesh = Mesh.over((900, 1000), 60)
    rng = np.random.default_rng(0)
    return ReportData(
        title=f"Alignment {_EVIL}",
        subtitle=_EVIL,
        result={"cpc94": 0.56, "cpc94_before": None, "seconds": 3.25, _EVIL: _EVIL},
        overlays=[Overlay(0, 1, (a, b), (a, a), _EVIL), Overlay(1, 2, (a, b), (a, a))],
        reslice_before=a[:10],
        reslice_after=b[:10],
        scores=[NeighbourScore(0, 1, 0.03, 0.56), NeighbourScore(1, 2, None, 0.5)],
        residuals_z1=Lengths.of(np.abs(rng.normal(0, 0.4, 500))),
        residuals_z2=Lengths.of(np.abs(rng.normal(0, 30, 500))),
        matches=900,
        rejected={"low_peak": 60, "consensus": 40},
        flagged={4: _EVIL},
        meshes=[SectionMesh(3, mesh, mesh.vertices + rng.normal(0, 2, mesh.vertices.shape), _EVIL)],
        stages=[Stage("match", 3.5, 9, 6.1), Stage("relax", 1.0, 1)],
        workers=[WorkerShare(_EVIL, {"match": 5})],
        parameters=[Parameter("template", "160 px", _EVIL)],
        doubtful=[(2, 5, _EVIL)],
        notes=[_EVIL],
    )


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    page = render_report(_full())
    checker = _check(page)
    assert len(page) < 6_000_000
    assert checker.seen.count("img") == 10
    assert checker.seen.count("svg") == 5
    assert all(source.startswith("data:image/") for source in checker.sources)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)


def test_all_text_is_escaped() -> None:
    page = render_report(_full())
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10


def test_it_says_what_matters() -> None:
    page = render_report(_full())
    for text in (
        "0.560", "section 4", "low peak", "z + 2", "Who ran what", "160 px", "900 of 1,000",
        "Jacobian", "largest displacement", "2–5",
    ):  # fmt: skip
        assert text in page


def test_an_empty_report_is_a_page_too() -> None:
    page = render_report(ReportData("nothing", "", {}))
    _check(page)
    assert "No section is flagged" in page


def test_sections_without_tissue_can_be_drawn() -> None:
    blank = np.zeros((50, 60), np.uint8)
    assert charts.overlay(blank, blank).shape == (50, 60, 3)
    assert "image/jpeg" in charts.picture(charts.overlay(blank, texture((50, 60))), "x")
    assert charts.grey8(np.full((4, 4), 7, np.uint8)).min() >= 1
