"""What the examples are: their recipes, what must be there first, what their reports show."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from hyper.run_report import chart, table

if TYPE_CHECKING:
    from hyper.client import Client
    from hyper.datasets import Dataset
    from hyper.workflows import Workflow

ROOT = Path(__file__).resolve().parent
Sections = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Workload:
    """One example.

    Args:
        title: of its report.
        folder: its code, beside this file.
        stem: of its recipes: `STEM.yaml` at this machine's size, `STEM.test.yaml`,
            `STEM.full.yaml`.
        stage: the experiment whose speed-up with workers is measured.
        needs: workloads that must have run before, by name.
        prepare: makes the input data; told whether the smallest will do.
        show: more sections of the report, from the workflow that has ended.
        gang: whether the stage is a gang, so that its ranks are what is varied.
    """

    title: str
    folder: str
    stem: str
    stage: str
    needs: tuple[str, ...] = ()
    prepare: Callable[[Client, bool], str] | None = None
    show: Callable[[Client, Workflow], Sections] | None = None
    gang: bool = False

    def recipe(self, size: str) -> Path:
        """Its file for "machine", "test" or "full"."""
        suffix = "" if size == "machine" else f".{size}"
        return ROOT / self.folder / f"{self.stem}{suffix}.yaml"


@contextmanager
def code_of(folder: str, module: str) -> Iterator[ModuleType]:
    """A module of an example's folder, imported as a worker does."""
    path = str(ROOT / folder)
    before = set(sys.modules)
    sys.path.insert(0, path)
    try:
        yield importlib.import_module(module)
    finally:
        sys.path.remove(path)
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "") or "").startswith(path):
                del sys.modules[name]


def results(workflow: Workflow, experiment: str) -> list[Any]:
    """What the tasks of an experiment have returned."""
    return [
        task.result
        for task in workflow.tasks(experiment, results=True)
        if task.state == "SUCCEEDED"
    ]


def _text(client: Client, workflow: Workflow) -> Sections:
    done = results(workflow, "process")
    rows = [(key, sum(each[key] for each in done)) for key in done[0]]
    return {"What came out": table(("", "count"), rows)}


def _boosting(client: Client, workflow: Workflow) -> Sections:
    (found,) = results(workflow, "best")
    best = found["best"]
    scores = sorted(
        (task.objective for task in workflow.tasks("search") if task.objective is not None),
        reverse=True,
    )
    share = [(100 * (i + 1) / len(scores), score) for i, score in enumerate(scores)]
    head = tuple(best[0])
    return {
        "Best combinations": table(head, [[_short(row[key]) for key in head] for row in best]),
        "All combinations, best first": chart(
            {"AUC": share[:: max(1, len(share) // 400)]}, x_label="% of combinations",
            y_label="AUC on held-out rows",
        ),
    }  # fmt: skip


def _losses(client: Client, workflow: Workflow) -> Sections:
    """The loss curve of a training that wrote `losses.json`."""
    losses = json.loads(_dataset(client, results(workflow, "begin")[0]).read("losses.json"))
    window = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    line = [(float(step), float(value)) for step, value in enumerate(smooth)]
    curve = chart({f"mean of {window} steps": line}, x_label="step", y_label="loss")
    return {"Loss": curve}


def _detection(client: Client, workflow: Workflow) -> Sections:
    (found,) = results(workflow, "score")
    return {"What came out": table(("", ""), [(k, _short(v)) for k, v in found.items()])}


def _segmentation(client: Client, workflow: Workflow, judge: str = "measure") -> Sections:
    with code_of("segmentation", "evaluate") as evaluate:
        (found,), (made,) = results(workflow, judge), results(workflow, "cut")
        dataset = _dataset(client, made)
        pictures = "".join(
            evaluate.picture_html(info.path[len("pictures/") : -len(".png")], data)
            for info, data in dataset.read_many(dataset.files("pictures/"))
        )
    return {"Against the truth": _against_truth(found), "A held-out section": pictures}


def _against_truth(found: Mapping[str, Any]) -> str:
    """What `evaluate` has measured, as a table."""
    rows = [
        (name, *(_short(found[key][each]) for each in ("rand_error", "information_bits",
                                                       "split_bits", "merge_bits")))
        for name, key in (("ours, within sections", "ours"),
                          ("watershed on intensity, within sections", "intensity"),
                          ("ours, across sections", "ours_3d"))
    ]  # fmt: skip
    heads = ("", "adapted Rand error", "variation of information, bits", "split", "merge")
    return table(heads, rows)


def _raw_to_segmented(client: Client, workflow: Workflow) -> Sections:
    (begun,), (found,), (linked,) = (results(workflow, name) for name in ("start", "judge", "link"))
    before = json.loads(_dataset(client, begun).read("align/settings.json"))["array"]
    shown = _segmentation(client, workflow, "judge")
    with code_of("segmentation", "evaluate") as evaluate:
        dataset = _dataset(client, results(workflow, "cut")[0])
        raw = client.open_array(json.loads(dataset.read("settings.json"))["source"])
        labels, z, y = dataset["segmentation"], found["sections"][0], raw.shape[1] // 2
        pictures = {
            "aligned section": raw[z],
            "its objects": evaluate.colours(labels[z].astype(np.int64)),
        }
        sides = {
            "from the side: raw": client.open_array(before)[:, y],
            "from the side: aligned": raw[:, y],
            "from the side: objects": evaluate.colours(labels[:, y].astype(np.int64)),
        }
        pictures |= {name: np.repeat(side, 8, axis=0) for name, side in sides.items()}
        html = "".join(evaluate.picture_html(k, evaluate.png(v)) for k, v in pictures.items())
    return {**shown, "What came out": table(("", "count"), list(linked.items())) + html}


def _dataset(client: Client, made: Mapping[str, Any]) -> Dataset:
    """The dataset of the session that a task has returned."""
    return client.open_dataset("/".join(made["session"].split("/")[1:4:2]))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _truth(client: Client, small: bool) -> str:
    with code_of("segmentation", "prepare") as prepare:
        name = "default/vnc-small" if small else "default/vnc"
        said: str = prepare.ensure_truth(client, name, small=small)
        return f"{name}: {said}"


def _moved(client: Client, small: bool) -> str:
    said = "" if small else f"{_truth(client, small)}\n"
    with code_of("segmentation", "prepare") as prepare:
        name = "default/vnc-moved-small" if small else "default/vnc-moved"
        return f"{said}{name}: {prepare.ensure_moved(client, 'default/vnc', name, small=small)}"


WORKLOADS: Mapping[str, Workload] = {
    "text": Workload(
        "Text files to TFRecord", "text", "recipe", "process", show=_text
    ),
    "boosting": Workload(
        "Gradient-boosted trees: a search", "boosting", "recipe", "search", show=_boosting
    ),
    "detector": Workload(
        "Synchronous training of a detector", "detector", "train", "train", show=_losses, gang=True
    ),
    "detection": Workload(
        "Detection over many images", "detector", "detect", "detect", needs=("detector",),
        show=_detection,
    ),
    "membranes": Workload(
        "Training of a membrane net", "segmentation", "train", "train", prepare=_truth,
        show=_losses,
    ),
    "segmentation": Workload(
        "Segmentation of a volume", "segmentation", "segment", "fragments", needs=("membranes",),
        prepare=_truth, show=_segmentation,
    ),
    "raw_to_segmented": Workload(
        "From raw sections to a segmented volume", "segmentation", "raw_to_segmented", "features",
        needs=("membranes",), prepare=_moved, show=_raw_to_segmented,
    ),
}  # fmt: skip
