"""Do NCCNet's features know what mitochondria are, which nobody told them?

`python -m benchmarks.matcher.probe --net NCCNET.PT --images DIR --truth DIR [--json]`

A linear probe (least squares on standardised inputs, classes weighted alike) is fitted to tell
mitochondria from the rest on the sections that the net was trained on, and tried on others. Its
inputs are: the grey value; the grey values of neighbourhoods with as many numbers as the net has
maps; a difference of Gaussians; the net's one feature; the net's hidden maps, those of its finest
level and those of all (hypercolumns: Hariharan et al. 2015). All are taken on the net's grid
(sections averaged over `factor` x `factor` px). Figures: area under the ROC curve and average
precision on the held-out sections, with 95% intervals from resampled sections. `--net` is a
checkpoint of `benchmarks.matcher.false_matches --folder`; without it, a net is trained here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.matcher.sections import read_stack
from hyper_matcher.align.sampling import downsample
from hyper_matcher.nccnet.model import NCCNet
from hyper_matcher.nccnet.train import (
    TrainConfig,
    features,
    hypercolumns,
    load_net,
    maps,
    train,
)

_RESAMPLINGS = 1000
Inputs = NDArray[np.float64]


def neighbourhood(image: NDArray[Any], number: int) -> NDArray[Any]:
    """(number, y, x): the image moved by the `number` shortest distances, edges repeated."""
    reach = range(-8, 9)
    moves = sorted(((y, x) for y in reach for x in reach), key=lambda m: (m[0] ** 2 + m[1] ** 2, m))
    padded = np.pad(image, 8, mode="edge")
    height, width = image.shape
    return np.stack(
        [padded[8 + y : 8 + y + height, 8 + x : 8 + x + width] for y, x in moves[:number]]
    )


def inputs(net: NCCNet, start: NCCNet, section: NDArray[Any]) -> dict[str, Inputs]:
    """By name of the probe: its inputs (numbers, y, x) for a section."""
    small = np.asarray(downsample(section, net.config.factor), np.float64)
    hidden, columns = maps(net, section), hypercolumns(net, section)
    return {
        "raw pixel": small[None],
        f"raw, {len(hidden)} nearest pixels": neighbourhood(small, len(hidden)),
        f"raw, {len(columns)} nearest pixels": neighbourhood(small, len(columns)),
        "band-pass": features(start, section)[None],
        "net, its feature": features(net, section)[None],
        f"net, {len(hidden)} maps of its finest level": hidden,
        f"net, {len(columns)} maps of all levels": columns,
    }


def fit(x: Inputs, positive: NDArray[np.bool_]) -> tuple[Inputs, Inputs, Inputs]:
    """Weights (last one the offset), mean and spread of inputs (numbers, n)."""
    mean, spread = x.mean(1, keepdims=True), x.std(1, keepdims=True) + 1e-12
    design = np.concatenate([(x - mean) / spread, np.ones((1, x.shape[1]))])
    weight = np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum())
    target = np.where(positive, 1.0, -1.0)
    normal = (design * weight) @ design.T + 1e-6 * np.eye(len(design))
    return np.linalg.solve(normal, (design * weight) @ target), mean, spread


def ranks(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Area under the ROC curve, and average precision."""
    order = np.argsort(-scores, kind="stable")
    hits = positive[order]
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    negatives = len(hits) - found[-1]
    auc = float((found[~hits]).sum() / (found[-1] * negatives))
    return auc, float(precision[hits].mean())


def compare(
    net: NCCNet, images: NDArray[Any], truth: NDArray[Any], fitted: int
) -> dict[str, dict[str, Any]]:
    """Every probe, fitted on the first `fitted` sections and tried on the rest."""
    factor = net.config.factor
    inside = np.stack([downsample(t, factor) > 127 for t in truth])
    torch.manual_seed(0)
    start = NCCNet(net.config, mean=float(net.mean), spread=float(net.spread)).eval()
    made = [inputs(net, start, section) for section in images]
    results: dict[str, dict[str, Any]] = {}
    for name in made[0]:
        flat = [m[name].reshape(len(m[name]), -1).astype(np.float64) for m in made]
        known = inside[:fitted].reshape(-1)
        weights, mean, spread = fit(np.concatenate(flat[:fitted], 1), known)
        scored = []
        for z in range(fitted, len(images)):
            scores = weights[:-1] @ ((flat[z] - mean) / spread)
            if inside[z].any() and not inside[z].all():
                scored.append(ranks(scores, inside[z].reshape(-1)))
        table = np.array(scored)
        drawn = np.random.default_rng(0).integers(0, len(table), (_RESAMPLINGS, len(table)))
        low, high = np.quantile(table[drawn].mean(1), [0.025, 0.975], axis=0)
        results[name] = {
            "inputs": len(made[0][name]),
            "auc": float(table[:, 0].mean()),
            "auc_interval": [float(low[0]), float(high[0])],
            "average_precision": float(table[:, 1].mean()),
            "average_precision_interval": [float(low[1]), float(high[1])],
        }
    return results


def main(argv: list[str] | None = None) -> int:
    """Fit, try, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("HYPER_DATA_DIR", "../shared/data")) / "em"
    parser.add_argument("--images", default=str(data / "vnc_stack1"), help="DIR of sections")
    parser.add_argument("--truth", default=str(data / "vnc_stack1_truth" / "mitochondria"))
    parser.add_argument("--fitted", type=int, default=12, help="so many sections, the first ones")
    parser.add_argument("--net", type=Path, help="checkpoint of a net trained on those")
    parser.add_argument("--steps", type=int, default=TrainConfig().steps, help="without --net")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a minute: says nothing of quality")
    parser.add_argument("--json", action="store_true", help="end with an object of all figures")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    images, truth = read_stack(arguments.images), read_stack(arguments.truth)
    if images.shape != truth.shape or not 0 < arguments.fitted < len(images):
        print(f"error: sections {images.shape} and truth {truth.shape} differ, or --fitted leaves "
              "none to try", file=sys.stderr)  # fmt: skip
        return 2
    training = images[: arguments.fitted]
    if arguments.net:
        net, losses = load_net(arguments.net)
    else:
        steps = 20 if arguments.quick else arguments.steps
        trained = train(training, TrainConfig(steps=steps, seed=arguments.seed))
        net, losses = trained.net, trained.losses
    results = compare(net, images, truth, arguments.fitted)
    for name, row in results.items():
        print(
            f"{name:34} {row['inputs']:3} inputs  AUC {row['auc']:.3f} "
            f"({row['auc_interval'][0]:.3f}-{row['auc_interval'][1]:.3f})  average precision "
            f"{row['average_precision']:.3f} ({row['average_precision_interval'][0]:.3f}-"
            f"{row['average_precision_interval'][1]:.3f})",
            file=sys.stderr if arguments.json else sys.stdout,
        )
    if arguments.json:
        print(json.dumps({"probes": results, "steps": len(losses)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
