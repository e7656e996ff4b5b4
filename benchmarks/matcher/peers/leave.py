"""What a peer leaves: triangles, and what it used."""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import numpy as np

_START = time.perf_counter()


def grid(shape: tuple[int, int], rows: int, columns: int) -> tuple[Any, Any]:
    """Vertices (n, 2) over a section and triangles (m, 3)."""
    y, x = np.meshgrid(
        np.linspace(0, shape[0] - 1, rows), np.linspace(0, shape[1] - 1, columns), indexing="ij"
    )
    number = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (
        number[:-1, :-1].ravel(), number[:-1, 1:].ravel(), number[1:, :-1].ravel(),
        number[1:, 1:].ravel(),
    )  # fmt: skip
    triangles = np.concatenate([np.stack([a, b, c], -1), np.stack([d, c, b], -1)])
    return np.stack([y.ravel(), x.ravel()], -1), triangles


def volume() -> Any:
    """The sections (z, y, x)."""
    return np.load(sys.argv[1])


def leave(sections: list[tuple[Any, Any, Any]]) -> None:
    """Write (source, placed, triangles) of every section, and say what it took."""
    arrays = {}
    for z, (source, placed, triangles) in enumerate(sections):
        arrays |= {f"source_{z}": source, f"placed_{z}": placed, f"triangles_{z}": triangles}
    np.savez(sys.argv[2], **arrays)
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    figures = {
        "seconds": time.perf_counter() - _START,
        "cpu_seconds": sum(u.ru_utime + u.ru_stime for u in (own, children)),
        "peak_rss_mb": max(own.ru_maxrss, children.ru_maxrss) / 1024,
    }
    print(json.dumps(figures))
