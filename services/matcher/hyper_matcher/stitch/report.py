"""The report of a stitching: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper_matcher import report_charts as charts
from hyper_matcher.align.lengths import Lengths
from hyper_matcher.report import STYLE, html_section, html_table
from hyper_matcher.stitch.solve import Montage

_WORST = 20


def render_report(
    title: str,
    result: Mapping[str, Any],
    overview: NDArray[Any],
    montage: Montage,
    residuals: Mapping[tuple[int, int], tuple[NDArray[np.float64], int]],
    names: Sequence[str],
) -> str:
    """The page as text: what is doubtful first, then the montage, the seams, the lens.

    Args:
        title: of the page.
        result: the result object, tiles by name.
        overview: (h, w), the first montage, thinned out.
        montage: where the tiles lie.
        residuals: {(tile, tile): (fresh residuals px, how many were tried)}.
        names: of the tiles.
    """
    parts = [_doubtful(result)]
    shown = charts.picture(charts.grey8(overview), "the first section's montage", 1100)
    parts.append(html_section("Montage", shown))
    parts.append(_seams(residuals, names))
    parts.append(_moves(montage, result))
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


def _seams(
    residuals: Mapping[tuple[int, int], tuple[NDArray[np.float64], int]], names: Sequence[str]
) -> str:
    measured = {pair: values for pair, (values, _) in residuals.items() if len(values)}
    if not measured:
        return html_section("Seams", "<p>No overlap is wide enough to be measured.</p>")
    every = np.concatenate(list(measured.values()))
    chart = charts.histogram(
        {"z1": Lengths.of(every)}, x_label="residual, px", limit=max(2.0, every.max())
    )
    worst = sorted(measured, key=lambda pair: -float(np.percentile(measured[pair], 95)))[:_WORST]
    rows = [
        (
            f"{names[a]} - {names[b]}", str(len(measured[(a, b)])),
            *(f"{np.percentile(measured[(a, b)], share):.2f}" for share in (50, 95)),
        )
        for a, b in worst
    ]  # fmt: skip
    intro = "<p>The same tissue in two placed tiles, matched afresh. Worst overlaps first.</p>"
    return html_section(
        "Seams", intro + chart + html_table(("overlap", "matches", "p50, px", "p95, px"), rows)
    )


def _moves(montage: Montage, result: Mapping[str, Any]) -> str:
    moved = np.linalg.norm(montage.maps[:, 0], axis=1)
    turned = np.abs(montage.maps[:, 1:]).max(axis=(1, 2))
    gain = np.exp(montage.brightness)
    rows = [
        (
            "tiles against their positions",
            f"{np.median(moved):.1f} px median, {moved.max():.1f} most",
        ),
        ("a tile's own affine map, at its edge", f"{turned.max():.2f} px at most"),
        (
            "lens, shared by all tiles",
            f"degree {result['lens_degree']}, up to {result['lens_px']} px",
        ),
        ("brightness of single tiles", f"{gain.min():.2f} to {gain.max():.2f} of the common one"),
    ]
    return html_section("What was corrected", html_table(("what", "how much"), rows))
