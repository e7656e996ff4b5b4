"""OpenCV: SIFT for a start, then findTransformECC (affine) of each section to the one before."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
from leave import grid, leave, volume


def sift_affine(moving: Any, fixed: Any) -> Any:
    """(2, 3), x and y: a point of `fixed` to the same in `moving`; identity if nothing is found."""
    finder = cv2.SIFT_create(4000)
    here, there = finder.detectAndCompute(fixed, None), finder.detectAndCompute(moving, None)
    if here[1] is None or there[1] is None:
        return np.eye(2, 3, dtype=np.float32)
    pairs = cv2.BFMatcher().knnMatch(here[1], there[1], k=2)
    good = [p[0] for p in pairs if len(p) == 2 and p[0].distance < 0.85 * p[1].distance]
    if len(good) < 8:
        return np.eye(2, 3, dtype=np.float32)
    a = np.float32([here[0][m.queryIdx].pt for m in good])
    b = np.float32([there[0][m.trainIdx].pt for m in good])
    found, _ = cv2.estimateAffine2D(a, b, method=cv2.RANSAC, ransacReprojThreshold=5)
    return np.eye(2, 3, dtype=np.float32) if found is None else found.astype(np.float32)


def ecc(moving: Any, fixed: Any, start: Any) -> Any:
    """The same map, refined; the start where it does not converge."""
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-5)
    try:
        _, found = cv2.findTransformECC(
            fixed, moving, start.copy(), cv2.MOTION_AFFINE, stop, None, 9
        )
    except cv2.error:
        return start
    return found


def to_frame(maps: list[Any]) -> list[Any]:
    """(3, 3) of each section into the first one's frame, from maps of each to the one before."""
    placed = [np.eye(3)]
    for step in maps:
        whole = np.vstack([step, [0, 0, 1]])
        placed.append(placed[-1] @ np.linalg.inv(whole))
    return placed


def main() -> None:
    """Chain the sections from the middle's frame."""
    sections = volume()
    steps = [ecc(b, a, sift_affine(b, a)) for a, b in itertools.pairwise(sections)]
    placed = to_frame(steps)
    middle = np.linalg.inv(placed[len(placed) // 2])
    source, triangles = grid(sections.shape[1:], 2, 2)
    homogeneous = np.stack([source[:, 1], source[:, 0], np.ones(len(source))])
    leave([
        (source, (middle @ matrix @ homogeneous)[1::-1].T, triangles) for matrix in placed
    ])  # fmt: skip


if __name__ == "__main__":
    main()
