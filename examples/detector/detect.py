"""Detection over many images: the trained detector on the CPU engine, a shard of images a task."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scenes import all_labels, name_of, read_image

from hyper import TaskContext

PRIOR = 0.25  # as in model.py, which needs torch
_CONFIDENCE = 0.3
_OVERLAP = 0.5
_SHARED: dict[str, bytes] = {}  # a warm process reads each version of a model once


def plan(context: TaskContext, *, session: str, source: str, shards: int) -> dict[str, int]:
    """List the images once, and share them out: `shards/SHARD.json` has the paths of one task."""
    job = context.client.attach(session)
    tree = context.client.open_dataset(source) if source else job
    paths = [info.path for info in tree.files("images/")]
    bounds = [len(paths) * shard // shards for shard in range(shards + 1)]
    job.write_many(
        (f"shards/{shard:05}.json", json.dumps(paths[start:stop]).encode())
        for shard, (start, stop) in enumerate(itertools.pairwise(bounds))
    )
    return {"images": len(paths)}


def detect(
    context: TaskContext, *, session: str, source: str, model: str, edge: int, shard: int,
    batch: int,
) -> dict[str, Any]:  # fmt: skip
    """Find objects in every image of a shard; writes `detections/SHARD.jsonl`.

    Args:
        context: of the task.
        session: gets the detections.
        source: address of a dataset with `images/`; "": the session has them.
        model: dataset of the trained detector, tenant/name[@version].
        edge: px that the model sees.
        shard: which of `plan`'s.
        batch: images at once.
    """
    job = context.client.attach(session)
    tree = context.client.open_dataset(source) if source else job
    trained = context.client.open_dataset(model)
    if trained.name not in _SHARED:
        _SHARED[trained.name] = trained.read("detector.onnx")
    paths = json.loads(job.read(f"shards/{shard:05}.json"))
    lines, count = [], 0
    pending: list[tuple[str, NDArray[np.float32]]] = []
    for info, data in tree.read_many(paths):
        pending.append((name_of(info.path), read_image(data, edge, info.path)))
        if len(pending) == batch or info.path == paths[-1]:
            for name, found in _run(_SHARED[trained.name], pending):
                count += len(found)
                lines.append(json.dumps({"image": name, "boxes": found}))
            pending = []
    job.write(f"detections/{shard:05}.jsonl", "\n".join(lines) + "\n")
    return {"images": len(paths), "boxes": count}


def score(context: TaskContext, *, session: str, source: str) -> dict[str, Any]:
    """Compare with the labels, if there are any, and commit."""
    job = context.client.attach(session)
    tree = context.client.open_dataset(source) if source else job
    labels = all_labels(tree)
    found: dict[str, list[list[float]]] = {}
    for _, data in job.read_many(job.files("detections/")):
        for line in data.decode().splitlines():
            entry = json.loads(line)
            found[entry["image"]] = entry["boxes"]
    result: dict[str, Any] = {"images": len(found), "boxes": sum(map(len, found.values()))}
    if labels:
        truth = {
            name: [[b.kind, 1.0, b.x, b.y, b.width, b.height] for b in boxes]
            for name, boxes in labels.items()
        }
        result["average_precision_50"] = mean_average_precision(found, truth)
    job.write("result.json", json.dumps(result))
    request_id = str(uuid.uuid5(uuid.NAMESPACE_URL, context.task))
    result["version"] = job.commit("detections", request_id=request_id).number
    return result


def _run(
    model: bytes, images: list[tuple[str, NDArray[np.float32]]]
) -> Iterator[tuple[str, list[list[float]]]]:
    grids = _net(model, images[0][1].shape)(np.stack([image for _, image in images]))
    for (name, _), grid in zip(images, grids, strict=True):
        yield name, decode(grid)


@lru_cache(maxsize=4)
def _net(model: bytes, shape: tuple[int, ...]) -> Any:
    import hyper_inference

    return hyper_inference.compile(model, (1, *shape), threads=1)


def decode(grid: NDArray[np.float32]) -> list[list[float]]:
    """Boxes [class, confidence, x, y, width, height] of a grid (5 + classes, rows, columns).

    Of boxes of a class that overlap by more than a half, the most confident one stays.
    """
    _, rows, columns = grid.shape
    confidence = 1 / (1 + np.exp(-grid[0]))
    row, column = np.nonzero(confidence >= _CONFIDENCE)
    cell = grid[:, row, column]
    centre = 1 / (1 + np.exp(-cell[1:3]))
    size = np.exp(np.clip(cell[3:5], -6, 2)) * PRIOR
    boxes = np.stack(
        [cell[5:].argmax(axis=0), confidence[row, column],
         (column + centre[0]) / columns, (row + centre[1]) / rows, size[0], size[1]], axis=1,
    )  # fmt: skip
    kept: list[list[float]] = []
    for box in sorted(boxes.tolist(), key=lambda box: -box[1]):
        if all(k[0] != box[0] or overlap(k, box) <= _OVERLAP for k in kept):
            kept.append([round(value, 5) for value in box])
    return kept


def overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union of two boxes."""
    inside = 1.0
    for axis in (2, 3):
        low = max(b[axis] - b[axis + 2] / 2 for b in (one, other))
        high = min(b[axis] + b[axis + 2] / 2 for b in (one, other))
        inside *= max(high - low, 0.0)
    union = one[4] * one[5] + other[4] * other[5] - inside
    return inside / union if union > 0 else 0.0


def mean_average_precision(
    found: dict[str, list[list[float]]], truth: dict[str, list[list[float]]]
) -> float:
    """Mean over classes of the average precision at an overlap of a half (all-point, VOC 2010)."""
    scores = []
    for kind in sorted({int(box[0]) for boxes in truth.values() for box in boxes}):
        total = sum(box[0] == kind for boxes in truth.values() for box in boxes)
        ranked = sorted(
            (
                (box[1], name, box)
                for name, boxes in found.items()
                for box in boxes
                if box[0] == kind
            ),
            key=lambda entry: -entry[0],
        )
        taken: set[tuple[str, int]] = set()
        hits = []
        for _, name, box in ranked:
            candidates = [
                (overlap(box, other), at)
                for at, other in enumerate(truth.get(name, []))
                if other[0] == kind and (name, at) not in taken
            ]
            value, at = max(candidates, default=(0.0, -1))
            hits.append(value >= _OVERLAP)
            if hits[-1]:
                taken.add((name, at))
        right = np.cumsum(hits)
        precision = right / np.arange(1, len(hits) + 1) if hits else np.zeros(0)
        best_after = np.maximum.accumulate(precision[::-1])[::-1]
        scores.append(float(np.sum(best_after[np.asarray(hits, bool)]) / total))
    return float(np.mean(scores)) if scores else 0.0
