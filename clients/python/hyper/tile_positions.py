"""Where tiles lie, as microscopes and other programs write it: FEABAS, TrakEM2, Render, OME.

All become the same: a list of tiles, each with its file, its section and the place of its first
pixel. Formats count (x, y); from here on it is (y, x), px.
"""

from __future__ import annotations

import json
import math
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper.errors import InvalidArgumentError
from hyper.images import natural

_NM = {"nm": 1.0, "µm": 1e3, "μm": 1e3, "um": 1e3, "mm": 1e6, "cm": 1e7, "m": 1e9, "pm": 1e-3,
       "Å": 0.1}  # fmt: skip
_PIXELS = ("pixel", "px", "reference frame")


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile.

    Args:
        file: its image.
        section: which section it is of, as the file of positions names it.
        y: of its first pixel, px.
        x: of its first pixel, px.
    """

    file: Path
    section: str
    y: float
    x: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Tiles and what else their file says.

    Args:
        tiles: in the order of the file.
        kind: of the file: "feabas", "trakem2", "render" or "ome".
        pixel_nm: size of a pixel; None where the file does not say.
    """

    tiles: tuple[Tile, ...]
    kind: str
    pixel_nm: float | None = None


def read_layout(files: Sequence[Path], folder: Path | None = None) -> Layout:
    """Read files of positions: several are sections of one stack, in the order of their names.

    Args:
        files: FEABAS text, TrakEM2 XML, Render JSON, OME-XML or OME-TIFF.
        folder: where the images are; by default what the file says, then where the file lies.

    Raises:
        InvalidArgumentError: a file that is none of these, or says something impossible; names it.
    """
    layouts = [_read(file, folder) for file in sorted(files, key=lambda f: natural(f.name))]
    if not layouts:
        raise InvalidArgumentError("no file of tile positions given", field="positions")
    tiles = tuple(tile for layout in layouts for tile in layout.tiles)
    if not tiles:
        raise InvalidArgumentError(f"{files[0]}: lists no tile", field="positions")
    kinds = {layout.kind for layout in layouts}
    if len(kinds) > 1:
        raise InvalidArgumentError(
            f"positions of several kinds ({', '.join(sorted(kinds))}): give one", field="positions"
        )
    seen: dict[tuple[str, Path], Tile] = {}
    for tile in tiles:
        if (tile.section, tile.file) in seen:
            raise InvalidArgumentError(
                f"{tile.file.name} is listed twice in section {tile.section}", field="positions"
            )
        seen[(tile.section, tile.file)] = tile
    sizes = {layout.pixel_nm for layout in layouts if layout.pixel_nm}
    if len(sizes) > 1:
        raise InvalidArgumentError(
            f"the files differ in pixel size: {', '.join(f'{s:g}' for s in sorted(sizes))} nm",
            field="positions",
        )
    return Layout(tiles, kinds.pop(), sizes.pop() if sizes else None)


def overlapping(
    positions: NDArray[np.floating],
    shape: tuple[int, int],
    section: Sequence[int],
    min_overlap_px: int,
) -> list[tuple[int, int]]:
    """Pairs of tiles of one section whose positions say that they overlap enough.

    Corners that only just meet are left out: an overlap has `min_overlap_px` each way.

    Args:
        positions: (T, 2), (y, x) of each tile's first pixel, px.
        shape: (H, W) of a tile.
        section: (T,) number of each tile's section.
        min_overlap_px: of what is not too thin.

    Returns:
        Numbers of tiles, the smaller first, sorted.
    """
    found = []
    height, width = shape
    sections = np.asarray(section)
    for z in np.unique(sections):
        members = np.flatnonzero(sections == z)
        order = members[np.argsort(positions[members, 0], kind="stable")]
        tops = positions[order, 0]
        for k, a in enumerate(order.tolist()):
            end = int(np.searchsorted(tops, tops[k] + height - min_overlap_px, side="right"))
            others = order[k + 1 : end]
            off = np.abs(positions[others, 1] - positions[a, 1])
            found += [(a, int(b)) for b in others[off <= width - min_overlap_px]]
    return sorted((min(pair), max(pair)) for pair in found)


