"""The stages of `hyper stitch` as task functions; the recipe is written by `hyper.stitch`.

Every function may run twice, on any worker: what it writes depends on its inputs alone.
"""

from __future__ import annotations

import functools
import io
import json
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper import images
from hyper.context import TaskContext
from hyper.sessions import Session
from hyper.stitch import ARRAY, REPORT_FILE, RESULT_FILE, SETTINGS_FILE
from hyper_matcher.align.render import Canvas
from hyper_matcher.before_commit import before_commit
from hyper_matcher.job_files import shard_px, shards
from hyper_matcher.stitch.overlap import match_overlap
from hyper_matcher.stitch.pipeline import stitch_result
from hyper_matcher.stitch.quality import seam_residuals
from hyper_matcher.stitch.render import montage_canvas, render_montage
from hyper_matcher.stitch.report import render_report
from hyper_matcher.stitch.solve import Lens, Montage, solve
from hyper_matcher.stitch.values import Seam, StitchOptions, TileFacts

_MONTAGE_FILE = "stitch/montage.npz"
_TILES_HELD = 24  # decoded ones in memory: a row of neighbours is read once
_CHUNK_PX = 512
_OVERVIEW_PX = 1200


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
    def positions(self) -> NDArray[np.float64]:
        return np.array(self.settings["positions"], np.float64)

    @property
    def options(self) -> StitchOptions:
        asked = self.settings["options"]
        return StitchOptions(
            search_px=asked["search_px"], min_overlap_px=asked["min_overlap_px"],
            lens_degree=asked["lens_degree"], illumination=asked["illumination"],
        )  # fmt: skip

    def reader(self) -> Callable[[int], NDArray[Any]]:
        """Decodes tiles; holds the last few."""

        @functools.lru_cache(maxsize=_TILES_HELD)
        def read(tile: int) -> NDArray[Any]:
            name = self.settings["files"][tile]
            return images.read_section(self.session.read(name), label=self.settings["names"][tile])

        return read

    def parts(self, members: Collection[int] | None = None) -> list[str]:
        """Files of matches: all, or those with overlaps of these tiles."""
        step = self.settings["seams_a_task"]
        seams = enumerate(self.settings["seams"])
        parts = {k // step for k, (a, _) in seams if members is None or a in members}
        return [_part_file(part) for part in sorted(parts)]

    def members(self, z: int) -> list[int]:
        return [k for k, section in enumerate(self.settings["section_of"]) if section == z]


def match(context: TaskContext, *, session: str, part: int) -> dict[str, Any]:
    """Match some of the overlaps."""
    job = _Job.open(context, session)
    step = job.settings["seams_a_task"]
    at, read, options = job.positions, job.reader(), job.options
    seams, facts = [], {}
    for a, b in job.settings["seams"][part * step : (part + 1) * step]:
        for tile in (a, b):
            if tile not in facts:
                facts[tile] = TileFacts.of(read(tile))
        seams.append(match_overlap(read(a), read(b), at[b] - at[a], options, (a, b)))
        if seams[-1].flag:
            names = job.settings["names"]
            context.log(f"{names[a]} - {names[b]}: {seams[-1].flag}")
    job.session.write(_part_file(part), _pack_part(seams, facts))
    return {"seams": len(seams), "matches": sum(int(s.accepted.sum()) for s in seams)}


def place(context: TaskContext, *, session: str) -> dict[str, Any]:
    """Place the tiles of all sections at once; decide the canvas; make array `raw`."""
    job = _Job.open(context, session)
    seams, facts = _load_parts(job)
    section_of = job.settings["section_of"]
    montage = solve(job.shape, job.positions, section_of, seams, facts, job.options)
    canvas = montage_canvas(montage)
    for tile, why in sorted(montage.flagged.items()):
        context.log(f"{job.settings['names'][tile]} is flagged: {why}")
    job.session.write(_MONTAGE_FILE, _pack_montage(montage, canvas))
    pixel = job.settings["pixel_nm"]
    thickness = job.settings["options"]["section_nm"] or pixel
    if ARRAY in job.session.arrays():
        if not job.session[ARRAY].url:
            return {"canvas": list(canvas.shape)}  # an earlier attempt made it
        job.session.delete_array(ARRAY)
    job.session.create_array(
        ARRAY,
        (len(job.settings["sections"]), *canvas.shape),
        job.settings["dtype"],
        chunks=(1, _CHUNK_PX, _CHUNK_PX),
        shards=(1, *(shard_px(edge) for edge in canvas.shape)),
        voxel_size_nm=(thickness, pixel, pixel) if pixel else None,
    )
    return {"canvas": list(canvas.shape)}


def render(context: TaskContext, *, session: str, z: int) -> dict[str, Any]:
    """Render one section, block by block, and measure how well its tiles meet."""
    job = _Job.open(context, session)
    montage, canvas = _load_montage(job)
    read, members = job.reader(), job.members(z)
    array = job.session[ARRAY]
    for y0, x0, y1, x1 in shards(canvas.shape):
        block = Canvas((canvas.origin[0] + y0, canvas.origin[1] + x0), (y1 - y0, x1 - x0))
        pixels = render_montage(montage, members, read, block)
        array[z, y0:y1, x0:x1] = pixels.astype(job.settings["dtype"])
    own = set(members)
    residuals = []
    for seam in _load_parts(job, own)[0]:
        a, b = seam.first, seam.second
        if a in own and not seam.flag:
            lengths, tried = seam_residuals(montage, a, b, (read(a), read(b)))
            residuals.append([a, b, tried, [round(float(v), 3) for v in lengths]])
    job.session.write(_section_file(z), json.dumps(residuals).encode())
    return {"seams": len(residuals)}


def report(context: TaskContext, *, session: str) -> dict[str, Any]:
    """Gather everything, write the result object and the report, commit the session."""
    job = _Job.open(context, session)
    workflow = context.client.workflow(context.task.partition("/experiments/")[0])
    started = workflow.status.create_time
    montage, _ = _load_montage(job)
    seams, _ = _load_parts(job)
    residuals = {
        (a, b): (np.array(lengths, np.float64), tried)
        for z in range(len(job.settings["sections"]))
        for a, b, tried, lengths in json.loads(job.session.read(_section_file(z)))
    }
    names = job.settings["names"]
    result = stitch_result(montage, seams, residuals)
    for seam in result["failed_seams"]:
        seam["first"], seam["second"] = names[seam["first"]], names[seam["second"]]
    result["flagged_tiles"] = {names[int(k)]: why for k, why in result["flagged_tiles"].items()}
    result |= {
        "sections": len(job.settings["sections"]),
        "left_out": list(job.settings["left_out"]),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 2) if started else None,
        "source": job.settings["source"],
        "array": f"{job.settings['destination']}/{ARRAY}",
        "report": f"hyper://{job.settings['destination']}/{REPORT_FILE}",
    }
    array = job.session[ARRAY]
    step = max(1, -(-max(array.shape[1:]) // _OVERVIEW_PX))
    overview = _overview(array, step)
    title = job.settings["options"]["title"] or f"Stitching of {job.settings['source']}"
    page = render_report(title, result, overview, montage, residuals, names)
    with before_commit(context):
        job.session.write(RESULT_FILE, json.dumps(result, indent=1, allow_nan=False).encode())
        job.session.write(REPORT_FILE, page.encode())
        job.session.delete(*job.settings["files"])
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


def _section_file(z: int) -> str:
    return f"stitch/sections/{z:06d}.json"


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


def _load_parts(
    job: _Job, members: Collection[int] | None = None
) -> tuple[list[Seam], dict[int, TileFacts]]:
    seams: list[Seam] = []
    facts: dict[int, TileFacts] = {}
    for _, content in job.session.read_many(job.parts(members)):
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


def _pack_montage(montage: Montage, canvas: Canvas) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        shape=np.array(montage.shape),
        positions=montage.positions,
        maps=montage.maps,
        products=np.array(montage.lens.products, np.int64).reshape(-1, 2),
        coefficients=montage.lens.coefficients,
        pattern=montage.pattern,
        brightness=montage.brightness,
        part=montage.part,
        flagged=np.array(list(montage.flagged), np.int64),
        why=np.array(list(montage.flagged.values()), np.str_),
        canvas=np.array([*canvas.origin, *canvas.shape]),
    )
    return buffer.getvalue()


def _load_montage(job: _Job) -> tuple[Montage, Canvas]:
    with np.load(io.BytesIO(job.session.read(_MONTAGE_FILE)), allow_pickle=False) as stored:
        height, width = (int(v) for v in stored["shape"])
        products = tuple((int(i), int(j)) for i, j in stored["products"])
        y, x, rows, columns = (int(v) for v in stored["canvas"])
        flagged = zip(stored["flagged"].tolist(), stored["why"].tolist(), strict=True)
        montage = Montage(
            (height, width), stored["positions"], stored["maps"],
            Lens(products, stored["coefficients"]), stored["pattern"], stored["brightness"],
            stored["part"], dict(flagged),
        )  # fmt: skip
    return montage, Canvas((y, x), (rows, columns))
