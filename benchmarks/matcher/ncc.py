"""Normalised cross-correlation against OpenCV: `python -m benchmarks.matcher.ncc [--json]`.

Agreement, also with sums in float64; milliseconds a match on one thread (single templates, and 64
templates of one section, whose transforms are shared); matches a second on features four times
smaller; and where FFTs become cheaper than direct sums (`--plot FILE` draws it). Rounds of ours and
of OpenCV take turns; figures are medians of a thread's CPU time.

`--torch DEVICE` measures the differentiable layer instead, direct and by FFT, forward and backward,
on "cpu" or "cuda": wall-clock milliseconds a batch, and the difference of both to float64.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.matcher.sections import read_stack
from hyper_matcher import ncc
from hyper_matcher.align.sampling import downsample

_CASES = ((160, 360), (224, 424), (160, 512), (160, 1024))  # template in image, px
_FEATURES = (40, 90)  # 160 in 360 on features four times smaller
_FACTOR = 4
_CROSSOVER = ((64, (4, 6, 8, 12, 16, 24, 32)), (128, (4, 6, 8, 12, 16, 24)), (512, (4, 6, 8, 12)))
_MANY = 64
_LAYER = tuple(
    (batch, size, edge) for batch in (1, 6) for size, edge in
    ((64, 4), (64, 8), (64, 16), (128, 8), (128, 16), (128, 40), (256, 8), (256, 16), (256, 56))
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Measure and print; the last line with `--json` is an object of all figures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    data = Path(os.environ.get("HYPER_DATA_DIR", "../shared/data"))
    parser.add_argument(
        "--sections", default=str(data / "em" / "aligntk_raw"), help="DIR[:a-b], both ends included"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement")
    parser.add_argument("--json", action="store_true", help="end with an object of all figures")
    parser.add_argument("--plot", type=Path, help="draw the crossover, .png or .svg")
    parser.add_argument("--torch", metavar="DEVICE", help="the layer on cpu or cuda instead")
    arguments = parser.parse_args(argv)
    if arguments.torch:
        rows = layer_rows(arguments.torch, arguments.seconds)
        if arguments.json:
            print(json.dumps({"layer": {"device": arguments.torch, "rows": rows}}))
        return 0
    cv2.setNumThreads(1)
    first, second = read_stack(arguments.sections)[:2]
    if min(first.shape + second.shape) < _CASES[-1][1]:
        print(f"error: sections must be at least {_CASES[-1][1]} px wide and high", file=sys.stderr)
        return 2
    matches = [compare(first, second, *case, arguments.seconds) for case in _CASES]
    small = downsample(first, _FACTOR), downsample(second, _FACTOR)
    features = compare(*small, *_FEATURES, arguments.seconds)
    result = {
        "matches": matches,
        "features": features,
        "matches_per_second_per_core": 1e3 / features["shared_ms"],
        "disagreement_max": max(match["disagreement"] for match in [*matches, features]),
        "crossover": [
            crossover(second, size, templates, arguments.seconds) for size, templates in _CROSSOVER
        ],
    }
    print(f"{result['matches_per_second_per_core']:.0f} matches a second and core on 4x features")
    if arguments.plot:
        plot(result["crossover"], arguments.plot)
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
    templates = [
        np.ascontiguousarray(
            source[low + y : low + y + template_px, low + x : low + x + template_px]
        )
        for y in corners
        for x in corners
    ]
    image32, templates32 = image.astype(np.float32), [t.astype(np.float32) for t in templates]

    def theirs(template: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.matchTemplate(image32, template, cv2.TM_CCOEFF_NORMED))

    def ours() -> Iterable[NDArray[np.float32]]:
        return ncc.SearchImage(image).correlate_each(templates)

    middle = _MANY // 2
    alone = ncc.normalized_cross_correlation(templates[middle], image)
    differences = [
        float(np.abs(alone - theirs(templates32[middle])).max()),
        *(
            float(np.abs(found - theirs(template)).max())
            for found, template in zip(ours(), templates32, strict=True)
        ),
    ]
    exact = ncc.SearchImage(image).correlate(templates[middle], "direct")  # in float64
    single, single_theirs = timed(
        (
            lambda: ncc.normalized_cross_correlation(templates[middle], image),
            lambda: theirs(templates32[middle]),
        ),
        seconds,
    )
    shared, shared_theirs = timed(
        (lambda: exhaust(ours()), lambda: exhaust(theirs(t) for t in templates32)), seconds
    )
    figures = {
        "template_px": template_px,
        "search_px": search_px,
        "disagreement": max(differences),
        "error": float(np.abs(alone - exact).max()),
        "error_opencv": float(np.abs(theirs(templates32[middle]) - exact).max()),
        "single_ms": 1e3 * single,
        "single_opencv_ms": 1e3 * single_theirs,
        "single_ratio": single_theirs / single,
        "shared_ms": 1e3 * shared / _MANY,
        "shared_opencv_ms": 1e3 * shared_theirs / _MANY,
        "shared_ratio": shared_theirs / shared,
    }
    print(
        f"{template_px:4} in {search_px:4}: single {figures['single_ms']:.3f} ms (OpenCV "
        f"{figures['single_opencv_ms']:.3f}, {figures['single_ratio']:.2f}x), {_MANY} in one "
        f"{figures['shared_ms']:.3f} ({figures['shared_opencv_ms']:.3f}, "
        f"{figures['shared_ratio']:.2f}x); differs by {figures['disagreement']:.1e}, "
        f"from float64 by {figures['error']:.1e} ({figures['error_opencv']:.1e})"
    )
    return figures


def crossover(
    section: NDArray[Any], size: int, templates: tuple[int, ...], seconds: float
) -> dict[str, Any]:
    """Direct sums and FFTs in an image of one size, and what the rule in `ncc` would choose."""
    image = ncc.SearchImage(section[:size, :size])
    rows = []
    for edge in templates:
        template = section[:edge, :edge]

        def directly(template: NDArray[Any] = template) -> object:
            return image.correlate(template, "direct")

        def by_fft(template: NDArray[Any] = template) -> object:
            return image.correlate(template, "fft")

        direct_s, fft_s = timed((directly, by_fft), seconds / 4)
        chosen = ncc.spatial_is_cheaper((edge, edge), (size, size))
        rows.append(
            {
                "template_px": edge,
                "direct_ms": 1e3 * direct_s,
                "fft_ms": 1e3 * fft_s,
                "direct_chosen": chosen,
            }
        )
        print(
            f"{edge:4} in {size:4}: direct {1e3 * direct_s:.3f} ms, FFT {1e3 * fft_s:.3f} ms, "
            f"chosen: {'direct' if chosen else 'FFT'}"
        )
    return {"search_px": size, "templates": rows}


def plot(curves: list[dict[str, Any]], path: Path) -> None:
    """Time against the template's edge, direct sums and FFTs, for each size of image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for k, curve in enumerate(curves):
        rows, size = curve["templates"], curve["search_px"]
        edges = [row["template_px"] for row in rows]
        for key, name, style in (("direct_ms", "direct", "o-"), ("fft_ms", "FFT", "s--")):
            times = [row[key] for row in rows]
            axes.plot(edges, times, style, color=f"C{k}", label=f"{name}, {size} px image")
    axes.set(xscale="log", yscale="log", xlabel="edge of the template, px", ylabel="CPU ms a match")
    ticks = sorted({row["template_px"] for curve in curves for row in curve["templates"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path)


def layer_rows(device: str, seconds: float) -> list[dict[str, Any]]:
    """The torch layer on one device: both methods at each size, and which one "auto" takes."""
    import torch

    from hyper_matcher.ncc_layer import Method, normalized_cross_correlation, spatial_is_cheaper

    print(torch.cuda.get_device_name() if device == "cuda" else "CPU", torch.__version__)
    rows = []
    for batch, size, edge in _LAYER:
        generator = torch.Generator().manual_seed(0)
        search = torch.rand(batch, 1, size, size, generator=generator).to(device)
        template = torch.rand(batch, 1, edge, edge, generator=generator).to(device)
        exact = normalized_cross_correlation(search.double(), template.double(), method="fft")
        row: dict[str, Any] = {
            "batch": batch,
            "search_px": size,
            "template_px": edge,
            "direct_chosen": spatial_is_cheaper((edge, edge), (size, size), cuda=device == "cuda"),
        }

        def work(method: Method, search: Any = search, template: Any = template) -> None:
            s, t = search.clone().requires_grad_(), template.clone().requires_grad_()
            normalized_cross_correlation(s, t, method=method).sum().backward()
            if device == "cuda":
                torch.cuda.synchronize()

        both: tuple[Method, Method] = ("direct", "fft")
        times = timed((lambda: work("direct"), lambda: work("fft")), seconds / 4, time.perf_counter)
        for method, taken in zip(both, times, strict=True):
            found = normalized_cross_correlation(search, template, method=method)
            row[f"{method}_ms"] = 1e3 * taken
            row[f"{method}_error"] = float((found.double() - exact).abs().max())
        rows.append(row)
        print(
            f"{batch:3} x {edge:4} in {size:4}: direct {row['direct_ms']:.3f} ms (error "
            f"{row['direct_error']:.1e}), FFT {row['fft_ms']:.3f} ms ({row['fft_error']:.1e}), "
            f"chosen: {'direct' if row['direct_chosen'] else 'FFT'}"
        )
    return rows


def exhaust(values: Iterable[object]) -> None:
    """Compute all of them, keep none."""
    for _ in values:
        pass


def timed(
    works: tuple[Callable[[], object], ...],
    seconds: float,
    clock: Callable[[], float] = time.thread_time,
) -> list[float]:
    """Median seconds of each, taking turns for that long, after one that does not count."""
    for work in works:
        work()
    taken: list[list[float]] = [[] for _ in works]
    end = time.perf_counter() + seconds
    while len(taken[0]) < 3 or time.perf_counter() < end:
        for work, times in zip(works, taken, strict=True):
            start = clock()
            work()
            times.append(clock() - start)
    return [float(np.median(times)) for times in taken]


if __name__ == "__main__":
    sys.exit(main())
