"""Volumes out of and into the local disk: OME-Zarr, precomputed, N5, HDF5, image stacks."""

from __future__ import annotations

import gzip
import itertools
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hyper import images
from hyper.errors import InvalidArgumentError
from hyper.pyramids import ome_attributes, precomputed_info

if TYPE_CHECKING:
    from hyper.arrays import Array
    from hyper.sessions import Session

_CHUNK = (64, 64, 64)
_N5_EDGE = 128
_HDF5_EDGE = 64
_SLAB_BYTES = 64 * 2**20
_N5 = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64",
)  # fmt: skip
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
        for z, y, block in _slabs(level, level.shards[:2], advance):
            target[z : z + block.shape[0], y : y + block.shape[1]] = block
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
        for z, y, block in _slabs(level, _CHUNK[:2], advance):
            _write_chunks(block, z, y, target)
    (folder / "info").write_text(json.dumps(info, indent=1))


def _slabs(
    array: Array, steps: Sequence[int], advance: Advance
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(z, y, voxels from there on) of a (z, y, x) array: multiples of steps, as memory allows."""
    row = max(1, array.shape[2] * array.dtype.itemsize)
    rows = max(1, _SLAB_BYTES // (steps[0] * row) // steps[1]) * steps[1]
    thick = max(1, _SLAB_BYTES // (array.shape[1] * row) // steps[0]) * steps[0]
    for z in range(0, array.shape[0], thick):
        for y in range(0, array.shape[1], rows):
            yield z, y, np.asarray(array[z : z + thick, y : y + rows])
        advance(min(thick, array.shape[0] - z))


def _write_chunks(block: np.ndarray, z: int, y: int, target: Path) -> None:
    steps = [range(0, n, c) for n, c in zip(block.shape, _CHUNK, strict=True)]
    for corner in itertools.product(*steps):
        ends = [min(at + c, n) for at, c, n in zip(corner, _CHUNK, block.shape, strict=True)]
        part = block[tuple(slice(a, b) for a, b in zip(corner, ends, strict=True))]
        shifted = [
            (a + shift, b + shift) for a, b, shift in zip(corner, ends, (z, y, 0), strict=True)
        ]
        name = "_".join(f"{a}-{b}" for a, b in reversed(shifted))
        little = part.astype(part.dtype.newbyteorder("<"), copy=False)
        (target / name).write_bytes(little.tobytes())  # C order of zyx: x runs fastest


def write_n5(array: Array, folder: Path, *, advance: Advance = _nothing) -> None:
    """Write an array as N5, gzip; `attributes.json` comes last. Axes are turned to N5's own."""
    name = _dtype_name(array, _N5, "N5")
    folder.mkdir(parents=True, exist_ok=True)
    edges = tuple(min(c, _N5_EDGE) for c in array.chunks)
    for corner, block in _blocks(array, edges):
        index = [at // e for at, e in zip(corner, edges, strict=True)]
        target = folder.joinpath(*map(str, reversed(index)))
        target.parent.mkdir(parents=True, exist_ok=True)
        head = struct.pack(f">HH{block.ndim}I", 0, block.ndim, *reversed(block.shape))
        big = block.astype(block.dtype.newbyteorder(">"), copy=False)
        target.write_bytes(head + gzip.compress(big.tobytes(), 5))
        advance(1)
    attributes: dict[str, Any] = {
        "dimensions": list(reversed(array.shape)), "blockSize": list(reversed(edges)),
        "dataType": name, "compression": {"type": "gzip", "level": 5},
    }  # fmt: skip
    if array.voxel_size_nm is not None:
        attributes["resolution"] = list(reversed(array.voxel_size_nm))
        attributes["units"] = ["nm"] * 3
    (folder / "attributes.json").write_text(json.dumps(attributes, indent=1))


def write_hdf5(array: Array, path: Path, *, advance: Advance = _nothing) -> None:
    """Write an array as the dataset `data` of an HDF5 file, gzip; complete or not at all."""
    try:
        import h5py
    except ImportError as error:
        raise InvalidArgumentError("HDF5 needs h5py: pip install h5py") from error
    partial = path.with_name(f".{path.name}.partial")
    edges = tuple(min(c, _HDF5_EDGE) for c in array.chunks)
    try:
        with h5py.File(partial, "w") as file:
            data = file.create_dataset(
                "data", array.shape, array.dtype, chunks=edges, compression="gzip",
                compression_opts=1, shuffle=True, fillvalue=array.fill_value,
            )  # fmt: skip
            if array.voxel_size_nm is not None:
                data.attrs["element_size_um"] = [n / 1e3 for n in array.voxel_size_nm]
            for corner, block in _blocks(array, array.chunks):
                box = tuple(slice(a, a + n) for a, n in zip(corner, block.shape, strict=True))
                data[box] = block
                advance(1)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _blocks(array: Any, edges: Sequence[int]) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """(corner, voxels) of every block of `edges`."""
    steps = [range(0, n, e) for n, e in zip(array.shape, edges, strict=True)]
    for corner in itertools.product(*steps):
        box = tuple(
            slice(a, min(a + e, n)) for a, e, n in zip(corner, edges, array.shape, strict=True)
        )
        yield corner, np.asarray(array[box])


def _dtype_name(array: Array, allowed: Sequence[str], form: str) -> str:
    name = str(array.dtype.name)
    if name not in allowed:
        raise InvalidArgumentError(f"{form} cannot hold {name}: it takes {', '.join(allowed)}")
    return name


def import_volume(
    session: Session,
    name: str,
    path: Path,
    *,
    inner: str = "",
    voxel_size_nm: tuple[float, float, float] | None = None,
    advance: Advance = _nothing,
) -> Array:
    """A volume of the local disk (Zarr, N5, precomputed, HDF5; `hyper.volumes`) as an array.

    It is read and written a shard at a time.
    """
    from hyper.volumes import open_volume

    with open_volume(path, inner) as volume:
        array = session.create_array(
            name, volume.shape, volume.dtype, fill_value=volume.fill_value,
            voxel_size_nm=voxel_size_nm or volume.voxel_size_nm,
        )  # fmt: skip
        for corner, block in _blocks(volume, array.shards):
            box = tuple(slice(a, a + n) for a, n in zip(corner, block.shape, strict=True))
            array[box] = block
            advance(1)
    return array


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
    first = images.read_section(paths[0], numbers=True)
    array = session.create_array(
        name, (len(paths), *first.shape), first.dtype, voxel_size_nm=voxel_size_nm
    )
    step = array.shards[0]
    for z in range(0, len(paths), step):
        sections = []
        for path in paths[z : z + step]:
            section = images.read_section(path, numbers=True)
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
