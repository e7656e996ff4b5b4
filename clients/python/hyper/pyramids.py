"""Multiscale pyramids: coarser copies of an array, and how OME-Zarr and Neuroglancer name them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hyper.errors import InvalidArgumentError

if TYPE_CHECKING:
    from hyper._files import Tree
    from hyper.arrays import Array
    from hyper.sessions import Session

_SMALLEST = 64  # levels end where the longest edge is this short
_PIECE_VOXELS = 2**21
_LEVELS_MAX = 16


def level_name(array: str, level: int) -> str:
    """Name of the array that holds a level; level 0 is the array itself."""
    return f"{array}-levels/{level}" if level else array


def factors_of(voxel_size_nm: Sequence[float], shape: Sequence[int]) -> tuple[int, int, int]:
    """By what the next level is coarser along (z, y, x): what is finest, until voxels are cubes."""
    finest = min(voxel_size_nm)
    z, y, x = (
        2 if size < 2 * finest and length > 1 else 1
        for size, length in zip(voxel_size_nm, shape, strict=True)
    )
    return z, y, x


def downsample(block: np.ndarray, factors: Sequence[int], *, labels: bool = False) -> np.ndarray:
    """The block's means over boxes of `factors` voxels; of labels the first voxel of each box.

    Boxes that the block's end cuts hold the voxels that are there.
    """
    if labels or block.dtype.kind in "bc":
        return np.ascontiguousarray(block[tuple(slice(None, None, f) for f in factors)])
    sums = block.astype(np.float64)
    counts = np.ones((1,) * block.ndim)
    for axis, factor in enumerate(factors):
        starts = np.arange(0, block.shape[axis], factor)
        sums = np.add.reduceat(sums, starts, axis=axis)
        lengths = np.diff([*starts, block.shape[axis]]).astype(np.float64)
        counts = counts * lengths.reshape([-1 if a == axis else 1 for a in range(block.ndim)])
    means = sums / counts
    return (np.rint(means) if block.dtype.kind in "iu" else means).astype(block.dtype)


@dataclass(frozen=True, slots=True)
class Level:
    """A coarser copy, as made from the one before it.

    Args:
        level: 1 is made from the array itself.
        factors: by what it is coarser than the one before, (z, y, x).
        shape: (z, y, x).
        voxel_size_nm: (z, y, x).
    """

    level: int
    factors: tuple[int, int, int]
    shape: tuple[int, int, int]
    voxel_size_nm: tuple[float, float, float]


def levels_of(
    shape: Sequence[int], voxel_size_nm: Sequence[float], count: int | None = None
) -> list[Level]:
    """The coarser levels of an array, the finest first.

    Args:
        shape: (z, y, x).
        voxel_size_nm: (z, y, x).
        count: of levels with the array itself; None: until the longest edge is 64.
    """
    found: list[Level] = []
    z, y, x = shape
    z_nm, y_nm, x_nm = voxel_size_nm
    while len(found) + 1 < (count or _LEVELS_MAX) and (count or max(z, y, x) > _SMALLEST):
        by = factors_of((z_nm, y_nm, x_nm), (z, y, x))
        z, y, x = (-(-n // f) for n, f in zip((z, y, x), by, strict=True))
        z_nm, y_nm, x_nm = (s * f for s, f in zip((z_nm, y_nm, x_nm), by, strict=True))
        found.append(Level(len(found) + 1, by, (z, y, x), (z_nm, y_nm, x_nm)))
    return found


def create_level(session: Session, name: str, level: Level) -> Array:
    """Make the array of a level of array `name`, which belongs to the coming version."""
    return session.create_array(
        level_name(name, level.level), level.shape, session[name].dtype,
        voxel_size_nm=level.voxel_size_nm, attributes={"level_of": name, "level": level.level},
    )  # fmt: skip


def shards_of(target: Array) -> int:
    """How many shards an array has: one task's work each, and one hand's."""
    return math.prod(_shards_along(target))


def _shards_along(target: Array) -> tuple[int, ...]:
    return tuple(-(-n // s) for n, s in zip(target.shape, target.shards, strict=True))


def fill_shard(
    source: Array, target: Array, number: int, factors: Sequence[int], *, labels: bool = False
) -> None:
    """Write one shard of a level, in C order, from the level before; memory is a shard's."""
    at = np.unravel_index(number, _shards_along(target))
    begin = [int(i) * s for i, s in zip(at, target.shards, strict=True)]
    end = [min(b + s, n) for b, s, n in zip(begin, target.shards, target.shape, strict=True)]
    made = np.empty([e - b for b, e in zip(begin, end, strict=True)], target.dtype)
    for piece in _pieces(made.shape):
        box = tuple(
            slice((b + p.start) * f, min((b + p.stop) * f, n))
            for b, p, f, n in zip(begin, piece, factors, source.shape, strict=True)
        )
        made[piece] = downsample(np.asarray(source[box]), factors, labels=labels)
    target[tuple(slice(b, e) for b, e in zip(begin, end, strict=True))] = made


