"""The report of a stitching: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from numpy.typing import NDArray

from hyper_matcher import report_charts as charts
from hyper_matcher.report import STYLE, html_section, html_table
from hyper_matcher.stitch.summary import Summary


def render_report(
    title: str,
    result: Mapping[str, Any],
    overview: NDArray[Any],
    summary: Summary,
) -> str:
    """The page as text: what is doubtful first, then the montage, the seams, the lens.

    Args:
        title: of the page.
        result: the result object, tiles by name.
        overview: (h, w), the first montage, thinned out.
        summary: of all sections.
    """
    parts = [_doubtful(result)]
    shown = charts.picture(charts.grey8(overview), "the first section's montage", 1100)
    parts.append(html_section("Montage", shown))
    parts.append(_seams(summary))
    parts.append(_moves(summary, result))
    rows = [(key, str(value)) for key, value in result.items()]
    parts.append(html_section("Result object", html_table(("key", "value"), rows)))
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1></header>"
    )
    return head + "".join(parts) + "</main></body></html>\n"


def _doubtful(result: Mapping[str, Any]) -> str:
    rows = [(name, why) for name, why in result["flagged_tiles"].items()]
    rows += [(f"{s['first']} - {s['second']}", s["why"]) for s in result["failed_seams"]]
    rows += [("left out", line) for line in result["left_out"]]
    if not rows:
        return '<section><p class="good">Every tile and every overlap is trusted.</p></section>'
    return html_section(
        "Not to be trusted", html_table(("tile or overlap", "why"), rows), warn=True
    )


def _seams(summary: Summary) -> str:
    if not len(summary.residuals):
        return html_section("Seams", "<p>No overlap is wide enough to be measured.</p>")
    limit = max(2.0, float(summary.residuals.px[-1]))
    chart = charts.histogram({"z1": summary.residuals}, x_label="residual, px", limit=limit)
    rows = [
        (f"{s.first} - {s.second}", str(s.matches), f"{s.p50:.2f}", f"{s.p95:.2f}")
        for s in summary.worst
    ]
    intro = "<p>The same tissue in two placed tiles, matched afresh. Worst overlaps first.</p>"
    return html_section(
        "Seams", intro + chart + html_table(("overlap", "matches", "p50, px", "p95, px"), rows)
    )


def _moves(summary: Summary, result: Mapping[str, Any]) -> str:
    low, high = summary.gains
    rows = [
        (
            "tiles against their positions",
            f"{summary.moved.percentile(50):.1f} px median, {summary.moved.percentile(100):.1f} "
            "most",
        ),
        ("a tile's own affine map, at its edge", f"{summary.affine_px:.2f} px at most"),
        (
            "lens, shared by all tiles",
            f"degree {result['lens_degree']}, up to {result['lens_px']} px",
        ),
        ("brightness of single tiles", f"{low:.2f} to {high:.2f} of the common one"),
    ]
    return html_section("What was corrected", html_table(("what", "how much"), rows))
