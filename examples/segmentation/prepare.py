"""The stack with truth as a dataset, and the same out of alignment; real where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from synthetic import stack

from hyper.errors import NotFoundError
from hyper.images import list_sections, read_section

if TYPE_CHECKING:
    from hyper.client import Client

VOXEL_NM = (47.5, 4.6, 4.6)
INSIDE = (191, 223, 255)  # of `labels`: mitochondria, synapses, the rest of a cell
_PARTS = {"raw": "em/vnc_stack1", "membranes": "em/vnc_stack1_truth/membranes",
          "labels": "em/vnc_stack1_truth/labels"}  # fmt: skip


def ensure_truth(client: Client, dataset: str, *, small: bool) -> str:
    """Make the dataset of `raw`, `membranes`, `labels` unless it exists; returns what it is."""
    try:
        return client.open_dataset(dataset).message
    except NotFoundError:
        pass
    root = Path(os.environ.get("HYPER_DATA_DIR") or "../shared/data")
    if small:
        parts, said = dict(zip(_PARTS, stack(6, 128), strict=True)), "SYNTHETIC, tiny"
    elif all((root / folder).is_dir() for folder in _PARTS.values()):
        parts = {
            name: np.stack([read_section(file) for file in list_sections(root / folder)])
            for name, folder in _PARTS.items()
        }
        said = "ssTEM of a Drosophila larva's nerve cord (doi 10.6084/m9.figshare.856713)"
    else:
        parts, said = (
            dict(zip(_PARTS, stack(20, 512), strict=True)),
            "SYNTHETIC (no real data here)",
        )
    with client.session(dataset) as session:
        for name, values in parts.items():
            session.create_array(name, values.shape, "uint8", voxel_size_nm=VOXEL_NM)[...] = values
        session.commit(said)
    return said


def ensure_moved(client: Client, source: str, dataset: str, *, small: bool) -> str:
    """Make the dataset of `raw` and `inside` as they would come off a microscope, not aligned.

    Arrays: `raw`, (z, y, x), every section of `source` turned by up to 0.035 rad, shifted by up to
    3% of its edge, and warped by 0.4% of it; `inside`, the truth moved with it: 255 within cells.
    Sections are seen through a window that lies within all of them. Returns what it is.
    """
    try:
        return client.open_dataset(dataset).message
    except NotFoundError:
        pass
    if small:
        raw, _, labels = stack(6, 384)
        said = "SYNTHETIC"
    else:
        found = client.open_dataset(source)
        raw, labels, said = found["raw"][...], found["labels"][...], found.message
    said += ", its sections turned, shifted and warped at random"
    pairs = [
        moved(section, np.isin(truth, INSIDE), seed)
        for seed, (section, truth) in enumerate(zip(raw, labels, strict=True))
    ]
    with client.session(dataset) as session:
        for name, values in zip(("raw", "inside"), map(np.stack, zip(*pairs, strict=True)),
                                strict=True):  # fmt: skip
            session.create_array(name, values.shape, "uint8", voxel_size_nm=VOXEL_NM)[...] = values
        session.commit(said)
    return said


def moved(
    section: NDArray[np.uint8], inside: NDArray[np.bool_], seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A section (y, x) and its truth, both moved alike, an eighth smaller: no edge is seen."""
    edge = min(section.shape)
    rng = np.random.default_rng(seed)
    angle, shift = rng.uniform(-0.035, 0.035), rng.uniform(-0.03, 0.03, 2) * edge
    margin = edge // 16
    shape = tuple(n - 2 * margin for n in section.shape)
    centre = (np.array(section.shape, np.float64)[:, None, None] - 1) / 2
    at = np.indices(shape, np.float64) + margin - centre
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    warp = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), edge / 8) for _ in range(2)])
    warp *= edge / 256 / np.abs(warp).max()
    places = np.tensordot(turn, at, 1) + centre + shift[:, None, None] + warp
    grey = ndimage.map_coordinates(section.astype(np.float32), places, order=3, mode="nearest")
    truth = ndimage.map_coordinates(inside, places, order=0, mode="nearest")
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8), np.where(truth, 255, 0).astype(np.uint8)