def _pieces(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Parts of a block that are made at a time: halves of halves, the longest edge first."""
    edges = list(shape)
    while math.prod(edges) > _PIECE_VOXELS:
        longest = edges.index(max(edges))
        edges[longest] = -(-edges[longest] // 2)
    steps = [range(0, n, edge) for n, edge in zip(shape, edges, strict=True)]
    for begin in itertools.product(*steps):
        yield tuple(slice(b, min(b + e, n)) for b, e, n in zip(begin, edges, shape, strict=True))


def build(
    session: Session, name: str, *, levels: int | None = None, labels: bool = False, first: int = 1
) -> int:
    """Write the coarser levels of array `name`, which is (z, y, x) and has a voxel size.

    Returns how many there are with the array itself. They belong to the coming version.

    Args:
        session: that holds the array.
        name: of the array.
        levels: with the array itself; None: until the longest edge is 64.
        labels: the first voxel of each box counts, not their mean.
        first: level from which on they are written; those before are there.
    """
    source: Array = session[name]
    if source.ndim != 3 or source.voxel_size_nm is None:
        raise InvalidArgumentError(
            f"{name} has {source.ndim} axes and voxel size {source.voxel_size_nm}; a pyramid needs "
            "(z, y, x) and voxel_size_nm",
            reason="SHAPE_MISMATCH",
        )
    every = levels_of(source.shape, source.voxel_size_nm, levels)
    for level in every[first - 1 :]:
        source = session[level_name(name, level.level - 1)]
        target = create_level(session, name, level)
        for number in range(shards_of(target)):
            fill_shard(source, target, number, level.factors, labels=labels)
    return 1 + len(every)


def open_levels(tree: Tree, name: str) -> list[Array]:
    """An array and its coarser levels, finest first."""
    names = set(tree.arrays())
    found = [tree[name]]
    while level_name(name, len(found)) in names:
        found.append(tree[level_name(name, len(found))])
    return found


def ome_attributes(name: str, voxel_sizes_nm: Sequence[Sequence[float]]) -> dict[str, Any]:
    """OME-Zarr 0.5 metadata of a group whose arrays "0", "1", ... are the levels, (z, y, x)."""
    finest = voxel_sizes_nm[0]
    datasets = []
    for level, size in enumerate(voxel_sizes_nm):
        # A mean's centre lies between the voxels that it is of.
        shift = [(s - f) / 2 for s, f in zip(size, finest, strict=True)]
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [float(s) for s in size]}]
        if any(shift):
            transforms.append({"type": "translation", "translation": shift})
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    return {
        "ome": {
            "version": "0.5",
            "multiscales": [{"name": name, "axes": axes, "datasets": datasets}],
        }
    }


def precomputed_info(
    dtype: str,
    shapes: Sequence[Sequence[int]],
    voxel_sizes_nm: Sequence[Sequence[float]],
    chunk: Sequence[int],
    *,
    labels: bool,
) -> dict[str, Any]:
    """Neuroglancer's `info` of the levels; its own order is (x, y, z)."""
    scales = [
        {
            "key": "_".join(f"{size:g}" for size in reversed(voxel)),
            "size": list(reversed(shape)),
            "resolution": [float(size) for size in reversed(voxel)],
            "voxel_offset": [0, 0, 0],
            "chunk_sizes": [list(reversed(chunk))],
            "encoding": "raw",
        }
        for shape, voxel in zip(shapes, voxel_sizes_nm, strict=True)
    ]
    return {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation" if labels else "image",
        "data_type": dtype,
        "num_channels": 1,
        "scales": scales,
    }
