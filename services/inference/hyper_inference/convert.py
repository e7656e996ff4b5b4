"""Proto messages <-> values of the domain, with every check."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from hyper.errors import DataLossError, InvalidArgumentError
from hyper_inference.compiler.algorithm import MODES
from hyper_inference.compiler.ir import Triple
from hyper_inference.volume import BLENDINGS, Conversion
from hyper_voxels import Box
from hyperapi.common.v1 import geometry_pb2, tensor_pb2
from hyperapi.inference.v1 import inference_service_pb2 as api

PART_BYTES = 2**20
INPUT_DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64",
)  # fmt: skip


def tensor_spec(name: str, shape: Sequence[int], dtype: str = "float32") -> tensor_pb2.TensorSpec:
    """Shape and type for the wire."""
    return tensor_pb2.TensorSpec(name=name, shape=shape, dtype=dtype)


def parse_mode(mode: str) -> str:
    """The mode; "" is fast.

    Raises:
        InvalidArgumentError: unknown.
    """
    if mode and mode not in MODES:
        raise InvalidArgumentError(
            f"mode {mode[:40]!r} is not one of {', '.join(MODES)}", field="mode"
        )
    return mode or "fast"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A Predict's input: checked shape and dtype, and how many bytes follow."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_input(spec: tensor_pb2.TensorSpec, *, limit_bytes: int) -> InputSpec:
    """The input's shape and dtype.

    Raises:
        InvalidArgumentError: not a shape, or more than `limit_bytes`.
    """
    shape = tuple(spec.shape)
    if len(shape) not in (4, 5) or min(shape) < 1:
        raise InvalidArgumentError(
            f"input shape {shape[:8]} is not (n, c, y, x) or (n, c, z, y, x)", field="input",
            reason="SHAPE_MISMATCH",
        )  # fmt: skip
    dtype = spec.dtype or "float32"
    if dtype not in INPUT_DTYPES:
        raise InvalidArgumentError(f"input dtype {dtype[:40]!r} is not covered", field="input")
    parsed = InputSpec(shape, np.dtype(dtype))
    if parsed.size_bytes > limit_bytes or math.prod(shape) * 4 > limit_bytes:
        raise InvalidArgumentError(
            f"an input of {shape} is larger than the {limit_bytes} bytes that one call takes; "
            "send less, or use InferVolume",
            field="input",
            reason="SHAPE_MISMATCH",
        )
    return parsed


class Assembly:
    """Parts of a tensor, put together in order."""

    def __init__(self, spec: InputSpec) -> None:
        self._spec = spec
        self._data = bytearray()
        self.complete = False

    def add(self, part: api.PredictPart) -> None:
        """Take the next part.

        Raises:
            DataLossError: its bytes do not match their checksum.
            InvalidArgumentError: out of order, or too much.
        """
        if part.offset != len(self._data) or self.complete:
            raise InvalidArgumentError(
                f"a part at {part.offset} came where {len(self._data)} was due", field="offset"
            )
        if google_crc32c.value(part.data) != part.crc32c:
            raise DataLossError(
                f"the part at {part.offset} does not match its crc32c; send the tensor again"
            )
        if len(self._data) + len(part.data) > self._spec.size_bytes:
            raise InvalidArgumentError(
                f"more than the {self._spec.size_bytes} bytes of {self._spec.shape}", field="data"
            )
        self._data += part.data
        self.complete = part.last

    def tensor(self) -> npt.NDArray[Any]:
        """The whole.

        Raises:
            InvalidArgumentError: bytes are missing.
        """
        if not self.complete or len(self._data) != self._spec.size_bytes:
            raise InvalidArgumentError(
                f"{len(self._data)} bytes came of the {self._spec.size_bytes} of "
                f"{self._spec.shape} {self._spec.dtype}, the last part marked last",
                field="data",
            )
        dtype = self._spec.dtype.newbyteorder("<")
        return np.frombuffer(bytes(self._data), dtype).reshape(self._spec.shape)


def parts_of(tensor: npt.NDArray[Any]) -> Iterator[api.PredictPart]:
    """A tensor's bytes in parts of about 1 MiB, the last one marked."""
    data = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
    for offset in range(0, len(data), PART_BYTES):
        part = bytes(data[offset : offset + PART_BYTES])
        yield api.PredictPart(
            offset=offset,
            data=part,
            last=offset + len(part) == len(data),
            crc32c=google_crc32c.value(part),
        )


def parse_box(box: geometry_pb2.Box, shape: Sequence[int], field: str) -> Box:
    """The (z, y, x) box of an array (z, y, x) or (c, z, y, x); empty is all of it.

    Raises:
        InvalidArgumentError: not a box within the array.
    """
    sizes = tuple(int(n) for n in shape[-3:])
    if not box.start and not box.stop:
        return Box.of_shape(sizes)
    start, stop = tuple(box.start), tuple(box.stop)
    if len(start) == len(stop) == 4:
        if len(shape) != 4 or (start[0], stop[0]) != (0, shape[0]):
            raise InvalidArgumentError(f"a box takes all channels: {start}:{stop}", field=field)
        start, stop = start[1:], stop[1:]
    if len(start) != 3 or len(stop) != 3:
        raise InvalidArgumentError(f"box {start[:5]}:{stop[:5]} is not (z, y, x)", field=field)
    inside = all(0 <= low < high <= n for low, high, n in zip(start, stop, sizes, strict=True))
    if not inside:
        raise InvalidArgumentError(
            f"box {start}:{stop} is empty or outside of an array of {sizes}",
            field=field,
            reason="SHAPE_MISMATCH",
        )
    return Box(start, stop)


def parse_triple(values: Sequence[int], field: str, *, least: int) -> Triple | None:
    """(z, y, x), or None if empty.

    Raises:
        InvalidArgumentError: not three numbers from `least` to 2^20.
    """
    if not values:
        return None
    if len(values) != 3 or not all(least <= n <= 2**20 for n in values):
        raise InvalidArgumentError(
            f"{field} {list(values)[:5]} is not (z, y, x) of at least {least}", field=field
        )
    return int(values[0]), int(values[1]), int(values[2])


def _parse_done(box: geometry_pb2.Box) -> Box:
    if len(box.start) != 3 or len(box.stop) != 3:
        raise InvalidArgumentError("a box that was done is (z, y, x)", field="done")
    return Box(tuple(box.start), tuple(box.stop))


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """How a volume is computed."""

    patch: Triple | None
    overlap: Triple | None
    mode: str
    conversion: Conversion
    blending: str
    augmentation: str = "none"
    done: tuple[Box, ...] = ()


def parse_volume_options(request: api.InferVolumeRequest) -> VolumeOptions:
    """Checked options of InferVolume.

    Raises:
        InvalidArgumentError: names the field.
    """
    numbers = request.scale, request.shift, request.output_scale, request.output_shift
    if not all(math.isfinite(number) for number in numbers):
        raise InvalidArgumentError("scale and shift must be finite", field="scale")
    blending = request.blending or "crop"
    if blending not in BLENDINGS:
        raise InvalidArgumentError(
            f"blending {blending[:40]!r} is not one of {', '.join(BLENDINGS)}", field="blending"
        )
    conversion = Conversion(
        request.scale or 1.0, request.shift, request.output_scale or 1.0, request.output_shift
    )
    return VolumeOptions(
        parse_triple(request.patch, "patch", least=1),
        parse_triple(request.overlap, "overlap", least=0),
        parse_mode(request.mode),
        conversion,
        blending,
        request.augmentation or "none",
        tuple(_parse_done(box) for box in request.done),
    )
