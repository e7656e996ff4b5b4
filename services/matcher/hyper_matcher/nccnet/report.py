"""The page of a training: what was chosen and why, the loss, and what the net sees."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper_matcher.report_charts import grey8, picture

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr.best { font-weight: 600 }
figure { display: inline-block; margin: 0 1rem 1rem 0 } img { max-width: 28rem; height: auto }
svg { color: #2563a8 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #16181c } svg { color: #7ab }
}
"""


def render(
    result: Mapping[str, Any],
    section: NDArray[Any],
    features: NDArray[np.float32],
    maps: NDArray[np.float32],
) -> str:
    """One HTML file that needs nothing else.

    Args:
        result: of `jobs.choose`.
        section: (Y, X), held out.
        features: (y, x) of it, in (-1, 1).
        maps: (n, y, x), the hidden maps that the features are summed up from.
    """
    rows = "".join(
        f'<tr class="{"best" if score["name"] == result["choice"] else ""}">'
        f"<td>{escape(score['name'])}</td><td>{score['rate']:.2%}</td>"
        f"<td>{score['low']:.2%} - {score['high']:.2%}</td><td>{score['tried']}</td></tr>"
        for score in result["scores"]
    )
    grey = ((np.clip(features, -1, 1) + 1) * 127.5).astype(np.uint8)
    label = escape(str(result["settings"]["label"]))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>NCCNet of {label}</title><style>{_STYLE}</style></head><body>
<h1>NCCNet of {label}</h1>
<p>Used for matching: <strong>{escape(str(result["choice"]))}</strong>.
{escape(str(result["why"]))}.
{result["parameters"]:,} trained numbers, {len(result["losses"]):,} steps.</p>
<h2>Choice without labels</h2>
<p>Share of templates of held-out sections whose match in the next sections lies where the matches
of their neighbours say; 95% interval over pairs of sections.</p>
<table><tr><th>features</th><th>agree</th><th>interval</th><th>templates</th></tr>{rows}</table>
<h2>Loss</h2>{_curve(result["losses"])}
<h2>What the net sees</h2>
<figure>{picture(grey8(section), "a held-out section")}<figcaption>section</figcaption></figure>
<figure>{picture(grey, "its features")}<figcaption>features</figcaption></figure>
<h2>Hidden maps</h2>
<p>The features are a band-pass filter and a weighted sum of these; each is stretched to its own
range.</p>
{"".join(_map(number, values) for number, values in enumerate(maps))}
</body></html>
"""


def _map(number: int, values: NDArray[np.float32]) -> str:
    low, high = np.percentile(values, [0.5, 99.5])
    grey = (np.clip((values - low) / max(float(high - low), 1e-9), 0, 1) * 255).astype(np.uint8)
    return (
        f"<figure>{picture(grey, f'hidden map {number}', 256)}"
        f"<figcaption>map {number}</figcaption></figure>"
    )


def _curve(losses: list[float], width: int = 640, height: int = 180) -> str:
    """Running mean of the loss, as SVG."""
    if len(losses) < 2:
        return "<p>one step only</p>"
    window = max(1, len(losses) // 60)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    low, high = float(smooth.min()), float(smooth.max())
    x = np.linspace(0, width, len(smooth))
    y = height - (smooth - low) / max(high - low, 1e-9) * height
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return (
        f'<svg role="img" aria-label="loss" viewBox="-4 -4 {width + 8} {height + 8}" '
        f'width="{width}"><polyline fill="none" stroke="currentColor" stroke-width="2" '
        f'points="{points}"/></svg><p>from {high:.3f} to {low:.3f}, over {len(losses)} steps</p>'
    )
