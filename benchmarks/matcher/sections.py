"""Folders of sections as arguments of benchmarks: `DIR` or `DIR:a-b`, both ends included."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper import images


def read_stack(what: str) -> NDArray[Any]:
    """Sections (z, y, x) of a folder of images, in name order."""
    chosen = re.fullmatch(r"(.+):(\d+)-(\d+)", what)
    folder = Path(chosen[1] if chosen else what)
    files = images.list_sections(folder) if folder.is_dir() else []
    if chosen:
        files = files[int(chosen[2]) : int(chosen[3]) + 1]
    if len(files) < 2:
        print(f"error: {what}: fewer than two sections there", file=sys.stderr)
        raise SystemExit(2)
    return np.stack([images.read_section(file) for file in files])
