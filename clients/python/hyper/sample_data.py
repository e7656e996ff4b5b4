"""Sample data: real electron-microscope sections where they are at hand, else made ones.

Looked for in `$HYPER_DATA_DIR`, then `../shared/data`, then the user's cache, which `fetch` fills
from the public original. `synthetic_stack` makes sections with known distortions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyper.errors import FailedPreconditionError, UnavailableError
from hyper.installed import install_command

SAMPLE = "em/aligntk_raw"
_ORIGIN = (
    "https://raw.githubusercontent.com/tomuram/aligntk/"
    "e0317cf44fcdb71da305f3564e31db6e3158aca9/examples/images/"
)
_SHA256 = {
    "z00.tif": "616aab73c2c73b1b2cbc31b85bbf458ff0880e06b98d41b712a299a4b34021ef",
    "z01.tif": "b55460d54ccb862d55980ce994177b3e520fe9c54c255da2d4ff26c69a26c496",
    "z02.tif": "ae2a7d42a16a9aa31f9a425d991522ccaeb298c3a37b91178c959f6b93a721f9",
    "z03.tif": "9542a890aa0bfe5411a7467f4fbf7b52f177ea26a18aeedfc03fdd294212e5ff",
    "z04.tif": "ee03c00abc537b2a7d9a6282d3ea625cbbcf2f9cba9f0d00833d76dccfd0c07c",
    "z05.tif": "f70379301fbfab624ac3594faebff32acb701a526d6421c408d60fd0950a6126",
    "z06.tif": "bd08565b38037f4803ae406ad9b33df6156ef97c3ab42f66e0edb6c26fb27276",
    "z07.tif": "4b942e7bbda907285767b4bb1a2b2b9764f8371ab076f583b6da534088a38b42",
    "z08.tif": "2796c0709d250c791ac732338d65fbf90199547aec5cb6fe8e752b4797cc3b7d",
    "z09.tif": "0498dc410186d6d70e9688b6bd6fb0e5207e50bb23ba03af142c5ae761018e5f",
}


def cache_folder() -> Path:
    """Where `fetch` puts data: `$XDG_CACHE_HOME/hyper/data` or `~/.cache/hyper/data`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hyper" / "data"


def find() -> Path | None:
    """The folder with the sample's sections, or None where there is none on this machine."""
    configured = os.environ.get("HYPER_DATA_DIR")
    roots = [Path(configured)] if configured else []
    roots += [Path("../shared/data"), cache_folder()]
    for root in roots:
        if any((root / SAMPLE).glob("z*.*")):
            return root / SAMPLE
    return None


def fetch(*, progress: bool = True) -> Path:
    """Bring the public original into the cache, checked by sha256; returns its folder.

    Source: tomuram/aligntk, `examples/images` (GPL-3.0): ten consecutive unaligned sections.

    Raises:
        FailedPreconditionError: the `local` extra is not installed.
        UnavailableError: the network or the original cannot be reached.
    """
    try:
        import pooch
    except ImportError as error:
        raise FailedPreconditionError(
            f"fetching data needs pooch: {install_command('local')}", reason="NOT_FOUND"
        ) from error
    folder = cache_folder() / SAMPLE
    for name, digest in _SHA256.items():
        try:
            pooch.retrieve(
                url=_ORIGIN + name,
                known_hash=f"sha256:{digest}",
                fname=name,
                path=folder,
                progressbar=False,
                downloader=pooch.HTTPDownloader(timeout=20),
            )
        except (OSError, ValueError) as error:
            raise UnavailableError(
                f"cannot fetch {name} of the sample data ({type(error).__name__}): check the "
                "network, or set HYPER_DATA_DIR to a folder that holds em/aligntk_raw"
            ) from error
        if progress:
            print(f"{name}: {(folder / name).stat().st_size:,} bytes, checksum right")
    return folder


@dataclass(frozen=True, slots=True)
class SyntheticStack:
    """Sections made from noise, and how each was distorted.

    Args:
        sections: (z, y, x) uint8.
        rotation_rad: per section.
        shift_px: per section, (z, 2) in (y, x).
    """

    sections: NDArray[np.uint8]
    rotation_rad: NDArray[np.float64]
    shift_px: NDArray[np.float64]


def synthetic_stack(
    sections: int = 10, size: int = 1024, *, seed: int = 0, max_shift_px: float = 40.0
) -> SyntheticStack:
    """Texture that drifts slowly through z, each section turned, shifted and gently warped.

    Blobs of several sizes with dark membrane-like level lines between them; deterministic.
    """
    generator = np.random.default_rng(seed)
    wide = size + 2 * int(max_shift_px) + 96

    def smooth(sigma: float) -> NDArray[np.float64]:
        frequency_y = np.fft.fftfreq(wide)[:, None]
        frequency_x = np.fft.rfftfreq(wide)[None, :]
        gain = np.exp(-2 * (np.pi * sigma) ** 2 * (frequency_y**2 + frequency_x**2))
        field = np.fft.irfft2(np.fft.rfft2(generator.standard_normal((wide, wide))) * gain)[
            :wide, :wide
        ]
        return np.asarray(field / field.std(), dtype=np.float64)

    layers = {sigma: (smooth(sigma), smooth(sigma)) for sigma in (18.0, 7.0, 3.0)}
    volume = np.empty((sections, size, size), dtype=np.uint8)
    rotations = generator.uniform(-0.05, 0.05, sections)
    shifts = generator.uniform(-max_shift_px, max_shift_px, (sections, 2))
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float64)
    for z in range(sections):
        turn = {sigma: 0.35 * z * 3.0 / sigma for sigma in layers}
        mixed = {s: a * np.cos(turn[s]) + b * np.sin(turn[s]) for s, (a, b) in layers.items()}
        membranes = np.exp(-((mixed[18.0] / 0.12) ** 2)) + np.exp(-((mixed[7.0] / 0.10) ** 2))
        texture = 150 - 90 * np.clip(membranes, 0, 1) + 14 * mixed[7.0] + 8 * mixed[3.0]
        centre = (size - 1) / 2
        cosine, sine = np.cos(rotations[z]), np.sin(rotations[z])
        bend = 4 * np.sin(2 * np.pi * rows / size + z), 4 * np.cos(2 * np.pi * columns / size - z)
        y = cosine * (rows - centre) - sine * (columns - centre) + shifts[z, 0] + bend[0]
        x = sine * (rows - centre) + cosine * (columns - centre) + shifts[z, 1] + bend[1]
        sample = _bilinear(texture, y + wide / 2, x + wide / 2)
        noisy = sample + generator.normal(0, 6, sample.shape)
        volume[z] = np.clip(np.rint(noisy), 1, 255).astype(np.uint8)
    return SyntheticStack(volume, rotations, shifts)


def _bilinear(
    image: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`image` at fractional (y, x), clamped to its edges."""
    y = np.clip(y, 0, image.shape[0] - 1.001)
    x = np.clip(x, 0, image.shape[1] - 1.001)
    y0, x0 = y.astype(np.intp), x.astype(np.intp)
    fy, fx = y - y0, x - x0
    top = image[y0, x0] * (1 - fx) + image[y0, x0 + 1] * fx
    bottom = image[y0 + 1, x0] * (1 - fx) + image[y0 + 1, x0 + 1] * fx
    return np.asarray(top * (1 - fy) + bottom * fy, dtype=np.float64)
