"""Convolution by Winograd tiles: F(4, 3) along y, F(2, 3) or F(4, 3) along z, direct along x.

A task takes a group of tiles and goes through three stages in a scratch buffer that stays in the
cache:

1. inputs: for every channel, the rows of a tile are transformed: `U[point][c][x]`;
2. sums: for every point a small matrix product over input channels and taps along x, with a
   register block of output channels x vectors: `M[point][o][x]`;
3. outputs: `M` is transformed back, bias, residual and activation follow, and rows are stored.

Transforms run across rows, so x needs no shuffles and any width has its tail in dropped lanes.
Rows short of a vector are laid side by side ("folded"), several tiles in one row of `U`. A sum
starts at 0 and runs over input channel, then x; grouping, blocking and vector width change no bit.
With many weights, tasks also split the output channels: a slice of the weights stays in the cache
for all tiles.

With `pairs`, U and the weights are bfloat16 numbers, two channels in a word (`bfloat.py`).

The last tiles reach behind the output: they read zeros there (the memory plan's halo) and their
surplus rows are not stored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from hyper_inference.compiler.algorithm import Winograd
from hyper_inference.compiler.codegen import bfloat
from hyper_inference.compiler.codegen.activations import apply
from hyper_inference.compiler.codegen.emitter import Emitter, Value
from hyper_inference.compiler.codegen.kernel import (
    Arguments,
    Kernel,
    Packed,
    Strides,
    Transforms,
    packed,
)
from hyper_inference.compiler.codegen.winograd import (
    points,
    transform_inputs,
    transform_sums,
)
from hyper_inference.compiler.ir import Activation, Conv, Floats, Triple

LINE = 16
"""Floats of a cache line."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """How the work is cut; changes speed only.

    Args:
        channels, vectors: of the register block.
        tiles: of a task, side by side.
        columns: x positions of a task at a time, whole vectors.
        pitch: floats from a tile to the next in `U`; tiles are folded if it is no whole vector.
        slice: output channels of a task, whole register blocks.
    """

    channels: int
    vectors: int
    tiles: int
    columns: int
    pitch: int
    slice: int

    def __str__(self) -> str:
        return f"{self.channels}x{self.vectors} {self.tiles}t{self.columns} /{self.slice}"


@dataclass(frozen=True, slots=True)
class ConvWinograd(Kernel):
    """Sizes and strides of one convolution; depth, height and size are the output's."""

    channels_in: int
    channels_out: int
    kernel_x: int
    tile: Winograd
    pad: Triple
    depth: int
    height: int
    size: int
    a: Strides
    out: Strides
    residual: Strides | None
    activation: Activation | None
    block: Blocking
    pairs: bool = False

    @property
    def _depth_in(self) -> int:
        """Words or floats of all input channels of a voxel."""
        return -(-self.channels_in // 2) if self.pairs else self.channels_in

    @property
    def points(self) -> int:
        """Products for each pair of channels, tap along x, and column."""
        return points(self.tile.z) * points(self.tile.y)

    @property
    def folded(self) -> bool:
        """Tiles follow each other without gaps in the rows of U and M."""
        return self.block.pitch != self._input_pitch

    @property
    def _input_pitch(self) -> int:
        return unfolded_pitch(self.block.columns, self.kernel_x)

    @property
    def _groups(self) -> int:
        z, y = self.tile.tiles(self.depth, self.height)
        return -(-z * y // self.block.tiles)

    @property
    def tasks(self) -> int:
        """Groups of tiles times slices of output channels."""
        return self._groups * -(-self.channels_out // self.block.slice)

    @property
    def _u_row(self) -> int:
        return _round_up(self.block.tiles * self.block.pitch + LINE * self.folded, LINE)

    @property
    def _m_row(self) -> int:
        if self.folded:
            return self._u_row
        return self.block.tiles * self.block.columns

    @property
    def _u_point(self) -> int:
        return _odd_lines(self._depth_in * self._u_row)

    @property
    def _m_point(self) -> int:
        return _odd_lines(self.block.slice * self._m_row)

    @property
    def scratch(self) -> int:
        """U, then M; vectors may read and write a little behind either."""
        return self.points * (self._u_point + self._m_point) + 4 * LINE

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Tasks, and in each the chunks of x, the last moved back to overlap the one before."""
        columns = self.block.columns
        covered = _round_up(self.size, e.width)
        with e.loop(p.begin, p.end) as task:
            part, group = e.divmod(task.index, self._groups)
            first = e.mul(group, self.block.tiles)
            with e.loop(0, -(-covered // columns)) as chunk:
                x, done = e.mul(chunk.index, columns), 0
                if covered % columns and covered > columns:
                    begin = x
                    x = _least(e, begin, covered - columns)
                    done = e.b.sub(e.i64(begin), e.i64(x))
                self._inputs(e, p, first, x)
                self._sums(e, p, part)
                self._outputs(e, p, first, x, done, e.mul(part, self.block.slice))

    def _each_tile(
        self, e: Emitter, first: Value, body: Callable[[Value, Value, Value], None], *, once: bool
    ) -> None:
        """`body(index in the group, z, y)`; behind the last tile the last again unless `once`."""
        tiles_z, tiles_y = self.tile.tiles(self.depth, self.height)
        count: Value = self.block.tiles
        short = tiles_z * tiles_y % self.block.tiles > 0
        if short and once:
            count = _least(e, e.b.sub(e.i64(tiles_z * tiles_y), e.i64(first)), count)
        with e.loop(0, count) as tile:
            at = e.add(first, tile.index)
            if short and not once:
                at = _least(e, at, tiles_z * tiles_y - 1)
            z, y = e.divmod(at, tiles_y)
            body(tile.index, e.mul(z, self.tile.z), e.mul(y, self.tile.y))

    def _inputs(self, e: Emitter, p: Arguments, first: Value, x: Value) -> None:
        """Stage 1: `U[point][c][tile, x]`, lanes behind the last column are never used."""
        vectors = -(-(self.block.columns + self.kernel_x - 1) // e.width)
        if self.folded:
            vectors = -(-self.block.pitch // e.width)

        def tile(index: Value, z: Value, y: Value) -> None:
            z_in, y_in = e.add(z, -self.pad[0]), e.add(y, -self.pad[1])
            corner = e.mul(z_in, self.a.plane), e.mul(y_in, self.a.row), x, -self.pad[2]
            source = e.at(p.a, e.add(*corner))
            u = e.at(p.scratch, e.mul(index, self.block.pitch))
            each = 2 if self.pairs else 1
            whole, rest = divmod(self.channels_in, each)

            def channels(index: Value, count: int) -> None:
                first = e.at(source, e.mul(index, each * self.a.channel))
                to = e.at(u, e.mul(index, self._u_row))
                with e.loop(0, vectors * e.width, e.width) as v:
                    found = [
                        self._transformed(e, e.at(first, e.add(v.index, n * self.a.channel)))
                        for n in range(count)
                    ]
                    if self.pairs:
                        zeros = [e.constant(0.0)] * self.points
                        pairs = zip(found[0], (*found[1:], zeros)[0], strict=True)
                        found = [[bfloat.join(e, low, high) for low, high in pairs]]
                    for n, value in enumerate(found[0]):
                        e.store(value, to, e.add(v.index, n * self._u_point))

            if whole:
                with e.loop(0, whole) as c:
                    channels(c.index, each)
            if rest:
                channels(whole, rest)

        self._each_tile(e, first, tile, once=False)

    def _transformed(self, e: Emitter, pixels: Value) -> list[Value]:
        """One vector of every point, from the rows of a tile of one channel."""
        rows = []
        for dz in range(points(self.tile.z)):
            line = [
                e.load(pixels, dz * self.a.plane + dy * self.a.row)
                for dy in range(points(self.tile.y))
            ]
            rows.append(transform_inputs(e, self.tile.y, line))
        columns = [transform_inputs(e, self.tile.z, column) for column in zip(*rows, strict=True)]
        return [value for row in zip(*columns, strict=True) for value in row]

    def _sums(self, e: Emitter, p: Arguments, part: Value) -> None:
        """Stage 2: every point a product of matrices, in register blocks."""
        block = self.block
        per_point = self._depth_in * self.kernel_x * block.channels
        blocks = block.slice // block.channels
        total = -(-self.channels_out // block.channels)
        begin = e.mul(part, blocks)
        if total % blocks:
            stop = _least(e, e.add(begin, blocks), total)
            stop = e.b.sub(e.i64(stop), e.i64(begin))
        else:
            stop = blocks
        weights = e.at(p.constants, e.mul(begin, per_point * self.points))
        m = e.at(p.scratch, self.points * self._u_point)
        with e.loop(0, self.points) as point, e.loop(0, stop) as o:
            of_block = e.add(e.mul(o.index, self.points * per_point), e.mul(point.index, per_point))
            at = e.at(weights, of_block)
            u = e.at(p.scratch, e.mul(point.index, self._u_point))
            row = e.mul(o.index, block.channels * self._m_row)
            to = e.at(m, e.add(e.mul(point.index, self._m_point), row))
            self._columns(e, at, u, to)

    def _columns(self, e: Emitter, weights: Value, u: Value, m: Value) -> None:
        """All columns of a point and a block of channels.

        Tiles that are not folded are segments of whole vectors; a register block spans vectors of
        one segment, or segments of one vector.
        """
        block = self.block
        if self.folded:
            segments, vectors, u_step, m_step = 1, self._folded_vectors(e.width), 0, 0
        else:
            segments, vectors = block.tiles, block.columns // e.width
            u_step, m_step = block.pitch, block.columns
        if vectors == 1:
            outer, inner, count = 0, (u_step, m_step), segments
        else:
            outer, inner, count = segments, (e.width, e.width), vectors

        def run(u: Value, m: Value) -> None:
            step = min(block.vectors, count)
            whole, rest = divmod(count, step)
            if whole:
                with e.loop(0, whole) as n:
                    at = e.mul(n.index, step * inner[0]), e.mul(n.index, step * inner[1])
                    self._block(e, weights, e.at(u, at[0]), e.at(m, at[1]), step, inner)
            if rest:
                at = whole * step * inner[0], whole * step * inner[1]
                self._block(e, weights, e.at(u, at[0]), e.at(m, at[1]), rest, inner)

        if outer > 1:
            with e.loop(0, outer) as segment:
                at = e.mul(segment.index, u_step), e.mul(segment.index, m_step)
                run(e.at(u, at[0]), e.at(m, at[1]))
        else:
            run(u, m)

    def _folded_vectors(self, width: int) -> int:
        return -(-(self.block.tiles * self.block.pitch - self.kernel_x + 1) // width)

    def _block(
        self, e: Emitter, weights: Value, u: Value, m: Value, vectors: int, steps: tuple[int, int]
    ) -> None:
        """`channels x vectors` sums over input channels and taps along x."""
        count, taps = self.block.channels, self.kernel_x
        zeros = [e.constant(0.0)] * (count * vectors)
        with e.loop(0, self._depth_in, 1, zeros) as c:
            row = e.at(u, e.mul(c.index, self._u_row))
            slice_ = e.at(weights, e.mul(c.index, taps * count))
            sums = list(c.carried)
            for tap in range(taps):
                if self.pairs:
                    words = [bfloat.load_words(e, row, tap + v * steps[0]) for v in range(vectors)]
                    bfloat.add_products(e, sums, words, e.at(slice_, tap * count), count)
                    continue
                loads = [e.load(row, tap + v * steps[0]) for v in range(vectors)]
                for n in range(count):
                    weight = e.broadcast(slice_, tap * count + n)
                    for v in range(vectors):
                        at = n * vectors + v
                        sums[at] = e.fma(weight, loads[v], sums[at])
            c.carried[:] = sums
        for n in range(count):
            for v in range(vectors):
                e.store(c.carried[n * vectors + v], m, n * self._m_row + v * steps[1])

    def _outputs(
        self, e: Emitter, p: Arguments, first: Value, x: Value, done: Value, channel: Value
    ) -> None:
        """Stage 3: back to rows, epilogue, stores; the first `done` columns are stored already.

        Nothing is stored twice: the residual may lie where the results go.
        """
        m = e.at(p.scratch, self.points * self._u_point)
        padded = _round_up(self.channels_out, self.block.channels)
        biases = e.at(p.constants, self.points * self._depth_in * self.kernel_x * padded)
        biases = e.at(biases, channel)
        count: Value = self.block.slice
        if self.channels_out % count:
            left = self.channels_out
            remaining = e.b.sub(e.i64(left), e.i64(channel))
            count = _least(e, remaining, count)
        pitch = self.block.pitch if self.folded else self.block.columns

        def tile(index: Value, z: Value, y: Value) -> None:
            def place(pointer: Value, s: Strides) -> Value:
                offsets = e.mul(channel, s.channel), e.mul(y, s.row), e.mul(z, s.plane)
                return e.at(pointer, e.add(*offsets, x))

            out = place(p.out, self.out)
            residual = place(p.b, self.residual) if self.residual is not None else None
            sums = e.at(m, e.mul(index, pitch))
            with e.loop(0, count) as o:
                bias = e.broadcast(biases, o.index)
                scale = None
                if self.residual is not None:
                    scale = e.broadcast(e.at(biases, self.channels_out), o.index)
                with e.loop(done, self.block.columns, e.width) as v:
                    at = e.at(sums, e.add(e.mul(o.index, self._m_row), v.index))
                    to = e.at(out, e.add(e.mul(o.index, self.out.channel), v.index))
                    other = None
                    if self.residual is not None:
                        other = e.at(
                            residual, e.add(e.mul(o.index, self.residual.channel), v.index)
                        )
                    self._rows(e, at, to, other, bias, scale, z, y, e.add(x, v.index))

        self._each_tile(e, first, tile, once=True)

    def _rows(
        self, e: Emitter, sums: Value, out: Value, residual: Value, bias: Value, scale: Value,
        z: Value, y: Value, x: Value,
    ) -> None:  # fmt: skip
        """One vector of each row of a tile."""
        points_z, points_y = points(self.tile.z), points(self.tile.y)
        columns = []
        for dy in range(points_y):
            column = [e.load(sums, (dz * points_y + dy) * self._m_point) for dz in range(points_z)]
            columns.append(transform_sums(e, self.tile.z, column))
        for dz in range(self.tile.z):
            values = transform_sums(e, self.tile.y, [column[dz] for column in columns])
            for dy, value in enumerate(values):
                with self._if_inside(e, z, y, dz, dy):
                    value = e.b.fadd(value, bias)
                    if self.residual is not None:
                        at = dz * self.residual.plane + dy * self.residual.row
                        value = e.fma(e.load(residual, at), scale, value)
                    value = apply(e, self.activation, value)
                    value = e.keep_before(value, x, self.size)
                    e.store(value, out, dz * self.out.plane + dy * self.out.row)

    def _if_inside(
        self, e: Emitter, z: Value, y: Value, dz: int, dy: int
    ) -> AbstractContextManager[object]:
        """Nothing to ask of rows that every tile has."""
        checks = []
        for at, step, size, tile in (
            (z, dz, self.depth, self.tile.z),
            (y, dy, self.height, self.tile.y),
        ):
            if size % tile and step >= size % tile:
                checks.append(e.b.icmp_signed("<", e.i64(at), e.i64(size - step)))
        if not checks:
            return nullcontext()
        inside = functools.reduce(e.b.and_, checks)
        context: AbstractContextManager[object] = e.b.if_then(inside, likely=True)
        return context


def unfolded_pitch(columns: int, kernel_x: int) -> int:
    """Floats from a tile to the next in U where tiles do not share vectors."""
    return _round_up(columns + kernel_x - 1, LINE)


def _least(e: Emitter, value: Value, bound: Value) -> Value:
    if isinstance(value, int) and isinstance(bound, int):
        return min(value, bound)
    value, bound = e.i64(value), e.i64(bound)
    return e.b.select(e.b.icmp_signed("<", value, bound), value, bound)


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


def _odd_lines(floats: int) -> int:
    """Whole cache lines, an odd number: neighbours lie in different sets of the cache."""
    lines = -(-floats // LINE)
    return (lines + (lines % 2 == 0)) * LINE


def pack(op: Conv, tile: Winograd, block: int, *, pairs: bool = False) -> Packed:
    """Weights as [block][point][c][kx][o of the block], then biases, then residual scales.

    The last block is filled up with zeros. With `pairs`, words of two channels.
    """
    out_channels, channels, taps = op.weight.shape[0], op.weight.shape[1], op.kernel[2]
    blocks, count = -(-out_channels // block), points(tile.z) * points(tile.y)
    words = -(-channels // 2) if pairs else channels
    shape = blocks, count, words, taps, block

    def fill(out: Floats, transforms: Transforms) -> None:
        for first, into in zip(range(0, out_channels, block), out.reshape(shape), strict=True):
            part = op.weight[first : first + block]
            if pairs:
                weights = np.zeros((count, channels, taps, block), np.float32)
                transforms.winograd(part, tile, weights)
                into[:] = bfloat.pack_pairs(weights)
            else:
                transforms.winograd(part, tile, into)

    return packed(op, math.prod(shape), fill)


COLUMNS = 64
"""Columns of a task: enough for each weight to be used often."""
MOST_COLUMNS = 256
"""Whole rows where scratch has room: memory is read faster in long pieces."""
FOLDED_COLUMNS = 80
FEWEST_COLUMNS = 32
SCRATCH_BYTES = 800_000
"""U and M of a task should stay in the second-level cache, unless weights weigh more."""
HEAVY_BYTES = 16 * 2**20
"""Weights that stream from far away for every task: each must meet many columns."""
SMALLEST_SLICE = 32
"""Output channels of a split: with fewer, repeating stage 1 costs more than 4%."""
TASKS = 4
"""At least so many tasks if possible, so that threads share the work."""


@functools.cache
def choose_blocking(
    channels_in: int, channels_out: int, kernel_x: int, tile: Winograd,
    result: Triple, width: int, accumulators: int,
) -> Blocking:  # fmt: skip
    """Cut the work; `result` is the output's (z, y, x)."""
    depth, height, size = result
    tiles_z, tiles_y = tile.tiles(depth, height)
    count = tiles_z * tiles_y
    products = points(tile.z) * points(tile.y)
    heavy = 4 * products * channels_in * channels_out * kernel_x > HEAVY_BYTES
    vectors = -(-size // width)
    fit = SCRATCH_BYTES // (4 * products * (channels_in + channels_out))
    chunks = max(1, round(vectors * width / max(COLUMNS, min(fit, MOST_COLUMNS))))
    columns = -(-vectors // chunks) * width
    pitch, tiles, folds = unfolded_pitch(columns, kernel_x), 1, False
    if chunks == 1:
        fold = size + kernel_x - 1
        plain, folded = (
            _tiles(count, n, most, products * (channels_in + channels_out), heavy=heavy)
            for n, most in ((columns, COLUMNS), (fold, FOLDED_COLUMNS))
        )
        used = folded * size / _round_up(folded * fold - kernel_x + 1, width)
        folds = used > 1.05 * size / columns
        tiles, pitch = (folded, fold) if folds else (plain, pitch)
    row = -(-(tiles * fold - kernel_x + 1) // width) if folds else tiles * columns // width
    block, step = choose_register_block(channels_out, row, accumulators, heavy=heavy)
    splits = max(1, min(-(-TASKS // -(-count // tiles)), channels_out // SMALLEST_SLICE))
    slice_ = _round_up(-(-channels_out // splits), block)
    return Blocking(block, step, tiles, columns, pitch, slice_)


def _tiles(count: int, columns: int, together: int, floats: int, *, heavy: bool) -> int:
    """Tiles of a task, so that tasks are equal; `floats` of scratch a column."""
    most = max(1, round(together / columns))
    if not heavy:
        fit = SCRATCH_BYTES // (4 * floats * columns)
        most = min(most, max(fit, FEWEST_COLUMNS // columns, 1))
    return -(-count // -(-count // most))


@functools.cache
def choose_register_block(
    channels: int, vectors: int, accumulators: int, *, heavy: bool = False
) -> tuple[int, int]:
    """(output channels, vectors) that cost the fewest cycles, channels filled up.

    As in `conv_direct.choose_block`: multiply-adds, the latency of one chain, or loads. Heavy
    weights come from far away: each meets several vectors, and loads cost more.
    """
    cost = 0.3 if heavy else 0.1
    best, chosen = float("inf"), (1, 1)
    for xs in range(min(4 if heavy else 1, vectors), min(6, vectors) + 1):
        for cs in range(1, min(channels, accumulators // xs) + 1):
            total = 0.0
            for x, blocks in ((xs, vectors // xs), (vectors % xs, int(vectors % xs > 0))):
                if x == 0:
                    continue
                loads = 0.5 * cs + 2.0 * x
                total += blocks * (max(cs * x, 8.0, loads) + cost * loads)
            total *= -(-channels // cs)
            if total < best:
                best, chosen = total, (cs, xs)
    return chosen
