"""Charts and pictures of the report: SVG text that takes its colours from the page's CSS."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hyper_matcher.align.geometry import Affine, Mesh
from hyper_matcher.align.lengths import Lengths
from hyper_matcher.align.render import jacobians

_JPEG_QUALITY = 84


def picture(pixels: NDArray[np.uint8], alt: str, max_px: int = 640) -> str:
    """An `<img>` with its bytes inside; (h, w) grey or (h, w, 3) colour, shrunk to `max_px`."""
    image = Image.fromarray(pixels)
    scale = max_px / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    code = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img alt="{escape(alt)}" width="{image.width}" height="{image.height}" '
        f'src="data:image/jpeg;base64,{code}">'
    )


def overlay(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.uint8]:
    """Two sections in one picture: the first magenta, the second green, where equal grey."""
    a, b = grey8(first), grey8(second)
    return np.stack([a, b, a], -1)


def grey8(section: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey values stretched to 1..255 between their 0.5 and 99.5 percentiles; 0 stays 0."""
    tissue = section[section > 0]
    if tissue.size == 0:
        return np.zeros(section.shape, np.uint8)
    low, high = np.percentile(tissue, [0.5, 99.5])
    scaled = (section.astype(np.float32) - low) / max(float(high - low), 1e-6)
    return np.where(section > 0, np.clip(scaled, 0, 1) * 254 + 1, 0).astype(np.uint8)


def reslice_picture(slab: NDArray[Any], height_px: int) -> NDArray[np.uint8]:
    """An x-z cut (Z, X) with each section drawn `height_px` high."""
    return np.repeat(grey8(slab), height_px, axis=0)


def lines(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    y_label: str,
    reference: float | None = None,
) -> str:
    """A chart of points joined by lines; the series' names are CSS classes and legend."""
    width, height, left, bottom = 760, 260, 46, 34
    values = [v for points in series.values() for v in points if v is not None]
    low, high = min([0.0, *values]), max([0.1, *values, reference or 0.0])
    high = _round_up(high)
    low = high / 4 * math.floor(4 * low / high)  # grid lines at round numbers
    n = max(len(labels), 1)

    def at(k: int, v: float) -> tuple[float, float]:
        x = left + (k + 0.5) * (width - left - 10) / n
        return x, height - bottom - (v - low) / (high - low) * (height - bottom - 12)

    parts = [_frame(width, height, left, bottom, low, high, at, y_label)]
    if reference is not None:
        y = at(0, reference)[1]
        parts.append(
            f'<line class="goal" x1="{left}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
    every = max(1, math.ceil(n / 16))
    for k, label in enumerate(labels):
        if k % every == 0:
            x = at(k, low)[0]
            parts.append(f'<text x="{x:.1f}" y="{height - 12}" class="mid">{escape(label)}</text>')
    for name, points in series.items():
        kind = escape(name)
        known = [(k, v) for k, v in enumerate(points) if v is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(k, v) for k, v in known))
        parts.append(f'<polyline class="line {kind}" points="{path}"/>')
        for k, v in known:
            x, y = at(k, v)
            tip = f"<title>{escape(labels[k])}, {kind}: {v:.3f}</title>"
            place = f'cx="{x:.1f}" cy="{y:.1f}" r="4"'
            parts.append(f'<circle class="dot {kind}" {place}>{tip}</circle>')
    return _svg(width, height, "".join(parts), y_label)


