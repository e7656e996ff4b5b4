"""The stages of `hyper stitch` as task functions; the recipe is written by `hyper.stitch`.

Every function may run twice, on any worker: what it writes depends on its inputs alone.
"""

from __future__ import annotations

import bisect
import functools
import io
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper import images
from hyper.align import parts
from hyper.context import TaskContext
from hyper.sessions import Session
from hyper.stitch import ARRAY, REPORT_FILE, RESULT_FILE, SETTINGS_FILE, section_file
from hyper_matcher.align.blocks import Span
from hyper_matcher.align.lengths import NONE
from hyper_matcher.align.render import Canvas
from hyper_matcher.before_commit import before_commit
from hyper_matcher.job_files import shard_px, shards
from hyper_matcher.stitch.overlap import match_overlap
from hyper_matcher.stitch.quality import seam_residuals
from hyper_matcher.stitch.render import montage_canvas, render_montage
from hyper_matcher.stitch.report import render_report
from hyper_matcher.stitch.solve import Lens, Montage, Shared, solve
from hyper_matcher.stitch.summary import Summary, stitch_result
from hyper_matcher.stitch.values import Seam, StitchOptions, TileFacts

_SHARED_FILE = "stitch/shared.npz"
_FRAME_FILE = "stitch/frame.json"
_LENS_TILES = 2_000  # of sections spread over the stack, from which the lens is known
_TILES_HELD = 24  # decoded ones in memory: a row of neighbours is read once
_CHUNK_PX = 512
_OVERVIEW_PX = 1200


@dataclass(frozen=True, slots=True)
class _Section:
    """What is known of a section before it is stitched; tiles are numbered within it.

    Args:
        files: of its tiles, in the session.
        names: of their files, as they came.
        positions: (T, 2) px.
        seams: pairs of tiles that overlap.
    """

    files: Sequence[str]
    names: Sequence[str]
    positions: NDArray[np.float64]
    seams: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Job:
    """One stitching's session and settings."""

    session: Session
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, context: TaskContext, session: str) -> _Job:
        attached = context.client.attach(session)
        return cls(attached, json.loads(attached.read(SETTINGS_FILE)))

    @property
    def shape(self) -> tuple[int, int]:
        h, w = self.settings["shape"]
        return h, w

    @property
    def options(self) -> StitchOptions:
        asked = self.settings["options"]
        return StitchOptions(
            search_px=asked["search_px"], min_overlap_px=asked["min_overlap_px"],
            lens_degree=asked["lens_degree"], illumination=asked["illumination"],
        )  # fmt: skip

    @property
    def depth(self) -> int:
        return len(self.settings["sections"])

    def section(self, z: int) -> _Section:
        """Of a section, by its number."""
        found = json.loads(self.session.read(section_file(z)))
        positions = np.array(found["positions"], np.float64).reshape(-1, 2)
        seams = [(int(a), int(b)) for a, b in found["seams"]]
        return _Section(found["files"], found["names"], positions, seams)

    def reader(self, section: _Section) -> Callable[[int], NDArray[Any]]:
        """Decodes tiles; holds the last few."""

        @functools.lru_cache(maxsize=_TILES_HELD)
        def read(tile: int) -> NDArray[Any]:
            content = self.session.read(section.files[tile])
            return images.read_section(content, label=section.names[tile])

        return read

    def place_of(self, part: int) -> tuple[int, int]:
        """Section of a part of the overlaps, and which of the section's parts it is."""
        first = self.settings["first_part"]
        z = bisect.bisect_right(first, part) - 1
        return z, part - int(first[z])

    def matches(self, z: int) -> tuple[list[Seam], dict[int, TileFacts]]:
        """What matching has found in a section."""
        first, last = self.settings["first_part"][z : z + 2]
        return _load_parts(self.session, [_part_file(part) for part in range(first, last)])

    def parts(self) -> list[Span]:
        """Those of the canvas that are rendered one by one."""
        return parts(self.canvas.shape, self.settings["part_px"])

    @property
    def canvas(self) -> Canvas:
        """Of all sections, once `frame` has decided."""
        y, x, rows, columns = json.loads(self.session.read(_FRAME_FILE))["canvas"]
        return Canvas((y, x), (rows, columns))


