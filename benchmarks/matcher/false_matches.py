"""Share of false matches of NCCNet and of the best classical filter.

`python -m benchmarks.matcher.false_matches --train DIR[:a-b] --test DIR[:a-b] [--align] [--json]`

A template is cut from a section and looked for within +-100 px in a following one; a first peak
farther than 20 px from the true place is a false match. The truth is the stack's own alignment
(neighbours of `em/vnc_stack1` differ by a few px); with `--align`, test sections that are not
aligned are aligned first, by `hyper_matcher.align` with its classical filter. Filters are tuned,
and the net is trained, on the training sections alone. Intervals: 95%, bootstrap over pairs of
sections.

Methods: `raw`; `clahe`; `bandpass` (the best of the grid for each case, on the training sections);
`net` (features of whole sections, as `hyper align` computes them); `net_cut` (the net sees nothing
but the template's own pixels); `chosen` (what `hyper train-nccnet` would use on the test stack:
whatever its neighbours' consensus, which needs no labels, is highest for), and how much worse it is
than the best filter, with the interval of the difference.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.matcher.sections import aligned, read_stack
from hyper_matcher.nccnet import augment
from hyper_matcher.nccnet.choose import Trial, candidates, compare, why
from hyper_matcher.nccnet.model import NCCNet, NetConfig
from hyper_matcher.nccnet.sampling import SampleConfig
from hyper_matcher.nccnet.train import TrainConfig, features, grey_statistics, train

SEARCH_PX, TOLERANCE_PX = 100, 20
LOW_PX = (0.0, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
HIGH_PX = (4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0)
GRID = [(low, high) for low in LOW_PX for high in HIGH_PX if high >= 2 * low and high > low + 1]
BOOTSTRAPS = 2000
Image = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table.

    Args:
        distance: the template's section is z, the searched one z + distance.
        template_px: its edge.
        damaged: whether folds, stripes and dust are put into both.
        pairs: least number of templates.
    """

    distance: int
    template_px: int
    damaged: bool
    pairs: int

    @property
    def name(self) -> str:
        """As in the result object."""
        return f"z+{self.distance} {self.template_px} px" + (" damaged" if self.damaged else "")


@dataclass(frozen=True, slots=True)
class Places:
    """Templates of a case: of which pair of sections, and the template's first pixel.

    Args:
        pair: (n,) number of the pair.
        sections: (pairs, 2) z of the template's section and of the searched one.
        corner: (n, 2) px, multiples of 8.
    """

    pair: NDArray[np.int64]
    sections: NDArray[np.int64]
    corner: NDArray[np.int64]


def cases(pairs: int, adjacent: int) -> list[Case]:
    """The rows of the issue's table."""
    return [
        Case(1, 160, False, adjacent), Case(1, 224, False, adjacent),
        Case(2, 160, False, pairs), Case(2, 224, False, pairs),
        Case(3, 160, False, pairs), Case(3, 224, False, pairs),
        Case(2, 224, True, pairs),
    ]  # fmt: skip