def histogram(series: Mapping[str, Lengths], *, x_label: str, limit: float, bins: int = 40) -> str:
    """Overlaid histograms, as shares; what lies above `limit` is counted in the last bar."""
    width, height, left, bottom = 760, 240, 46, 40
    edges = np.linspace(0, limit, bins + 1)
    shares = {}
    for name, values in series.items():
        if len(values):
            within = np.minimum(values.px, limit * (1 - 1e-9))
            counts = np.histogram(within, edges, weights=values.counts)[0]
            shares[name] = counts / len(values)
    high = _round_up(max([0.05, *(float(s.max()) for s in shares.values())]))

    def at(k: float, v: float) -> tuple[float, float]:
        return (
            left + k * (width - left - 10) / bins,
            height - bottom - v / high * (height - bottom - 12),
        )

    parts = [_frame(width, height, left, bottom, 0.0, high, at, "share")]
    for name, heights in shares.items():
        for k, share in enumerate(heights.tolist()):
            x, y = at(k + 0.08, share)
            bar = at(k + 0.92, 0)[0] - x
            tip = f"{edges[k]:.2f} to {edges[k + 1]:.2f} px: {share:.1%}"
            parts.append(
                f'<rect class="bar {escape(name)}" x="{x:.1f}" y="{y:.1f}" width="{bar:.1f}" '
                f'height="{height - bottom - y:.1f}"><title>{tip}</title></rect>'
            )
    for tick in range(0, bins + 1, bins // 8):
        x = at(tick, 0)[0]
        more = "+" if tick == bins else ""
        parts.append(
            f'<text x="{x:.1f}" y="{height - bottom + 16}" class="mid">{edges[tick]:g}{more}</text>'
        )
    parts.append(f'<text x="{width / 2}" y="{height - 6}" class="mid">{escape(x_label)}</text>')
    return _svg(width, height, "".join(parts), x_label)


def bars(values: Mapping[str, float], *, unit: str, digits: int = 0) -> str:
    """Horizontal bars, in the order given."""
    ranked = list(values.items())
    row, left, width = 24, 190, 760
    high = max([value for _, value in ranked] or [1.0]) or 1.0
    parts = []
    for k, (name, value) in enumerate(ranked):
        y = k * row
        length = max(1.0, value / high * (width - left - 110))
        amount = f"{value:,.{digits}f} {escape(unit)}"
        parts.append(
            f'<text x="{left - 8}" y="{y + 16}" class="end">{escape(name)}</text>'
            f'<rect class="bar after" x="{left}" y="{y + 4}" width="{length:.1f}" height="16"/>'
            f'<text x="{left + length + 6:.1f}" y="{y + 16}">{amount}</text>'
        )
    return _svg(width, max(row, row * len(ranked)), "".join(parts), unit)


def strain_map(mesh: Mesh, positions: NDArray[np.float64], magnify: float = 0.0) -> str:
    """Area change of every triangle in colour, displacement from the rigid placement as arrows.

    Args:
        mesh: of the section.
        positions: (n, 2) in the common frame.
        magnify: how much longer than true the arrows are; 0: chosen.
    """
    vertices = mesh.vertices
    rigid = Affine.fit_rigid(vertices, positions)
    moved = rigid.inverse()(positions) - vertices
    area = jacobians(positions, mesh)
    size = 320.0
    scale = size / max(mesh.shape)
    parts = []
    for triangle, ratio in zip(mesh.triangles.tolist(), area.tolist(), strict=True):
        corners = " ".join(f"{x:.1f},{y:.1f}" for y, x in (vertices[triangle] * scale).tolist())
        parts.append(f'<polygon points="{corners}" fill="{_diverging(ratio)}"/>')
    step = max(1, mesh.rows // 12)
    largest = float(np.linalg.norm(moved, axis=1).max())
    factor = magnify or 0.9 * step * min(mesh.pitch) / max(largest, 1e-6)
    grid = np.arange(mesh.rows * mesh.columns).reshape(mesh.rows, mesh.columns)
    for k in grid[::step, ::step].ravel().tolist():
        (y, x), (dy, dx) = (vertices[k] * scale).tolist(), (moved[k] * factor * scale).tolist()
        parts.append(
            f'<line class="arrow" x1="{x:.1f}" y1="{y:.1f}" x2="{x + dx:.1f}" y2="{y + dy:.1f}"/>'
            f'<circle class="arrow" cx="{x:.1f}" cy="{y:.1f}" r="1.2"/>'
        )
    body = "".join(parts)
    caption = (
        f"<figcaption>area {area.min():.2f} to {area.max():.2f}; largest displacement "
        f"{largest:.1f} px, arrows x {factor:.1f}</figcaption>"
    )
    height = mesh.shape[0] * scale
    return _svg(mesh.shape[1] * scale, height, body, "strain", css="strain") + caption


def _diverging(ratio: float) -> str:
    """Blue where area shrinks, red where it grows, white at 1; full at 20%."""
    t = max(-1.0, min(1.0, math.log(max(ratio, 1e-3)) / math.log(1.2)))
    other = round(235 * (1 - abs(t)) + 40 * abs(t))
    return f"rgb(235,{other},{other})" if t > 0 else f"rgb({other},{other},235)"


def _frame(
    width: int, height: int, left: int, bottom: int, low: float, high: float, at: Any, label: str
) -> str:
    parts = []
    ticks = 4 + round(max(0.0, -low) / (high / 4))
    for k in range(ticks + 1):
        value = low + (high - low) * k / ticks
        y = at(0, value)[1]
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" class="end">{value:.2g}</text>'
        )
    middle = (height - bottom) / 2
    turn = f"translate(11,{middle:.0f}) rotate(-90)"
    parts.append(f'<text transform="{turn}" class="mid">{escape(label)}</text>')
    return "".join(parts)


def _svg(width: float, height: float, body: str, label: str, css: str = "chart") -> str:
    return (
        f'<svg class="{css}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(label)}">{body}</svg>'
    )


def _round_up(value: float) -> float:
    """The next number of the form 1, 2, 2.5, 4, 5, 6, 8 x 10^k."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 4, 5, 6, 8, 10) if step * power >= value)
