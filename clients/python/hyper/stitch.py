"""Stitch overlapping tiles into montages: check them, write the recipe, follow the job.

The work is done by `hyper_matcher.stitch.jobs` on workers: `match` (overlaps, in parts), `lens`
(what all tiles share, from some of the sections), `place` (the tiles of a section), `frame` (the
canvas), `render` (array `raw`, a section or a part of it a task), `report` (commits).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from hyper import images
from hyper.align import SHARD_PX, abandon, check_destination
from hyper.errors import InvalidArgumentError, WorkFailedError
from hyper.tile_positions import Layout, Tile, overlapping, strays

if TYPE_CHECKING:
    from hyper.client import Client
    from hyper.workflows import Workflow, WorkflowStatus

SETTINGS_FILE = "stitch/settings.json"
RESULT_FILE = "stitch/result.json"
REPORT_FILE = "stitch/report.html"
ARRAY = "raw"  # the name that `hyper align` gives sections as they came
SMALLEST_PX = 64
_SEAMS_A_TASK = 200
_PART_PX = 4 * SHARD_PX  # of the canvas: more is rendered part by part


@dataclass(frozen=True, slots=True)
class StitchOptions:
    """What a user may choose; see `hyper_matcher.stitch.values`.

    Args:
        search_px: how far tiles may be off against each other; 0: chosen, and widened at need.
        lens_degree: of the polynomial all tiles share; 0: none; -1: chosen.
        illumination: even out brightness.
        min_overlap_px: thinner overlaps are not looked at.
        pixel_nm: size of a pixel; 0: as the positions say.
        section_nm: thickness of a section; 0: as a pixel.
        skip_missing: leave out tiles that are missing, unreadable or without a position.
        title: of the report.
    """

    search_px: int = 0
    lens_degree: int = -1
    illumination: bool = True
    min_overlap_px: int = 16
    pixel_nm: float = 0.0
    section_nm: float = 0.0
    skip_missing: bool = False
    title: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.search_px <= 4096:
            raise InvalidArgumentError("the search is 0 to 4096 px", field="search_px")
        if not -1 <= self.lens_degree <= 7:
            raise InvalidArgumentError("the lens's degree is -1 to 7", field="lens_degree")
        if not 8 <= self.min_overlap_px <= 4096:
            raise InvalidArgumentError("overlaps are 8 to 4096 px", field="min_overlap_px")
        if not (0 <= self.pixel_nm < 1e6 and 0 <= self.section_nm < 1e7):
            raise InvalidArgumentError("sizes are positive numbers of nm", field="pixel_nm")


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Tiles that can be stitched.

    Args:
        label: as the user named them.
        tiles: sorted by section.
        sections: their names, in order.
        section_of: (T,) number of each tile's section.
        shape: (H, W) of a tile.
        dtype: numpy's name.
        seams: pairs of tiles that overlap, as their positions say.
        left_out: a line for each tile that is not used.
        pixel_nm: size of a pixel, if known.
    """

    label: str
    tiles: tuple[Tile, ...]
    sections: tuple[str, ...]
    section_of: tuple[int, ...]
    shape: tuple[int, int]
    dtype: str
    seams: tuple[tuple[int, int], ...]
    left_out: tuple[str, ...]
    pixel_nm: float | None


