"""What may happen to a section on its way: damage and contrast, made up for training.

Each function takes and returns one image (Y, X) of float32 grey values; the random generator is the
caller's, so that a training step is a function of its seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

Image = NDArray[np.float32]


def contrast(image: Image, rng: np.random.Generator, mean: float, spread: float) -> Image:
    """Gain, offset, a smooth gradient of illumination, blur and noise."""
    y, x = np.linspace(-1, 1, image.shape[0]), np.linspace(-1, 1, image.shape[1])
    slope = rng.normal(0, 0.15, 2) * spread
    shade = slope[0] * y[:, None] + slope[1] * x[None, :]
    gain = np.exp(rng.normal(0, 0.2))
    result = (image - mean) * gain + mean + rng.normal(0, 0.25) * spread + shade
    if rng.random() < 0.3:
        result = scipy.ndimage.gaussian_filter(result, rng.uniform(0.3, 1.5))
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(0, 0.3) * spread
    return np.asarray(result + noise, np.float32)


def damage(image: Image, rng: np.random.Generator, mean: float, spread: float) -> Image:
    """Sometimes a fold, knife stripes or dust, as sections really have them."""
    result = image
    if rng.random() < 0.25:
        result = fold(result, rng, mean, spread)
    if rng.random() < 0.2:
        result = stripes(result, rng, spread)
    if rng.random() < 0.3:
        result = dust(result, rng, mean, spread)
    return result


def fold(image: Image, rng: np.random.Generator, mean: float, spread: float) -> Image:
    """A dark band across the image; the tissue beyond it has moved towards it."""
    angle = rng.uniform(0, np.pi)
    distance = _distance(image.shape, rng, angle)
    width = rng.uniform(4, 14)
    shift = rng.uniform(0, 12)
    normal = np.array([np.cos(angle), np.sin(angle)])
    inside = 1 / (1 + np.exp(-distance / 2))
    grid = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    moved = grid + (shift * inside)[None] * normal[:, None, None]
    warped = scipy.ndimage.map_coordinates(image, moved, order=1, mode="reflect")
    band = np.exp(-((distance / width) ** 4))
    dark = mean - rng.uniform(1.5, 3.0) * spread
    return np.asarray(warped * (1 - band) + dark * band, np.float32)


def stripes(image: Image, rng: np.random.Generator, spread: float) -> Image:
    """Parallel bright or dark knife marks."""
    distance = _distance(image.shape, rng, rng.uniform(0, np.pi))
    result = image.copy()
    for _ in range(int(rng.integers(2, 8))):
        at, width = rng.uniform(distance.min(), distance.max()), rng.uniform(1.0, 5.0)
        result += np.float32(rng.normal(0, 1.5) * spread) * np.exp(
            -(((distance - at) / width) ** 2)
        )
    return np.asarray(result, np.float32)


def dust(image: Image, rng: np.random.Generator, mean: float, spread: float) -> Image:
    """Dark or bright specks with ragged edges."""
    result = image.copy()
    rows, columns = image.shape
    for _ in range(int(rng.integers(1, 6))):
        radius = float(np.exp(rng.uniform(np.log(3), np.log(20))))
        reach = int(2 * radius) + 2
        y, x = int(rng.integers(rows)), int(rng.integers(columns))
        y0, y1, x0, x1 = (
            max(0, y - reach),
            min(rows, y + reach),
            max(0, x - reach),
            min(columns, x + reach),
        )
        i, j = np.mgrid[y0:y1, x0:x1]
        angle = np.arctan2(i - y, j - x)
        ragged = radius * (1 + 0.3 * np.sin(3 * angle + rng.uniform(0, 6)) * rng.random())
        speck = np.hypot(i - y, j - x) < ragged
        value = mean + rng.choice([-1, -1, 1]) * rng.uniform(2, 4) * spread
        result[y0:y1, x0:x1][speck] = value
    return result


def _distance(shape: tuple[int, ...], rng: np.random.Generator, angle: float) -> NDArray[Any]:
    """Signed distance of each pixel from a random line of this normal, px."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    through = rng.uniform(0.1, 0.9, 2) * np.array(shape)
    return np.asarray((y - through[0]) * np.cos(angle) + (x - through[1]) * np.sin(angle))
