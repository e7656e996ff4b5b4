"""A net over a whole array: patches, blending, whole shards of the destination.

The patches lie on one grid that is fixed by the source array, the patch and the overlap, not by the
box: any split of a volume into boxes, computed in any order, writes the same bytes. Border patches
end where the array ends, so that the net itself treats the border, as it would on the whole array;
only an array smaller than a patch is extended, by reflection.

Blending: `crop` (each voxel from the patch in whose middle it lies), `linear` and `bump` (weighted
means, weights falling towards a patch's faces).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from hyper.errors import InvalidArgumentError
from hyper_inference.compiler.ir import Triple
from hyper_inference.errors import ShapeError
from hyper_inference.mask import Mask
from hyper_voxels import Box

Floats: TypeAlias = npt.NDArray[np.float32]
T = TypeVar("T")
S = TypeVar("S")
BLENDINGS = ("crop", "linear", "bump")


class Source(Protocol):
    """An array that can be read: (z, y, x) or (c, z, y, x)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""

    def __getitem__(self, key: Any) -> Any: ...


class Destination(Source, Protocol):
    """An array that can be written."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its elements."""

    @property
    def shards(self) -> tuple[int, ...]:
        """Unit of writing."""

    def __setitem__(self, key: Any, value: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Conversion:
    """input = value * scale + shift; output = value * output_scale + output_shift, clipped."""

    scale: float = 1.0
    shift: float = 0.0
    output_scale: float = 1.0
    output_shift: float = 0.0

    def read(self, values: npt.NDArray[Any]) -> Floats:
        """Stored values as the net wants them."""
        floats = values.astype(np.float32)
        if (self.scale, self.shift) != (1.0, 0.0):
            floats = floats * np.float32(self.scale) + np.float32(self.shift)
        return floats

    def write(self, values: Floats, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Results as they are stored; integers are rounded and clipped, NaN becomes 0."""
        if (self.output_scale, self.output_shift) != (1.0, 0.0):
            values = values * np.float32(self.output_scale) + np.float32(self.output_shift)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            clean = np.nan_to_num(np.rint(values), nan=0.0).astype(np.float64)
            highest = float(limits.max)
            if highest > limits.max:  # 64 bits: the largest float64 that is not too large
                highest = float(np.nextafter(highest, 0.0))
            return np.clip(clean, float(limits.min), highest).astype(dtype)
        if dtype.kind == "b":
            return values > 0
        return values.astype(dtype)


@dataclass(frozen=True, slots=True)
class Window:
    """One patch along one axis: where it starts, and which voxels are its own under `crop`."""

    start: int
    keep_start: int
    keep_stop: int


def windows(size: int, patch: int, overlap: int) -> tuple[Window, ...]:
    """Patches that cover an axis of `size`; neighbours share at least `overlap` voxels.

    Raises:
        InvalidArgumentError: the overlap leaves no step.
    """
    if not 0 <= overlap < patch:
        raise InvalidArgumentError(
            f"an overlap of {overlap} does not fit a patch of {patch}: use 0 to {patch - 1}",
            field="overlap",
        )
    if patch >= size:
        return (Window(0, 0, size),)
    step = patch - overlap
    starts = [*range(0, size - patch, step), size - patch]
    cuts = [(left + patch + right) // 2 for left, right in itertools.pairwise(starts)]
    edges = [0, *cuts, size]
    return tuple(
        Window(start, low, high) for start, low, high in zip(starts, edges, edges[1:], strict=False)
    )


Patch: TypeAlias = tuple[Window, Window, Window]
"""Along z, y and x."""


@dataclass(frozen=True, slots=True)
class Grid:
    """All patches of a volume of (z, y, x) sizes."""

    size: Triple
    patch: Triple
    axes: tuple[tuple[Window, ...], tuple[Window, ...], tuple[Window, ...]]
    margin: Triple = (0, 0, 0)

    @classmethod
    def of(cls, size: Triple, patch: Triple, overlap: Triple, margin: Triple = (0, 0, 0)) -> Grid:
        """The grid; the same whatever box is computed.

        Args:
            size: of the volume.
            patch: of the net's input; its output lacks `margin` on each side.
            overlap: of neighbouring outputs.
            margin: voxels on each side.
        """
        window = _less(patch, margin)
        z, y, x = (windows(*axis) for axis in zip(size, window, overlap, strict=True))
        return cls(size, patch, (z, y, x), margin)

    @property
    def window(self) -> Triple:
        """(z, y, x) of a patch's output."""
        return _less(self.patch, self.margin)

    def touching(self, box: Box, blending: str) -> list[Patch]:
        """Patches that contribute to a box, in order."""
        chosen: list[list[Window]] = []
        for axis, found in enumerate(self.axes):
            low, high = box.start[axis], box.stop[axis]
            if blending == "crop":
                kept = [w for w in found if w.keep_start < high and low < w.keep_stop]
            else:
                kept = [w for w in found if w.start < high and low < w.start + self.window[axis]]
            chosen.append(kept)
        return [(z, y, x) for z in chosen[0] for y in chosen[1] for x in chosen[2]]


def _less(patch: Triple, margin: Triple) -> Triple:
    z, y, x = (n - 2 * m for n, m in zip(patch, margin, strict=True))
    return z, y, x


Net: TypeAlias = Callable[[Floats], Floats]
"""(c, z, y, x) of a patch -> (c, z, y, x) of its middle: all but the grid's margin."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What has been done so far."""

    done_patches: int
    total_patches: int
    written: Box | None
    compute_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked of a volume.

    Args:
        box: (z, y, x), in source and destination voxels.
        grid: of the whole source.
        conversion: of numbers, in and out.
        blending: crop, linear or bump.
        block_bytes: float32 memory of one block of output; two are held.
        out_channels: channels of the net's result.
        mask: patches without a wanted voxel are left out; where none is computed, 0 is written,
            and blocks without any are not written at all.
        done: boxes that were written before; blocks inside of one are left out.
    """

    box: Box
    grid: Grid
    conversion: Conversion
    blending: str = "crop"
    block_bytes: int = 2**28
    out_channels: int = 1
    mask: Mask | None = None
    done: tuple[Box, ...] = ()

    def blocks(self, shards: Sequence[int]) -> list[tuple[Box, list[Patch]]]:
        """Blocks to write, each with the patches that it needs."""
        found = []
        voxels = self.block_bytes // (12 * self.out_channels)
        for block in split_blocks(self.box, shards, voxels):
            if any(box.covers(block) for box in self.done):
                continue
            patches = [p for p in self.grid.touching(block, self.blending) if self._wanted(p)]
            if patches:
                found.append((block, patches))
        return found

    @property
    def weighs(self) -> bool:
        """Whether voxels may have several patches, or none."""
        return self.blending != "crop" or self.mask is not None

    def _wanted(self, patch: Patch) -> bool:
        if self.mask is None:
            return True
        if self.blending == "crop":
            corners = [w.keep_start for w in patch], [w.keep_stop for w in patch]
        else:
            stops = zip(patch, self.grid.window, self.grid.size, strict=True)
            corners = [w.start for w in patch], [min(w.start + p, n) for w, p, n in stops]
        return self.mask.touches(*corners)


def infer_volume(
    net: Net, source: Source, destination: Destination, work: Work
) -> Iterator[Progress]:
    """Compute a box of the destination; yields after every patch and every write.

    While the net computes, the next patch is read and the last block written.

    Args:
        net: run on one patch; called from this thread, one patch after another.
        source: (z, y, x) or (c, z, y, x).
        destination: the same z, y, x; (z, y, x) or (c, z, y, x).
        work: what to compute.
    """
    if work.blending not in BLENDINGS:
        raise InvalidArgumentError(
            f"blending {work.blending[:40]!r} is not one of {', '.join(BLENDINGS)}",
            field="blending",
        )
    blocks = work.blocks(destination.shards[-3:])
    total, done, compute_s = sum(len(patches) for _, patches in blocks), 0, 0.0

    def read(patch: Patch) -> Floats:
        return work.conversion.read(read_patch(source, patch, work.grid))

    def write(block: Box, result: Floats, weights: Floats | None) -> Box:
        stored = work.conversion.write(result, destination.dtype)
        if weights is not None:
            stored[:, weights == 0] = 0
        if len(destination.shape) == 3:
            destination[block.slices] = stored[0]
        else:
            destination[(slice(None), *block.slices)] = stored
        return block

    with (
        ThreadPoolExecutor(1, thread_name_prefix="read") as reader,
        ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
    ):
        inputs = ahead(reader, read, (patch for _, patches in blocks for patch in patches))
        writing: Future[Box] | None = None
        for block, patches in blocks:
            result = np.zeros((work.out_channels, *block.shape), np.float32)
            weights = np.zeros(block.shape, np.float32) if work.weighs else None
            for patch in patches:
                values = next(inputs)
                start = time.perf_counter()
                output = net(values)
                compute_s += time.perf_counter() - start
                if work.blending == "crop":
                    _paste(result, weights, output, block, patch)
                elif weights is not None:
                    _accumulate(result, weights, output, block, patch, work)
                done += 1
                yield Progress(done, total, None, compute_s)
            if weights is not None and work.blending != "crop":
                np.divide(result, weights, out=result, where=weights > 0)
            if writing is not None:
                yield Progress(done, total, writing.result(), compute_s)
            writing = writer.submit(write, block, result, weights)
        if writing is not None:
            yield Progress(done, total, writing.result(), compute_s)


def ahead(pool: ThreadPoolExecutor, function: Callable[[T], S], items: Iterable[T]) -> Iterator[S]:
    """`function` of each item, the next one computed by the pool while this one is used."""
    waiting: Future[S] | None = None
    for item in items:
        following = pool.submit(function, item)
        if waiting is not None:
            yield waiting.result()
        waiting = following
    if waiting is not None:
        yield waiting.result()


def split_blocks(box: Box, shards: Sequence[int], voxels: int) -> Iterator[Box]:
    """Cut a box along shard borders into blocks of at most about `voxels`, at least one shard.

    Blocks grow along x, then y, then z, so that they are as few as memory allows.
    """
    counts = [1, 1, 1]
    for axis in (2, 1, 0):
        needed = -(-box.stop[axis] // shards[axis]) - box.start[axis] // shards[axis]
        size = math.prod(n * s for n, s in zip(counts, shards, strict=True))
        counts[axis] = max(1, min(needed, voxels // max(1, size)))
    edges = []
    for axis in range(3):
        step = counts[axis] * shards[axis]
        first = box.start[axis] // shards[axis] * shards[axis]
        low, high = box.start[axis], box.stop[axis]
        edges.append([(max(a, low), min(a + step, high)) for a in range(first, high, step)])
    for spans in itertools.product(*edges):
        yield Box(tuple(low for low, _ in spans), tuple(high for _, high in spans))


def read_patch(source: Source, patch: Patch, grid: Grid) -> npt.NDArray[Any]:
    """(c, z, y, x) of a patch and its margin; what lies outside of the array is reflected."""
    spans, picks = [], []
    for window, wanted, margin, size in zip(patch, grid.patch, grid.margin, grid.size, strict=True):
        index = _reflected(np.arange(wanted) + window.start - margin, size)
        low, high = int(index.min()), int(index.max()) + 1
        spans.append(slice(low, high))
        whole = high - low == wanted and index[0] == low
        picks.append(None if whole else index - low)
    lead = (slice(None),) * (len(source.shape) - 3)
    values = np.asarray(source[(*lead, *spans)])
    values = values if values.ndim == 4 else values[None]
    for axis, pick in enumerate(picks, start=1):
        if pick is not None:
            values = np.take(values, pick, axis)
    return values


def _reflected(index: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Indices inside of an axis: ... 2, 1, 0, 1, ..., size - 1, size - 2, ..."""
    if size == 1:
        return np.zeros_like(index)
    period = 2 * (size - 1)
    index = index % period
    return np.asarray(np.minimum(index, period - index))


def _paste(
    result: Floats, weights: Floats | None, output: Floats, block: Box, patch: Sequence[Window]
) -> None:
    """Copy what is a patch's own under `crop`."""
    to, come = [slice(None)], [slice(None)]
    for axis, window in enumerate(patch):
        low = max(block.start[axis], window.keep_start)
        high = min(block.stop[axis], window.keep_stop)
        to.append(slice(low - block.start[axis], high - block.start[axis]))
        come.append(slice(low - window.start, high - window.start))
    result[tuple(to)] = output[tuple(come)]
    if weights is not None:
        weights[tuple(to[1:])] = 1


def _accumulate(
    result: Floats, weights: Floats, output: Floats, block: Box, patch: Sequence[Window],
    work: Work,
) -> None:  # fmt: skip
    """Add a patch with its weights."""
    to, come, ramps = [], [], []
    for axis, window in enumerate(patch):
        low = max(block.start[axis], window.start)
        high = min(block.stop[axis], window.start + work.grid.window[axis])
        to.append(slice(low - block.start[axis], high - block.start[axis]))
        come.append(slice(low - window.start, high - window.start))
        ramps.append(_ramp(work.grid.window[axis], work.blending)[come[-1]])
    weight = ramps[0][:, None, None] * ramps[1][:, None] * ramps[2]
    result[(slice(None), *to)] += output[(slice(None), *come)] * weight
    weights[tuple(to)] += weight


def _ramp(size: int, blending: str) -> Floats:
    """Weights along one axis of a patch, largest in the middle, never 0."""
    at = (np.arange(size) + 0.5) / size  # 0 .. 1
    if blending == "linear":
        return (2 * np.minimum(at, 1 - at)).astype(np.float32)
    exponent = np.maximum(-1 / (4 * at * (1 - at)) + 1, -12.0)  # the bump function
    return np.exp(exponent).astype(np.float32)


def margins(in_shape: Sequence[int], out_shape: Sequence[int]) -> Triple:
    """Voxels by which a net's result is smaller than its input, on each side along z, y and x.

    Raises:
        ShapeError: it is larger, or not in the middle.
    """
    lost = [n - m for n, m in zip(in_shape[1:], out_shape[1:], strict=True)]
    if any(n < 0 or n % 2 for n in lost):
        raise ShapeError(
            f"the net turns {tuple(in_shape[1:])} into {tuple(out_shape[1:])}; over a volume, "
            "the output is the input's middle: choose another patch, or pad inside the net"
        )
    return lost[0] // 2, lost[1] // 2, lost[2] // 2
