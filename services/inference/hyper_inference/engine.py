"""What the service does, without gRPC: blocking functions for executor threads.

One net computes at a time, with all its threads; other calls read and write meanwhile.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hyper.errors import InvalidArgumentError
from hyper_inference import metrics
from hyper_inference.augment import augmented, check_augmentation
from hyper_inference.batcher import Batcher
from hyper_inference.compiler.compile import Compiled, load_graph
from hyper_inference.compiler.ir import Triple
from hyper_inference.compiler.pipeline import run_pipeline
from hyper_inference.compiler.receptive_field import receptive_field, steps
from hyper_inference.convert import VolumeOptions
from hyper_inference.errors import ShapeError
from hyper_inference.mask import Mask
from hyper_inference.models import Model, Models
from hyper_inference.volume import Floats, Grid, Progress, Work, infer_volume, margins
from hyper_voxels import Box

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
"""Patch sizes are rounded up to these until the net's strides divide them."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A result and the time it took to compute."""

    output: Floats
    compute_s: float


@dataclass(frozen=True, slots=True)
class Description:
    """A model, the shape of its output (-1: any), and its graph for people."""

    model: Model
    output_shape: tuple[int, ...]
    graph: str


class Engine:
    """Models, and the batcher that lets one net compute at a time."""

    def __init__(self, models: Models, *, patch_voxels: int, block_bytes: int) -> None:
        self._models = models
        self._patch_voxels = patch_voxels
        self._block_bytes = block_bytes
        self._batcher = Batcher()

    def describe(self, name: str) -> Description:
        """A model, and its graph where its input size is known (or a size of 64 fits)."""
        model = self._models.model(name)
        shape = tuple(n if n > 0 else 64 for n in model.input_shape[1:])
        output = model.output_shape
        try:
            graph = run_pipeline(load_graph(model.parsed, (1, *shape)))
        except ShapeError as error:
            return Description(model, output, f"the graph depends on the input's size ({error})")
        if len(output) != model.spatial + 2:
            output = (-1,) * (model.spatial + 2)
        channels = graph.types()[graph.output].shape[0]
        return Description(model, (output[0], channels, *output[2:]), str(graph))

    def predict(
        self, name: str, tensor: npt.NDArray[Any], mode: str, cancelled: threading.Event
    ) -> Prediction:
        """The model's output on a batch.

        Raises:
            CancelledError: `cancelled` was set before its turn.
        """
        model = self._models.model(name)
        net = self._models.net(model, tensor.shape, mode)
        output, seconds = self._batcher.run(net, tensor, cancelled)
        metrics.PATCHES.labels("predict").inc(len(tensor))
        metrics.VOXELS.labels("predict").inc(math.prod(tensor.shape[2:]) * len(tensor))
        metrics.COMPUTE_SECONDS.labels("predict").inc(seconds)
        return Prediction(output, seconds)

    def spatial(self, name: str) -> int:
        """2 or 3: how a volume becomes the model's input."""
        return self._models.model(name).spatial

    def volume(
        self,
        name: str,
        source: Any,
        destination: Any,
        box: Box,
        options: VolumeOptions,
        cancelled: threading.Event,
        mask: Any = None,
    ) -> Iterator[Progress]:
        """Compute a box of the destination.

        Raises:
            CancelledError: `cancelled` was set.
        """
        model = self._models.model(name)
        channels = source.shape[0] if len(source.shape) == 4 else 1
        size: Triple = (source.shape[-3], source.shape[-2], source.shape[-1])
        net, patch = self._fit(model, channels, size, options)
        margin = _margin(net)
        overlap = options.overlap or _default_overlap(net, patch, size, margin)
        if model.spatial == 2:
            overlap = (0, *overlap[1:])
        check_augmentation(options.augmentation, patch)
        out_channels = net.output_shape[0]
        stored = destination.shape[0] if len(destination.shape) == 4 else 1
        if stored != out_channels:
            raise ShapeError(
                f"the model gives {out_channels} channels, the destination of "
                f"{destination.shape} takes {stored}"
            )

        def run(values: Floats) -> Floats:
            flat = values if model.spatial == 3 else values[:, 0]
            batch, seconds = self._batcher.run(net, flat[None], cancelled)
            metrics.PATCHES.labels("volume").inc()
            metrics.VOXELS.labels("volume").inc(math.prod(patch))
            metrics.COMPUTE_SECONDS.labels("volume").inc(seconds)
            output: Floats = batch[0]
            return output if model.spatial == 3 else output[:, None]

        work = Work(
            box, Grid.of(size, patch, overlap, margin), options.conversion, options.blending,
            self._block_bytes, out_channels, None if mask is None else Mask(mask, size),
            options.done,
        )  # fmt: skip
        yield from infer_volume(augmented(run, options.augmentation), source, destination, work)

    def _fit(
        self, model: Model, channels: int, size: Triple, options: VolumeOptions
    ) -> tuple[Compiled, Triple]:
        """A patch that the net accepts, and the net for it."""
        if options.patch is not None:
            patch = options.patch
            if model.spatial == 2 and patch[0] != 1:
                raise InvalidArgumentError(
                    f"patch {patch}: a 2D net takes one section, z = 1", field="patch"
                )
            return self._net(model, channels, patch, options.mode), patch
        wanted = _default_patch(size, model, self._patch_voxels)
        for multiple in _MULTIPLES:
            z, y, x = (-(-n // multiple) * multiple for n in wanted)
            patch = (wanted[0], y, x) if model.spatial == 2 else (z, y, x)
            try:
                return self._net(model, channels, patch, options.mode), patch
            except ShapeError:
                if multiple == _MULTIPLES[-1]:
                    raise
        raise AssertionError("the last multiple returns or raises")

    def _net(self, model: Model, channels: int, patch: Triple, mode: str) -> Compiled:
        return self._models.net(model, (1, channels, *patch[3 - model.spatial :]), mode)


def _default_patch(size: Triple, model: Model, voxels: int) -> Triple:
    """Declared sizes where the model has them; else the array, cut until it is small enough."""
    declared = [1] * (3 - model.spatial) + list(model.input_shape[2:])
    patch = [n if want < 0 else want for n, want in zip(size, declared, strict=True)]
    free = [axis for axis, want in enumerate(declared) if want < 0]
    while free and math.prod(patch) > voxels and max(patch[axis] for axis in free) > 16:
        longest = max(free, key=lambda axis: patch[axis])
        patch[longest] = -(-(patch[longest] // 2) // 16) * 16 or 16
    z, y, x = patch
    return z, y, x


def _margin(net: Compiled) -> Triple:
    """By which the net's output is smaller than its input, on each side."""
    given, made = net.graph.input_type.shape, net.graph.types()[net.graph.output].shape
    if given[1:] != made[1:] and any(abs(step - 1) > 1e-6 for step in steps(net.graph)):
        raise ShapeError(
            f"the net turns {given[1:]} into {made[1:]}, by steps of {steps(net.graph)}; over a "
            "volume, output and input have voxels of the same size"
        )
    return margins(given, made)


def _default_overlap(net: Compiled, patch: Triple, size: Triple, margin: Triple) -> Triple:
    """What the receptive field sees beyond the margin, at most half a patch; 0 on whole axes."""
    overlap = [
        0 if p - 2 * m >= n else max(0, min(2 * (reach - m), (p - 2 * m) // 2))
        for reach, p, n, m in zip(receptive_field(net.graph), patch, size, margin, strict=True)
    ]
    z, y, x = overlap
    return z, y, x


def volume_to_batch(volume: npt.NDArray[Any], spatial: int) -> npt.NDArray[Any]:
    """(z, y, x) or (c, z, y, x) as a net's input; for a 2D net each section is a sample."""
    channels = volume if volume.ndim == 4 else volume[None]
    return channels[None] if spatial == 3 else np.ascontiguousarray(channels.swapaxes(0, 1))
