"""Train the detector: one process, or the ranks of a gang that share every batch.

A rank takes its part of each batch; gradients are added over all ranks before a step (synchronous
stochastic gradient descent). Rank 0 keeps checkpoints in the job's session; a gang that has lost a
rank starts again from the last one, with the same losses as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from typing import Any

import torch
from data import CHECKPOINT
from model import Detector, encode, loss_sum, pack, to_onnx, unpack
from scenes import CLASSES, all_labels, name_of, read_image
from torch import Tensor, distributed

from hyper import TaskContext
from hyper.errors import NotFoundError

MODEL = "detector.onnx"
LOSSES = "losses.json"


def train(
    context: TaskContext, *, session: str, source: str, edge: int, batch_size: int, steps: int,
    rate: float, width: int, seed: int, save_every: int, device: str = "cpu",
    classes: int = len(CLASSES),
) -> dict[str, Any]:  # fmt: skip
    """Train, or go on training.

    Args:
        context: of the task.
        session: gets checkpoints, model and losses.
        source: address of a dataset with `images/` and `labels/`; "": the session has them.
        edge: images are scaled to `edge` x `edge` px.
        batch_size: images a step, over all ranks.
        steps: of training.
        rate: learning rate.
        width: channels of the first layer.
        seed: of weights and order.
        save_every: steps between checkpoints.
        device: "cpu" or "cuda"; a rank has the GPU that its worker gave it.
        classes: of objects; labels name them 0 to `classes` - 1.

    Raises:
        ValueError: the batch cannot be shared, or a label is not of one of the classes.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if batch_size % world:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {world} ranks")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    job = context.client.attach(session)
    tree = context.client.open_dataset(source) if source else job
    if world > 1:
        distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        with tempfile.TemporaryDirectory(prefix="detector-") as cache:
            losses, spent_s = _steps(
                context, job, tree, cache, edge=edge, batch_size=batch_size, steps=steps, rate=rate,
                width=width, seed=seed, save_every=save_every, rank=rank, world=world,
                device=device, classes=classes,
            )  # fmt: skip
    finally:
        if world > 1:
            distributed.destroy_process_group()
    return {"rank": rank, "world": world, "loss": sum(losses[-20:]) / len(losses[-20:]),
            "seconds": spent_s}  # fmt: skip


def _steps(
    context: TaskContext, job: Any, tree: Any, cache: str, *, edge: int, batch_size: int,
    steps: int, rate: float, width: int, seed: int, save_every: int, rank: int, world: int,
    device: str, classes: int,
) -> tuple[list[float], float]:  # fmt: skip
    """All steps that are left; returns the losses of all, and the seconds of these."""
    labels = all_labels(tree, classes)
    loader = tree.torch(
        "images/", batch_size=batch_size // world, shuffle=True, seed=seed, rank=rank, world=world,
        drop_last=True, cache=cache,
        decode=lambda path, data: (
            read_image(data, edge, path), encode(labels.get(name_of(path), []))
        ),
    )  # fmt: skip
    torch.manual_seed(seed)
    net = Detector(width, classes).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    losses: list[float] = []
    try:
        saved = unpack(job.read(CHECKPOINT))
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.resume(json.loads(saved["loader"]))
        losses = saved["losses"]
        context.log(f"going on after step {len(losses)}")
    except NotFoundError:
        context.log("starting anew")
    if world > 1:
        distributed.barrier()  # nobody writes a checkpoint before all have read theirs
    began = time.monotonic()
    while len(losses) < steps:
        for images, boxes in loader:
            optimizer.zero_grad()
            loss = loss_sum(net(images.to(device)), boxes.to(device)) / batch_size
            loss.backward()
            losses.append(_share(net, loss.detach(), world))
            optimizer.step()
            done = len(losses)
            if rank == 0 and done % 10 == 0:
                context.report(step=done, loss=losses[-1])
            if rank == 0 and done % save_every == 0:
                state = pack(
                    net=net.state_dict(), optimizer=optimizer.state_dict(),
                    loader=json.dumps(loader.state()), losses=losses,
                )  # fmt: skip
                job.write(CHECKPOINT, state)
            if done >= steps:
                break
    spent_s = time.monotonic() - began
    if rank == 0:
        job.write_many([(MODEL, to_onnx(net)), (LOSSES, json.dumps(losses).encode())])
    return losses, spent_s


def _share(net: Detector, loss: Tensor, world: int) -> float:
    """Add gradients and loss over all ranks; returns the loss of the whole batch."""
    if world > 1:
        parts = [p.grad.reshape(-1) for p in net.parameters() if p.grad is not None]
        flat = torch.cat([*parts, loss.reshape(1)])
        distributed.all_reduce(flat)
        at = 0
        for parameter in net.parameters():
            assert parameter.grad is not None
            size = parameter.grad.numel()
            parameter.grad.copy_(flat[at : at + size].view_as(parameter.grad))
            at += size
        loss = flat[-1]
    return float(loss)
