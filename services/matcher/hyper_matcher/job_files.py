"""Where the stages of an alignment leave things for each other, in the job's session."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper import images
from hyper.align import (
    SETTINGS_FILE,
    SHARD_PX,
    blocks,
    levels_apart,
    mesh_spacings,
    parts,
)
from hyper.arrays import Array
from hyper.context import TaskContext
from hyper.pyramids import build, create_level, fill_shard, level_name, levels_of, shards_of
from hyper.sessions import Session
from hyper_matcher.align.blocks import Span
from hyper_matcher.align.facts import PairFacts
from hyper_matcher.align.fading import TILE_PX, FieldTile
from hyper_matcher.align.geometry import Affine, Mesh
from hyper_matcher.align.levels import Tiling
from hyper_matcher.align.relax import RelaxedStack
from hyper_matcher.align.render import Canvas
from hyper_matcher.align.settle import Patch
from hyper_matcher.align.tiled import patch_of
from hyper_matcher.job_plan import Plan

RAW, FEATURES, ALIGNED = "raw", "features", "aligned"
ELASTIC = "elastic"  # what `--method deep` starts from
VALID, FIELDS = "valid", "fields"
MODEL_FILE = "align/bandpass.onnx"
_PLAN_FILE = "align/plan.json"
TILE_SHARE = 4  # a tile starts near its rest, and costs less a vertex than the coarsest mesh
_COARSE_FILE = "align/coarse.npz"
_CHUNK_PX = 512
_SAMPLE_PX = 4096  # edge of what is looked at of larger sections
_NAMESPACE = uuid.UUID("5f0a1c86-6f0b-4f0f-9e5e-2f2f5a8f7f10")


def tile_file(level: int, turn: int, tile: int) -> str:
    """Where a tile's vertices are after a turn of its level, both from 1 on."""
    return f"align/tiles/{level}-{turn}/{tile:09d}.npz"


def field_file(z: int, tile: int) -> str:
    """Where the refinement's field of a tile of a section is."""
    return f"align/refined/{z:06d}-{tile:06d}.npz"


def placed_file(part: int) -> str:
    """Says that some sections' tiles have been put together."""
    return f"align/placed/{part:06d}.json"


def section_file(z: int, part: int = 0) -> str:
    """Facts of a rendered section, or of its part on a part of the canvas."""
    return f"align/sections/{z:06d}-{part:06d}.json"


def measure_file(z: int, part: int = 0) -> str:
    """Scores of a section, or a share of it, with its next ones."""
    return f"align/measures/{z:06d}-{part:06d}.json"


