"""InferenceService: proto in, proto out; blocking work goes to a bounded executor."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from hyper.arrays import Array
from hyper.arrays import get_array as open_array
from hyper.client import Client
from hyper.errors import InvalidArgumentError
from hyper_inference import convert
from hyper_inference.engine import Engine, Prediction, volume_to_batch
from hyper_inference.slots import Slots
from hyper_inference.volume import Progress
from hyper_servicekit.logs import get_logger
from hyperapi.common.v1 import geometry_pb2, tensor_pb2
from hyperapi.inference.v1 import inference_service_pb2 as api
from hyperapi.inference.v1 import inference_service_pb2_grpc as api_grpc

log = get_logger(__name__)
T = TypeVar("T")
_END = object()


class InferenceServicer(api_grpc.InferenceServiceServicer):
    """The service's calls.

    Args:
        engine: computes.
        client: reaches storage.
        executor: for blocking work; at least as many threads as `slots` lets in.
        slots: bounds calls at work and calls that wait.
        input_bytes: of one Predict.
    """

    def __init__(
        self, engine: Engine, client: Client, executor: Executor, slots: Slots, *, input_bytes: int
    ) -> None:
        self._engine = engine
        self._client = client
        self._executor = executor
        self._slots = slots
        self._input_bytes = input_bytes

    async def GetModel(  # noqa: N802  (gRPC's name)
        self, request: api.GetModelRequest, context: Any
    ) -> api.GetModelResponse:
        """Inputs, outputs and graph of a model."""
        async with self._slots.one():
            found = await self._blocking(self._engine.describe, request.name)
        proto = found.model.parsed.proto
        return api.GetModelResponse(
            name=request.name,
            inputs=[convert.tensor_spec(proto.graph.input[0].name, found.model.input_shape)],
            outputs=[convert.tensor_spec(proto.graph.output[0].name, found.output_shape)],
            graph=found.graph,
        )

    async def Predict(  # noqa: N802
        self, requests: AsyncIterator[api.PredictRequest], context: Any
    ) -> AsyncIterator[api.PredictResponse]:
        """One input, streamed or read from storage; one output, streamed."""
        header = await _header(requests)
        mode = convert.parse_mode(header.mode)
        cancelled = threading.Event()
        async with self._slots.one(), _gone(cancelled):
            if header.source.name:
                tensor = await self._blocking(self._read_source, header)
            else:
                spec = convert.parse_input(header.input, limit_bytes=self._input_bytes)
                assembly = convert.Assembly(spec)
                async for request in requests:
                    if request.WhichOneof("kind") != "part":
                        raise InvalidArgumentError("after the header come parts only", field="kind")
                    assembly.add(request.part)
                    if assembly.complete:
                        break
                tensor = assembly.tensor()
            result: Prediction = await self._blocking(
                self._engine.predict, header.model, tensor, mode, cancelled
            )
        yield api.PredictResponse(
            header=api.PredictResponseHeader(
                output=convert.tensor_spec("output", result.output.shape),
                compute_s=result.compute_s,
            )
        )
        for part in convert.parts_of(result.output):
            yield api.PredictResponse(part=part)

    async def InferVolume(  # noqa: N802
        self, request: api.InferVolumeRequest, context: Any
    ) -> AsyncIterator[api.InferVolumeResponse]:
        """Array in, array out; progress after every patch and write."""
        options = convert.parse_volume_options(request)
        cancelled = threading.Event()
        async with self._slots.one(), _gone(cancelled):
            steps = self._volume(request, options, cancelled)
            while True:
                step = await self._blocking(next, steps, _END)
                if not isinstance(step, Progress):
                    break
                yield _progress(step)

    def _volume(
        self,
        request: api.InferVolumeRequest,
        options: convert.VolumeOptions,
        cancelled: threading.Event,
    ) -> Iterator[Progress]:
        """Runs in executor threads, step by step."""
        source = self._array(request.source, "source")
        destination = self._array(request.destination, "destination")
        if "/sessions/" not in request.destination.name:
            raise InvalidArgumentError(
                f"destination {request.destination.name} is committed; name an array of an open "
                "session",
                field="destination",
            )
        if destination.shape[-3:] != source.shape[-3:]:
            raise InvalidArgumentError(
                f"the destination of {destination.shape} has other z, y, x than the source of "
                f"{source.shape}",
                field="destination",
                reason="SHAPE_MISMATCH",
            )
        box = convert.parse_box(request.source.box, source.shape, "source")
        target = request.destination.box
        if target.start or target.stop:
            asked = convert.parse_box(target, destination.shape, "destination")
            if asked != box:
                raise InvalidArgumentError(
                    "the destination's box must be the source's", field="destination"
                )
        mask = self._array(request.mask, "mask") if request.mask.name else None
        yield from self._engine.volume(
            request.model, source, destination, box, options, cancelled, mask
        )

    def _read_source(self, header: api.PredictHeader) -> npt.NDArray[Any]:
        array = self._array(header.source, "source")
        spatial = self._engine.spatial(header.model)
        box = convert.parse_box(header.source.box, array.shape, "source")
        if box.voxels * 4 * (array.shape[0] if array.ndim == 4 else 1) > self._input_bytes:
            raise InvalidArgumentError(
                "the source's box is larger than one call takes; use InferVolume", field="source"
            )
        lead = (slice(None),) * (array.ndim - 3)
        return volume_to_batch(np.asarray(array[(*lead, *box.slices)]), spatial)

    def _array(self, reference: tensor_pb2.ArrayRef, field: str) -> Array:
        if "/arrays/" not in reference.name:
            raise InvalidArgumentError(
                f"{reference.name[:120]!r} is no array", field=field, reason="INVALID_NAME"
            )
        array = open_array(self._client, reference.name)
        if array.ndim not in (3, 4):
            raise InvalidArgumentError(
                f"{reference.name} has {array.ndim} axes, not (z, y, x) or (c, z, y, x)",
                field=field,
                reason="SHAPE_MISMATCH",
            )
        return array

    async def _blocking(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()  # its logs and traces are of this call
        return await loop.run_in_executor(self._executor, context.run, function, *arguments)


@contextlib.asynccontextmanager
async def _gone(cancelled: threading.Event) -> AsyncIterator[None]:
    """Tell the threads that work for a call when it has ended: cancelled, or past its deadline."""
    try:
        yield
    finally:
        cancelled.set()


async def _header(requests: AsyncIterator[api.PredictRequest]) -> api.PredictHeader:
    first: api.PredictRequest | None = None
    with contextlib.suppress(StopAsyncIteration):
        first = await anext(aiter(requests))
    if first is None or first.WhichOneof("kind") != "header":
        raise InvalidArgumentError("a header comes first", field="header")
    return first.header


def _progress(step: Progress) -> api.InferVolumeResponse:
    response = api.InferVolumeResponse(
        done_patches=step.done_patches,
        total_patches=step.total_patches,
        compute_s=step.compute_s,
    )
    if step.written is not None:
        response.written.CopyFrom(
            geometry_pb2.Box(start=step.written.start, stop=step.written.stop)
        )
    return response