def choose_places(case: Case, shape: Sequence[int], number: int, seed: int) -> Places:
    """Random places, equally many for each pair of sections."""
    rng = np.random.default_rng((seed, case.distance, case.template_px))
    depth, height, width = shape
    sections = np.array([(z, z + case.distance) for z in range(depth - case.distance)])
    sections = np.concatenate([sections, sections[:, ::-1]])
    each = -(-number // len(sections))
    low, room = SEARCH_PX, np.array([height, width]) - case.template_px - 2 * SEARCH_PX
    if min(room) < 0:
        raise ValueError(f"no room for {case.name} in sections of {height} x {width} px")
    pair = np.repeat(np.arange(len(sections)), each)
    corner = low + rng.integers(0, room + 1, (len(pair), 2))
    return Places(pair, sections, corner // 8 * 8)


def errors(
    filtered: Sequence[Image], case: Case, places: Places, factor: int, cut: Any = None
) -> NDArray[np.bool_]:
    """(n,) whether each template's first peak is false.

    Args:
        filtered: features of each section, smaller than it by `factor`.
        case: sizes.
        places: templates.
        factor: section pixels a feature.
        cut: (n, t, t) features of the templates where they are not cut from `filtered`.
    """
    edge, radius = case.template_px // factor, SEARCH_PX // factor
    wrong = np.zeros(len(places.pair), np.bool_)
    for k, (pair, corner) in enumerate(zip(places.pair, places.corner // factor, strict=True)):
        source, target = places.sections[pair]
        y, x = corner
        template = filtered[source][y : y + edge, x : x + edge] if cut is None else cut[k]
        top, left = max(0, y - radius), max(0, x - radius)
        window = filtered[target][top : y + edge + radius, left : x + edge + radius]
        scores = cv2.matchTemplate(window, np.ascontiguousarray(template), cv2.TM_CCOEFF_NORMED)
        i, j = np.unravel_index(int(np.argmax(scores)), scores.shape)
        wrong[k] = np.hypot(i + top - y, j + left - x) * factor > TOLERANCE_PX
    return wrong


def resampled(values: NDArray[Any], pair: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """95% interval of the mean, resampling pairs of sections."""
    rng = np.random.default_rng(seed)
    number = int(pair.max()) + 1
    means = np.array([values[pair == p].mean() for p in range(number)])
    drawn = means[rng.integers(0, number, (BOOTSTRAPS, number))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def worse_by(
    wrong: NDArray[np.bool_], other: NDArray[np.bool_], pair: NDArray[np.int64], seed: int
) -> dict[str, float]:
    """How much higher a rate is than another on the same templates, and its 95% interval."""
    low, high = resampled(wrong.astype(float) - other, pair, seed)
    return {"rate": float(wrong.mean() - other.mean()), "low": low, "high": high}


def interval(wrong: NDArray[np.bool_], pair: NDArray[np.int64], seed: int) -> dict[str, Any]:
    """Rate and its 95% interval, resampling pairs of sections."""
    low, high = resampled(wrong, pair, seed)
    return {
        "rate": float(wrong.mean()), "low": low, "high": high,
        "n": len(wrong), "errors": int(wrong.sum()),
    }  # fmt: skip


def clahe(section: NDArray[Any]) -> Image:
    """Contrast-limited adaptive histogram equalisation, 64-px tiles."""
    eight = cv2.normalize(section, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    tiles = tuple(max(1, edge // 64) for edge in section.shape[::-1])
    return cv2.createCLAHE(3.0, tiles).apply(eight).astype(np.float32)


def band(section: NDArray[Any], low: float, high: float) -> Image:
    """Difference of Gaussians; a low sigma of 0 leaves fine detail in."""
    wide = section.astype(np.float32)
    narrow = cv2.GaussianBlur(wide, (0, 0), low) if low > 0 else wide
    return narrow - cv2.GaussianBlur(wide, (0, 0), high)


def tune(
    stack: NDArray[Any], wanted: Sequence[Case], seed: int, say: Callable[[str], None]
) -> dict[str, tuple[float, float]]:
    """The best filter of the grid for each case, on the training sections: halving twice."""
    best: dict[str, tuple[float, float]] = {}
    mean, spread = grey_statistics(stack)
    for case in wanted:
        sections = damaged(stack, seed, mean, spread) if case.damaged else stack
        left = list(GRID)
        for number, keep in ((80, 12), (300, 4), (800, 1)):
            places = choose_places(case, stack.shape, number, seed + 1)
            rates = {}
            for low, high in left:
                found = errors([band(s, low, high) for s in sections], case, places, 1)
                rates[low, high] = float(found.mean())
            left = sorted(left, key=lambda sigmas: rates[sigmas])[:keep]
        best[case.name] = left[0]
        say(f"{case.name}: band-pass {left[0]} of {len(GRID)}: {rates[left[0]]:.2%} in training")
    return best


def tuned(
    arguments: argparse.Namespace, stack: NDArray[Any], wanted: Sequence[Case],
    say: Callable[[str], None],
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """As `tune`; kept beside the training, for another test on it."""
    file = arguments.folder / "filters.json" if arguments.folder else None
    asked = [arguments.train, arguments.seed]
    if file is not None and file.exists():
        kept = json.loads(file.read_text())
        if kept["of"] == asked:
            return {name: (low, high) for name, (low, high) in kept["filters"].items()}
    filters = tune(stack, wanted, arguments.seed, say)
    if file is not None:
        file.write_text(json.dumps({"of": asked, "filters": filters}))
    return filters


def damaged(stack: NDArray[Any], seed: int, mean: float, spread: float) -> NDArray[Any]:
    """Every section with a fold, stripes and dust of its own."""
    result = []
    for z, section in enumerate(stack):
        rng = np.random.default_rng((seed, 77, z))
        image = section.astype(np.float32)
        image = augment.fold(image, rng, mean, spread)
        image = augment.stripes(image, rng, spread)
        for _ in range(4):
            image = augment.dust(image, rng, mean, spread)
        result.append(np.clip(image, 1, 255))
    return np.stack(result).astype(np.uint8)


def cut_features(net: NCCNet, stack: NDArray[Any], case: Case, places: Places) -> NDArray[Any]:
    """Features of each template from its own pixels alone: (n, t, t)."""
    edge = case.template_px
    return np.stack(
        [
            features(net, stack[places.sections[pair][0]][y : y + edge, x : x + edge])
            for pair, (y, x) in zip(places.pair, places.corner, strict=True)
        ]
    )


def evaluate(
    stack: NDArray[Any],
    net: NCCNet,
    filters: dict[str, tuple[float, float]],
    wanted: Sequence[Case],
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Every case and method on the test sections."""
    mean, spread = grey_statistics(stack)
    results: dict[str, Any] = {}
    for case in wanted:
        places = choose_places(case, stack.shape, case.pairs, seed)
        sections = damaged(stack, seed, mean, spread) if case.damaged else stack
        offered = candidates(net, list(sections))
        scores = compare(list(sections), offered, Trial())
        chosen = next(candidate for candidate in offered if candidate.name == scores[0].name)
        learned = [features(net, section) for section in sections]
        factor = net.config.factor
        low, high = filters[case.name]
        found = {
            "raw": errors([s.astype(np.float32) for s in sections], case, places, 1),
            "clahe": errors([clahe(s) for s in sections], case, places, 1),
            "bandpass": errors([band(s, low, high) for s in sections], case, places, 1),
            "net": errors(learned, case, places, factor),
            "net_cut": errors(
                learned, case, places, factor, cut_features(net, sections, case, places)
            ),
            "chosen": errors([chosen.make(s) for s in sections], case, places, chosen.factor),
        }
        row: dict[str, Any] = {m: interval(w, places.pair, seed) for m, w in found.items()}
        name = min(("raw", "clahe", "bandpass"), key=lambda m: row[m]["rate"])
        for method in ("net", "net_cut"):
            rate = row[method]["rate"]
            row[f"{method}_gain"] = row[name]["rate"] / rate if rate else None
        row["chosen"] |= {"is": chosen.name, "why": why(scores)}
        row["chosen"]["worse_than_best_filter_by"] = worse_by(
            found["chosen"], found[name], places.pair, seed
        )
        row["bandpass_sigmas_px"] = [low, high]
        results[case.name] = row
        worse = row["chosen"]["worse_than_best_filter_by"]
        say(
            f"{case.name:20} n={len(places.pair):5}  "
            + "  ".join(f"{m} {row[m]['rate']:.2%}" for m in found)
            + "  fewer: " + ", ".join(
                f"{row[m + '_gain']:.1f}x" if row[m + "_gain"] else "no error"
                for m in ("net", "net_cut")
            )
            + f"  chosen: {chosen.name}, worse by "
            + "{rate:.2%} ({low:.2%} to {high:.2%})".format(**worse)
        )  # fmt: skip
    return results


def main(argv: list[str] | None = None) -> int:
    """Train, tune, test, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("HYPER_DATA_DIR", "../shared/data")) / "em" / "vnc_stack1"
    parser.add_argument("--train", default=f"{data}:0-11", help="DIR[:a-b], both ends included")
    parser.add_argument("--test", default=f"{data}:12-19")
    parser.add_argument("--align", action="store_true", help="the test sections, first")
    parser.add_argument("--pairs", type=int, default=1000, help="templates a case, at least")
    parser.add_argument("--adjacent", type=int, default=5000, help="of z+1, at least")
    parser.add_argument("--steps", type=int, default=TrainConfig().steps)
    parser.add_argument("--levels", type=int, default=TrainConfig().levels)
    parser.add_argument("--widths", type=int, nargs="+", default=NetConfig().widths)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of the training: cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keeps the training and the filters")
    parser.add_argument("--quick", action="store_true", help="a minute: says nothing of quality")
    parser.add_argument("--json", action="store_true", help="end with an object of all figures")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.steps, arguments.pairs, arguments.adjacent = 20, 28, 28
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)

    def say(line: str) -> None:
        print(line, file=sys.stderr if arguments.json else sys.stdout, flush=True)

    training, test = read_stack(arguments.train), read_stack(arguments.test)
    if arguments.align:
        test = aligned(test)
        say(f"test sections, aligned: {test.shape}")
    wanted = cases(arguments.pairs, arguments.adjacent)
    say(f"band-passes (low, high sigma, px): {GRID}")
    start = time.process_time()
    config = TrainConfig(
        net=NetConfig(widths=tuple(arguments.widths)), samples=SampleConfig(),
        steps=arguments.steps, levels=arguments.levels, seed=arguments.seed,
    )  # fmt: skip

    def on_step(step: int, loss: float) -> None:
        if (step + 1) % 50 == 0:
            say(f"step {step + 1}: loss {loss:.3f}, {time.process_time() - start:.0f} CPU s")

    trained = train(
        training, config, folder=arguments.folder, device=arguments.device, on_step=on_step
    )
    train_cpu_s = time.process_time() - start
    filters = tuned(arguments, training, wanted, say)
    results = evaluate(test, trained.net, filters, wanted, arguments.seed + 10, say)
    if arguments.json:
        facts = {
            "train": Path(arguments.train).name, "test": Path(arguments.test).name,
            "steps": config.steps,
            "parameters": trained.net.parameter_count(), "train_cpu_s": train_cpu_s,
            "band_passes": len(GRID),
        }  # fmt: skip
        print(json.dumps({**results, "training": facts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
