"""Folders of sections as arguments of benchmarks: `DIR` or `DIR:a-b`, both ends included."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper import images
from hyper_matcher.align.pipeline import align_stack


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


def aligned(stack: NDArray[Any]) -> NDArray[Any]:
    """The stack aligned, cut to a rectangle that every section has tissue in."""
    found = align_stack(stack)
    whole = found.valid.all(axis=0)
    top, left, (bottom, right) = 0, 0, whole.shape
    while not (inside := whole[top:bottom, left:right]).all():
        missing = [1 - edge.mean() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1])]
        worst = int(np.argmax(missing))
        top, bottom = top + (worst == 0), bottom - (worst == 1)
        left, right = left + (worst == 2), right - (worst == 3)
        if max(missing) == 0:  # a hole inside
            top, bottom, left, right = top + 1, bottom - 1, left + 1, right - 1
    if inside.size == 0:
        raise ValueError("the aligned sections have no place in common")
    return np.ascontiguousarray(found.sections[:, top:bottom, left:right])
