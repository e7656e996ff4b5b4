"""Normalised cross-correlation against OpenCV: `python -m benchmarks.matcher.ncc [--json]`.

Agreement, milliseconds a match on one thread (single templates, and 64 templates of one section,
whose transforms and integral images are shared), and where FFTs become cheaper than direct sums.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hyper_matcher import ncc

_CASES = ((160, 360), (224, 424), (160, 512), (160, 1024))  # template in image, px
_CROSSOVER = ((64, (4, 8, 12, 16, 24, 32)), (128, (4, 8, 12, 16, 24, 32)), (512, (4, 8, 12, 16)))
_MANY = 64


def main(argv: list[str] | None = None) -> int:
    """Measure and print; the last line with `--json` is an object of all figures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--sections", type=Path, help="folder of sections (default: em/aligntk_raw)"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement")
    parser.add_argument("--json", action="store_true", help="end with an object of all figures")
    arguments = parser.parse_args(argv)
    data = Path(os.environ.get("HYPER_DATA_DIR", "../shared/data"))
    files = sorted((arguments.sections or data / "em" / "aligntk_raw").glob("*.png"))
    if len(files) < 2:
        print("error: fewer than two sections there; give --sections DIR", file=sys.stderr)
        return 2
    cv2.setNumThreads(1)
    first, second = (np.asarray(Image.open(file)) for file in files[:2])
    matches = [compare(first, second, t, s, arguments.seconds) for t, s in _CASES]
    result = {
        "matches": matches,
        "disagreement_max": max(match["disagreement"] for match in matches),
        "crossover": [
            crossover(second, size, templates, arguments.seconds) for size, templates in _CROSSOVER
        ],
    }
    if arguments.json:
        print(json.dumps(result))
    return 0


def compare(
    source: NDArray[Any], target: NDArray[Any], template_px: int, search_px: int, seconds: float
) -> dict[str, Any]:
    """One size of template and image: agreement and time, for one template and for many."""
    low = (min(target.shape) - search_px) // 2
    image = np.ascontiguousarray(target[low : low + search_px, low : low + search_px])
    corners = np.linspace(0, search_px - template_px, 8).astype(int)
    templates = np.stack(
        [
            source[low + y : low + y + template_px, low + x : low + x + template_px]
            for y in corners
            for x in corners
        ]
    )
    one = templates[_MANY // 2]
    image32, one32 = image.astype(np.float32), one.astype(np.float32)
    expected = cv2.matchTemplate(image32, one32, cv2.TM_CCOEFF_NORMED)
    found = ncc.normalized_cross_correlation(one, image)

    def shared() -> None:
        searched = ncc.SearchImage(image)
        for template in templates:
            searched.correlate(template)

    def theirs() -> None:
        for template in templates:
            cv2.matchTemplate(image32, template.astype(np.float32), cv2.TM_CCOEFF_NORMED)

    figures = {
        "template_px": template_px,
        "search_px": search_px,
        "disagreement": float(np.abs(found - expected).max()),
        "single_ms": 1e3 * timed(lambda: ncc.normalized_cross_correlation(one, image), seconds),
        "single_opencv_ms": 1e3
        * timed(lambda: cv2.matchTemplate(image32, one32, cv2.TM_CCOEFF_NORMED), seconds),
        "shared_ms": 1e3 * timed(shared, seconds) / _MANY,
        "shared_opencv_ms": 1e3 * timed(theirs, seconds) / _MANY,
    }
    print(
        f"{template_px:4} in {search_px:4}: single {figures['single_ms']:.2f} ms (OpenCV "
        f"{figures['single_opencv_ms']:.2f}), {_MANY} in one {figures['shared_ms']:.2f} "
        f"({figures['shared_opencv_ms']:.2f}); differs by {figures['disagreement']:.1e}"
    )
    return figures


def crossover(
    section: NDArray[Any], size: int, templates: tuple[int, ...], seconds: float
) -> dict[str, Any]:
    """Direct sums and FFTs in an image of one size, and what the rule in `ncc` would choose."""
    image = ncc.SearchImage(section[:size, :size])
    rows = []
    for edge in templates:
        centred = section[:edge, :edge].astype(np.float64)
        centred -= centred.mean()
        direct = timed(lambda c=centred: ncc.correlate_directly(image, c), seconds / 4)
        by_fft = timed(lambda c=centred: ncc.correlate_by_fft(image, c), seconds / 4)
        rows.append(
            {
                "template_px": edge,
                "direct_ms": 1e3 * direct,
                "fft_ms": 1e3 * by_fft,
                "direct_chosen": ncc.spatial_is_cheaper((edge, edge), (size, size)),
            }
        )
        print(
            f"{edge:4} in {size:4}: direct {1e3 * direct:.3f} ms, FFT {1e3 * by_fft:.3f} ms, "
            f"chosen: {'direct' if rows[-1]['direct_chosen'] else 'FFT'}"
        )
    return {"search_px": size, "templates": rows}


def timed(work: Callable[[], object], seconds: float) -> float:
    """CPU seconds of the fastest of several runs, after one that does not count."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.thread_time()
        work()
        best = min(best, time.thread_time() - start)
        if time.perf_counter() > end:
            return best


if __name__ == "__main__":
    sys.exit(main())
