"""Training of NCCNet, from top to bottom.

A step is a function of (config, sections, seed, step): a run that was stopped and goes on from its
checkpoint computes the same losses as one that was not, and two ranks compute what one process does
(gradients are averaged over equal shares of the same batch). Needs torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from hyper_matcher.nccnet.loss import pair_loss, place_loss, saturation
from hyper_matcher.nccnet.model import NCCNet, NetConfig
from hyper_matcher.nccnet.sampling import Batch, SampleConfig, Sections, batch, check_stack

CHECKPOINT = "nccnet.pt"
_EXCLUSION_PX = 16
_TOLERANCE_PX = 16
_TEMPERATURE = 0.04  # peaks that are 0.1 apart are told apart with certainty
_SATURATION = 0.1  # weight


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training.

    Args:
        net: the net's shape.
        samples: how pairs are cut.
        steps: batches.
        batch_size: pairs a step, over all ranks.
        learning_rate: Adam's highest; it rises over the first 5% and falls as a cosine.
        levels: the weak loss is the mean over this many levels of the net, finest first.
        weak_share: share of the steps with the weak loss; those after it use pseudo-truth.
        seed: of everything random.
        checkpoint_steps: steps between checkpoints.
    """

    net: NetConfig = field(default_factory=NetConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    steps: int = 2400
    batch_size: int = 6
    learning_rate: float = 2e-3
    levels: int = 1
    weak_share: float = 0.2
    seed: int = 0
    checkpoint_steps: int = 50

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "net": self.net.to_json(), "samples": self.samples.to_json()}


@dataclass(slots=True)
class Trained:
    """A net and how it came about; `losses` has one value a step."""

    net: NCCNet
    config: TrainConfig
    losses: list[float]


Progress = Callable[[int, float], None]


