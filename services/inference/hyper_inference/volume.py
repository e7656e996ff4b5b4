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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from hyper.errors import InvalidArgumentError
from hyper_inference.compiler.ir import Triple
from hyper_inference.errors import ShapeError
from hyper_voxels import Box

Floats: TypeAlias = npt.NDArray[np.float32]
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


@dataclass(frozen=True, slots=True)
class Grid:
    """All patches of a volume of (z, y, x) sizes."""

    size: Triple
    patch: Triple
    axes: tuple[tuple[Window, ...], tuple[Window, ...], tuple[Window, ...]]

    @classmethod
    def of(cls, size: Triple, patch: Triple, overlap: Triple) -> Grid:
        """The grid; the same whatever box is computed."""
        z, y, x = (windows(*axis) for axis in zip(size, patch, overlap, strict=True))
        return cls(size, patch, (z, y, x))

    def touching(self, box: Box, blending: str) -> list[tuple[Window, Window, Window]]:
        """Patches that contribute to a box, in order."""
        chosen: list[list[Window]] = []
        for axis, found in enumerate(self.axes):
            low, high = box.start[axis], box.stop[axis]
            if blending == "crop":
                kept = [w for w in found if w.keep_start < high and low < w.keep_stop]
            else:
                kept = [w for w in found if w.start < high and low < w.start + self.patch[axis]]
            chosen.append(kept)
        return [(z, y, x) for z in chosen[0] for y in chosen[1] for x in chosen[2]]


Net: TypeAlias = Callable[[Floats], Floats]
"""(c, z, y, x) of a patch -> (c, z, y, x) of the same z, y, x."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What has been done so far."""

    done_patches: int
    total_patches: int
    written: Box | None
    compute_s: float


def infer_volume(
    net: Net,
    source: Source,
    destination: Destination,
    box: Box,
    grid: Grid,
    *,
    conversion: Conversion,
    blending: str = "crop",
    block_bytes: int = 2**28,
    out_channels: int = 1,
) -> Iterator[Progress]:
    """Compute `box` (z, y, x) of the destination; yields after every patch and every write.

    Args:
        net: run on one patch; called from this thread, one patch after another.
        source: (z, y, x) or (c, z, y, x).
        destination: the same z, y, x; (z, y, x) or (c, z, y, x).
        box: in source and destination voxels.
        grid: of the whole source.
        conversion: of numbers, in and out.
        blending: crop, linear or bump.
        block_bytes: float32 memory of one block of output.
        out_channels: channels of the net's result.
    """
    if blending not in BLENDINGS:
        raise InvalidArgumentError(
            f"blending {blending[:40]!r} is not one of {', '.join(BLENDINGS)}", field="blending"
        )
    blocks = list(split_blocks(box, destination.shards[-3:], block_bytes // (8 * out_channels)))
    work = [grid.touching(block, blending) for block in blocks]
    total, done, compute_s = sum(len(patches) for patches in work), 0, 0.0
    for block, patches in zip(blocks, work, strict=True):
        result = np.zeros((out_channels, *block.shape), np.float32)
        weights = None if blending == "crop" else np.zeros(block.shape, np.float32)
        for patch in patches:
            values = conversion.read(read_patch(source, patch, grid))
            start = time.perf_counter()
            output = net(values)
            compute_s += time.perf_counter() - start
            if weights is None:
                _paste(result, output, block, patch)
            else:
                _accumulate(result, weights, output, block, patch, grid, blending)
            done += 1
            yield Progress(done, total, None, compute_s)
        if weights is not None:
            result /= weights
        stored = conversion.write(result, destination.dtype)
        if len(destination.shape) == 3:
            destination[block.slices] = stored[0]
        else:
            destination[(slice(None), *block.slices)] = stored
        yield Progress(done, total, block, compute_s)


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


def read_patch(
    source: Source, patch: tuple[Window, Window, Window], grid: Grid
) -> npt.NDArray[Any]:
    """(c, z, y, x) of a patch; an array smaller than the patch is extended by reflection."""
    spans = [
        slice(w.start, min(w.start + p, n))
        for w, p, n in zip(patch, grid.patch, grid.size, strict=True)
    ]
    lead = (slice(None),) * (len(source.shape) - 3)
    values = np.asarray(source[(*lead, *spans)])
    values = values if values.ndim == 4 else values[None]
    more = [p - n for p, n in zip(grid.patch, values.shape[1:], strict=True)]
    if any(more):
        for axis, wanted in enumerate(grid.patch, start=1):
            values = np.take(values, _reflected(values.shape[axis], wanted), axis)
    return values


def _reflected(size: int, wanted: int) -> npt.NDArray[Any]:
    """Indices 0, 1, ..., size - 1, size - 2, ..., 1, 0, 1, ... up to `wanted`."""
    if size == 1:
        return np.zeros(wanted, np.int64)
    period = 2 * (size - 1)
    index = np.arange(wanted) % period
    return np.minimum(index, period - index)


def _paste(result: Floats, output: Floats, block: Box, patch: Sequence[Window]) -> None:
    """Copy what is a patch's own under `crop`."""
    to, come = [slice(None)], [slice(None)]
    for axis, window in enumerate(patch):
        low = max(block.start[axis], window.keep_start)
        high = min(block.stop[axis], window.keep_stop)
        to.append(slice(low - block.start[axis], high - block.start[axis]))
        come.append(slice(low - window.start, high - window.start))
    result[tuple(to)] = output[tuple(come)]


def _accumulate(
    result: Floats, weights: Floats, output: Floats, block: Box, patch: Sequence[Window],
    grid: Grid, blending: str,
) -> None:  # fmt: skip
    """Add a patch with its weights."""
    to, come, ramps = [], [], []
    for axis, window in enumerate(patch):
        low = max(block.start[axis], window.start)
        high = min(block.stop[axis], window.start + grid.patch[axis])
        to.append(slice(low - block.start[axis], high - block.start[axis]))
        come.append(slice(low - window.start, high - window.start))
        ramps.append(_ramp(grid.patch[axis], blending)[come[-1]])
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


def check_sizes(in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
    """Refuse nets whose output has another size than their input.

    Raises:
        ShapeError: says both sizes.
    """
    if tuple(in_shape[1:]) != tuple(out_shape[1:]):
        raise ShapeError(
            f"the net turns {tuple(in_shape[1:])} into {tuple(out_shape[1:])}; over a volume, "
            "output and input have the same size: pad inside the net"
        )
