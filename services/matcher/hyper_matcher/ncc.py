"""Normalised cross-correlation: exact, masked, batched.

The score is the zero-mean one (Lewis 1995, OpenCV's `TM_CCOEFF_NORMED`). Variances of windows are
summed in float64: float32 loses them. The correlation itself runs in the spatial domain for small
templates and by FFTs (`fft.py`) of overlapping tiles for large ones, whichever costs less; what
depends on the searched image alone (spectra, norms of windows) is computed once for all templates.
FFTs in float32 are off by a share of the whole tile's contrast: where the faintest window is too
faint beside it, the correlogram is computed in float64. Axes are (y, x); a correlogram's entry
(i, j) is the score of the window that starts there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeVar

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from hyper_matcher import fft

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]
Method = Literal["auto", "direct", "fft"]
_Value = TypeVar("_Value")
_Kept = tuple[tuple[int, int], _Value]  # of the last template's shape

_FLAT = 1e-20  # a template's energy below this share of its squared values counts as none
_ROUNDING = 1e-13  # of integral images: a window's energy below this share of the image's is none
# Largest error of a float32 product over (rms of the tile * norm and edge of the template): at most
# 4e-7 on noise, smooth images, waves, steps, ramps and spots.
_FFT_ERROR = 5e-7
_CACHED_BYTES = 1 << 19  # of windows that are transformed at once: they stay in the cache
_ERROR_MAX = 5e-6  # of a score; where float32 may miss it, float64 computes the correlogram


class SearchImage:
    """An image to search in: integral images and spectra are made once, for all templates.

    Args:
        image: (H, W), any real dtype, finite.
    """

    def __init__(self, image: NDArray[Any]) -> None:
        if image.ndim != 2 or image.size == 0:
            raise ValueError(f"an image to search in has two axes, not shape {image.shape}")
        with np.errstate(invalid="ignore"):
            mean = float(image.mean(dtype=np.float64))
        if not math.isfinite(mean):  # unless it overflows, as soon as one value is not
            raise ValueError("the image has values that are not finite")
        self.shape: tuple[int, int] = (image.shape[0], image.shape[1])
        self._image, self._mean = np.array(image), mean
        exact = np.float32 if np.can_cast(image.dtype, np.float32) else np.float64
        self.values = np.subtract(self._image, mean, dtype=exact, order="C").astype(
            np.float32, copy=False
        )
        # What is made when first needed. Threads share an image: read once, written whole.
        self._integrals: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._inverse: _Kept[NDArray[np.float32]] | None = None
        self._exact_inverse: _Kept[NDArray[np.float64]] | None = None
        self._spectra: dict[bool, tuple[Tiling, list[_Spectrum]]] = {}

    @cached_property
    def scale(self) -> float:
        """Largest absolute value of the image less its mean."""
        return float(max(self.values.max(), -self.values.min()))

    @cached_property
    def centred(self) -> NDArray[np.float64]:
        """The image less its mean, in float64."""
        return self._make_centred()

    @cached_property
    def exact_spectrum(self) -> NDArray[np.complex128]:
        """That of `centred`, by real FFTs in float64."""
        return np.asarray(scipy.fft.rfft2(self.centred, _fft_shape(self.shape)))

    def _make_centred(self) -> NDArray[np.float64]:
        return np.asarray(self._image.astype(np.float64) - self._mean)

    @property
    def integrals(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Integral images (H + 1, W + 1) of the image less its mean, and of its square."""
        if (tables := self._integrals) is None:
            self._integrals = tables = _integrals(self._make_centred())
        return tables

    def window_norms(
        self, template: tuple[int, int], y: int, x: int, rows: int, columns: int
    ) -> NDArray[np.float64]:
        """sqrt(sum((w - mean(w))^2)) of rows x columns windows, the first at (y, x)."""
        h, w = template
        sums, squares = self.integrals
        first = _box_sums(sums, h, w, y, x, rows, columns)
        energy = _box_sums(squares, h, w, y, x, rows, columns) - first * first / (h * w)
        energy[energy <= _ROUNDING * squares[-1, -1]] = 0.0
        return np.asarray(np.sqrt(energy))

    def correlate(self, template: NDArray[Any], method: Method = "auto") -> NDArray[np.float32]:
        """The correlogram of `template` (h, w): (H - h + 1, W - w + 1), in [-1, 1].

        Windows and templates without contrast score 0. For many templates use `correlate_each`.

        Args:
            template: any real dtype, finite.
            method: "direct" sums in the spatial domain, "fft"; "auto" chooses by cost.
        """
        return self._correlate([template], method, paired_tiles=True)[0]

    def correlate_each(
        self, templates: Iterable[NDArray[Any]], method: Method = "auto"
    ) -> Iterator[NDArray[np.float32]]:
        """The correlograms of templates of one shape, one after the other, as `correlate`'s.

        The image is transformed once, and two templates share each of their transforms.
        """
        rest = iter(templates)
        while pair := list(itertools.islice(rest, 2)):
            yield from self._correlate(pair, method, paired_tiles=False)

    def _correlate(
        self, templates: Sequence[NDArray[Any]], method: Method, paired_tiles: bool
    ) -> list[NDArray[np.float32]]:
        """One template, or two at once if the tiles are not paired."""
        shape = templates[0].shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"a template has two axes, not shape {shape}")
        if any(template.shape != shape for template in templates):
            raise ValueError("templates that are correlated together must have one shape")
        h, w = shape
        rows, columns = self.shape[0] - h + 1, self.shape[1] - w + 1
        if rows < 1 or columns < 1:
            raise ValueError(f"the template {shape} is larger than the image {self.shape}")
        units = [_unit(template) for template in templates]
        if method == "direct" or (method == "auto" and spatial_is_cheaper((h, w), self.shape)):
            return [self._exactly(unit, correlate_directly) for unit in units]
        if max(h, w) > fft.SIZES[-1]:
            return [self._exactly(unit, correlate_by_float64_fft) for unit in units]
        tiling = choose_tiling((h, w), self.shape, paired_tiles)
        tiles = self._tiles(tiling, paired_tiles)
        inverse = self._inverse_norms((h, w))
        faintest = float(inverse.max()) * math.sqrt(h * w)
        if _FFT_ERROR * max(tile.rms for tile in tiles) * faintest > _ERROR_MAX:
            return [self._exactly(unit, correlate_by_float64_fft) for unit in units]
        factor = 1.0 / (tiling.shape[0] * tiling.shape[1])
        flipped = [_flip(unit, factor) for unit in units]
        second = flipped[1] if len(flipped) > 1 else None
        spectrum = fft.transform(fft.spectrum_buffer(tiling.shape), flipped[0], second)
        outs = [np.empty((rows, columns), np.float32) for _ in units]
        for tile in tiles:
            if paired_tiles:
                outputs = [(outs[0], y, x) for y, x in tile.at]
            else:
                outputs = [(out, *tile.at[0]) for out in outs]
            fft.convolve(tile.values, spectrum, (h - 1, w - 1), outputs, inverse)
        return outs

    def _exactly(
        self,
        unit: NDArray[np.float64],
        products: Callable[[SearchImage, NDArray[np.float64]], NDArray[np.float64]],
    ) -> NDArray[np.float32]:
        """The correlogram of a template of norm 1, in float64 throughout."""
        h, w = unit.shape
        kept = self._exact_inverse
        if kept is None or kept[0] != (h, w):
            norms = self.window_norms((h, w), 0, 0, self.shape[0] - h + 1, self.shape[1] - w + 1)
            inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
            self._exact_inverse = kept = ((h, w), inverse)
        scores = products(self, unit) * kept[1]
        return np.asarray(np.clip(scores, -1, 1, out=scores), np.float32)

    def _inverse_norms(self, template: tuple[int, int]) -> NDArray[np.float32]:
        """1 / `window_norms` of all windows, 0 for those without contrast; the last size's kept."""
        kept = self._inverse
        if kept is None or kept[0] != template:
            self._inverse = kept = (template, _inverse_window_norms(self.values, *template))
        return kept[1]

    def _tiles(self, tiling: Tiling, paired: bool) -> list[_Spectrum]:
        """Spectra of the tiles, one or two in each; the last tiling's are kept."""
        kept = self._spectra.get(paired)
        if kept is None or kept[0] != tiling:
            places = tiling.places(self.shape)
            count = 2 if paired else 1
            groups = [places[i : i + count] for i in range(0, len(places), count)]
            made = [self._spectrum(tiling.shape, group) for group in groups]
            self._spectra[paired] = kept = (tiling, made)
        return kept[1]

    def _spectrum(self, shape: tuple[int, int], at: list[tuple[int, int]]) -> _Spectrum:
        parts = [self.values[y : y + shape[0], x : x + shape[1]] for y, x in at]
        energy = sum(float(np.einsum("ij,ij->", part, part)) for part in parts)
        values = fft.spectrum_buffer(shape)
        if len(at) == 1:
            fft.transform(values, self.values, at=at[0])
        else:
            fft.transform(values, self.values, self.values, at[0], at[1])
        return _Spectrum(at, values, math.sqrt(energy / (shape[0] * shape[1])))


