"""Convolution of images by float32 FFTs that never put a spectrum in order.

A convolution multiplies spectra entry by entry: it does not matter in which order the entries lie.
So the forward transform decimates in frequency, which leaves its result in digit-reversed order,
and the backward one decimates in time, which starts from there: no permutation, and both work in
place (Cooley and Tukey 1965; Gentleman and Sande 1966). The backward transform is the forward one
with the planes of real and imaginary parts swapped.

Each transform handles eight columns at a time (`lanes.py`), one vector a row, in a buffer that
fits the first-level cache, with the planes of real and imaginary parts apart. The columns of the
other axis come about by transposing blocks of 8 x 8 in registers on the way:

    image (ny, nx)  --eight columns-->  FFT along y  --transposed-->  spectrum (ny / 8, 2, nx, 8)
    spectrum  --in place-->  FFT along x                              axes: y block, re / im, x, y

Backward it is the reverse, with the product by the other spectrum done while the buffer is filled,
and only for the columns and rows that are wanted. Two real images travel as one complex image: the
convolution of a + ib with a real image has that with a in its real part and that with b in the
imaginary part.

Edges are multiples of 8 without prime factors above 5 (`SIZES`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from hyper_matcher.lanes import LANES, cut, load, splat, store, transpose

FloatImage = NDArray[np.float32]
_MAX_EDGE = 4096
_PAD = 4  # rows of 8 lanes after a plane: without them powers of 2 fall into few cache sets

SIZES: tuple[int, ...] = tuple(
    sorted(
        8 * 2**a * 3**b * 5**c
        for a in range(10)
        for b in range(6)
        for c in range(4)
        if 8 * 2**a * 3**b * 5**c <= _MAX_EDGE
    )
)

_NOTHING = np.zeros((0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class Axis:
    """How to transform along one axis.

    Args:
        size: number of elements.
        radices: of the passes, the first one of the forward transform first.
        twiddles: real and imaginary parts of exp(-2 pi i j k / n), for each pass (n elements a
            block, radix r), each j < n / r and each 0 < k < r.
    """

    size: int
    radices: NDArray[np.int64]
    twiddles: NDArray[np.float32]


@lru_cache(maxsize=256)
def axis(size: int) -> Axis:
    """The passes of one size."""
    if size not in SIZES:
        raise ValueError(
            f"sizes are multiples of {LANES} without prime factors above 5, not {size}"
        )
    radices, rest = [], size
    for radix in (4, 2, 3, 5):
        while rest % radix == 0:
            radices.append(radix)
            rest //= radix
    twiddles, n = [], size
    for radix in radices:
        j, k = np.arange(n // radix)[:, None], np.arange(1, radix)
        angle = -2 * np.pi * j * k / n
        twiddles.append(np.stack([np.cos(angle), np.sin(angle)], -1).ravel())
        n //= radix
    return Axis(size, np.array(radices), np.concatenate(twiddles).astype(np.float32))


def good_size(least: int) -> int:
    """The smallest supported edge that is not below `least`."""
    index = bisect_left(SIZES, least)
    if index == len(SIZES):
        raise ValueError(f"an edge of {least} px is more than {SIZES[-1]}")
    return SIZES[index]


def spectrum_buffer(shape: tuple[int, int]) -> FloatImage:
    """Room for a spectrum of images of this padded shape."""
    return np.empty((shape[0] // LANES, 2, shape[1] + _PAD, LANES), np.float32)


def transform(
    spectrum: FloatImage,
    real: FloatImage,
    imaginary: FloatImage | None = None,
    at: tuple[int, int] = (0, 0),
    imaginary_at: tuple[int, int] = (0, 0),
) -> FloatImage:
    """Fill `spectrum` with that of real + i imaginary, zeros beyond the images' ends; return it.

    Args:
        spectrum: as made by `spectrum_buffer`.
        real: (H, W), C-contiguous.
        imaginary: likewise; None: zeros.
        at: the first pixel looked at in the real part.
        imaginary_at: likewise.
    """
    y, x = axis(spectrum.shape[0] * LANES), axis(spectrum.shape[2] - _PAD)
    _forward(
        spectrum, real, *at, _NOTHING if imaginary is None else imaginary, *imaginary_at, x.size,
        y.radices, y.twiddles, x.radices, x.twiddles, False,
    )  # fmt: skip
    return spectrum


def untangle(spectrum: FloatImage) -> NDArray[np.complex128]:
    """The spectrum as `numpy.fft.fft2` orders it, (ny, nx); for tests."""
    y, x = axis(spectrum.shape[0] * LANES), axis(spectrum.shape[2] - _PAD)
    planes = (
        spectrum[:, :, : x.size].transpose(1, 0, 3, 2).reshape(2, y.size, x.size).astype(np.float64)
    )
    ordered = np.empty((y.size, x.size), np.complex128)
    ordered[np.ix_(_order(y), _order(x))] = planes[0] + 1j * planes[1]
    return ordered


def _order(along: Axis) -> NDArray[np.int64]:
    """Frequencies in the order in which the forward transform leaves them."""
    order, stride = np.zeros(1, np.int64), 1
    for radix in along.radices.tolist():
        order = (order[:, None] + stride * np.arange(radix)).ravel()
        stride *= radix
    return order


def convolve(
    one: FloatImage,
    other: FloatImage,
    first: tuple[int, int],
    outputs: Sequence[tuple[FloatImage, int, int]],
    weights: FloatImage,
) -> None:
    """Write weights * convolution, cut to [-1, 1]; the scale of the transforms is not taken out.

    The convolution is the circular one, from its pixel `first` on. The real part goes to the first
    output, the imaginary part to the second one, if there is one.

    Args:
        one: a spectrum.
        other: another of the same shape.
        first: (y, x) of the convolution's first pixel of interest.
        outputs: one or two of (image, y, x), C-contiguous: pixels are written from (y, x) on, as
            far as the image and the convolution reach.
        weights: of the outputs' shape, C-contiguous.
    """
    y, x = axis(one.shape[0] * LANES), axis(one.shape[2] - _PAD)
    second = outputs[1] if len(outputs) > 1 else (_NOTHING, 0, 0)
    _backward(
        one, other, *first, *outputs[0], *second, weights, x.size,
        y.radices, y.twiddles, x.radices, x.twiddles, True,
    )  # fmt: skip


_inline = numba.njit(forceinline=True)
_compiled = numba.njit(cache=True, nogil=True)


@_inline  # type: ignore[untyped-decorator]  # no types in numba
def _turn(re: Any, im: Any, twiddles: Any, at: int) -> Any:
    """The product with a twiddle factor."""
    c, s = splat(twiddles[at]), splat(twiddles[at + 1])
    return re * c - im * s, re * s + im * c


@_inline  # type: ignore[untyped-decorator]  # no types in numba
def _pass2(d: Any, re: int, im: int, size: int, n: int, twiddles: Any, at: int, back: bool) -> None:
    m = n // 2
    step = m * LANES
    for j in range(m):
        for base in range(j, size, n):
            p, q = re + base * LANES, im + base * LANES
            r0, i0 = load(d, p), load(d, q)
            r1, i1 = load(d, p + step), load(d, q + step)
            if back:
                r1, i1 = _turn(r1, i1, twiddles, at)
            s1, t1 = r0 - r1, i0 - i1
            if not back:
                s1, t1 = _turn(s1, t1, twiddles, at)
            store(d, p, r0 + r1)
            store(d, q, i0 + i1)
            store(d, p + step, s1)
            store(d, q + step, t1)
        at += 2


@_inline  # type: ignore[untyped-decorator]  # no types in numba
def _pass3(d: Any, re: int, im: int, size: int, n: int, twiddles: Any, at: int, back: bool) -> None:
    half, sine = splat(np.float32(0.5)), splat(np.float32(math.sqrt(0.75)))
    m = n // 3
    step = m * LANES
    for j in range(m):
        for base in range(j, size, n):
            p, q = re + base * LANES, im + base * LANES
            r0, i0 = load(d, p), load(d, q)
            r1, i1 = load(d, p + step), load(d, q + step)
            r2, i2 = load(d, p + 2 * step), load(d, q + 2 * step)
            if back:
                r1, i1 = _turn(r1, i1, twiddles, at)
                r2, i2 = _turn(r2, i2, twiddles, at + 2)
            ra, ia = r1 + r2, i1 + i2
            rb, ib = (r1 - r2) * sine, (i1 - i2) * sine
            store(d, p, r0 + ra)
            store(d, q, i0 + ia)
            rc, ic = r0 - ra * half, i0 - ia * half
            r1, i1 = rc + ib, ic - rb
            r2, i2 = rc - ib, ic + rb
            if not back:
                r1, i1 = _turn(r1, i1, twiddles, at)
                r2, i2 = _turn(r2, i2, twiddles, at + 2)
            store(d, p + step, r1)
            store(d, q + step, i1)
            store(d, p + 2 * step, r2)
            store(d, q + 2 * step, i2)
        at += 4


@_inline  # type: ignore[untyped-decorator]  # no types in numba
def _pass4(d: Any, re: int, im: int, size: int, n: int, twiddles: Any, at: int, back: bool) -> None:
    m = n // 4
    step = m * LANES
    for j in range(m):
        for base in range(j, size, n):
            p, q = re + base * LANES, im + base * LANES
            r0, i0 = load(d, p), load(d, q)
            r1, i1 = load(d, p + step), load(d, q + step)
            r2, i2 = load(d, p + 2 * step), load(d, q + 2 * step)
            r3, i3 = load(d, p + 3 * step), load(d, q + 3 * step)
            if back:
                r1, i1 = _turn(r1, i1, twiddles, at)
                r2, i2 = _turn(r2, i2, twiddles, at + 2)
                r3, i3 = _turn(r3, i3, twiddles, at + 4)
            ra, ia = r0 + r2, i0 + i2
            rb, ib = r0 - r2, i0 - i2
            rc, ic = r1 + r3, i1 + i3
            rd, id_ = r1 - r3, i1 - i3
            store(d, p, ra + rc)
            store(d, q, ia + ic)
            r1, i1 = rb + id_, ib - rd
            r2, i2 = ra - rc, ia - ic
            r3, i3 = rb - id_, ib + rd
            if not back:
                r1, i1 = _turn(r1, i1, twiddles, at)
                r2, i2 = _turn(r2, i2, twiddles, at + 2)
                r3, i3 = _turn(r3, i3, twiddles, at + 4)
            store(d, p + step, r1)
            store(d, q + step, i1)
            store(d, p + 2 * step, r2)
            store(d, q + 2 * step, i2)
            store(d, p + 3 * step, r3)
            store(d, q + 3 * step, i3)
        at += 6


@_inline  # type: ignore[untyped-decorator]  # no types in numba
def _pass5(d: Any, re: int, im: int, size: int, n: int, twiddles: Any, at: int, back: bool) -> None:
    c1, c2 = splat(np.float32(math.cos(0.4 * math.pi))), splat(np.float32(math.cos(0.8 * math.pi)))
    s1, s2 = splat(np.float32(math.sin(0.4 * math.pi))), splat(np.float32(math.sin(0.8 * math.pi)))
    m = n // 5
    step = m * LANES
    for j in range(m):
        for base in range(j, size, n):
            p, q = re + base * LANES, im + base * LANES
            r0, i0 = load(d, p), load(d, q)
            r1, i1 = load(d, p + step), load(d, q + step)
            r2, i2 = load(d, p + 2 * step), load(d, q + 2 * step)
            r3, i3 = load(d, p + 3 * step), load(d, q + 3 * step)
            r4, i4 = load(d, p + 4 * step), load(d, q + 4 * step)
            if back:
                r1, i1 = _turn(r1, i1, twiddles, at)
                r2, i2 = _turn(r2, i2, twiddles, at + 2)
                r3, i3 = _turn(r3, i3, twiddles, at + 4)
                r4, i4 = _turn(r4, i4, twiddles, at + 6)
            ra, ia, rd, id_ = r1 + r4, i1 + i4, r1 - r4, i1 - i4
            rb, ib, rc, ic = r2 + r3, i2 + i3, r2 - r3, i2 - i3
            store(d, p, r0 + ra + rb)
            store(d, q, i0 + ia + ib)
            re1, ie1 = r0 + ra * c1 + rb * c2, i0 + ia * c1 + ib * c2
            re2, ie2 = r0 + ra * c2 + rb * c1, i0 + ia * c2 + ib * c1
            rf1, if1 = rd * s1 + rc * s2, id_ * s1 + ic * s2
            rf2, if2 = rd * s2 - rc * s1, id_ * s2 - ic * s1
            r1, i1, r4, i4 = re1 + if1, ie1 - rf1, re1 - if1, ie1 + rf1
            r2, i2, r3, i3 = re2 + if2, ie2 - rf2, re2 - if2, ie2 + rf2
            if not back:
                r1, i1 = _turn(r1, i1, twiddles, at)
                r2, i2 = _turn(r2, i2, twiddles, at + 2)
                r3, i3 = _turn(r3, i3, twiddles, at + 4)
                r4, i4 = _turn(r4, i4, twiddles, at + 6)
            store(d, p + step, r1)
            store(d, q + step, i1)
            store(d, p + 2 * step, r2)
            store(d, q + 2 * step, i2)
            store(d, p + 3 * step, r3)
            store(d, q + 3 * step, i3)
            store(d, p + 4 * step, r4)
            store(d, q + 4 * step, i4)
        at += 8


@_compiled  # type: ignore[untyped-decorator]  # no types in numba
def _fft(d: Any, re: int, im: int, size: int, radices: Any, twiddles: Any, back: bool) -> None:
    """Transform (size, 8) values in place: real parts from d[re] on, imaginary ones from d[im].

    `back` takes digit-reversed order and leaves the natural one, but is no inverse by itself.
    Callers give variables, no literals: numba would compile this for each of their values.
    """
    n, at = size, 0
    if back:
        n, at = 1, len(twiddles)
    for k in range(len(radices)):
        radix = radices[len(radices) - 1 - k] if back else radices[k]
        if back:
            n *= radix
            at -= 2 * (n // radix) * (radix - 1)
        if radix == 4:
            _pass4(d, re, im, size, n, twiddles, at, back)
        elif radix == 2:
            _pass2(d, re, im, size, n, twiddles, at, back)
        elif radix == 3:
            _pass3(d, re, im, size, n, twiddles, at, back)
        else:
            _pass5(d, re, im, size, n, twiddles, at, back)
        if not back:
            at += 2 * (n // radix) * (radix - 1)
            n //= radix


@_compiled  # type: ignore[untyped-decorator]  # no types in numba
def _read_columns(d: Any, to: int, ny: int, image: Any, y: int, x: int) -> None:
    """Columns x to x + 8 of the image, from row y on, to (ny, 8) values; zeros beyond its ends."""
    columns = min(LANES, image.shape[1] - x)
    rows = max(0, min(ny, image.shape[0] - y)) if columns > 0 else 0
    if columns == LANES:
        flat = image.reshape(image.size)
        for i in range(rows):
            store(d, to + i * LANES, load(flat, (y + i) * image.shape[1] + x))
    else:
        for i in range(rows):
            for j in range(LANES):
                d[to + i * LANES + j] = image[y + i, x + j] if j < columns else np.float32(0)
    for i in range(to + rows * LANES, to + ny * LANES):
        d[i] = np.float32(0)


@_compiled  # type: ignore[untyped-decorator]  # no types in numba
def _forward(
    spectrum: Any, real: Any, y: int, x: int, imaginary: Any, y2: int, x2: int, nx: int,
    ry: Any, ty: Any, rx: Any, tx: Any, back: bool,
) -> None:  # fmt: skip
    blocks = spectrum.shape[0]
    ny, plane = blocks * LANES, spectrum.shape[2] * LANES
    flat = spectrum.reshape(spectrum.size)
    d = np.empty(2 * ny * LANES, np.float32)
    re, im = ny - ny, ny * LANES  # not the literal 0: see _fft
    for left in range(0, nx, LANES):
        if left >= max(real.shape[1] - x, imaginary.shape[1] - x2):
            spectrum[:, :, left:] = np.float32(0)
            break
        _read_columns(d, re, ny, real, y, x + left)
        _read_columns(d, im, ny, imaginary, y2, x2 + left)
        _fft(d, re, im, ny, ry, ty, back)
        for block in range(blocks):
            to, source = 2 * block * plane + left * LANES, block * LANES * LANES
            transpose(d, source, LANES, flat, to, LANES)
            transpose(d, source + im, LANES, flat, to + plane, LANES)
    for block in range(blocks):
        to = 2 * block * plane
        _fft(flat, to, to + plane, nx, rx, tx, back)


@_compiled  # type: ignore[untyped-decorator]  # no types in numba
def _write_columns(
    d: Any, at: int, rows: int, left: int, lanes: int, out: Any, y: int, x: int, weights: Any
) -> None:
    """Eight columns of d to out[y:, x + left:], weighted and cut, if 0 <= left + lane < lanes."""
    width = out.shape[1]
    rows = min(rows, out.shape[0] - y)
    first, last = max(0, -left), min(LANES, lanes - left, width - x - left)
    if last - first == LANES:
        limit = splat(np.float32(1))
        to, scale = out.reshape(out.size), weights.reshape(out.size)
        for i in range(rows):
            k = (y + i) * width + x + left
            store(to, k, cut(load(d, at + i * LANES) * load(scale, k), limit))
    else:
        for i in range(rows):
            for j in range(first, last):
                value = d[at + i * LANES + j] * weights[y + i, x + left + j]
                out[y + i, x + left + j] = min(max(value, np.float32(-1)), np.float32(1))


@_compiled  # type: ignore[untyped-decorator]  # no types in numba
def _backward(
    one: Any, other: Any, first_y: int, first_x: int, out: Any, y: int, x: int,
    out2: Any, y2: int, x2: int, weights: Any, nx: int,
    ry: Any, ty: Any, rx: Any, tx: Any, back: bool,
) -> None:  # fmt: skip
    blocks = one.shape[0]
    ny, plane = blocks * LANES, one.shape[2] * LANES
    columns = min(nx - first_x, max(out.shape[1] - x, out2.shape[1] - x2))
    start = first_x // LANES
    strips = -(-(first_x + columns) // LANES) - start
    a, b = one.reshape(one.size), other.reshape(other.size)
    strip_plane = (ny + _PAD) * LANES
    middle = np.empty(strips * 2 * strip_plane, np.float32)  # (x block, re / im, y, x)
    d = np.empty(2 * plane, np.float32)
    re = ny - ny  # not the literal 0: see _fft
    for block in range(blocks):
        origin = 2 * block * plane
        for k in range(0, nx * LANES, LANES):
            ra, ia = load(a, origin + k), load(a, origin + k + plane)
            rb, ib = load(b, origin + k), load(b, origin + k + plane)
            store(d, k, ra * rb - ia * ib)
            store(d, k + plane, ra * ib + ia * rb)
        _fft(d, plane, re, nx, rx, tx, back)
        for strip in range(strips):
            source = (start + strip) * LANES * LANES
            to = strip * 2 * strip_plane + block * LANES * LANES
            transpose(d, source, LANES, middle, to, LANES)
            transpose(d, source + plane, LANES, middle, to + strip_plane, LANES)
    for strip in range(strips):
        re = strip * 2 * strip_plane
        im = re + strip_plane
        _fft(middle, im, re, ny, ry, ty, back)
        left = (start + strip) * LANES - first_x
        rows, at = ny - first_y, first_y * LANES
        _write_columns(middle, re + at, rows, left, columns, out, y, x, weights)
        _write_columns(middle, im + at, rows, left, columns, out2, y2, x2, weights)
