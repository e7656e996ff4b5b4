"""Normalised cross-correlation: exact, masked, batched; and what a correlogram says.

The score is the zero-mean one (Lewis 1995, OpenCV's `TM_CCOEFF_NORMED`). Variances of windows come
from integral images in float64: float32 loses them. The correlation itself runs in the spatial
domain for small templates and by real FFTs for large ones, whichever costs less; what depends on
the searched image alone (integral images, spectrum) is computed once for all its templates.
Axes are (y, x); a correlogram's entry (i, j) is the score of the window that starts there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]

_FLAT = 1e-20  # a template's energy below this share of its squared values counts as none
_ROUNDING = 1e-13  # of integral images: a window's energy below this share of the image's is none


@dataclass(frozen=True, slots=True)
class Peaks:
    """What n correlograms say; arrays of n.

    Args:
        offset: (n, 2) sub-pixel position of the first peak in the correlogram, (y, x).
        p1: its score.
        p2: highest score outside a box round it; 0 where the box covers everything.
        dynamic_range: highest minus lowest score.
        kurtosis: of the scores (3 for a normal distribution).
        width: share of the correlogram above half of the first peak.
    """

    offset: NDArray[np.float64]
    p1: NDArray[np.float64]
    p2: NDArray[np.float64]
    dynamic_range: NDArray[np.float64]
    kurtosis: NDArray[np.float64]
    width: NDArray[np.float64]


class SearchImage:
    """An image to search in: integral images and spectra are made once, for all templates.

    Args:
        image: (H, W), any real dtype, finite.
    """

    def __init__(self, image: NDArray[Any]) -> None:
        if image.ndim != 2 or image.size == 0:
            raise ValueError(f"an image to search in has two axes, not shape {image.shape}")
        wide = image.astype(np.float64)
        if not np.isfinite(wide).all():
            raise ValueError("the image has values that are not finite")
        self.shape: tuple[int, int] = (image.shape[0], image.shape[1])
        wide -= wide.mean()
        self.scale = float(np.abs(wide).max())
        self.values = wide.astype(np.float32)
        self.centred = wide
        self._sum, self._squares = _integrals(wide)
        self._spectrum: NDArray[np.complex128] | None = None
        self._inverse: tuple[tuple[int, int], NDArray[np.float64]] | None = None

    def window_norms(
        self, template: tuple[int, int], y: int, x: int, rows: int, columns: int
    ) -> NDArray[np.float64]:
        """sqrt(sum((w - mean(w))^2)) of rows x columns windows, the first at (y, x)."""
        h, w = template
        first = _box_sums(self._sum, h, w, y, x, rows, columns)
        energy = _box_sums(self._squares, h, w, y, x, rows, columns) - first * first / (h * w)
        energy[energy <= _ROUNDING * self._squares[-1, -1]] = 0.0
        return np.asarray(np.sqrt(energy))

    def correlate(self, template: NDArray[Any]) -> NDArray[np.float64]:
        """The correlogram of `template` (h, w): (H - h + 1, W - w + 1), in [-1, 1].

        Windows and templates without contrast score 0.
        """
        h, w = template.shape
        rows, columns = self.shape[0] - h + 1, self.shape[1] - w + 1
        if rows < 1 or columns < 1:
            raise ValueError(f"the template {template.shape} is larger than the image {self.shape}")
        centred = template.astype(np.float64)
        centred -= centred.mean()
        norm = math.sqrt(float((centred * centred).sum()))
        if norm * norm <= _FLAT * h * w * float(np.abs(template).max()) ** 2:
            return np.zeros((rows, columns))
        if spatial_is_cheaper((h, w), self.shape):
            products = correlate_directly(self, centred)
        else:
            products = correlate_by_fft(self, centred)
        scores = products * self._inverse_norms((h, w))
        scores /= norm
        return np.asarray(np.clip(scores, -1, 1, out=scores))

    def _inverse_norms(self, template: tuple[int, int]) -> NDArray[np.float64]:
        """1 / `window_norms` of all windows, 0 for those without contrast; the last size's kept."""
        kept = self._inverse  # threads share an image: read once, written whole
        if kept is None or kept[0] != template:
            rows, columns = (n - t + 1 for n, t in zip(self.shape, template, strict=True))
            norms = self.window_norms(template, 0, 0, rows, columns)
            inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
            self._inverse = kept = (template, inverse)
        return kept[1]

    def spectrum(self) -> NDArray[np.complex128]:
        """Of the image less its mean; made once."""
        if self._spectrum is None:
            self._spectrum = np.asarray(scipy.fft.rfft2(self.centred, _fft_shape(self.shape)))
        return self._spectrum


def correlate_directly(search: SearchImage, template: NDArray[np.float64]) -> NDArray[np.float64]:
    """Products of a template without mean with every window, summed in the spatial domain."""
    return np.asarray(_correlate_directly(search.centred, template))


