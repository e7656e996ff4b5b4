"""Multiscale pyramids: coarser copies of an array, and how OME-Zarr and Neuroglancer name them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hyper.errors import InvalidArgumentError

if TYPE_CHECKING:
    from hyper._files import Tree
    from hyper.arrays import Array
    from hyper.sessions import Session

_SMALLEST = 64  # levels end where the longest edge is this short
_SLAB_BYTES = 32 * 2**20
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


def slabs(array: Any, step: int) -> Iterator[tuple[int, np.ndarray]]:
    """(z, voxels from there on) of a (z, y, x) array: multiples of `step`, as memory allows."""
    section = max(1, math.prod(array.shape[1:]) * np.dtype(array.dtype).itemsize)
    thickness = max(1, _SLAB_BYTES // section // step) * step
    for z in range(0, array.shape[0], thickness):
        yield z, np.asarray(array[z : z + thickness])


def build(session: Session, name: str, *, levels: int | None = None, labels: bool = False) -> int:
    """Write the coarser levels of array `name`, which is (z, y, x) and has a voxel size.

    Returns how many there are with the array itself. They belong to the coming version.
    """
    source: Any = session[name]
    if source.ndim != 3 or source.voxel_size_nm is None:
        raise InvalidArgumentError(
            f"{name} has {source.ndim} axes and voxel size {source.voxel_size_nm}; a pyramid needs "
            "(z, y, x) and voxel_size_nm",
            reason="SHAPE_MISMATCH",
        )
    level = 1
    while level < (levels or _LEVELS_MAX):
        if levels is None and max(source.shape) <= _SMALLEST:
            break
        factors = factors_of(source.voxel_size_nm, source.shape)
        z_nm, y_nm, x_nm = (s * f for s, f in zip(source.voxel_size_nm, factors, strict=True))
        shape = [-(-n // f) for n, f in zip(source.shape, factors, strict=True)]
        target = session.create_array(
            level_name(name, level), shape, source.dtype, voxel_size_nm=(z_nm, y_nm, x_nm),
            attributes={"level_of": name, "level": level},
        )  # fmt: skip
        step = target.shards[0] * factors[0]
        for z, block in slabs(source, step):
            coarse = downsample(block, factors, labels=labels)
            at = z // factors[0]
            target[at : at + len(coarse)] = coarse
        source = target
        level += 1
    return level


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