def match(context: TaskContext, *, session: str, part: int) -> dict[str, Any]:
    """Match some of the overlaps of a section."""
    job = _Job.open(context, session)
    z, number = job.place_of(part)
    section, step = job.section(z), job.settings["seams_a_task"]
    at, read, options = section.positions, job.reader(section), job.options
    seams, facts = [], {}
    for a, b in section.seams[number * step : (number + 1) * step]:
        for tile in (a, b):
            if tile not in facts:
                facts[tile] = TileFacts.of(read(tile))
        seams.append(match_overlap(read(a), read(b), at[b] - at[a], options, (a, b)))
        if seams[-1].flag:
            context.log(f"{section.names[a]} - {section.names[b]}: {seams[-1].flag}")
    job.session.write(_part_file(part), _pack_part(seams, facts))
    return {"seams": len(seams), "matches": sum(int(s.accepted.sum()) for s in seams)}


def lens(context: TaskContext, *, session: str) -> dict[str, Any]:
    """Find out what all tiles share, from sections spread over the stack: lens and brightness."""
    job = _Job.open(context, session)
    tiles = job.settings["tiles"]
    usual = max(1, round(float(np.mean(tiles))))
    count = min(job.depth, max(1, _LENS_TILES // usual))
    chosen = np.unique(np.linspace(0, job.depth - 1, count).round().astype(int)).tolist()
    positions: list[NDArray[np.float64]] = []
    section_of: list[int] = []
    seams: list[Seam] = []
    facts: dict[int, TileFacts] = {}
    for z in chosen:
        found, looks = job.matches(z)
        begin = len(section_of)
        positions.append(job.section(z).positions)
        section_of += [z] * len(positions[-1])
        seams += [replace(s, first=s.first + begin, second=s.second + begin) for s in found]
        facts |= {tile + begin: fact for tile, fact in looks.items()}
    montage = solve(
        job.shape, np.concatenate(positions), section_of, seams, facts, job.options
    )  # fmt: skip
    job.session.write(_SHARED_FILE, _pack_shared(Shared(montage.lens, montage.pattern)))
    return {"sections": len(chosen), "tiles": len(section_of)}


def place(context: TaskContext, *, session: str, z: int) -> dict[str, Any]:
    """Place the tiles of a section."""
    job = _Job.open(context, session)
    section = job.section(z)
    seams, facts = job.matches(z)
    shared = _load_shared(job.session)
    count = len(section.files)
    montage = solve(
        job.shape, section.positions, [z] * count, seams, facts, job.options, shared
    )  # fmt: skip
    for tile, why in sorted(montage.flagged.items()):
        context.log(f"{section.names[tile]} is flagged: {why}")
    canvas = montage_canvas(montage)
    job.session.write_many(
        [
            (_montage_file(z), _pack_montage(montage)),
            (_box_file(z), json.dumps([*canvas.origin, *canvas.shape]).encode()),
        ]
    )
    return {"tiles": count, "flagged": len(montage.flagged)}


def frame(context: TaskContext, *, session: str) -> dict[str, Any]:
    """Decide the canvas, which holds every section; make array `raw`."""
    job = _Job.open(context, session)
    names = [_box_file(z) for z in range(job.depth)]
    boxes = np.array([json.loads(content) for _, content in job.session.read_many(names)])
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    canvas = [*low.tolist(), *(high - low).tolist()]
    job.session.write(_FRAME_FILE, json.dumps({"canvas": canvas}).encode())
    answer = {"canvas": canvas[2:], "parts": {"range": [0, len(job.parts())]}}
    pixel = job.settings["pixel_nm"]
    thickness = job.settings["options"]["section_nm"] or pixel
    if ARRAY in job.session.arrays():
        if not job.session[ARRAY].url:
            return answer  # an earlier attempt made it
        job.session.delete_array(ARRAY)
    job.session.create_array(
        ARRAY,
        (job.depth, *job.canvas.shape),
        job.settings["dtype"],
        chunks=(1, _CHUNK_PX, _CHUNK_PX),
        shards=(1, *(shard_px(edge) for edge in job.canvas.shape)),
        voxel_size_nm=(thickness, pixel, pixel) if pixel else None,
    )
    return answer


def render(context: TaskContext, *, session: str, z: int, part: int) -> dict[str, Any]:
    """Render a section, or its part on a part of the canvas, and measure how well tiles meet."""
    job = _Job.open(context, session)
    section, montage = job.section(z), _load_montage(job.session, z)
    canvas, read, array = job.canvas, job.reader(section), job.session[ARRAY]
    every = job.parts()
    top, left, bottom, right = every[part]
    for y0, x0, y1, x1 in shards(canvas.shape):
        if top <= y0 < bottom and left <= x0 < right:
            block = Canvas((canvas.origin[0] + y0, canvas.origin[1] + x0), (y1 - y0, x1 - x0))
            pixels = render_montage(montage, range(len(section.files)), read, block)
            array[z, y0:y1, x0:x1] = pixels.astype(job.settings["dtype"])
    seams = job.matches(z)[0][part :: len(every)]
    residuals = {
        (s.first, s.second): seam_residuals(
            montage, s.first, s.second, (read(s.first), read(s.second))
        )
        for s in seams
        if not s.flag
    }
    summary = Summary.of(montage, seams, residuals, section.names)
    if part:  # the tiles are the first part's to tell of
        summary = replace(summary, tiles=0, flagged={}, moved=NONE)
    job.session.write(_summary_file(z, part), json.dumps(summary.to_json()).encode())
    return {"seams": len(residuals)}


def report(context: TaskContext, *, session: str) -> dict[str, Any]:
    """Gather everything, write the result object and the report, commit the session."""
    job = _Job.open(context, session)
    workflow = context.client.workflow(context.task.partition("/experiments/")[0])
    started = workflow.status.create_time
    every = range(len(job.parts()))
    names = [_summary_file(z, part) for z in range(job.depth) for part in every]
    summary = Summary.joined(
        [Summary.from_json(json.loads(content)) for _, content in job.session.read_many(names)]
    )
    result = stitch_result(summary, _load_shared(job.session).lens, job.shape)
    result |= {
        "sections": job.depth,
        "left_out": list(job.settings["left_out"]),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 2) if started else None,
        "source": job.settings["source"],
        "array": f"{job.settings['destination']}/{ARRAY}",
        "report": f"hyper://{job.settings['destination']}/{REPORT_FILE}",
    }
    array = job.session[ARRAY]
    step = max(1, -(-max(array.shape[1:]) // _OVERVIEW_PX))
    title = job.settings["options"]["title"] or f"Stitching of {job.settings['source']}"
    page = render_report(title, result, _overview(array, step), summary)
    with before_commit(context):
        job.session.write(RESULT_FILE, json.dumps(result, indent=1, allow_nan=False).encode())
        job.session.write(REPORT_FILE, page.encode())
        for z in range(job.depth):
            job.session.delete(*job.section(z).files)
    request = str(uuid.uuid5(uuid.NAMESPACE_URL, context.task))
    version = job.session.commit("stitched", request_id=request).number
    return {"version": version, "seam_residual_p95": result["seam_residual_p95"]}


def _overview(array: Any, step: int) -> NDArray[Any]:
    """The first section, thinned out; read a band of rows at a time."""
    rows = []
    for y in range(0, array.shape[1], _CHUNK_PX):
        band = np.asarray(array[0, y : min(array.shape[1], y + _CHUNK_PX)])
        first = -y % step
        rows.append(band[first::step, ::step])
    return np.concatenate(rows)


def _part_file(part: int) -> str:
    return f"stitch/matches/{part:06d}.npz"


def _montage_file(z: int) -> str:
    return f"stitch/montages/{z:06d}.npz"


def _box_file(z: int) -> str:
    return f"stitch/boxes/{z:06d}.json"


def _summary_file(z: int, part: int) -> str:
    return f"stitch/summaries/{z:06d}-{part:06d}.json"


def _pack_part(seams: Sequence[Seam], facts: Mapping[int, TileFacts]) -> bytes:
    """Plain arrays, no pickle: all seams' matches one after the other."""
    none = np.zeros((0, 2))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        tiles=np.array([[s.first, s.second] for s in seams], np.int64),
        sizes=np.array([len(s.score) for s in seams], np.int64),
        first=np.concatenate([none, *(s.first_points for s in seams)]),
        second=np.concatenate([none, *(s.second_points for s in seams)]),
        score=np.concatenate([np.zeros(0), *(s.score for s in seams)]),
        rejection=np.concatenate([np.zeros(0, np.uint8), *(s.rejection for s in seams)]),
        grey=np.concatenate([none, *(s.grey for s in seams)]),
        shift=np.stack([s.shift for s in seams]),
        flag=np.array([s.flag for s in seams], np.str_),
        looked_at=np.array(list(facts), np.int64),
        grids=np.stack([fact.grid for fact in facts.values()]),
        blank=np.array([fact.blank for fact in facts.values()]),
    )
    return buffer.getvalue()


def _load_parts(session: Session, names: Sequence[str]) -> tuple[list[Seam], dict[int, TileFacts]]:
    seams: list[Seam] = []
    facts: dict[int, TileFacts] = {}
    for _, content in session.read_many(names):
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            ends = np.cumsum(stored["sizes"])[:-1]
            columns = [
                np.split(stored[key], ends)
                for key in ("first", "second", "score", "rejection", "grey")
            ]
            for k, (a, b) in enumerate(stored["tiles"].tolist()):
                first, second, score, rejection, grey = (column[k] for column in columns)
                shift, flag = stored["shift"][k], str(stored["flag"][k])
                seams.append(Seam(a, b, first, second, score, rejection, grey, shift, flag))
            looked_at = zip(stored["looked_at"], stored["grids"], stored["blank"], strict=True)
            facts |= {int(tile): TileFacts(grid, bool(blank)) for tile, grid, blank in looked_at}
    return seams, facts


def _pack_shared(shared: Shared) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        products=np.array(shared.lens.products, np.int64).reshape(-1, 2),
        coefficients=shared.lens.coefficients,
        pattern=shared.pattern,
    )
    return buffer.getvalue()


def _load_shared(session: Session) -> Shared:
    with np.load(io.BytesIO(session.read(_SHARED_FILE)), allow_pickle=False) as stored:
        products = tuple((int(i), int(j)) for i, j in stored["products"])
        return Shared(Lens(products, stored["coefficients"]), stored["pattern"])


def _pack_montage(montage: Montage) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        shape=np.array(montage.shape),
        positions=montage.positions,
        maps=montage.maps,
        brightness=montage.brightness,
        part=montage.part,
        flagged=np.array(list(montage.flagged), np.int64),
        why=np.array(list(montage.flagged.values()), np.str_),
    )
    return buffer.getvalue()


def _load_montage(session: Session, z: int) -> Montage:
    shared = _load_shared(session)
    with np.load(io.BytesIO(session.read(_montage_file(z))), allow_pickle=False) as stored:
        height, width = (int(v) for v in stored["shape"])
        flagged = zip(stored["flagged"].tolist(), stored["why"].tolist(), strict=True)
        return Montage(
            (height, width), stored["positions"], stored["maps"], shared.lens, shared.pattern,
            stored["brightness"], stored["part"], dict(flagged),
        )  # fmt: skip