def correlate_by_fft(search: SearchImage, template: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same by real FFTs."""
    h, w = template.shape
    size = _fft_shape(search.shape)
    products = scipy.fft.irfft2(search.spectrum() * np.conj(scipy.fft.rfft2(template, size)), size)
    return np.asarray(products[: search.shape[0] - h + 1, : search.shape[1] - w + 1])


def normalized_cross_correlation(template: NDArray[Any], search: NDArray[Any]) -> NDArray[Any]:
    """The correlogram of one template in one image; several templates: use `SearchImage`."""
    return SearchImage(search).correlate(template)


def masked_cross_correlation(
    template: NDArray[Any],
    search: NDArray[Any],
    template_valid: BoolArray,
    search_valid: BoolArray,
    min_overlap: float = 0.3,
) -> NDArray[np.float64]:
    """The same, over the pixels valid in both (Padfield 2012); 0 where too few are.

    Args:
        template: (h, w).
        search: (H, W).
        template_valid: (h, w), False where the template must not be looked at.
        search_valid: (H, W), likewise.
        min_overlap: share of the template's pixels that must be valid in both.
    """
    h, w = template.shape
    rows, columns = search.shape[0] - h + 1, search.shape[1] - w + 1
    if rows < 1 or columns < 1:
        raise ValueError(f"the template {template.shape} is larger than the image {search.shape}")
    size = _fft_shape(search.shape)
    t = np.where(template_valid, template, 0).astype(np.float64)
    s = np.where(search_valid, search, 0).astype(np.float64)
    t -= t[template_valid].mean() if template_valid.any() else 0.0
    s -= s[search_valid].mean() if search_valid.any() else 0.0
    t[~template_valid] = 0.0
    s[~search_valid] = 0.0

    def spectrum(values: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(scipy.fft.rfft2(values, size))

    ft, ft2, fm = (np.conj(spectrum(v)) for v in (t, t * t, template_valid.astype(np.float64)))
    fs, fs2, fn = (spectrum(v) for v in (s, s * s, search_valid.astype(np.float64)))

    def back(product: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(scipy.fft.irfft2(product, size))[:rows, :columns]

    count = np.round(back(fn * fm))
    safe = np.maximum(count, 1.0)
    sum_t, sum_s = back(fn * ft), back(fs * fm)
    energy_t = back(fn * ft2) - sum_t * sum_t / safe
    energy_s = back(fs2 * fm) - sum_s * sum_s / safe
    products = back(fs * ft) - sum_s * sum_t / safe
    floor_t = 1e-9 * max(float((t * t).sum()), 1e-30)
    floor_s = 1e-9 * max(float((s * s).sum()), 1e-30)
    usable = (count >= min_overlap * h * w) & (energy_t > floor_t) & (energy_s > floor_s)
    norms = np.sqrt(np.where(usable, energy_t * energy_s, 1.0))
    return np.clip(np.where(usable, products / norms, 0.0), -1.0, 1.0)


def correlate_windows(
    templates: NDArray[np.float32], search: SearchImage, corners: NDArray[np.int64], radius: int
) -> NDArray[np.float32]:
    """Correlograms of n templates, each in a window of its own of one image.

    Args:
        templates: (n, h, w).
        search: the image; its integral images are shared by all.
        corners: (n, 2), the window's first pixel; the window is (h + 2 radius, w + 2 radius) and
            must lie inside the image.
        radius: largest displacement, px.

    Returns:
        (n, 2 radius + 1, 2 radius + 1); rows of zeros for templates without contrast.
    """
    n, h, w = templates.shape
    side = 2 * radius + 1
    size = _fft_shape((h + 2 * radius, w + 2 * radius))
    centred = templates - templates.mean(axis=(1, 2), keepdims=True)
    norms = np.sqrt(np.einsum("nij,nij->n", centred, centred, dtype=np.float64))
    windows = np.empty((n, h + 2 * radius, w + 2 * radius), np.float32)
    window_norms = np.empty((n, side, side))
    for k, (y, x) in enumerate(corners.tolist()):
        windows[k] = search.values[y : y + h + 2 * radius, x : x + w + 2 * radius]
        window_norms[k] = search.window_norms((h, w), y, x, side, side)
    spectra = scipy.fft.rfft2(windows, size)
    spectra *= np.conj(scipy.fft.rfft2(centred, size))
    products = np.asarray(scipy.fft.irfft2(spectra, size))[:, :side, :side]
    scale = window_norms * norms[:, None, None]
    floor = 1e-6 * math.sqrt(h * w) * max(search.scale, 1e-30)
    usable = (window_norms > floor) & (norms[:, None, None] > 1e-6 * math.sqrt(h * w))
    scores = np.divide(products, scale, out=np.zeros_like(scale), where=usable)
    return np.asarray(np.clip(scores, -1.0, 1.0), np.float32)


def find_peaks(correlograms: NDArray[Any], exclusion_px: int = 8) -> Peaks:
    """First and second peak, and the shape of the surface, of (n, rows, columns) correlograms.

    Args:
        correlograms: scores.
        exclusion_px: half the edge of the box round the first peak that the second lies outside of.
    """
    table = _peaks(np.ascontiguousarray(correlograms, np.float32), exclusion_px)
    return Peaks(table[:, :2], *(table[:, k] for k in range(2, 7)))


def spatial_is_cheaper(template: tuple[int, int], search: tuple[int, int]) -> bool:
    """Whether the direct sum costs less than FFTs, the image's own being there already.

    The constants are `python -m benchmarks.matcher.ncc`'s, on one core of an AVX-512 machine: the
    crossover lies at 8 to 12 px, whatever the image's size.
    """
    rows, columns = search[0] - template[0] + 1, search[1] - template[1] + 1
    direct = rows * columns * template[0] * template[1] * 0.18e-9
    size = _fft_shape(search)
    fft = 2 * size[0] * size[1] * math.log2(size[0] * size[1]) * 0.33e-9 + 15e-6
    return direct < fft


def _fft_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    return (
        scipy.fft.next_fast_len(shape[0], real=True),
        scipy.fft.next_fast_len(shape[1], real=True),
    )


def integral(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over all rows and columns before: (H + 1, W + 1)."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    np.cumsum(np.cumsum(values, axis=0), axis=1, out=table[1:, 1:])
    return table


def _box_sums(
    table: NDArray[np.float64], h: int, w: int, y: int, x: int, rows: int, columns: int
) -> NDArray[np.float64]:
    """Sums over the (h, w) boxes that start at [y, y + rows) x [x, x + columns)."""
    lower, upper = table[y + h : y + h + rows], table[y : y + rows]
    left, right = slice(x, x + columns), slice(x + w, x + w + columns)
    return lower[:, right] - lower[:, left] - upper[:, right] + upper[:, left]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # no types in numba
def _integrals(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Integral images of the values and of their squares, in one pass."""
    rows, columns = values.shape
    sums = np.zeros((rows + 1, columns + 1))
    squares = np.zeros((rows + 1, columns + 1))
    for i in range(rows):
        total, energy = 0.0, 0.0
        for j in range(columns):
            value = values[i, j]
            total += value
            energy += value * value
            sums[i + 1, j + 1] = sums[i, j + 1] + total
            squares[i + 1, j + 1] = squares[i, j + 1] + energy
    return sums, squares


@numba.njit(cache=True, fastmath=True, nogil=True)  # type: ignore[untyped-decorator]  # no types in numba
def _correlate_directly(
    search: NDArray[np.float64], template: NDArray[np.float64]
) -> NDArray[np.float64]:
    h, w = template.shape
    rows, columns = search.shape[0] - h + 1, search.shape[1] - w + 1
    result = np.zeros((rows, columns))
    for i in range(rows):
        for u in range(h):
            for v in range(w):
                weight = template[u, v]
                for j in range(columns):
                    result[i, j] += weight * search[i + u, j + v]
    return result


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # no types in numba
def _peaks(correlograms: NDArray[np.float32], exclusion: int) -> NDArray[np.float64]:
    """Columns: y, x, p1, p2, dynamic range, kurtosis, width."""
    n, rows, columns = correlograms.shape
    table = np.zeros((n, 7))
    for k in range(n):
        c = correlograms[k]
        best, lowest, total = -2.0, 2.0, 0.0
        py, px = 0, 0
        for i in range(rows):
            for j in range(columns):
                value = c[i, j]
                total += value
                lowest = min(lowest, value)
                if value > best:
                    best, py, px = value, i, j
        mean = total / (rows * columns)
        second, m2, m4, above = -2.0, 0.0, 0.0, 0
        for i in range(rows):
            for j in range(columns):
                value = c[i, j]
                d2 = (value - mean) ** 2
                m2 += d2
                m4 += d2 * d2
                if value > 0.5 * best:
                    above += 1
                if (abs(i - py) > exclusion or abs(j - px) > exclusion) and value > second:
                    second = value
        y, x = float(py), float(px)
        if 0 < py < rows - 1 and 0 < px < columns - 1:
            dy, dx = _refine(c[py - 1 : py + 2, px - 1 : px + 2])
            y += dy
            x += dx
        table[k, 0], table[k, 1], table[k, 2] = y, x, best
        table[k, 3] = second if second > -2.0 else 0.0
        table[k, 4] = best - lowest
        table[k, 5] = m4 * rows * columns / (m2 * m2) if m2 > 1e-20 else 0.0
        table[k, 6] = above / (rows * columns)
    return table


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # no types in numba
def _refine(p: NDArray[np.float32]) -> tuple[float, float]:
    """Top of the paraboloid fitted by least squares to 3 x 3 scores, relative to their centre."""
    gy, gx, a, b, c = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(3):
        for j in range(3):
            value, u, v = float(p[i, j]), i - 1.0, j - 1.0
            gy += u * value / 6.0
            gx += v * value / 6.0
            a += (u * u - 2.0 / 3.0) * value  # second derivatives: the fit's coefficients
            b += (v * v - 2.0 / 3.0) * value
            c += u * v * value / 4.0
    determinant = a * b - c * c
    if not (a < 0.0 and determinant > 0.0):
        return 0.0, 0.0
    dy = -(b * gy - c * gx) / determinant
    dx = -(a * gx - c * gy) / determinant
    if abs(dy) > 1.0 or abs(dx) > 1.0:
        return 0.0, 0.0
    return dy, dx
