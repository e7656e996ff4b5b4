"""Arrays in Neuroglancer, whose client comes with its Python package: nothing is fetched.

The data go from the cluster through this process to the browser, so that no credential leaves it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hyper.errors import FailedPreconditionError, InvalidArgumentError
from hyper.installed import install_command

if TYPE_CHECKING:
    from hyper.arrays import Array

_IMAGE_SHADER = "#uicontrol invlerp normalized\nvoid main() { emitGrayscale(normalized()); }"
_PANEL_PX = 400
_SEGMENT_DTYPES = (np.uint32, np.uint64)
_AXES = {2: "yx", 3: "zyx"}


def open_viewer(arrays: Sequence[Array], *, bind: str = "127.0.0.1", port: int = 0) -> Any:
    """A Neuroglancer viewer with a layer an array; `str(viewer)` is its address.

    uint32 and uint64 are shown as segmentations, all else as images.

    Args:
        arrays: (z, y, x), (y, x) or (c, z, y, x).
        bind: address that the page is served on.
        port: its port; 0: a free one.

    Raises:
        FailedPreconditionError: Neuroglancer is not installed.
        InvalidArgumentError: an array has axes that it cannot show.
    """
    try:
        import neuroglancer
    except ImportError as error:
        raise FailedPreconditionError(
            f"the viewer is not installed: {install_command('view')}", reason="NOT_FOUND"
        ) from error
    for array in arrays:
        if not 2 <= array.ndim <= 4:
            raise InvalidArgumentError(
                f"{array.name} has {array.ndim} axes; (y, x), (z, y, x) and (c, z, y, x) can be "
                "shown",
                reason="SHAPE_MISMATCH",
            )
    neuroglancer.set_server_bind_address(bind, port)
    viewer = neuroglancer.Viewer()
    names = _layer_names([array.name for array in arrays])
    with viewer.txn() as state:
        state.layout = "4panel"
        for name, array in zip(names, arrays, strict=True):
            state.layers[name] = _layer(neuroglancer, array)
        first = arrays[0]
        axes = _AXES.get(first.ndim, "zyx")
        size = first.voxel_size_nm or (1.0, 1.0, 1.0)
        state.dimensions = neuroglancer.CoordinateSpace(
            names=list(axes), units=["nm"] * len(axes), scales=list(size)[-len(axes) :]
        )
        state.display_dimensions = list(reversed(axes))
        spatial = first.shape[-len(axes) :]
        state.position = [n / 2 for n in spatial]
        state.cross_section_scale = max(spatial[-2:]) / _PANEL_PX  # voxels a pixel
    return viewer


def _layer(neuroglancer: Any, array: Array) -> Any:
    axes = _AXES.get(array.ndim, "czyx")
    size = array.voxel_size_nm or (1.0, 1.0, 1.0)
    names = [f"{axis}^" if axis == "c" else axis for axis in axes]
    scales = [1.0 if axis == "c" else size["zyx".index(axis)] for axis in axes]
    units = ["" if axis == "c" else "nm" for axis in axes]
    segments = array.dtype in _SEGMENT_DTYPES and array.ndim <= 3
    volume = neuroglancer.LocalVolume(
        data=array,
        dimensions=neuroglancer.CoordinateSpace(names=names, units=units, scales=scales),
        volume_type="segmentation" if segments else "image",
        mesh_options=None,
        max_downsampling=1,  # pyramids are arrays of their own
    )
    if segments:
        return neuroglancer.SegmentationLayer(source=volume)
    return neuroglancer.ImageLayer(source=volume, shader=_IMAGE_SHADER)


def _layer_names(names: Sequence[str]) -> list[str]:
    """The last parts of arrays' names, numbered where two are alike."""
    short = [name.partition("/arrays/")[2] or name for name in names]
    counts = {name: itertools.count(2) for name in short}
    seen: set[str] = set()
    found = []
    for name in short:
        while name in seen:
            name = f"{name.split(' ')[0]} {next(counts[name.split(' ')[0]])}"
        seen.add(name)
        found.append(name)
    return found