@dataclass(frozen=True, slots=True)
class _Spectrum:
    """Of one tile, or of two as real and imaginary part; `rms`: of the pixels transformed."""

    at: list[tuple[int, int]]
    values: NDArray[np.float32]
    rms: float


@dataclass(frozen=True, slots=True)
class Tiling:
    """How an image is cut for FFTs: overlapping tiles whose correlograms abut.

    Args:
        shape: of the transforms.
        step: from a tile to the next; of a tile's correlogram.
    """

    shape: tuple[int, int]
    step: tuple[int, int]

    def places(self, image: tuple[int, int]) -> list[tuple[int, int]]:
        """First pixels of the tiles of an image of this shape."""
        overlap = [edge - step for edge, step in zip(self.shape, self.step, strict=True)]
        ys, xs = (
            range(0, max(1, edge - over), step)
            for edge, over, step in zip(image, overlap, self.step, strict=True)
        )
        return [(y, x) for y in ys for x in xs]


@lru_cache(maxsize=1024)
def choose_tiling(template: tuple[int, int], image: tuple[int, int], paired: bool) -> Tiling:
    """The tiling that costs least, for one template (`paired` tiles) or two of many.

    Templates are no larger than the largest FFT (`fft.SIZES`).
    """
    h, w = template
    rows, columns = image[0] - h + 1, image[1] - w + 1
    largest = [fft.good_size(min(edge, fft.SIZES[-1])) for edge in image]
    ny = np.array([n for n in fft.SIZES if h <= n <= largest[0]])[:, None]
    nx = np.array([n for n in fft.SIZES if w <= n <= largest[1]])[None]
    tiles = -(-rows // (ny - h + 1)) * -(-columns // (nx - w + 1))
    along_y, along_x = ny * nx * np.log2(ny), ny * nx * np.log2(nx)
    forward = along_y * w / nx + along_x
    backward = along_y * np.minimum(columns, nx - w + 1) / nx + along_x
    if paired:
        spectra = -(-tiles // 2)
        cost = forward + spectra * (along_y + along_x + backward)
    else:
        cost = forward + tiles * backward
    i, j = np.unravel_index(int(np.argmin(cost)), cost.shape)
    shape = (int(ny[i, 0]), int(nx[0, j]))
    return Tiling(shape, (shape[0] - h + 1, shape[1] - w + 1))


def _unit(template: NDArray[Any]) -> NDArray[np.float64]:
    """The template without its mean, of norm 1; zeros if it has no contrast."""
    values = np.array(template, np.float64, order="C")
    if not _make_unit(values):
        raise ValueError("the template has values that are not finite")
    return values


def correlate_directly(search: SearchImage, template: NDArray[np.float64]) -> NDArray[np.float64]:
    """Products of a template without mean with every window, summed in the spatial domain."""
    return np.asarray(_correlate_directly(search.centred, template))


def correlate_by_float64_fft(
    search: SearchImage, template: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The same by real FFTs."""
    h, w = template.shape
    size = _fft_shape(search.shape)
    spectrum = search.exact_spectrum * np.conj(scipy.fft.rfft2(template, size))
    products = scipy.fft.irfft2(spectrum, size)
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
    at_once = min(n, max(1, _CACHED_BYTES // (4 * size[0] * size[1])))
    kernels, windows = np.zeros((2, at_once, *size), np.float32)
    scores = np.zeros((n, side, side), np.float32)
    floor = 1e-6 * math.sqrt(h * w)
    for first in range(0, n, at_once):
        part, corner = templates[first : first + at_once], corners[first : first + at_once]
        count = len(part)
        norms = _cut_windows(part, search.values, corner, radius, kernels, windows)
        norms[norms <= floor] = 0.0
        spectra, turned = scipy.fft.rfft2(windows[:count]), scipy.fft.rfft2(kernels[:count])
        spectra *= np.conjugate(turned, out=turned)
        products = np.asarray(scipy.fft.irfft2(spectra, size, overwrite_x=True))
        _window_scores(
            products, norms, *search.integrals, corner, (h, w), floor * max(search.scale, 1e-30),
            scores[first : first + at_once],
        )  # fmt: skip
    return scores


def spatial_is_cheaper(template: tuple[int, int], search: tuple[int, int]) -> bool:
    """Whether the direct sum costs less than FFTs, the image's own being there already.

    The constants, in seconds, are `python -m benchmarks.matcher.ncc`'s on one core with AVX2.
    """
    rows, columns = search[0] - template[0] + 1, search[1] - template[1] + 1
    direct = rows * columns * template[0] * template[1] * 0.18e-9
    pixels = search[0] * search[1]
    return direct < 40e-6 + pixels * math.log2(pixels) * 0.2e-9


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


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")  # type: ignore[untyped-decorator]  # no types in numba
def _inverse_window_norms(values: NDArray[np.float32], h: int, w: int) -> NDArray[np.float32]:
    """1 / sqrt(sum((v - mean(v))^2)) of all (h, w) windows, 0 for those without contrast.

    Sums of columns move down a row at a time, sums of windows along it; all of them in float64.
    """
    height, width = values.shape
    rows, columns = height - h + 1, width - w + 1
    result = np.empty((rows, columns), np.float32)
    sums, squares = np.zeros(width), np.zeros(width)
    windows, energies = np.empty(columns), np.empty(columns)
    total = 0.0
    for pixel in values.flat:
        total += np.float64(pixel) * np.float64(pixel)
    floor, share = _ROUNDING * total, 1.0 / (h * w)
    for i in range(h - 1):
        for j in range(width):
            value = np.float64(values[i, j])
            sums[j] += value
            squares[j] += value * value
    for i in range(rows):
        for j in range(width):
            value = np.float64(values[i + h - 1, j])
            sums[j] += value
            squares[j] += value * value
        first, second = 0.0, 0.0
        for j in range(w):
            first += sums[j]
            second += squares[j]
        windows[0], energies[0] = first, second
        for j in range(1, columns):
            first += sums[j + w - 1] - sums[j - 1]
            second += squares[j + w - 1] - squares[j - 1]
            windows[j], energies[j] = first, second
        for j in range(columns):
            energy = energies[j] - windows[j] * windows[j] * share
            inverse = np.float32(1) / np.sqrt(np.float32(max(energy, floor)))
            result[i, j] = inverse if energy > floor else np.float32(0)
        for j in range(width):
            value = np.float64(values[i, j])
            sums[j] -= value
            squares[j] -= value * value
    return result


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")  # type: ignore[untyped-decorator]  # no types in numba
def _make_unit(values: NDArray[np.float64]) -> bool:
    """Take the mean out and divide by the norm, in place; False if a value is not finite."""
    total, largest = 0.0, 0.0
    for value in values.flat:
        total += value
        largest = max(largest, abs(value))
    mean, energy = total / values.size, 0.0
    if not np.isfinite(mean):
        return False
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            value = values[i, j] - mean
            values[i, j] = value
            energy += value * value
    flat = energy <= _FLAT * values.size * largest * largest
    values *= 0.0 if flat else 1.0 / np.sqrt(energy)
    return True


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})  # type: ignore[untyped-decorator]  # no types in numba
def _cut_windows(
    templates: NDArray[np.float32],
    image: NDArray[np.float32],
    corners: NDArray[np.int64],
    radius: int,
    kernels: NDArray[np.float32],
    windows: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Templates without their means, and their windows, into larger arrays; the norms (n,)."""
    n, h, w = templates.shape
    norms = np.empty(n)
    for k in range(n):
        total = 0.0
        for i in range(h):
            for j in range(w):
                total += np.float64(templates[k, i, j])
        mean, energy = np.float32(total / (h * w)), 0.0
        for i in range(h):
            for j in range(w):
                value = templates[k, i, j] - mean
                kernels[k, i, j] = value
                energy += np.float64(value) * np.float64(value)
        norms[k] = np.sqrt(energy)
        y, x = corners[k]
        for i in range(h + 2 * radius):
            for j in range(w + 2 * radius):
                windows[k, i, j] = image[y + i, x + j]
    return norms


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # no types in numba
def _window_scores(
    products: NDArray[np.float32],
    norms: NDArray[np.float64],
    sums: NDArray[np.float64],
    squares: NDArray[np.float64],
    corners: NDArray[np.int64],
    shape: tuple[int, int],
    floor: float,
    scores: NDArray[np.float32],
) -> None:
    """Products over the norms of template and window, where both have contrast."""
    (n, rows, columns), (h, w) = scores.shape, shape
    least = max(_ROUNDING * squares[-1, -1], floor * floor)
    for k in range(n):
        if norms[k] == 0.0:
            continue
        for i in range(rows):
            y = corners[k, 0] + i
            for j in range(columns):
                x = corners[k, 1] + j
                first = sums[y + h, x + w] - sums[y + h, x] - sums[y, x + w] + sums[y, x]
                energy = (
                    squares[y + h, x + w] - squares[y + h, x] - squares[y, x + w] + squares[y, x]
                ) - first * first / (h * w)
                if energy > least:
                    score = products[k, i, j] / (np.sqrt(energy) * norms[k])
                    scores[k, i, j] = min(max(score, -1.0), 1.0)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # no types in numba
def _flip(values: NDArray[np.float64], factor: float) -> NDArray[np.float32]:
    """factor * values, the last one first along either axis."""
    h, w = values.shape
    flipped = np.empty((h, w), np.float32)
    for i in range(h):
        for j in range(w):
            flipped[i, j] = values[h - 1 - i, w - 1 - j] * factor
    return flipped


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
