"""Nets, run by the inference service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import google_crc32c
import numpy as np

from hyper.config import INFERENCE
from hyper.datasets import HEAD
from hyper.errors import (
    DataLossError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from hyper.names import parse_address
from hyperapi.common.v1.geometry_pb2 import Box
from hyperapi.common.v1.tensor_pb2 import ArrayRef, TensorSpec
from hyperapi.inference.v1 import inference_service_pb2 as api
from hyperapi.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

if TYPE_CHECKING:
    from hyper.arrays import Array
    from hyper.client import Client

PART_BYTES = 2**20
_FULL_PATIENCE_S = 600.0
_FULL_PAUSE_S = 1.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VolumeProgress:
    """How far `infer_volume` is.

    Args:
        done_patches, total_patches: of the whole call.
        compute_s: time spent in the net.
    """

    done_patches: int
    total_patches: int
    compute_s: float


def model_name(model: str) -> str:
    """The resource name of a model: it is one already, or `tenant/name[@version]/path.onnx`."""
    if model.startswith("tenants/"):
        return model
    address = parse_address(model)
    if address.array is None:
        raise InvalidArgumentError(
            f"{model[:120]!r} names a dataset; a model is a file in it: tenant/name/path.onnx",
            reason="INVALID_NAME",
        )
    version = address.version or HEAD
    return f"{address.dataset_name}/versions/{version}/files/{address.array}"


def predict(client: Client, model: str, array: np.ndarray, *, mode: str = "fast") -> np.ndarray:
    """The output of `model` on `array`, (n, c, y, x) or (n, c, z, y, x); float32.

    Raises:
        InvalidArgumentError: INVALID_MODEL, SHAPE_MISMATCH.
        DataLossError: bytes were damaged on their way.
    """
    dense = np.ascontiguousarray(array)
    header = api.PredictHeader(
        model=model_name(model),
        input=TensorSpec(shape=dense.shape, dtype=dense.dtype.name),
        mode=mode,
    )

    def requests() -> Iterator[api.PredictRequest]:
        yield api.PredictRequest(header=header)
        data = dense.reshape(-1).view(np.uint8).data
        for offset in range(0, max(1, len(data)), PART_BYTES):
            part = bytes(data[offset : offset + PART_BYTES])
            last = offset + len(part) == len(data)
            yield api.PredictRequest(
                part=api.PredictPart(
                    offset=offset, data=part, last=last, crc32c=google_crc32c.value(part)
                )
            )

    def run() -> np.ndarray:
        responses = client.stream(INFERENCE, InferenceServiceStub, "Predict", requests)
        return _collect(responses)

    return _while_full(run)


def _collect(responses: Iterator[api.PredictResponse]) -> np.ndarray:
    spec: TensorSpec | None = None
    data = bytearray()
    complete = False
    for response in responses:
        if response.WhichOneof("kind") == "header":
            spec = response.header.output
            continue
        part = response.part
        if part.offset != len(data) or google_crc32c.value(part.data) != part.crc32c:
            raise DataLossError(f"the answer's part at {part.offset} was damaged; call again")
        data += part.data
        complete = part.last
    if spec is None or not complete:
        raise DataLossError("the answer was cut off; call again")
    return np.frombuffer(data, np.dtype(spec.dtype)).reshape(tuple(spec.shape))


def infer_volume(
    client: Client,
    model: str,
    source: Array,
    destination: Array,
    *,
    box: tuple[Sequence[int], Sequence[int]] | None = None,
    patch: Sequence[int] | None = None,
    overlap: Sequence[int] | None = None,
    mode: str = "fast",
    scale: float = 1.0,
    shift: float = 0.0,
    output_scale: float = 1.0,
    output_shift: float = 0.0,
    blending: str = "crop",
    augmentation: str = "none",
    mask: Array | None = None,
    on_progress: Callable[[VolumeProgress], None] | None = None,
) -> None:
    """Run `model` over an array, patch by patch, into an array of an open session.

    Returns when all is written. The same call writes the same bytes, in any split into boxes. If
    the service goes away, another replica goes on behind the last block that was written.

    Args:
        client: of the cluster.
        model: `tenant/name[@version]/path.onnx`, or a file's resource name.
        source: (z, y, x) or (c, z, y, x).
        destination: of the same z, y, x.
        box: (start, stop), each (z, y, x), in voxels; all by default.
        patch: (z, y, x) of the net's input; chosen by the service by default.
        overlap: (z, y, x) shared by neighbouring patches; the receptive field by default.
        mode: exact or fast.
        scale, shift: input = value * scale + shift.
        output_scale, output_shift: stored = output * output_scale + output_shift, clipped.
        blending: crop, linear or bump.
        augmentation: none, flips, flips_zyx or rotations: the mean over views of every patch.
        mask: (z, y, x), not 0 where results are wanted; as large as the source, or coarser by a
            whole factor. Patches without a wanted voxel are left out.
        on_progress: is told after every patch.
    """
    span = Box() if box is None else Box(start=box[0], stop=box[1])
    request = api.InferVolumeRequest(
        model=model_name(model),
        source=ArrayRef(name=source.name, box=span),
        destination=ArrayRef(name=destination.name, box=span),
        patch=patch or (),
        overlap=overlap or (),
        mode=mode,
        scale=scale,
        shift=shift,
        output_scale=output_scale,
        output_shift=output_shift,
        blending=blending,
        augmentation=augmentation,
        mask=None if mask is None else ArrayRef(name=mask.name),
    )
    if 0 in (scale, output_scale):
        raise InvalidArgumentError("a scale of 0 leaves nothing of the values", field="scale")

    _while_full(lambda: _follow(client, request, on_progress))


def _follow(
    client: Client,
    request: api.InferVolumeRequest,
    on_progress: Callable[[VolumeProgress], None] | None,
) -> None:
    """One call, and after a lost service another, as long as each gets on."""
    patches, before, compute_s = 0, 0, 0.0
    while True:
        blocks, latest = len(request.done), 0.0
        try:
            for step in client.stream(INFERENCE, InferenceServiceStub, "InferVolume", request):
                patches = patches or step.total_patches
                before = patches - step.total_patches  # in blocks that earlier calls wrote
                latest = step.compute_s
                if step.HasField("written"):
                    request.done.append(step.written)
                if on_progress is not None:
                    done = before + step.done_patches
                    on_progress(VolumeProgress(done, patches, compute_s + latest))
            return
        except UnavailableError:
            if len(request.done) == blocks:
                raise
            compute_s += latest


def _while_full(run: Callable[[], T]) -> T:
    """Come back, when the service says so, while its queue is full."""
    end = time.monotonic() + _FULL_PATIENCE_S
    while True:
        try:
            return run()
        except ResourceExhaustedError as error:
            if error.reason != "QUEUE_FULL" or time.monotonic() > end:
                raise
            time.sleep(error.retry_after_s or _FULL_PAUSE_S)