def _read(file: Path, folder: Path | None) -> Layout:
    try:
        with file.open("rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise _bad(file, f"cannot be read: {error.strerror}") from error
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _ome(file, _ome_comment(file), folder)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _bad(file, "is neither text nor an OME-TIFF") from error
    start = text.lstrip()[:1]
    if start in ("[", "{") and not text.lstrip().startswith("{ROOT_DIR}"):
        looks_feabas = text.lstrip().startswith(("{RESOLUTION}", "{TILE_SIZE}"))
        if not looks_feabas:
            return _render(file, text, folder)
    if start == "<":
        if "<OME" in text[:4096] or ":OME" in text[:4096]:
            return _ome(file, text, folder)
        return _trakem2(file, text, folder)
    return _feabas(file, text, folder)


def _feabas(file: Path, text: str, folder: Path | None) -> Layout:
    root, pixel_nm = None, None
    tiles = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = [part.strip() for part in line.strip().split("\t")]
        if len(parts) == 1:  # by spaces: a name may have some, x and y are the last
            parts = line.split() if line.lstrip().startswith("{") else line.rsplit(maxsplit=2)
        if parts[0] == "{ROOT_DIR}":
            root = Path(" ".join(parts[1:])).expanduser()
        elif parts[0] == "{RESOLUTION}":
            pixel_nm = _number(file, number, parts[1:2])
            if not pixel_nm > 0:
                raise _bad(file, f"line {number}: a resolution of {pixel_nm:g} nm")
        elif parts[0].startswith("{"):
            continue  # the tile size is read from the tiles
        else:
            if len(parts) < 3:
                raise _bad(file, f"line {number}: needs a file, x and y, not {line.strip()!r}")
            x, y = _number(file, number, parts[1:2]), _number(file, number, parts[2:3])
            name = Path(parts[0])  # behind x and y: the tile's end, as the image itself has it
            base = folder or root or file.parent
            if not base.is_absolute():
                base = file.parent / base
            tiles.append(Tile(base / name, file.stem, y, x))
    return Layout(tuple(tiles), "feabas", pixel_nm)


def _number(file: Path, line: int, words: Sequence[str]) -> float:
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        raise _bad(
            file, f"line {line}: {words[0] if words else 'nothing'!r} is no number"
        ) from None
    if not math.isfinite(value) or abs(value) > 1e9:
        raise _bad(file, f"line {line}: {words[0]} is no position in px")
    return value


def _finite(file: Path, what: str, *values: Any) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise _bad(file, f"{what}: {values!r} are no numbers") from None
    if not all(math.isfinite(n) and abs(n) <= 1e9 for n in numbers):
        raise _bad(file, f"{what}: {values!r} are no positions in px")
    return numbers


def _shifted(
    file: Path, what: str, matrix: Sequence[float], at: tuple[float, float]
) -> tuple[float, float]:
    """(y, x) of an affine map a b c d e f (x' = a x + c y + e) that must be a shift, all but."""
    a, b, c, d, e, f = matrix
    if max(abs(a - 1), abs(b), abs(c), abs(d - 1)) > 0.2:
        raise _bad(
            file, f"{what}: its transform turns or scales the tile ({a:g} {b:g} {c:g} {d:g}); "
            "stitching starts from shifts: give the stage's positions",
        )  # fmt: skip
    return f + at[0], e + at[1]


def _trakem2(file: Path, text: str, folder: Path | None) -> Layout:
    root = _xml(file, text)
    tiles = []
    for layer in root.iter("t2_layer"):
        section = layer.get("z", "0")
        for patch in layer.iter("t2_patch"):
            path = patch.get("file_path")
            if path is None:
                raise _bad(file, f"patch {patch.get('oid')} of layer {section} names no file")
            what = f"patch {path}"
            words = (patch.get("transform") or "").strip()
            inner = words[words.find("(") + 1 : words.rfind(")")] if "(" in words else words
            matrix = _finite(file, what, *inner.split(","))
            if len(matrix) != 6:
                raise _bad(file, f"{what}: its transform {words!r} has not six numbers")
            y, x = _shifted(file, what, matrix, (0.0, 0.0))
            tiles.append(Tile(_located(file, path, folder), section, y, x))
    if not tiles:
        raise _bad(file, "holds no t2_patch: is it a TrakEM2 project?")
    return Layout(tuple(sorted(tiles, key=lambda t: float(t.section))), "trakem2")


def _render(file: Path, text: str, folder: Path | None) -> Layout:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise _bad(file, f"is not JSON: {error}") from error
    specs = document.get("tileSpecs", document) if isinstance(document, dict) else document
    if isinstance(specs, dict):
        specs = list(specs.values()) if "tileId" not in specs else [specs]
    tiles = []
    for number, spec in enumerate(specs):
        if not isinstance(spec, dict) or "mipmapLevels" not in spec:
            raise _bad(file, f"entry {number} is no tile spec: it has no mipmapLevels")
        what = f"tile {spec.get('tileId', number)}"
        level = spec["mipmapLevels"].get("0") or {}
        url = level.get("imageUrl")
        if not url:
            raise _bad(file, f"{what}: has no imageUrl at level 0")
        at = _render_place(file, what, spec)
        section = _section_of(spec)
        tiles.append(Tile(_located(file, url, folder), section, *at))
    return Layout(tuple(sorted(tiles, key=lambda t: natural(t.section))), "render")


def _section_of(spec: dict[str, Any]) -> str:
    z = spec.get("z", (spec.get("layout") or {}).get("sectionId", "0"))
    return f"{float(z):g}" if isinstance(z, int | float) else str(z)


def _render_place(file: Path, what: str, spec: dict[str, Any]) -> tuple[float, float]:
    """The transforms if they are affine, else the stage's position, else the box."""
    transforms = (spec.get("transforms") or {}).get("specList") or []
    matrices = [
        t.get("dataString", "").split()
        for t in transforms
        if str(t.get("className", "")).endswith(("AffineModel2D", "TranslationModel2D"))
    ]
    if matrices and len(matrices) == len(transforms):
        y = x = 0.0
        for words in matrices:
            numbers = _finite(file, what, *words)
            if len(numbers) == 2:
                numbers = [1.0, 0.0, 0.0, 1.0, *numbers]
            if len(numbers) != 6:
                raise _bad(file, f"{what}: a transform of {len(numbers)} numbers")
            y, x = _shifted(file, what, numbers, (y, x))
        return y, x
    layout = spec.get("layout") or {}
    if "stageX" in layout and "stageY" in layout:
        y, x = _finite(file, what, layout["stageY"], layout["stageX"])
        return y, x
    if "minX" in spec and "minY" in spec:
        y, x = _finite(file, what, spec["minY"], spec["minX"])
        return y, x
    raise _bad(file, f"{what}: has neither an affine transform nor layout.stageX nor minX")


def _ome_comment(file: Path) -> str:
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        text: str | None = tiff.ome_metadata
    if not text:
        raise _bad(file, "is a TIFF without OME metadata: give its OME-XML, or positions as text")
    return text


def _ome(file: Path, text: str, folder: Path | None) -> Layout:
    root = _xml(file, text)
    tiles, sizes = [], set()
    for image in (e for e in root.iter() if _tag(e) == "Image"):
        what = f"image {image.get('Name') or image.get('ID')}"
        pixels = next((e for e in image if _tag(e) == "Pixels"), None)
        if pixels is None:
            raise _bad(file, f"{what}: has no Pixels")
        plane = next((e for e in pixels if _tag(e) == "Plane"), None)
        if plane is None or plane.get("PositionX") is None or plane.get("PositionY") is None:
            raise _bad(file, f"{what}: has no Plane with PositionX and PositionY")
        name = next((e.get("FileName") for e in pixels.iter() if _tag(e) == "UUID"), None)
        source = _located(file, name, folder) if name else file
        size, at = [], []
        for axis in "YX":
            (length,) = (
                _finite(file, what, pixels.get(f"PhysicalSize{axis}", "nan"))
                if pixels.get(f"PhysicalSize{axis}")
                else (math.nan,)
            )
            (place,) = _finite(file, what, plane.get(f"Position{axis}"))
            unit = plane.get(f"Position{axis}Unit", "reference frame")
            length_nm = length * _NM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), math.nan)
            size.append(length_nm)
            if unit in _PIXELS:
                at.append(place)
            elif unit in _NM and length_nm > 0:
                at.append(place * _NM[unit] / length_nm)
            else:
                raise _bad(file, f"{what}: a position in {unit!r} with no PhysicalSize{axis}")
        section = plane.get("PositionZ") or plane.get("TheZ") or "0"
        sizes.add(size[1])
        tiles.append(Tile(source, section, at[0], at[1]))
    known = {size for size in sizes if math.isfinite(size)}
    if len(tiles) != len({(t.section, t.file) for t in tiles}):
        raise _bad(
            file, "holds several images in one file: save each tile as a file of its own, with its "
            "own metadata or one companion .ome.xml",
        )  # fmt: skip
    ordered = tuple(sorted(tiles, key=lambda t: natural(t.section)))
    return Layout(ordered, "ome", known.pop() if len(known) == 1 else None)


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _xml(file: Path, text: str) -> ElementTree.Element:
    if "<!ENTITY" in text:
        raise _bad(file, "defines XML entities; remove them")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise _bad(file, f"is not XML: {error}") from error


def _located(file: Path, name: str, folder: Path | None) -> Path:
    """A file that a path or file: URL names; below `folder`, where given, by its last part."""
    if name.startswith("file:"):
        name = urllib.parse.unquote(urllib.parse.urlparse(name).path)
    elif "://" in name:
        raise _bad(file, f"{name}: only files can be read; give --images FOLDER with copies")
    path = Path(name)
    if folder is not None:
        return folder / (path.name if path.is_absolute() or not (folder / path).exists() else path)
    return path if path.is_absolute() else file.parent / path


def strays(tiles: Iterable[Tile]) -> list[Path]:
    """Images that lie beside the tiles, with their suffix, but have no position."""
    known = {tile.file.resolve() for tile in tiles}
    kinds = {(path.parent, path.suffix.lower()) for path in known}
    found = []
    for parent, suffix in sorted(kinds):
        if parent.is_dir():
            found += [
                path
                for path in sorted(parent.iterdir())
                if path.suffix.lower() == suffix and path.resolve() not in known
                and not path.name.startswith(".")
            ]  # fmt: skip
    return found


def _bad(file: Path, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{file}: {problem}", field="positions")
