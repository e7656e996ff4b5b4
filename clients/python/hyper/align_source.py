"""What an alignment starts from: sections of a folder or an array, their order, masks, points.

Everything is looked at once before a job starts, so that none starts on input that cannot work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hyper import images
from hyper.errors import InvalidArgumentError
from hyper.names import array_address

if TYPE_CHECKING:
    from hyper.client import Client

SMALLEST_PX = 96  # of a section's shorter edge: below, no block of it can be told from another


@dataclass(frozen=True, slots=True)
class BadSection:
    """A section that cannot be used, and why."""

    z: int
    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be aligned.

    Args:
        label: as the user named it.
        shape: (z, y, x).
        dtype: numpy's name.
        files: image files in z order; empty for an array.
        array: address of the source array with its version; empty for a folder.
        bad: sections that were skipped.
        masks: for each file, what is tissue (not 0), or None; empty if no masks were given.
    """

    label: str
    shape: tuple[int, int, int]
    dtype: str
    files: tuple[Path, ...] = ()
    array: str = ""
    bad: tuple[BadSection, ...] = ()
    masks: tuple[Path | None, ...] = ()


def inspect_folder(
    folder: Path,
    *,
    skip_bad: bool = False,
    exclude: Sequence[str] = (),
    order: Path | None = None,
    masks: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Source:
    """Decode every section of a folder once, so that no job starts on input that cannot work.

    Args:
        folder: of PNG or TIFF sections.
        skip_bad: leave unreadable sections blank.
        exclude: sections, by number or file name, to be left blank whatever they hold.
        order: a file with a section's name a line, in z order; by default that of the names.
        masks: folder of images of the same names and sizes, 0 where there is no tissue.
        on_progress: called with (done, all).

    Raises:
        InvalidArgumentError: missing folder, fewer than two sections, an unreadable section (unless
            `skip_bad`), or sections of different sizes or dtypes.
    """
    files = sections_of(folder, order)
    if len(files) < 2:
        raise InvalidArgumentError(
            f"{folder}: {len(files)} PNG or TIFF section(s) there; an alignment needs at least two",
            reason="INVALID_IMAGE",
        )
    excluded = chosen_sections(exclude, [file.name for file in files])
    mask_files = _masks(masks, files) if masks is not None else ()
    bad: list[BadSection] = []
    shapes: dict[tuple[tuple[int, ...], str], list[Path]] = {}
    for z, file in enumerate(files):
        if z in excluded:
            bad.append(BadSection(z, file.name, "excluded"))
            continue
        try:
            section = images.read_section(file)
        except InvalidArgumentError as error:
            if not skip_bad:
                raise InvalidArgumentError(
                    f"{error.message}; repair or remove it, or give --skip-bad to leave this "
                    "section blank",
                    reason=error.reason,
                    metadata=error.metadata,
                ) from error
            bad.append(BadSection(z, file.name, error.message))
        else:
            shapes.setdefault((section.shape, section.dtype.name), []).append(file)
        if on_progress is not None:
            on_progress(z + 1, len(files))
    if len(shapes) != 1:
        raise InvalidArgumentError(_differing(folder, shapes), reason="INVALID_IMAGE")
    (shape, dtype), good = next(iter(shapes.items()))
    _check_edges(str(folder), shape)
    if len(good) < 2:
        raise InvalidArgumentError(
            f"{folder}: only {len(good)} readable section(s); an alignment needs at least two",
            reason="INVALID_IMAGE",
        )
    return Source(
        label=str(folder),
        shape=(len(files), shape[0], shape[1]),
        dtype=dtype,
        files=tuple(files),
        bad=tuple(bad),
        masks=_checked_masks(mask_files, shape),
    )


def sections_of(folder: Path, order: Path | None = None) -> list[Path]:
    """The images of a folder in z order: that of `order`, or of their names.

    Raises:
        InvalidArgumentError: no such folder, or an order that is not of its sections.
    """
    if not folder.is_dir():
        raise InvalidArgumentError(
            f"{folder}: no such folder; give a folder of PNG or TIFF sections, or "
            "tenant/name/array",
            reason="INVALID_IMAGE",
        )
    files = images.list_sections(folder)
    return files if order is None else read_order(order, files)


def read_order(order: Path, files: Sequence[Path]) -> list[Path]:
    """The files in the order of their names (with or without suffix) in `order`, one a line.

    Raises:
        InvalidArgumentError: a name that is not there or twice; files that are not named are too.
    """
    try:
        lines = order.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{order}: cannot be read: {error}", field="order") from error
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    known = {file.stem: file for file in files} | {file.name: file for file in files}
    found: dict[Path, None] = {}
    for name in names:
        if name not in known:
            raise InvalidArgumentError(
                f"{order}: {name}: no such section in the folder", field="order"
            )
        if known[name] in found:
            raise InvalidArgumentError(f"{order}: {name} is listed twice", field="order")
        found[known[name]] = None
    lost = [file.name for file in files if file not in found]
    if lost:
        raise InvalidArgumentError(
            f"{order}: {len(lost)} section(s) of the folder are not listed, such as {lost[0]}; "
            "list them, and leave out with --exclude what is not to be used",
            field="order",
        )
    return list(found)


def chosen_sections(chosen: Sequence[str], names: Sequence[str]) -> set[int]:
    """Sections named by number or by file name.

    Raises:
        InvalidArgumentError: there is no such section.
    """
    found = set()
    stems = [name.rpartition(".")[0] or name for name in names]
    for one in chosen:
        if one in names or one in stems:
            found.add(names.index(one) if one in names else stems.index(one))
        elif one.isascii() and one.isdecimal() and int(one) < len(names):
            found.add(int(one))
        else:
            raise InvalidArgumentError(
                f"{one}: no such section; give a number from 0 to {len(names) - 1} or a file's "
                "name",
                field="exclude",
            )
    return found


def read_points(file: Path) -> tuple[tuple[float, ...], ...]:
    """Pairs of points, a line each: `z,y,x,z,y,x`, px; lines that start with # are comments.

    Raises:
        InvalidArgumentError: a line that is anything else; names it.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{file}: cannot be read: {error}", field="points") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            values = tuple(float(word) for word in line.split(","))
        except ValueError:
            values = ()
        if len(values) != 6 or not all(map(math.isfinite, values)):
            raise InvalidArgumentError(
                f"{file}: line {number}: write z,y,x,z,y,x in px, not {line.strip()!r}",
                field="points",
            )
        found.append(values)
    if not found:
        raise InvalidArgumentError(f"{file}: holds no pair of points", field="points")
    return tuple(found)


def _masks(folder: Path, files: Sequence[Path]) -> tuple[Path | None, ...]:
    if not folder.is_dir():
        raise InvalidArgumentError(f"{folder}: no such folder of masks", field="mask")
    known = {file.stem: file for file in images.list_sections(folder)}
    strange = set(known) - {file.stem for file in files}
    if strange or not known:
        which = f"{min(strange)} is of no section" if strange else "there is none"
        raise InvalidArgumentError(
            f"{folder}: masks are named as their sections; {which}", field="mask"
        )
    return tuple(known.get(file.stem) for file in files)


def _checked_masks(
    masks: tuple[Path | None, ...], shape: tuple[int, ...]
) -> tuple[Path | None, ...]:
    for file in masks:
        if file is not None and (found := images.read_section(file).shape) != shape:
            raise InvalidArgumentError(
                f"{file}: is {found[0]} x {found[1]} px, its section {shape[0]} x {shape[1]}",
                field="mask",
            )
    return masks


def _differing(folder: Path, shapes: dict[tuple[tuple[int, ...], str], list[Path]]) -> str:
    """One line that names a section of each odd kind."""
    if not shapes:
        return f"{folder}: no section can be read"
    ranked = sorted(shapes.items(), key=lambda item: -len(item[1]))
    kinds = "; ".join(
        f"{len(files)} of {shape[0]} x {shape[1]} {dtype} (such as {files[0].name})"
        for (shape, dtype), files in ranked[:3]
    )
    return f"{folder}: sections differ in size or dtype: {kinds}; give one stack of equal sections"


def inspect_array(client: Client, address: str, exclude: Sequence[str] = ()) -> Source:
    """Look at a source array in the storage gateway.

    Raises:
        InvalidArgumentError: not a (z, y, x) array of an integer dtype with two sections or more.
    """
    array = client.open_array(address)
    if len(array.shape) != 3 or array.shape[0] < 2 or array.dtype not in (np.uint8, np.uint16):
        raise InvalidArgumentError(
            f"{address}: has shape {array.shape} and dtype {array.dtype}; an alignment needs "
            "(z, y, x) of uint8 or uint16 with two sections or more",
            reason="SHAPE_MISMATCH",
        )
    z, y, x = array.shape
    _check_edges(address, (y, x))
    pinned = array_address(array.name)
    excluded = chosen_sections(exclude, [str(number) for number in range(z)])
    bad = tuple(BadSection(number, "", "excluded") for number in sorted(excluded))
    return Source(label=pinned, shape=(z, y, x), dtype=array.dtype.name, array=pinned, bad=bad)


def _check_edges(label: str, shape: tuple[int, ...]) -> None:
    if min(shape) < SMALLEST_PX:
        raise InvalidArgumentError(
            f"{label}: sections of {shape[0]} x {shape[1]} px are too small to align; they need at "
            f"least {SMALLEST_PX} px each way",
            reason="SHAPE_MISMATCH",
        )
