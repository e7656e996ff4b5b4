from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper_matcher import fft

edges = st.sampled_from([size for size in fft.SIZES if size <= 500])


def images(seed: int, *shapes: tuple[int, int]) -> list[fft.FloatImage]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def padded(image: fft.FloatImage, shape: tuple[int, int]) -> np.ndarray:
    image = image[: shape[0], : shape[1]]
    return np.pad(image, [(0, n - m) for n, m in zip(shape, image.shape, strict=True)])


@pytest.mark.parametrize("size", fft.SIZES)
@pytest.mark.parametrize("along_y", [True, False])
def test_every_size_agrees_with_numpy(size: int, along_y: bool) -> None:
    shape = (size, 16) if along_y else (16, size)
    real, imaginary = images(size, shape, shape)
    found = fft.untangle(fft.transform(fft.spectrum_buffer(shape), real, imaginary))
    expected = np.fft.fft2(real + 1j * imaginary)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


@settings(deadline=None, max_examples=40)
@given(
    edges, edges, st.tuples(st.integers(1, 600), st.integers(1, 600)), st.booleans(),
    st.integers(0, 50), st.integers(0, 50), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_images_are_read_from_any_place_and_end_in_zeros(
    ny: int, nx: int, image: tuple[int, int], is_complex: bool, y: int, x: int, seed: int
) -> None:
    y, x = min(y, image[0] - 1), min(x, image[1] - 1)
    real, imaginary = images(seed, image, (x + 3, y + 5))
    buffer = fft.spectrum_buffer((ny, nx))
    buffer[:] = np.nan  # nothing of what was there may be used
    if is_complex:
        fft.transform(buffer, real, imaginary, (y, x), (x, y))
        expected = padded(real[y:, x:], (ny, nx)) + 1j * padded(imaginary[x:, y:], (ny, nx))
    else:
        fft.transform(buffer, real, at=(y, x))
        expected = padded(real[y:, x:], (ny, nx)).astype(complex)
    expected = np.fft.fft2(expected)
    assert np.abs(fft.untangle(buffer) - expected).max() < 2e-6 * np.abs(expected).max()


@settings(deadline=None, max_examples=40)
@given(
    edges, edges, st.integers(0, 40), st.integers(0, 40), st.integers(0, 9), st.integers(0, 9),
    st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_convolutions_agree_with_numpy(
    ny: int, nx: int, first_y: int, first_x: int, y: int, x: int, is_complex: bool, seed: int
) -> None:
    first_y, first_x = min(first_y, ny - 1), min(first_x, nx - 1)
    real, imaginary, other = images(seed, (ny, nx), (ny, nx), (ny, nx))
    out = (ny + y - first_y // 2, nx + x - first_x // 3)  # larger or smaller than what there is
    one = fft.transform(fft.spectrum_buffer((ny, nx)), real, imaginary if is_complex else None)
    two = fft.transform(fft.spectrum_buffer((ny, nx)), other)
    exact = np.fft.ifft2(np.fft.fft2(real + 1j * is_complex * imaginary) * np.fft.fft2(other))
    scale = 0.5 / np.abs(exact).max()
    (noise,) = images(seed + 1, out)
    weights = np.abs(noise) * np.float32(scale / (ny * nx))
    outputs = [(np.full(out, 7, np.float32), y, x), (np.full(out, 7, np.float32), x, y)]
    fft.convolve(one, two, (first_y, first_x), outputs[: 1 + is_complex], weights)
    for (result, to_y, to_x), part in zip(outputs, (exact.real, exact.imag), strict=False):
        expected = np.full(out, 7.0)
        part = part[first_y:, first_x:][: max(0, out[0] - to_y), : max(0, out[1] - to_x)]
        place = (slice(to_y, to_y + part.shape[0]), slice(to_x, to_x + part.shape[1]))
        if part.size and (is_complex or result is outputs[0][0]):
            expected[place] = np.clip(part * weights[place] * (ny * nx), -1, 1)
        assert np.abs(result - expected).max() < 3e-6


def test_sizes() -> None:
    assert fft.good_size(1) == 8
    assert fft.good_size(361) == 384
    assert fft.good_size(fft.SIZES[-1]) == fft.SIZES[-1]
    with pytest.raises(ValueError, match="more than"):
        fft.good_size(fft.SIZES[-1] + 1)
    with pytest.raises(ValueError, match="prime factors"):
        fft.axis(56)
