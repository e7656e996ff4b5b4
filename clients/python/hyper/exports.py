"""Volumes out of and into the local disk: OME-Zarr, Neuroglancer precomputed, image stacks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hyper import images
from hyper.errors import InvalidArgumentError
from hyper.pyramids import ome_attributes, precomputed_info, slabs

if TYPE_CHECKING:
    from hyper.arrays import Array
    from hyper.sessions import Session

_CHUNK = (64, 64, 64)
_PRECOMPUTED = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32")
Advance = Callable[[int], object]


def _nothing(count: int) -> None:
    """Nobody watches."""


def write_ome_zarr(
    levels: Sequence[Array], folder: Path, *, name: str, advance: Advance = _nothing
) -> None:
    """Write a pyramid as an OME-Zarr 0.5 group; `zarr.json` of the group comes last."""
    import zarr

    sizes = _voxel_sizes(levels)
    folder.mkdir(parents=True, exist_ok=True)
    for number, level in enumerate(levels):
        target = zarr.create_array(
            store=str(folder / str(number)),
            shape=level.shape,
            dtype=level.dtype,
            chunks=level.chunks,
            shards=level.shards,
            dimension_names=("z", "y", "x"),
            overwrite=True,
        )
        for z, block in slabs(level, level.shards[0]):
            target[z : z + len(block)] = block
            advance(len(block))
    document = {
        "zarr_format": 3, "node_type": "group", "attributes": ome_attributes(name, sizes),
    }  # fmt: skip
    (folder / "zarr.json").write_text(json.dumps(document, indent=1))


def write_precomputed(
    levels: Sequence[Array], folder: Path, *, labels: bool = False, advance: Advance = _nothing
) -> None:
    """Write a pyramid as Neuroglancer precomputed, raw chunks; `info` comes last."""
    sizes = _voxel_sizes(levels)
    dtype = levels[0].dtype.name
    if dtype not in _PRECOMPUTED:
        raise InvalidArgumentError(
            f"precomputed cannot hold {dtype}: it takes {', '.join(_PRECOMPUTED)}"
        )
    info = precomputed_info(dtype, [level.shape for level in levels], sizes, _CHUNK, labels=labels)
    for level, scale in zip(levels, info["scales"], strict=True):
        target = folder / scale["key"]
        target.mkdir(parents=True, exist_ok=True)
        for z, block in slabs(level, _CHUNK[0]):
            _write_chunks(block, z, target)
            advance(len(block))
    (folder / "info").write_text(json.dumps(info, indent=1))


def _write_chunks(block: np.ndarray, z: int, target: Path) -> None:
    steps = [range(0, n, c) for n, c in zip(block.shape, _CHUNK, strict=True)]
    for corner in itertools.product(*steps):
        ends = [min(at + c, n) for at, c, n in zip(corner, _CHUNK, block.shape, strict=True)]
        part = block[tuple(slice(a, b) for a, b in zip(corner, ends, strict=True))]
        shifted = [
            (a + shift, b + shift) for a, b, shift in zip(corner, ends, (z, 0, 0), strict=True)
        ]
        name = "_".join(f"{a}-{b}" for a, b in reversed(shifted))
        little = part.astype(part.dtype.newbyteorder("<"), copy=False)
        (target / name).write_bytes(little.tobytes())  # C order of zyx: x runs fastest


def import_sections(
    session: Session,
    name: str,
    folder: Path,
    *,
    voxel_size_nm: tuple[float, float, float] | None = None,
    advance: Advance = _nothing,
) -> Array:
    """A folder of PNG or TIFF sections, in natural order of name, as a (z, y, x) array."""
    paths = images.list_sections(folder)
    if not paths:
        raise InvalidArgumentError(f"{folder}: no PNG or TIFF files in it", reason="INVALID_IMAGE")
    first = images.read_section(paths[0])
    array = session.create_array(
        name, (len(paths), *first.shape), first.dtype, voxel_size_nm=voxel_size_nm
    )
    step = array.shards[0]
    for z in range(0, len(paths), step):
        sections = []
        for path in paths[z : z + step]:
            section = images.read_section(path)
            if (section.shape, section.dtype) != (first.shape, first.dtype):
                raise InvalidArgumentError(
                    f"{path}: {section.dtype} {section.shape}, but {paths[0].name} is "
                    f"{first.dtype} {first.shape}",
                    reason="INVALID_IMAGE",
                )
            sections.append(section)
            advance(1)
        array[z : z + len(sections)] = np.stack(sections)
    return array


def _voxel_sizes(levels: Sequence[Any]) -> list[tuple[float, float, float]]:
    sizes = []
    for level in levels:
        if level.ndim != 3:
            raise InvalidArgumentError(
                f"{level.name} has {level.ndim} axes; a volume has (z, y, x)",
                reason="SHAPE_MISMATCH",
            )
        sizes.append(level.voxel_size_nm or (1.0, 1.0, 1.0))
    return sizes
