"""Alignment by optical flow the way of SOFIMA: patch correlation, cleaning, an elastic mesh.

Every section is laid by SIFT's affine map on the one before as aligned, then moved by a mesh whose
vertices are drawn to the flow (patches of 160 px every 40 px) and held together by springs.
"""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import scipy.sparse as sp
from ecc_chain import sift_affine, to_frame
from leave import grid, leave, volume
from scipy.sparse.linalg import spsolve

PATCH, STEP, RADIUS = 160, 40, 40
K_FLOW, K_SPRING = 0.01, 0.1  # SOFIMA's k0 and k
MIN_PEAK, MIN_RATIO, MAX_GRADIENT = 0.1, 1.4, 12.0


def flow(moving: Any, fixed: Any, points: Any) -> Any:
    """(n, 2): displacement (y, x) from `fixed` to `moving` at points; NaN where not known."""
    found = np.full(points.shape, np.nan)
    half = PATCH // 2
    h, w = fixed.shape
    for k, (cy, cx) in enumerate(points.round().astype(int)):
        y, x = np.clip(
            [cy - half, cx - half], [RADIUS, RADIUS], [h - PATCH - RADIUS, w - PATCH - RADIUS]
        )
        template = fixed[y : y + PATCH, x : x + PATCH]
        window = moving[y - RADIUS : y + PATCH + RADIUS, x - RADIUS : x + PATCH + RADIUS]
        if (template == 0).mean() > 0.2 or (window == 0).mean() > 0.4:
            continue
        score = cv2.matchTemplate(window, template, cv2.TM_CCOEFF_NORMED)
        _, top, _, (px, py) = cv2.minMaxLoc(score)
        rest = score.copy()
        rest[max(0, py - 8) : py + 9, max(0, px - 8) : px + 9] = -1
        if top < MIN_PEAK or top < MIN_RATIO * max(rest.max(), 1e-3):
            continue
        found[k] = py - RADIUS, px - RADIUS
    return found


def clean(field: Any) -> Any:
    """Vectors (r, c, 2) that differ much from their neighbours' median become NaN."""
    padded = np.pad(field, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    around = np.stack([
        padded[1 + i : 1 + i + field.shape[0], 1 + j : 1 + j + field.shape[1]]
        for i in (-1, 0, 1) for j in (-1, 0, 1)
    ])  # fmt: skip
    known = np.isfinite(around).any(axis=0)
    around[:, ~known] = 0
    median = np.nanmedian(around, axis=0)
    off = np.linalg.norm(field - median, axis=-1)
    return np.where((off <= MAX_GRADIENT)[..., None], field, np.nan)


def relax(field: Any) -> Any:
    """Vertex displacements (r, c, 2) that follow the flow and hold together."""
    rows, columns, _ = field.shape
    number = np.arange(rows * columns).reshape(rows, columns)
    pairs = [
        (number[:, :-1], number[:, 1:]), (number[:-1], number[1:]),
        (number[:-1, :-1], number[1:, 1:]), (number[1:, :-1], number[:-1, 1:]),
    ]  # fmt: skip
    first = np.concatenate([a.ravel() for a, _ in pairs])
    second = np.concatenate([b.ravel() for _, b in pairs])
    ones, at = np.ones(len(first)), np.arange(len(first))
    difference = sp.csr_matrix((np.r_[ones, -ones], (np.r_[at, at], np.r_[first, second])))
    known = np.isfinite(field).all(axis=-1).ravel()
    data = sp.diags(K_FLOW * known.astype(float))
    system = (
        data + K_SPRING * K_FLOW * (difference.T @ difference) + 1e-9 * sp.eye(rows * columns)
    ).tocsc()
    values = np.nan_to_num(field.reshape(-1, 2))
    moved = [spsolve(system, K_FLOW * known * values[:, axis]) for axis in (0, 1)]
    return np.stack(moved, -1).reshape(field.shape)


def main() -> None:
    """Section by section from the middle outwards."""
    sections = volume()
    depth, height, width = sections.shape
    steps = [sift_affine(b, a) for a, b in itertools.pairwise(sections)]
    frames = to_frame(steps)
    middle = depth // 2
    back = np.linalg.inv(frames[middle])
    affine = [back @ frame for frame in frames]
    rows, columns = -(-height // STEP) + 1, -(-width // STEP) + 1
    points, triangles = grid((height, width), rows, columns)
    aligned: dict[int, Any] = {}
    result: dict[int, Any] = {}
    order = [*range(middle, depth), *range(middle - 1, -1, -1)]
    for z in order:
        laid = cv2.warpAffine(sections[z], affine[z][:2], (width, height), flags=cv2.INTER_LINEAR)
        before = aligned.get(z - 1 if z > middle else z + 1)
        if before is None:
            field = np.zeros((rows, columns, 2))
        else:
            field = relax(clean(flow(laid, before, points).reshape(rows, columns, 2)))
        at = points + field.reshape(-1, 2)  # where the aligned point lies in the laid section
        dense = cv2.resize(
            field.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR
        )
        yy, xx = np.mgrid[:height, :width].astype(np.float32)
        aligned[z] = cv2.remap(laid, xx + dense[..., 1], yy + dense[..., 0], cv2.INTER_LINEAR)
        inverse = np.linalg.inv(affine[z])
        source = (inverse @ np.stack([at[:, 1], at[:, 0], np.ones(len(at))]))[1::-1].T
        result[z] = (source, points, triangles)
    leave([result[z] for z in range(depth)])


if __name__ == "__main__":
    main()
