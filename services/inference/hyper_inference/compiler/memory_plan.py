"""Graph -> where every value lies in one arena. Pure.

Layout of a value: rows of x, one after another along c, then y, then z, in float32:
`[z][y][c][x]`. Any number of channels needs no padding, vectors run along x. Around it lies what
its readers need: zero planes and rows (a convolution's zero padding), and on the left of every row
zeros that are also the right margin of the row before. Kernels write zeros behind a row's last
voxel, and never touch halos: these are zeroed once, when the arena is made. Where a buffer shares
memory with one of another place or geometry, its halos are zeroed again in every run, before its
first write (`MemoryPlan.clears`).

A concatenation is one buffer whose parts are written in place, as channels of it; so are slices
of channels. Values whose lives do not overlap share memory (`arena.py`). A convolution that adds a
residual which nobody reads after it writes over it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hyper_inference.compiler import arena
from hyper_inference.compiler.algorithm import Mode, choose_winograd
from hyper_inference.compiler.ir import (
    Concat,
    Conv,
    ConvTranspose,
    Graph,
    Node,
    Shape,
    Slice,
    TensorType,
    Triple,
)
from hyper_inference.errors import ShapeError

LINE = 16
"""Floats of a cache line: where buffers begin."""
FRONT = 16384
SLACK = 16384
"""Floats before and behind all buffers, so that vectors may read past a tail."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """A buffer: its shape and the zeros around it.

    A row takes whole vectors of `align` floats behind its zeros. It begins on none: a margin of a
    vector before each would cost a quarter of the memory at 64 columns, and time.
    """

    shape: Shape
    before: tuple[int, int]  # zero planes, zero rows
    after: tuple[int, int]
    left: int  # zero floats before each row
    align: int

    @property
    def pitch(self) -> int:
        """Floats from a row of x to the next channel's."""
        return self.left + _round_up(self.shape[3], self.align)

    @property
    def row_stride(self) -> int:
        """Floats from one y to the next."""
        return self.pitch * self.shape[0]

    @property
    def plane_stride(self) -> int:
        """Floats from one z to the next."""
        return self.row_stride * (self.shape[2] + self.before[1] + self.after[1])

    @property
    def origin(self) -> int:
        """Floats from the buffer's start to its voxel 0."""
        return self.plane_stride * self.before[0] + self.row_stride * self.before[1] + self.left

    @property
    def has_zeros(self) -> bool:
        """There are floats that readers need and no kernel writes."""
        return any((*self.before, *self.after, self.left))

    @property
    def floats(self) -> int:
        """Size of the buffer; the last row has its right margin too."""
        planes = self.shape[1] + self.before[0] + self.after[0]
        return self.plane_stride * planes + self.left


@dataclass(frozen=True, slots=True)
class Place:
    """A value's memory: `offset` of its voxel 0 in the arena, and its strides, in floats."""

    shape: Shape
    offset: int
    channel: int
    row: int
    plane: int


