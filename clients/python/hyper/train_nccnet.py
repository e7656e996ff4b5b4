"""Train NCCNet on a stack: `hyper train-nccnet SRC DST`.

The caller's machine opens a session of the destination and submits a recipe of two experiments,
run by `hyper_matcher.nccnet.jobs` on workers that have torch: `train` (a gang, if more than one
worker is asked for) and `choose`, which compares the net with classical filters on sections that it
was not trained on, writes the report and commits.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from hyper.errors import InvalidArgumentError
from hyper.names import parse_address

if TYPE_CHECKING:
    from hyper.arrays import Array
    from hyper.client import Client
    from hyper.workflows import Workflow

FOLDER = "nccnet"
MODEL_FILE = f"{FOLDER}/nccnet.onnx"
RESULT_FILE = f"{FOLDER}/result.json"
REPORT_FILE = f"{FOLDER}/report.html"
_LARGEST_PX = 2048  # sections are trained on from their middle: as much as a worker holds
_MOST_SECTIONS = 64
_HELD_OUT = 0.25


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What a user may choose.

    Args:
        steps: batches of training.
        batch_size: pairs of sections a step, over all workers.
        workers: ranks that train together.
        seed: of everything random.
        template_px: edges of templates that the net is trained for.
        search_px: largest displacement that matching will look for.
        gpu: whether each worker trains on a GPU of its own; the same seed gives the same bits on
            CPUs alone.
    """

    steps: int = 2400
    batch_size: int = 6
    workers: int = 1
    seed: int = 0
    template_px: tuple[int, ...] = (160, 224)
    search_px: int = 100
    gpu: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.workers < 1:
            raise InvalidArgumentError("steps, batch size and workers are at least 1")
        if self.batch_size % self.workers:
            raise InvalidArgumentError(
                f"a batch of {self.batch_size} cannot be shared by {self.workers} workers; give "
                "--batch-size a multiple",
                field="batch_size",
            )
        if not self.template_px or min(self.template_px) < 16 or self.search_px < 8:
            raise InvalidArgumentError(
                "templates are at least 16 px and the search at least 8 px", field="template_px"
            )


def submit(client: Client, source: str, destination: str, options: TrainOptions) -> Workflow:
    """Start the job; the session is aborted if it cannot start.

    Args:
        client: of the cluster.
        source: `tenant/name[@version]/array` of a roughly aligned stack (z, y, x), such as
            `hyper align` makes.
        destination: `tenant/name`, which gets `nccnet/nccnet.onnx`, `result.json`, `report.html`.
        options: how.
    """
    target = parse_address(destination)
    if target.array is not None or target.version is not None:
        raise InvalidArgumentError(
            f"{destination}: the destination is a dataset: write tenant/name", field="destination"
        )
    array = client.open_array(source)
    box = training_box(array, source, options)
    session = client.session(destination)
    try:
        settings = {**asdict(options), "source": array.name, "label": source, "box": box}
        name = f"nccnet-{target.dataset}"[:64]
        return client.submit(recipe(name, session.name, json.dumps(settings), options))
    except BaseException:
        session.abort()
        raise


def training_box(array: Array, label: str, options: TrainOptions) -> dict[str, list[int]]:
    """What is trained on ("train": [z0, z1], "y", "x") and what is held out ("test").

    Raises:
        InvalidArgumentError: not a stack of grey sections, or too few or too small ones.
    """
    if len(array.shape) != 3 or array.dtype not in (np.uint8, np.uint16):
        raise InvalidArgumentError(
            f"{label}: has shape {array.shape} and dtype {array.dtype}; training needs (z, y, x) "
            "of uint8 or uint16",
            reason="SHAPE_MISMATCH",
        )
    depth, *edges = array.shape
    if depth < 6:
        raise InvalidArgumentError(
            f"{label}: {depth} sections; training needs at least 6, of which 3 are held out",
            reason="SHAPE_MISMATCH",
        )
    depth = min(depth, _MOST_SECTIONS)
    held_out = max(3, round(_HELD_OUT * depth))
    spans = []
    for edge in edges:
        low = max(0, (edge - _LARGEST_PX) // 2)
        spans.append([low, min(edge, low + _LARGEST_PX)])
    return {"train": [0, depth - held_out], "test": [depth - held_out, depth],
            "y": spans[0], "x": spans[1]}  # fmt: skip


def recipe(name: str, session: str, settings: str, options: TrainOptions) -> str:
    """The job as YAML."""
    shared: dict[str, Any] = {
        "parameters": {"session": session, "settings": settings}, "retries": 3, "timeout": "12h",
    }  # fmt: skip
    train = {"function": "hyper_matcher.nccnet.jobs:train", **shared}
    if options.workers > 1:
        train["gang"] = options.workers
    if options.gpu:
        train["gpu"] = 1
    choose = {"function": "hyper_matcher.nccnet.jobs:choose", "depends_on": ["train"], **shared}
    document = {"version": 1, "name": name, "experiments": {"train": train, "choose": choose}}
    return yaml.safe_dump(document, sort_keys=False)
