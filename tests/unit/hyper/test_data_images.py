"""Sections as files: good ones, and everything that is not one."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hyper import images
from hyper.errors import InvalidArgumentError

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 255, (13, 17), dtype=np.uint8)
GREY16 = RNG.integers(0, 65535, (13, 17), dtype=np.uint16)


@pytest.mark.parametrize("section", [GREY8, GREY16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_round_trip(tmp_path: Path, section: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"s{suffix}"
    (images.write_png if suffix == ".png" else images.write_tiff)(path, section)
    for source in (path, str(path), path.read_bytes()):
        found = images.read_section(source)
        assert found.dtype == section.dtype
        np.testing.assert_array_equal(found, section)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _tiff(pixels: np.ndarray, **how: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **how)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_grey_in_colours_is_grey() -> None:
    colour = np.repeat(GREY8[..., None], 3, axis=2)
    opaque = np.dstack([colour, np.full_like(GREY8, 255)])
    palette = Image.fromarray(GREY8).convert("P")
    for data in (
        _png(Image.fromarray(colour)),
        _png(Image.fromarray(opaque)),
        _png(palette),
        _tiff(colour, photometric="rgb"),
    ):
        np.testing.assert_array_equal(images.read_section(data), GREY8)


def test_bits_are_black_and_white() -> None:
    bits = GREY8 > 100
    expected = bits.astype(np.uint8) * 255
    np.testing.assert_array_equal(images.read_section(_png(Image.fromarray(bits))), expected)
    np.testing.assert_array_equal(images.read_section(images.encode_png(bits)), expected)


def test_first_page_of_many() -> None:
    pages = np.stack([GREY8, GREY8 + 1])
    np.testing.assert_array_equal(
        images.read_section(_tiff(pages, photometric="minisblack")), GREY8
    )


def test_big_endian_and_compressed_tiff() -> None:
    for data in (_tiff(GREY16, byteorder=">"), _tiff(GREY16, compression="zlib")):
        found = images.read_section(data)
        assert found.dtype == np.dtype("=u2")
        np.testing.assert_array_equal(found, GREY16)


def _bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


RGB = RNG.integers(0, 255, (5, 6, 3), dtype=np.uint8)
BAD = {
    "empty.png": b"",
    "text.png": b"this is not an image",
    "jpeg.png": b"\xff\xd8\xff\xe0" + bytes(100),
    "truncated.png": _png(Image.fromarray(GREY8))[:-60],
    "header.png": b"\x89PNG\r\n\x1a\n",
    "colour.png": _png(Image.fromarray(RGB)),
    "transparent.png": _png(Image.fromarray(np.dstack([RGB, RGB[..., 0]]))),
    "colour.tif": _tiff(RGB, photometric="rgb"),
    "float.tif": _tiff(GREY8.astype(np.float32)),
    "signed.tif": _tiff(GREY8.astype(np.int16)),
    "truncated.tif": _tiff(GREY16)[:200],
    "header.tif": b"II*\0\x08\0\0\0",
    "bomb.png": _bomb(30_000, 30_000),
    "huge.png": _bomb(2**20, 2**20),
    "edge.png": _bomb(2**21, 1),
    "zeros.tif": b"MM\0*" + bytes(40),
}


@pytest.mark.parametrize("name", sorted(BAD))
@pytest.mark.filterwarnings("ignore")
def test_bad_images_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BAD[name])
    with pytest.raises(InvalidArgumentError) as error:
        images.read_section(path)
    assert error.value.reason == "INVALID_IMAGE"
    assert name in str(error.value) and "\n" not in str(error.value)
    assert error.value.metadata["file"] == str(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"none\.png: cannot be read"):
        images.read_section(tmp_path / "none.png")


def test_png_holds_only_grey() -> None:
    for section in (np.zeros((2, 2), np.float32), np.zeros((2, 2, 3), np.uint8)):
        with pytest.raises(InvalidArgumentError):
            images.encode_png(section)


def test_sections_in_natural_order(tmp_path: Path) -> None:
    for name in ("s10.png", "s2.png", "s1.TIF", ".hidden.png", "notes.txt", "a.tiff"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in images.list_sections(tmp_path)] == [
        "a.tiff",
        "s1.TIF",
        "s2.png",
        "s10.png",
    ]
