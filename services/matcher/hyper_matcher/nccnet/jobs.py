"""`hyper train-nccnet` as task functions; the recipe is written by `hyper.train_nccnet`.

A training that is stopped anywhere goes on from its last checkpoint, which lies in the job's
session: on another worker too, with the same losses.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyper.arrays import get_array
from hyper.context import TaskContext
from hyper.errors import InvalidArgumentError, NotFoundError
from hyper.installed import install_command
from hyper.train_nccnet import FOLDER, MODEL_FILE, REPORT_FILE, RESULT_FILE
from hyper_matcher.before_commit import before_commit

if TYPE_CHECKING:
    from hyper.client import Client
    from hyper_matcher.nccnet.train import TrainConfig

CHECKPOINT_FILE = f"{FOLDER}/checkpoint.pt"


def train(context: TaskContext, *, session: str, settings: str) -> dict[str, Any]:
    """Train, or go on training; rank 0 of a gang keeps the checkpoints."""
    asked = json.loads(settings)
    job = context.client.attach(session)
    torch, train_module = _torch()
    gang = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = "cuda" if asked.get("gpu") else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidArgumentError(
            "--gpu was asked for, but this worker's torch sees no GPU: install a torch for CUDA "
            "there, or train without --gpu"
        )
    if gang > 1:
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        with tempfile.TemporaryDirectory(prefix="hyper-nccnet-") as name:
            folder = Path(name)
            try:
                (folder / train_module.CHECKPOINT).write_bytes(job.read(CHECKPOINT_FILE))
                context.log("going on from a checkpoint")
            except NotFoundError:
                context.log("starting anew")
            if gang > 1:
                torch.distributed.barrier()  # nobody writes one before all have read theirs

            def on_step(step: int, loss: float) -> None:
                if (step + 1) % 10 == 0:
                    context.report(step=step + 1, loss=loss)

            trained = train_module.train(
                _sections(context.client, asked, "train"), train_config(asked), folder=folder,
                device=device, on_step=on_step,
                on_checkpoint=lambda file: job.write(CHECKPOINT_FILE, file.read_bytes()),
            )  # fmt: skip
    except ValueError as error:
        raise InvalidArgumentError(f"{asked['label']}: {error}") from error
    finally:
        if gang > 1:
            torch.distributed.destroy_process_group()
    return {"rank": rank, "loss": float(np.mean(trained.losses[-20:]))}


def choose(context: TaskContext, *, session: str, settings: str) -> dict[str, Any]:
    """Compare the net with classical filters on held-out sections; write what came out; commit."""
    from hyper_matcher.nccnet.choose import Trial, candidates, compare, why
    from hyper_matcher.nccnet.export import to_onnx
    from hyper_matcher.nccnet.report import render

    asked = json.loads(settings)
    job = context.client.attach(session)
    _, train_module = _torch()
    net, losses = train_module.load_net(io.BytesIO(job.read(CHECKPOINT_FILE)))
    sections = list(_sections(context.client, asked, "test"))
    trial = Trial(template_px=min(asked["template_px"]), search_px=asked["search_px"])
    scores = compare(sections, candidates(net, sections), trial)
    best = scores[0]
    result = {
        "choice": best.name,
        "why": why(scores),
        "scores": [
            {"name": s.name, "rate": s.rate, "low": s.low, "high": s.high, "tried": s.tried}
            for s in scores
        ],
        "parameters": net.parameter_count(),
        "settings": asked,
        "losses": losses,
    }
    found, maps = train_module.features(net, sections[0]), train_module.maps(net, sections[0])
    with before_commit(context):
        job.write(MODEL_FILE, to_onnx(net))
        job.write(RESULT_FILE, json.dumps(result, indent=1, allow_nan=False).encode())
        job.write(REPORT_FILE, render(result, sections[0], found, maps).encode())
    version = job.commit(
        f"NCCNet of {asked['label']}: {best.name}",
        request_id=str(uuid.uuid5(uuid.NAMESPACE_URL, context.task)),
    )
    return {"version": version.number, "choice": best.name}


def train_config(asked: Mapping[str, Any]) -> TrainConfig:
    """The training that `hyper.train_nccnet.TrainOptions` asks for."""
    from hyper_matcher.nccnet.sampling import SampleConfig
    from hyper_matcher.nccnet.train import TrainConfig

    samples = SampleConfig(templates_px=tuple(asked["template_px"]), search_px=asked["search_px"])
    return TrainConfig(
        samples=samples, steps=asked["steps"], batch_size=asked["batch_size"], seed=asked["seed"]
    )


def _sections(client: Client, asked: Mapping[str, Any], part: str) -> NDArray[Any]:
    box = asked["box"]
    spans = tuple(slice(*box[axis]) for axis in (part, "y", "x"))
    return np.asarray(get_array(client, asked["source"])[spans])


def _torch() -> tuple[Any, Any]:
    """torch and the training, which most workers can do without."""
    try:
        import torch
    except ImportError as error:
        raise InvalidArgumentError(
            f"this worker has no torch: there, {install_command('worker', 'matcher', 'torch')}"
        ) from error
    from hyper_matcher.nccnet import train as train_module

    return torch, train_module