@dataclass(frozen=True, slots=True)
class Clear:
    """A buffer that begins `start` floats into the arena and whose halos are to be zeroed."""

    start: int
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Places of all values in an arena of `floats` floats."""

    places: Mapping[str, Place]
    floats: int
    buffers: int
    in_place: frozenset[tuple[str, str]]
    """(concat or slice, part): no copy is needed."""
    clears: Mapping[str, Clear]
    """What is cleared before a value (the first in its buffer) is written."""


@dataclass(frozen=True, slots=True)
class _Need:
    """Zeros that readers see around a value, along z, y and x."""

    before: Triple = (0, 0, 0)
    after: Triple = (0, 0, 0)

    def union(self, other: _Need) -> _Need:
        return _Need(_largest(self.before, other.before), _largest(self.after, other.after))


def plan_memory(
    graph: Graph, *, mode: Mode = "exact", align: int = LINE, max_bytes: int = 2**36
) -> MemoryPlan:
    """Place every value; the mode decides how far around a value is read.

    Args:
        graph: after all passes.
        mode: see `algorithm.py`.
        align: floats of a vector.
        max_bytes: of the arena.

    Raises:
        ShapeError: more than `max_bytes` would be needed.
    """
    parents = _over_residuals(graph, _parents(graph))
    roots = {name: _root(name, parents) for name in graph.types()}
    types = graph.types()
    needs: dict[str, _Need] = {}
    born: dict[str, int] = {}
    dies: dict[str, int] = {}

    def touch(value: str, at: int) -> None:
        root = roots[value][0]
        born[root] = min(born.get(root, at), at)
        dies[root] = max(dies.get(root, at), at)

    for name, _ in graph.inputs:
        touch(name, -1)
    for index, node in enumerate(graph.nodes):
        touch(node.name, index)
        for name in node.inputs:
            touch(name, index)
            root = roots[name][0]
            needs[root] = needs.get(root, _Need()).union(_need(node, types[name], mode))
    for name in graph.outputs:
        touch(name, len(graph.nodes))

    together: dict[Shape, _Need] = {}  # one geometry a shape: fewer kernels, fewer clears
    for root in born:
        shape = types[root].shape
        together[shape] = together.get(shape, _Need()).union(needs.get(root, _Need()))
    geometries = {
        root: _geometry(types[root].shape, together[types[root].shape], align) for root in born
    }
    blocks = [
        arena.Block(_round_up(geometries[root].floats, LINE), born[root], dies[root])
        for root in born
    ]
    offsets, size = arena.place(blocks)
    total = FRONT + size + SLACK
    if total * 4 > max_bytes:
        raise ShapeError(
            f"the net needs {total * 4 / 2**30:.1f} GiB for one sample of {graph.input_type}; "
            "use smaller patches"
        )
    starts = {root: FRONT + offset for root, offset in zip(born, offsets, strict=True)}
    places = {}
    for name, (root, channel) in roots.items():
        geometry = geometries[root]
        start = starts[root] + geometry.origin + channel * geometry.pitch
        places[name] = Place(
            types[name].shape, start, geometry.pitch, geometry.row_stride, geometry.plane_stride
        )
    clears = {}
    for root in _shared(starts, geometries):
        values = list(graph.types())
        first = next(name for name in values if roots[name][0] == root)
        clears[first] = Clear(starts[root], geometries[root])
    return MemoryPlan(places, total, len(blocks), _in_place(graph, roots), clears)


def _shared(starts: Mapping[str, int], geometries: Mapping[str, Geometry]) -> list[str]:
    """Buffers with halos in memory that another one, unlike them, also uses."""

    def dirties(one: str, other: str) -> bool:
        if starts[one] == starts[other] and geometries[one] == geometries[other]:
            return False
        return (
            starts[one] < starts[other] + geometries[other].floats
            and starts[other] < starts[one] + geometries[one].floats
        )

    return [
        root
        for root in starts
        if geometries[root].has_zeros and any(dirties(other, root) for other in starts)
    ]


def _parents(graph: Graph) -> dict[str, tuple[str, int]]:
    """Values that lie inside another: parts of concatenations, then slices of channels."""
    types = graph.types()
    parents: dict[str, tuple[str, int]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Concat):
            channel = 0
            for name in node.inputs:
                if name not in parents and node.inputs.count(name) == 1:
                    parents[name] = (node.name, channel)
                channel += types[name].shape[0]
    for node in graph.nodes:
        if not isinstance(node.op, Slice) or node.name in parents:
            continue
        if _channels_only(node.op, types[node.inputs[0]]):
            parents[node.name] = (node.inputs[0], node.op.start[0])
    return parents


def _over_residuals(
    graph: Graph, parents: Mapping[str, tuple[str, int]]
) -> dict[str, tuple[str, int]]:
    """Results of convolutions that take the place of the residual that they read last.

    A voxel is read where, and just before, it is written; no kernel writes one twice.
    """
    found, types = dict(parents), graph.types()
    last = {name: len(graph.nodes) for name in graph.outputs}
    for index, node in enumerate(graph.nodes):
        for name in node.inputs:
            last[name] = max(last.get(name, 0), index)
    for index, node in enumerate(graph.nodes):
        op = node.op
        if not isinstance(op, Conv | ConvTranspose) or op.residual_scale is None:
            continue
        pixels, residual = node.inputs
        root, channel = _root(residual, found)
        sharing = [name for name in types if _root(name, found)[0] == root]
        if (
            node.name not in found
            and channel == 0
            and types[root].shape == node.type.shape
            and pixels not in sharing
            and all(last.get(name, 0) <= index for name in sharing)
        ):
            found[node.name] = root, 0
    return found


def _in_place(graph: Graph, roots: Mapping[str, tuple[str, int]]) -> frozenset[tuple[str, str]]:
    """Parts of concatenations, and slices, that lie exactly where they belong."""
    types = graph.types()
    found = set()
    for node in graph.nodes:
        root, channel = roots[node.name]
        if isinstance(node.op, Concat):
            for name in node.inputs:
                if roots[name] == (root, channel):
                    found.add((node.name, name))
                channel += types[name].shape[0]
        elif isinstance(node.op, Slice) and _channels_only(node.op, types[node.inputs[0]]):
            source, first = roots[node.inputs[0]]
            if (root, channel) == (source, first + node.op.start[0]):
                found.add((node.name, node.inputs[0]))
    return frozenset(found)


def _channels_only(op: Slice, source: TensorType) -> bool:
    """A slice of neighbouring channels, whole along z, y and x."""
    whole = op.start[1:] == (0, 0, 0) and op.stop[1:] == source.shape[1:]
    return whole and op.step == (1, 1, 1, 1)


def _root(name: str, parents: Mapping[str, tuple[str, int]]) -> tuple[str, int]:
    channel = 0
    while name in parents:
        name, first = parents[name]
        channel += first
    return name, channel


def _need(node: Node, source: TensorType, mode: Mode) -> _Need:
    """Zeros that `node` reads around its (first) input; tiles reach behind the last output."""
    op = node.op
    if not isinstance(op, Conv) or source.shape[0] != op.weight.shape[1] * op.groups:
        return _Need()
    outputs = list(node.type.shape[1:])
    tile = choose_winograd(op, node.type.shape, mode)
    if tile is not None:
        tiles_z, tiles_y = tile.tiles(outputs[0], outputs[1])
        outputs[:2] = tiles_z * tile.z, tiles_y * tile.y
    after = []
    for axis in range(3):
        last = (outputs[axis] - 1) * op.stride[axis] - op.pad_before[axis]
        last += (op.kernel[axis] - 1) * op.dilation[axis]
        after.append(max(0, last - source.shape[axis + 1] + 1))
    return _Need(op.pad_before, (after[0], after[1], after[2]))


def _geometry(shape: Shape, need: _Need, align: int) -> Geometry:
    spare = _round_up(shape[3], align) - shape[3]  # zeros behind a row
    left = max(need.before[2], need.after[2] - spare, 0)
    return Geometry(shape, need.before[:2], need.after[:2], left, align)


def _largest(one: Triple, other: Triple) -> Triple:
    z, y, x = (max(a, b) for a, b in zip(one, other, strict=True))
    return z, y, x


def _round_up(n: int, step: int) -> int:
    return math.ceil(n / step) * step