@dataclass(frozen=True, slots=True)
class RenderedPart:
    """Facts of a rendered section, or of its part on a part of the canvas.

    Args:
        blank: the share of the source that was looked at is black.
        valid_px: pixels of tissue that were written.
        placed_px: area of the whole section as placed.
        gradient_before: sum and weight of the source's mean gradient.
        gradient_after: of what was written.
        jacobian_min: smallest of the section's triangles.
        jacobian_max: largest.
    """

    blank: bool
    valid_px: int
    placed_px: float
    gradient_before: tuple[float, float]
    gradient_after: tuple[float, float]
    jacobian_min: float
    jacobian_max: float

    @classmethod
    def joined(cls, all_parts: Sequence[RenderedPart]) -> RenderedPart:
        """A section out of its parts."""

        def gathered(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
            return sum(total for total, _ in values), sum(weight for _, weight in values)

        return cls(
            all(each.blank for each in all_parts), sum(each.valid_px for each in all_parts),
            all_parts[0].placed_px, gathered([each.gradient_before for each in all_parts]),
            gathered([each.gradient_after for each in all_parts]),
            all_parts[0].jacobian_min, all_parts[0].jacobian_max,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Coarse:
    """A stack relaxed with a coarse mesh.

    Args:
        rigid: placement of each section.
        frame: what is done to the stack as a whole at the end.
        mesh: the coarse one.
        patch: its vertices.
        counts: of each pair: points, those tried, those accepted.
    """

    rigid: tuple[Affine, ...]
    frame: Affine
    mesh: Mesh
    patch: Patch
    counts: Mapping[tuple[int, int], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Job:
    """One alignment's session, settings and files.

    Args:
        context: the task that looks at it.
        session: the session that all stages write.
        settings: what `hyper.align.submit` wrote.
    """

    context: TaskContext
    session: Session
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, context: TaskContext, session: str) -> Job:
        """Attach to a job's session."""
        attached = context.client.attach(session)
        return cls(context, attached, json.loads(attached.read(SETTINGS_FILE)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x) of the source."""
        z, y, x = self.settings["shape"]
        return z, y, x

    @property
    def plan(self) -> Plan:
        """The parameters that `prepare` chose."""
        return Plan.from_json(json.loads(self.session.read(_PLAN_FILE)))

    def write_plan(self, plan: Plan) -> None:
        """Keep the parameters for the other stages."""
        self.write_json(_PLAN_FILE, plan.to_json())

    def write_json(self, path: str, value: Any) -> None:
        """Write plain values."""
        self.session.write(path, json.dumps(value, allow_nan=False).encode())

    def read_json(self, path: str) -> Any:
        """Read them back."""
        return json.loads(self.session.read(path))

    def parts(self, shape: Sequence[int]) -> list[tuple[int, int, int, int]]:
        """Those of a plane of the source, or of the canvas."""
        return parts(shape, int(self.settings["options"]["part_px"]))

    def tasks_a_section(self) -> int:
        """How many render a section of the result, or measure it."""
        if len(self.parts(self.shape[1:])) == 1:
            return 1
        return len(self.parts(self.session[ALIGNED].shape[1:]))

    def read_files(self, paths: Sequence[str]) -> list[bytes]:
        """These files, in this order; several are read at a time.

        By path, not from a listing: the session also shows what an earlier alignment left.
        """
        return list(self.stream_files(paths))

    def stream_files(self, paths: Iterable[str]) -> Iterator[bytes]:
        """The same of very many, which are never all in memory."""
        return (content for _, content in self.session.read_many(paths))

    # Sections

    def sample(self) -> list[int]:
        """A few sections spread over the stack, readable ones."""
        depth = self.shape[0]
        bad = {int(one["z"]) for one in self.settings["bad"]}
        good = [z for z in range(depth) if z not in bad]
        picks = np.linspace(0, len(good) - 1, min(3, len(good))).round().astype(int)
        return [good[k] for k in picks]

    def sample_section(self, z: int) -> NDArray[Any]:
        """A section, or of a large one in an array a part that has tissue, where one is found."""
        _, height, width = self.shape
        if self.settings["files"] or height * width <= 2 * _SAMPLE_PX**2:
            return self.source_section(z)
        part = np.zeros((0, 0), self.settings["dtype"])
        for y, x in ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)):
            top, left = (
                max(0, min(int(edge * at) - _SAMPLE_PX // 2, edge - _SAMPLE_PX))
                for edge, at in ((height, y), (width, x))
            )
            part = self.source_window(
                z, slice(top, min(height, top + _SAMPLE_PX)),
                slice(left, min(width, left + _SAMPLE_PX)),
            )  # fmt: skip
            if part.any():
                break
        return part

    def source_array(self) -> Array:
        """The array that is aligned: `raw`, or the one the user named."""
        if self.settings["files"]:
            return self.session[RAW]
        return self.context.client.open_array(self.settings["array"])

    def left_out(self, z: int) -> bool:
        """Whether a section is to stay blank."""
        return any(int(one["z"]) == z for one in self.settings["bad"])

    def source_window(self, z: int, y: slice, x: slice) -> NDArray[Any]:
        """A part of a section as it came, after `ingest`."""
        if self.left_out(z):
            return np.zeros((y.stop - y.start, x.stop - x.start), self.settings["dtype"])
        return np.asarray(self.source_array()[z, y, x])

    def source_section(self, z: int) -> NDArray[Any]:
        """One section as it came, 0 where its mask says that there is no tissue."""
        files, masks = self.settings["files"], self.settings["masks"]
        if self.left_out(z):
            return np.zeros(self.shape[1:], self.settings["dtype"])
        if not files:
            return np.asarray(self.source_array()[z])
        section = images.read_section(self.session.read(files[z]))
        if masks and masks[z] is not None:
            section = np.where(images.read_section(self.session.read(masks[z])) > 0, section, 0)
        return section

    def make_array(self, name: str, shape: tuple[int, int, int], dtype: str) -> Array:
        """Make an array whose shards lie in one section, unless an earlier attempt made it.

        An array of that name in the version the session is based on (it has a url) is replaced.
        """
        if name in self.session.arrays():
            array = self.session[name]
            if not array.url:
                return array
            self.session.delete_array(name)
        voxel_size = self.settings["options"]["voxel_size_nm"]
        return self.session.create_array(
            name,
            shape,
            dtype,
            chunks=(1, _CHUNK_PX, _CHUNK_PX),
            shards=(1, *(shard_px(edge) for edge in shape[1:])),
            voxel_size_nm=tuple(voxel_size) if voxel_size else None,
        )

    def make_levels(self, shape: tuple[int, int, int]) -> list[int]:
        """Make the coarser levels of the pyramid that have tasks of their own: shards of each."""
        options, found = self.settings["options"], []
        count = levels_apart(self.shape, options)
        for level in levels_of(shape, options["voxel_size_nm"])[:count] if count else []:
            name = level_name(ALIGNED, level.level)
            if name in self.session.arrays() and self.session[name].url:
                self.session.delete_array(name)
            if name not in self.session.arrays():
                create_level(self.session, ALIGNED, level)
            found.append(shards_of(self.session[name]))
        return found

    def coarsen(self, level: int, shard: int) -> None:
        """Write a shard of a level of the pyramid."""
        source = self.session[level_name(ALIGNED, level - 1)]
        by = levels_of(self.session[ALIGNED].shape, self.settings["options"]["voxel_size_nm"])
        target = self.session[level_name(ALIGNED, level)]
        fill_shard(source, target, shard, by[level - 1].factors)

    def finish_levels(self) -> None:
        """Make the rest of the pyramid; what an earlier attempt or version left goes first."""
        options = self.settings["options"]
        count = levels_apart(self.shape, options)
        kept = {level_name(ALIGNED, level) for level in range(1, count + 1)}
        for name in self.session.arrays():
            if name.startswith(f"{ALIGNED}-levels/") and name not in kept:
                self.session.delete_array(name)
        if options["voxel_size_nm"]:
            build(self.session, ALIGNED, first=count + 1)

    def make_fields(self, mesh: Mesh, canvas: Canvas) -> None:
        """Make the array of displacement fields, (2, z, rows, columns), px."""
        if FIELDS in self.session.arrays():
            if not self.session[FIELDS].url:
                return
            self.session.delete_array(FIELDS)
        shape = (2, self.shape[0], mesh.rows, mesh.columns)
        whole = (2, 1, mesh.rows, mesh.columns)
        self.session.create_array(
            FIELDS, shape, "float32", chunks=whole, shards=whole,
            attributes={
                "holds": "place of each mesh vertex in the common frame, less its place in the "
                "section: (y, x), px",
                "section_shape_px": list(mesh.shape),
                "vertex_pitch_px": list(mesh.pitch),
                "canvas_px": [*canvas.origin, *canvas.shape],
            },
        )  # fmt: skip

    # Matches and meshes

    @property
    def in_blocks(self) -> bool:
        """Whether sections are so large that they are matched block by block."""
        return len(blocks(self.shape)) > 1

    @property
    def levels(self) -> tuple[float, ...]:
        """Spacings of the meshes that are relaxed, the coarsest first, px."""
        budget = int(self.settings["options"]["relax_vertices"])
        return mesh_spacings(self.shape, self.plan.mesh_spacing_px, budget)

    @property
    def tiled(self) -> bool:
        """Whether the stack is too large to be relaxed as one."""
        return not self.settings["options"]["from_fields"] and len(self.levels) > 1

    def tiling(self, level: int, rigid: Sequence[Affine]) -> Tiling:
        """The tiles of a level above the coarsest."""
        mesh = Mesh.over(self.shape[1:], self.levels[level])
        budget = TILE_SHARE * int(self.settings["options"]["relax_vertices"])
        return Tiling.of(mesh, rigid, budget)

    def write_fields(self, z: int, moved: NDArray[np.float64]) -> None:
        """Keep the displacements (sections, n, 2) of the vertices from section z on, px."""
        array = self.session[FIELDS]
        plane = moved.transpose(2, 0, 1).reshape(2, len(moved), *array.shape[2:])
        array[:, z : z + len(moved)] = plane.astype(np.float32)

    def take_fields(self, z: int) -> None:
        """Keep a section's displacements of another alignment, if it is one that is used."""
        if taken := self.settings["options"]["from_fields"]:
            there = self.context.client.open_array(taken)
            self.session[FIELDS][:, z : z + 1] = there[:, z : z + 1]

    def load_placed(self, z: int) -> tuple[Mesh, NDArray[np.float64], Canvas]:
        """The mesh, the vertices of section z (n, 2) in the common frame, and the canvas."""
        array = self.session[FIELDS]
        if taken := self.settings["options"]["from_fields"]:
            array = self.context.client.open_array(taken)
        height, width = array.attributes["section_shape_px"]
        y, x, rows, columns = (int(value) for value in array.attributes["canvas_px"])
        mesh = Mesh((int(height), int(width)), int(array.shape[2]), int(array.shape[3]))
        moved = np.asarray(array[:, z : z + 1], np.float64)[:, 0]
        return mesh, mesh.vertices + moved.reshape(2, -1).T, Canvas((y, x), (rows, columns))

    def write_coarse(self, relaxed: RelaxedStack, facts: Sequence[PairFacts]) -> None:
        """Keep what the tiles of finer meshes need of the whole stack."""
        coarse = patch_of(relaxed)
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            matrices=np.stack([each.matrix for each in relaxed.rigid]),
            offsets=np.stack([each.offset for each in relaxed.rigid]),
            frame_matrix=relaxed.frame.matrix,
            frame_offset=relaxed.frame.offset,
            mesh=np.array([relaxed.mesh.rows, relaxed.mesh.columns]),
            displacement=coarse.displacement.astype(np.float32),
            pairs=np.array([(f.source_z, f.target_z, f.total, f.tried, f.accepted) for f in facts]),
        )
        self.session.write(_COARSE_FILE, buffer.getvalue())

    def load_coarse(self) -> Coarse:
        """The way back."""
        with np.load(io.BytesIO(self.session.read(_COARSE_FILE)), allow_pickle=False) as stored:
            rigid = tuple(map(Affine, stored["matrices"], stored["offsets"]))
            rows, columns = (int(value) for value in stored["mesh"])
            mesh = Mesh(self.shape[1:], rows, columns)
            count = rows * columns
            patch = Patch(
                np.repeat(np.arange(len(rigid)), count), np.tile(np.arange(count), len(rigid)),
                stored["displacement"].astype(np.float64),
            )  # fmt: skip
            counts = {(int(a), int(b)): tuple(map(int, rest)) for a, b, *rest in stored["pairs"]}
            frame = Affine(stored["frame_matrix"], stored["frame_offset"])
            return Coarse(rigid, frame, mesh, patch, counts)

    def refine_tiles(self) -> list[Span]:
        """The tiles of the canvas that are refined one by one."""
        height, width = self.session[ELASTIC].shape[1:]
        return blocks((1, height, width), TILE_PX)

    def write_field(self, z: int, number: int, tile: FieldTile) -> None:
        """Keep the refinement's field of a tile."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, origin=np.array(tile.origin), field=tile.field.astype(np.float16)
        )
        self.session.write(field_file(z, number), buffer.getvalue())

    def load_field(self, z: int, number: int, core: Span) -> FieldTile:
        """The way back."""
        content = self.session.read(field_file(z, number))
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            y, x = (int(value) for value in stored["origin"])
            return FieldTile(core, (y, x), stored["field"].astype(np.float32))

    def write_flagged(self, flagged: Mapping[int, str]) -> None:
        """Keep which sections are flagged, and why."""
        self.write_json("align/flagged.json", {str(z): why for z, why in flagged.items()})

    def flagged(self) -> dict[int, str]:
        """Flagged sections, and why."""
        return {int(z): str(why) for z, why in self.read_json("align/flagged.json").items()}

    # The end

    def drop_intermediates(self) -> None:
        """Leave out of the commit what only the stages needed."""
        for name in (FEATURES, ELASTIC):
            if name in self.session.arrays():
                self.session.delete_array(name)

    def commit(self, task: str) -> int:
        """Make the session's content the next version; a repeated task gets the first answer."""
        request_id = str(uuid.uuid5(_NAMESPACE, task))
        return self.session.commit("aligned", request_id=request_id).number


def shard_px(edge: int) -> int:
    """A whole section up to 16 MB of bytes, else a tile of that size: written by one hand."""
    return min(-(-edge // _CHUNK_PX) * _CHUNK_PX, SHARD_PX)


def shards(shape: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """(y0, x0, y1, x1) of the shards of a section of an array that `make_array` makes."""
    height, width = shape
    step_y, step_x = shard_px(height), shard_px(width)
    return [
        (y, x, min(y + step_y, height), min(x + step_x, width))
        for y in range(0, height, step_y)
        for x in range(0, width, step_x)
    ]
