"""The stack with truth as a dataset: `raw`, `membranes`, `labels`; real where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from synthetic import stack

from hyper.errors import NotFoundError
from hyper.images import list_sections, read_section

if TYPE_CHECKING:
    from hyper.client import Client

VOXEL_NM = (47.5, 4.6, 4.6)
_PARTS = {"raw": "em/vnc_stack1", "membranes": "em/vnc_stack1_truth/membranes",
          "labels": "em/vnc_stack1_truth/labels"}  # fmt: skip


def ensure_truth(client: Client, dataset: str, *, small: bool) -> str:
    """Make the dataset unless it exists; returns what is in it, in words."""
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
