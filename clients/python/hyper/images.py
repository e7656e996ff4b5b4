"""Sections as image files: PNG and TIFF in and out, with errors that name the file."""

from __future__ import annotations

import io
import re
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from hyper.errors import InvalidArgumentError

SUFFIXES = (".png", ".tif", ".tiff")
MAX_PIXELS = 2**30
MAX_EDGE = 2**20

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DEFLATE_RATIO = 1032  # bytes out of one byte in, at most
_pillow_limit = threading.Lock()
_DIGITS = re.compile(r"(\d+)")


def list_sections(folder: Path | str) -> list[Path]:
    """The PNG and TIFF files of a folder in the order of their names; s2 comes before s10.

    A link that leads nowhere is among them, so that its section is missed.
    """
    found = (p for p in Path(folder).iterdir() if p.suffix.lower() in SUFFIXES and not p.is_dir())
    return sorted((p for p in found if not p.name.startswith(".")), key=lambda p: natural(p.name))


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key by which s2 comes before s10."""
    return tuple(
        (0, int(part), part) if part.isascii() and part.isdecimal() else (1, 0, part)
        for part in _DIGITS.split(name)
        if part
    )


def read_section(
    source: Path | str | bytes, *, label: str | None = None, numbers: bool = False
) -> np.ndarray:
    """A section as a 2D array of uint8 or uint16; of a multi-page TIFF the first page.

    Colour images are taken as grey if their channels are equal.

    Args:
        source: a file, or its bytes.
        label: what errors call it; by default the file's path.
        numbers: any integers or floats, as labels and predictions are.

    Raises:
        InvalidArgumentError: INVALID_IMAGE; metadata names the file.
    """
    name = label or (str(source) if not isinstance(source, bytes) else "image")
    data = source if isinstance(source, bytes) else _contents(Path(source), name)
    if not data:
        raise _bad(name, "is empty")
    if data.startswith(_PNG):
        pixels = _read_png(data, name)
    elif data.startswith(_TIFF):
        pixels = _read_tiff(data, name)
    else:
        raise _bad(name, "is not a PNG or TIFF image")
    if numbers and pixels.ndim == 2 and pixels.dtype.kind in "iuf":
        return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
    return _grey(pixels, name)


def _contents(path: Path, name: str) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise _bad(name, "is not a regular file")
        return path.read_bytes()
    except OSError as error:
        lost = "is a link that leads nowhere" if path.is_symlink() and not path.exists() else ""
        raise _bad(name, lost or f"cannot be read: {error.strerror}") from error


def write_png(path: Path | str, section: np.ndarray) -> None:
    """Write a 2D section of uint8, uint16 or bool as PNG, complete or not at all."""
    _write(Path(path), encode_png(section))


def write_tiff(path: Path | str, section: np.ndarray) -> None:
    """Write a 2D section of any numeric dtype as TIFF, complete or not at all."""
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.ascontiguousarray(section), compression=None)
    _write(Path(path), buffer.getvalue())


def encode_png(section: np.ndarray) -> bytes:
    """The bytes of a PNG image of a 2D section of uint8, uint16 or bool."""
    if section.ndim != 2 or section.dtype not in (np.uint8, np.uint16, np.bool_):
        raise InvalidArgumentError(
            f"PNG holds 2D sections of uint8 or uint16, not {section.dtype} of shape "
            f"{section.shape}; choose TIFF",
            reason="INVALID_IMAGE",
        )
    pixels = section.astype(np.uint8) * 255 if section.dtype == np.bool_ else section
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read_png(data: bytes, name: str) -> np.ndarray:
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    check_size((height, width), name)
    if width * height > _DEFLATE_RATIO * 8 * len(data):
        raise _bad(name, f"is truncated or damaged ({len(data)} bytes for {height} x {width})")
    try:
        with _open_png(data) as opened:
            opened.load()
            image: Image.Image = opened
            if image.mode in ("1", "P", "PA"):
                image = image.convert("L" if image.mode == "1" else "RGB")
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError) as error:
        raise _bad(name, f"is truncated or damaged ({_first_line(error)})") from error
    if pixels.dtype == np.int32 and pixels.min() >= 0 and pixels.max() <= np.iinfo(np.uint16).max:
        return pixels.astype(np.uint16)  # Pillow's mode "I" of 16-bit files
    return pixels


def _open_png(data: bytes) -> Image.Image:
    """Open without Pillow's limit of 179 million pixels: sections are larger, and ours holds."""
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=("PNG",))
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _read_tiff(data: bytes, name: str) -> np.ndarray:
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            page: Any = tiff.pages[0]
            check_size(page.shape, name)
            pixels = np.asarray(page.asarray())
    except InvalidArgumentError:
        raise
    except Exception as error:
        raise _bad(name, f"is truncated or damaged ({_first_line(error)})") from error
    return pixels


def check_size(shape: tuple[int, ...], name: str) -> None:
    """Raise unless an image of this shape is one that we take."""
    pixels = 1
    for length in shape:
        pixels *= int(length)
    if any(not 0 < int(n) <= MAX_EDGE for n in shape) or pixels > MAX_PIXELS:
        size = " x ".join(str(n) for n in shape)
        raise _bad(name, f"has {size} pixels; at most 2^30 of them, and 2^20 along an edge")


def _grey(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1]
        if bool((alpha != np.iinfo(alpha.dtype).max).any()) if alpha.dtype.kind == "u" else True:
            raise _bad(name, "has transparent pixels; save it as 8- or 16-bit grey")
        pixels = pixels[..., :-1]
    if pixels.ndim == 3 and pixels.shape[2] in (1, 3):
        first = pixels[..., 0]
        if any(not np.array_equal(first, pixels[..., c]) for c in range(1, pixels.shape[2])):
            raise _bad(name, "is a colour image; save it as 8- or 16-bit grey")
        pixels = first
    if pixels.ndim != 2:
        raise _bad(name, f"has shape {pixels.shape}; a section is one grey image")
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.newbyteorder("=") not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise _bad(name, f"has {pixels.dtype} pixels; save it as 8- or 16-bit grey")
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:120]


def _bad(name: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{name}: {problem}", reason="INVALID_IMAGE", metadata={"file": name[:500]}
    )
