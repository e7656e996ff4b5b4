"""Train the membrane net on sections with truth: `train.yaml`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from membrane_net import MEAN, SPREAD, MembraneNet, pack, to_onnx, unpack
from numpy.typing import NDArray
from torch.nn import functional

from hyper import TaskContext
from hyper.errors import FailedPreconditionError, NotFoundError

CHECKPOINT, MODEL, LOSSES = "checkpoint.pt", "membranes.onnx", "losses.json"
_EDGE_WEIGHT = 2.0  # of membrane against the rest: there is less of it
_WARM_UP = 0.05  # of the steps
_GRADIENT = 1.0  # longer ones are shortened


def begin(context: TaskContext, *, dataset: str) -> dict[str, str]:
    """Open the session that the tasks write into, without the checkpoint of an earlier training."""
    session = context.client.session(dataset)
    if session.exists(CHECKPOINT):
        session.delete(CHECKPOINT)
    return {"session": session.name}


def train(
    context: TaskContext, *, session: str, source: str, sections: Sequence[int], patch: int,
    batch_size: int, steps: int, rate: float, widths: Sequence[int], seed: int, save_every: int,
) -> dict[str, Any]:  # fmt: skip
    """Train, or go on training.

    Args:
        context: of the task.
        session: gets checkpoint, model and losses.
        source: dataset with arrays `raw` (z, y, x) uint8 and `membranes` (255: membrane).
        sections: the first, and the one after the last, to train on.
        patch: edge of patches, px; a multiple of 16.
        batch_size: patches a step.
        steps: of training.
        rate: learning rate; it rises over the first steps and falls as a half cosine.
        widths: channels by level.
        seed: of weights and patches.
        save_every: steps between checkpoints.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    job, data = context.client.attach(session), context.client.open_dataset(source)
    low, high = sections
    raw, truth = data["raw"][low:high], data["membranes"][low:high]
    torch.manual_seed(seed)
    net = MembraneNet(tuple(widths))
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    losses: list[float] = []
    try:
        saved = unpack(job.read(CHECKPOINT))
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        losses = saved["losses"]
        context.log(f"going on after step {len(losses)}")
    except NotFoundError:
        context.log("starting anew")
    for step in range(len(losses), steps):
        rng = np.random.default_rng([seed, step])
        grey, wanted = batch(raw, truth, patch, batch_size, rng)
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step / steps)
        optimizer.zero_grad()
        target = torch.from_numpy(wanted)
        loss = functional.binary_cross_entropy_with_logits(
            net(torch.from_numpy(grey)), target, weight=1 + (_EDGE_WEIGHT - 1) * target
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), _GRADIENT)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 20 == 0:
            context.report(step=step + 1, loss=float(np.mean(losses[-20:])))
        if (step + 1) % save_every == 0:
            job.write(CHECKPOINT, pack(net=net.state_dict(), optimizer=optimizer.state_dict(),
                                       losses=losses))  # fmt: skip
    job.write_many([(MODEL, to_onnx(net)), (LOSSES, json.dumps(losses).encode())])
    return {"loss": float(np.mean(losses[-50:])),
            "parameters": sum(p.numel() for p in net.parameters())}  # fmt: skip


def schedule(share: float) -> float:
    """The learning rate's factor after this share of the training."""
    falling = 0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2
    return falling * min(1.0, share / _WARM_UP + 0.1)


def commit(context: TaskContext, *, session: str) -> dict[str, int]:
    """Make the net a version."""
    request_id = str(uuid.uuid5(uuid.NAMESPACE_URL, context.task))
    job = context.client.attach(session)
    with contextlib.suppress(FailedPreconditionError):  # it is committed, but nobody heard of it
        if job.exists(CHECKPOINT):
            job.delete(CHECKPOINT)
    return {"version": job.commit("membrane net", request_id=request_id).number}


def batch(
    raw: NDArray[np.uint8], truth: NDArray[np.uint8], edge: int, count: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # fmt: skip
    """Patches (count, 1, 3, edge, edge), normalised, and where membrane is (count, 1, 1, ...).

    Turned and flipped at random, brighter or darker; a section that is missing is 0.
    """
    grey = np.zeros((count, 1, 3, edge, edge), np.float32)
    wanted = np.zeros((count, 1, 1, edge, edge), np.float32)
    depth, height, width = raw.shape
    for at in range(count):
        z = int(rng.integers(depth))
        y, x = int(rng.integers(height - edge + 1)), int(rng.integers(width - edge + 1))
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        gain, offset = rng.uniform(0.8, 1.2), rng.uniform(-0.25, 0.25)

        def view(section: NDArray[Any]) -> NDArray[Any]:
            part = np.rot90(section[y : y + edge, x : x + edge], turns)  # noqa: B023
            return part[:, ::-1] if mirrored else part  # noqa: B023

        for place, other in enumerate((z - 1, z, z + 1)):
            if 0 <= other < depth:
                values = (view(raw[other]).astype(np.float32) - MEAN) / SPREAD
                grey[at, 0, place] = values * gain + offset
        wanted[at, 0, 0] = view(truth[z]) > 127
    return grey, wanted