def inspect(
    layout: Layout,
    label: str,
    options: StitchOptions,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Mosaic:
    """Decode every tile once and look for overlaps, so that no job starts that cannot work.

    Raises:
        InvalidArgumentError: a tile that is missing, unreadable, odd in size or dtype, without a
            position or without a neighbour; names it.
    """
    left_out, good = _readable(layout, options, on_progress)
    lost = strays(layout.tiles)
    if lost:
        line = f"{len(lost)} image(s) beside the tiles have no position, such as {lost[0].name}"
        if not options.skip_missing:
            raise InvalidArgumentError(
                f"{label}: {line}; add them, move them away, or give --skip-missing",
                field="positions",
            )
        left_out += [f"{path.name}: has no position" for path in lost]
    shapes: dict[tuple[tuple[int, int], str], list[Tile]] = {}
    for tile, shape, dtype in good:
        shapes.setdefault((shape, dtype), []).append(tile)
    if not shapes:
        raise InvalidArgumentError(f"{label}: no tile can be read", field="positions")
    if len(shapes) > 1:
        ranked = sorted(shapes.items(), key=lambda item: -len(item[1]))
        kinds = "; ".join(
            f"{len(tiles)} of {h} x {w} {dtype} (such as {tiles[0].file.name})"
            for ((h, w), dtype), tiles in ranked[:3]
        )
        raise InvalidArgumentError(
            f"{label}: tiles differ in size or dtype: {kinds}", field="positions"
        )
    ((shape, dtype),) = shapes
    if min(shape) < SMALLEST_PX:
        raise InvalidArgumentError(
            f"{label}: tiles of {shape[0]} x {shape[1]} px are too small: at least "
            f"{SMALLEST_PX} px",
            field="positions",
        )
    names = list(dict.fromkeys(tile.section for tile, _, _ in good))
    tiles = sorted((tile for tile, _, _ in good), key=lambda tile: names.index(tile.section))
    section_of = tuple(names.index(tile.section) for tile in tiles)
    positions = np.array([(tile.y, tile.x) for tile in tiles])
    seams = overlapping(positions, shape, section_of, options.min_overlap_px)
    alone = sorted(set(range(len(tiles))) - {k for seam in seams for k in seam})
    if alone:
        worst = tiles[alone[0]]
        raise InvalidArgumentError(
            f"{label}: {len(alone)} tile(s) overlap no other, such as {worst.file.name} at "
            f"y {worst.y:g}, x {worst.x:g} of section {worst.section}: by the positions no other "
            f"tile of {shape[0]} x {shape[1]} px shares {options.min_overlap_px} px with it; are "
            "the positions in px of the images, x before y?",
            field="positions",
        )
    return Mosaic(
        label, tuple(tiles), tuple(names), section_of, shape, dtype, tuple(seams), tuple(left_out),
        options.pixel_nm or layout.pixel_nm,
    )  # fmt: skip


def _readable(
    layout: Layout, options: StitchOptions, on_progress: Callable[[int, int], None] | None
) -> tuple[list[str], list[tuple[Tile, tuple[int, int], str]]]:
    left_out: list[str] = []
    good = []
    for number, tile in enumerate(layout.tiles):
        try:
            if not tile.file.exists():
                raise InvalidArgumentError(
                    f"{tile.file}: listed in the positions, but not there", field="positions"
                )
            pixels = images.read_section(tile.file)
        except InvalidArgumentError as error:
            if not options.skip_missing:
                raise InvalidArgumentError(
                    f"{error.message}; repair it, or give --skip-missing to stitch without it",
                    field="positions",
                ) from error
            left_out.append(error.message)
        else:
            good.append((tile, (pixels.shape[0], pixels.shape[1]), pixels.dtype.name))
        if on_progress is not None:
            on_progress(number + 1, len(layout.tiles))
    return left_out, good


def recipe(session: str, mosaic: Mosaic, *, name: str) -> str:
    """The job as YAML."""

    def stage(function: str, after: Sequence[str], parameters: dict[str, Any]) -> dict[str, Any]:
        return {
            "function": f"hyper_matcher.stitch.jobs:{function}",
            "depends_on": list(after),
            "parameters": {"session": session, **parameters},
            "retries": 3,
            "timeout": "2h",
        }

    each = {"z": {"range": [0, len(mosaic.sections)]}}
    experiments = {
        "match": stage("match", [], {"part": {"range": [0, _first_parts(mosaic)[-1]]}}),
        "lens": stage("lens", ["match"], {}),
        "place": stage("place", ["lens"], each),
        "frame": stage("frame", ["place"], {}),
        "render": stage("render", ["frame"], each | {"part": {"from": "frame/parts"}}),
        "report": stage("report", ["render"], {}),
    }
    return yaml.safe_dump({"version": 1, "name": name, "experiments": experiments}, sort_keys=False)


def submit(
    client: Client, mosaic: Mosaic, destination: str, options: StitchOptions
) -> tuple[Workflow, str]:
    """Upload the tiles into a session of the destination and start the job: (workflow, session)."""
    address = check_destination(destination)
    session = client.session(destination)
    try:
        names = [f"tiles/{k:08d}{tile.file.suffix.lower()}" for k, tile in enumerate(mosaic.tiles)]
        session.write_many(_contents(mosaic.tiles, names))
        settings = {
            "options": asdict(options),
            "source": mosaic.label,
            "sections": mosaic.sections,
            "tiles": [len(members) for members in _members(mosaic)],
            "first_part": _first_parts(mosaic),
            "shape": mosaic.shape,
            "dtype": mosaic.dtype,
            "seams_a_task": _SEAMS_A_TASK,
            "part_px": _PART_PX,
            "left_out": mosaic.left_out,
            "pixel_nm": mosaic.pixel_nm,
            "destination": destination,
        }
        session.write_many(_sections(mosaic, names))
        session.write(SETTINGS_FILE, json.dumps(settings).encode())
        text = recipe(session.name, mosaic, name=f"stitch-{address.dataset}"[:64])
        return client.submit(text), session.name
    except BaseException:
        session.abort()
        raise


def section_file(z: int) -> str:
    """Where a section's tiles, their positions and overlaps are told."""
    return f"stitch/sections/{z:06d}.json"


def _members(mosaic: Mosaic) -> list[range]:
    """The tiles of each section: they are sorted by it."""
    counts = np.bincount(mosaic.section_of, minlength=len(mosaic.sections))
    ends = np.cumsum(counts).tolist()
    return [range(end - int(count), end) for end, count in zip(ends, counts, strict=True)]


def _seams_of(mosaic: Mosaic) -> list[list[tuple[int, int]]]:
    """The overlaps of each section, tiles numbered within it."""
    found: list[list[tuple[int, int]]] = [[] for _ in mosaic.sections]
    members = _members(mosaic)
    for a, b in mosaic.seams:
        z = mosaic.section_of[a]
        begin = members[z].start
        found[z].append((a - begin, b - begin))
    return found


def _first_parts(mosaic: Mosaic) -> list[int]:
    """The number of each section's first part of overlaps, and at the end how many there are."""
    of_seams = [mosaic.section_of[first] for first, _ in mosaic.seams]
    counts = np.bincount(of_seams, minlength=len(mosaic.sections))
    return [0, *np.cumsum(-(-counts // _SEAMS_A_TASK)).tolist()]


def _sections(mosaic: Mosaic, files: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    of_sections = zip(_members(mosaic), _seams_of(mosaic), strict=True)
    for z, (members, seams) in enumerate(of_sections):
        tiles = [mosaic.tiles[k] for k in members]
        told = {
            "files": [files[k] for k in members],
            "names": [tile.file.name for tile in tiles],
            "positions": [[tile.y, tile.x] for tile in tiles],
            "seams": seams,
        }
        yield section_file(z), json.dumps(told).encode()


def _contents(tiles: Sequence[Tile], names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for tile, name in zip(tiles, names, strict=True):
        yield name, tile.file.read_bytes()


def finish(
    client: Client,
    workflow: Workflow,
    session: str,
    destination: str,
    *,
    on_update: Callable[[WorkflowStatus], None] | None = None,
) -> dict[str, Any]:
    """Wait for the job's end; returns its result object.

    Raises:
        WorkFailedError: the workflow failed or was cancelled; its session has been aborted.
    """
    status = workflow.wait(on_update=on_update)
    if status.state != "SUCCEEDED":
        abandon(client, session)
        raise WorkFailedError(
            f"{workflow.name} {status.state.lower()}: {status.message}; see "
            f"`hyper logs {workflow.name}`"
        )
    result: dict[str, Any] = json.loads(client.open_dataset(destination).read(RESULT_FILE))
    result["array_url"] = client.open_array(result["array"]).url
    return result