def train(
    stack: Sections,
    config: TrainConfig,
    *,
    folder: Path | None = None,
    device: str = "cpu",
    on_step: Progress | None = None,
    on_checkpoint: Callable[[Path], None] = lambda file: None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train on a stack (z, y, x); goes on from `folder`'s checkpoint where there is one.

    In a gang (`torch.distributed` is initialised) each rank trains on its share of every batch.

    Args:
        stack: grey values.
        config: what to do.
        folder: where checkpoints are kept; None: nowhere. They know no device: a run may go on on
            another one.
        device: "cpu" or "cuda"; the same seed gives the same bits on CPUs alone.
        on_step: told (step, loss) after each step.
        on_checkpoint: told the file after each checkpoint; on rank 0 alone.
        stop: asked after each step; True writes a checkpoint and returns what there is.

    Raises:
        ValueError: the stack is too small, or the checkpoint is of another training.
    """
    check_stack(stack.shape, config.samples)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if config.batch_size % world:
        raise ValueError(f"a batch of {config.batch_size} cannot be shared by {world} ranks")
    mean, spread = grey_statistics(stack)
    torch.manual_seed(config.seed)
    net = NCCNet(config.net, mean=mean, spread=spread).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    losses: list[float] = []
    if folder is not None:
        losses = load_checkpoint(folder, net, optimizer, config)
    share = config.batch_size // world
    members = range(rank * share, (rank + 1) * share)
    for step in range(len(losses), config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step, config.steps)
        weak = step < round(config.weak_share * config.steps)
        pairs = batch(
            stack, config.samples, seed=config.seed, step=step, size=config.batch_size,
            members=members, mean=mean, spread=spread, related=None if weak else True,
        )  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        loss = batch_loss(net, pairs, config, weak=weak)
        loss.backward()
        value = _average(loss.detach(), net, world)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(value)
        if on_step is not None:
            on_step(step, value)
        stopping = stop()
        last = step + 1 == config.steps or stopping
        if folder is not None and rank == 0 and (last or (step + 1) % config.checkpoint_steps == 0):
            save_checkpoint(folder, net, optimizer, config, losses)
            on_checkpoint(folder / CHECKPOINT)
        if stopping:
            break
    return Trained(net.cpu().eval(), config, losses)


def batch_loss(net: NCCNet, pairs: Batch, config: TrainConfig, *, weak: bool) -> Tensor:
    """The loss of pairs that were cut with a margin."""
    factor, multiple = config.net.factor, config.net.multiple
    margin = config.samples.margin_px // factor
    device = net.mean.device
    levels = config.levels if weak else 1
    responses = [
        net.responses(_whole(images, multiple).to(device), levels)
        for images in (pairs.search, pairs.template)
    ]
    searches, templates = (
        [_inner(torch.tanh(found), margin >> level) for level, found in enumerate(image)]
        for image in responses
    )
    bounded = _SATURATION * torch.stack([saturation(image) for image in responses]).mean()
    if weak:
        related = torch.from_numpy(pairs.related).to(device)
        return bounded + pair_loss(searches, templates, related, exclusion=_EXCLUSION_PX // factor)
    return bounded + place_loss(
        searches[0], templates[0], torch.from_numpy(pairs.place).to(device) / factor,
        tolerance=_TOLERANCE_PX / factor, temperature=_TEMPERATURE,
    )  # fmt: skip


def schedule(step: int, steps: int) -> float:
    """Share of the highest learning rate."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def grey_statistics(stack: Sections) -> tuple[float, float]:
    """Mean and spread of the grey values of at most eight sections; zeros are no tissue."""
    depth = stack.shape[0]
    picks = sorted({round(z) for z in np.linspace(0, depth - 1, min(depth, 8))})
    values = np.concatenate([np.asarray(stack[z]).reshape(-1)[::7] for z in picks])
    if not np.isfinite(values).all():
        raise ValueError("the sections have values that are not finite")
    values = values[values > 0].astype(np.float64)
    if len(values) == 0 or values.std() == 0:
        raise ValueError("the sections have no contrast: there is nothing to learn from")
    return float(values.mean()), float(values.std())


def save_checkpoint(
    folder: Path,
    net: NCCNet,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    losses: list[float],
) -> None:
    """Write all that the next step needs; complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{CHECKPOINT}.partial"
    state = {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": json.dumps(config.to_json(), sort_keys=True),
        "losses": losses,
    }
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / CHECKPOINT)


def load_checkpoint(
    folder: Path, net: NCCNet, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> list[float]:
    """Take up a checkpoint; the losses so far, none where there is no checkpoint."""
    path = folder / CHECKPOINT
    if not path.exists():
        return []
    state = torch.load(path, weights_only=True, map_location="cpu")
    if json.loads(state["config"]) != json.loads(json.dumps(config.to_json())):
        raise ValueError(
            f"{path} is of a training with other settings; remove it or choose another folder"
        )
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    return list(state["losses"])


def load_net(file: Any) -> tuple[NCCNet, list[float]]:
    """The net of a checkpoint (a path or an open file), and the losses of its training."""
    state = torch.load(file, weights_only=True, map_location="cpu")
    net = NCCNet(NetConfig.from_json(json.loads(state["config"])["net"]))
    net.load_state_dict(state["net"])
    return net.eval(), list(state["losses"])


def features(net: NCCNet, section: Any) -> NDArray[np.float32]:
    """Features (y, x) of a section (Y, X): y = Y // factor; edges that do not divide are padded."""
    return np.asarray(_whole_section(net, net, section)[0])


def maps(net: NCCNet, section: Any) -> NDArray[np.float32]:
    """The hidden maps (widths[0], y, x) that the features are summed up from, as `features`."""
    return _whole_section(net, net.maps, section)


def hypercolumns(net: NCCNet, section: Any) -> NDArray[np.float32]:
    """The hidden maps of all levels (sum(widths), y, x), as `features`."""
    return _whole_section(net, net.hypercolumns, section)


def _whole_section(
    net: NCCNet, part: Callable[[Tensor], Tensor], section: Any
) -> NDArray[np.float32]:
    multiple, factor = net.config.multiple, net.config.factor
    height, width = section.shape
    pad = [(0, -height % multiple), (0, -width % multiple)]
    padded = np.pad(np.asarray(section, np.float32), pad, mode="reflect")
    with torch.no_grad():
        found = part(torch.from_numpy(padded)[None, None].to(net.mean.device))[0]
    return np.asarray(found[:, : height // factor, : width // factor].cpu().numpy())


def _average(loss: Tensor, net: NCCNet, world: int) -> float:
    """Average gradients and loss over the ranks, each of which had an equal share."""
    if world > 1:
        for parameter in net.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
        dist.all_reduce(loss)
        loss /= world
    return float(loss)


def _whole(images: NDArray[np.float32], multiple: int) -> Tensor:
    """Cut to edges that `multiple` divides; less than the margin goes."""
    height, width = (edge // multiple * multiple for edge in images.shape[2:])
    return torch.from_numpy(np.ascontiguousarray(images[:, :, :height, :width]))


def _inner(features: Tensor, margin: int) -> Tensor:
    if margin == 0:
        return features
    return features[:, :, margin:-margin, margin:-margin]
