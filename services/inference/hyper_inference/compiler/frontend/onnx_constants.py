"""Constants of an ONNX graph: reading them safely, and the arithmetic on shapes of exported nets.

Exporters write sizes as little graphs (Shape -> Gather -> Mul -> Concat -> Resize). With a fixed
input shape all of these are constants, which are computed here and never reach the IR.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from hyper_inference.errors import InvalidModelError

MAX_CONSTANT_BYTES = 8 * 2**30
MAX_FOLDED_ELEMENTS = 2**24


def read_tensor(tensor: Any, what: str, raw: npt.NDArray[np.uint8] | None = None) -> np.ndarray:
    """An initializer or attribute as an array; `raw`: its bytes, where they lie apart.

    Raises:
        InvalidModelError: external data, no numbers, or dims that its bytes do not fill.
    """
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise InvalidModelError(
            f"{what} lies in an external file, which is not read; save the model as one file"
        )
    if any(n < 0 for n in tensor.dims) or len(tensor.dims) > 16:
        raise InvalidModelError(f"{what} has impossible dims {list(tensor.dims)[:8]}")
    elements = math.prod(tensor.dims)
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidModelError(f"{what} has an unknown data type {tensor.data_type}") from error
    if dtype.kind not in "fiub" or elements * dtype.itemsize > MAX_CONSTANT_BYTES:
        raise InvalidModelError(f"{what} of {elements} x {dtype} cannot be used")
    stored_bytes = len(tensor.raw_data if raw is None else raw)
    if stored_bytes and stored_bytes != elements * dtype.itemsize:
        raise InvalidModelError(f"{what} is cut off: {stored_bytes} bytes for {elements} x {dtype}")
    if raw is not None:
        return np.asarray(raw.view(dtype.newbyteorder("<")).reshape(tuple(tensor.dims)))
    stored = max(
        len(tensor.float_data), len(tensor.int32_data), len(tensor.int64_data),
        len(tensor.double_data), len(tensor.uint64_data),
    )  # fmt: skip
    if not stored_bytes and stored != elements:
        raise InvalidModelError(f"{what} is cut off: {stored} values for {list(tensor.dims)[:8]}")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidModelError(f"{what} cannot be read: {error}") from error


def fold(op: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any | None:
    """The result of `op` on constants, or None where it is not one of the shape arithmetic."""
    function = _FOLDABLE.get(op)
    if function is None:
        return None
    if any(value is not None and np.size(value) > MAX_FOLDED_ELEMENTS for value in inputs):
        raise InvalidModelError(f"{op} on constants that are too large")
    try:
        with np.errstate(all="ignore"):
            result = np.asarray(function(list(inputs), attributes))
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise InvalidModelError(f"{op} on constants fails: {error}") from error
    return result


def _axes(inputs: list[Any], attributes: Mapping[str, Any]) -> list[int]:
    axes = inputs[1] if len(inputs) > 1 else attributes.get("axes")
    return [] if axes is None else [int(axis) for axis in np.ravel(axes)]


def _slice(inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    data, starts, ends = inputs[:3]
    axes = np.ravel(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = np.ravel(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    index = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[int(axis)] = slice(int(start), int(end), int(step))
    return data[tuple(index)]


def _divide(inputs: list[Any], _: Mapping[str, Any]) -> Any:
    left, right = np.asarray(inputs[0]), np.asarray(inputs[1])
    return np.trunc(left / right).astype(left.dtype) if left.dtype.kind in "iu" else left / right


def _constant_of_shape(inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    shape = [int(n) for n in np.ravel(inputs[0])]
    if math.prod(shape) > MAX_FOLDED_ELEMENTS or any(n < 0 for n in shape):
        raise ValueError(f"a constant of shape {shape[:8]}")
    value = attributes.get("value")
    return np.full(shape, 0.0 if value is None else np.ravel(value)[0])


def _cast(inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    return np.asarray(inputs[0]).astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))


_FOLDABLE: dict[str, Callable[[list[Any], Mapping[str, Any]], Any]] = {
    "Identity": lambda v, a: v[0],
    "Cast": _cast,
    "Gather": lambda v, a: np.take(v[0], np.asarray(v[1], np.int64), axis=a.get("axis", 0)),
    "Slice": _slice,
    "Concat": lambda v, a: np.concatenate([np.atleast_1d(x) for x in v], axis=a.get("axis", 0)),
    "Unsqueeze": lambda v, a: np.expand_dims(v[0], tuple(_axes(v, a))),
    "Squeeze": lambda v, a: np.squeeze(v[0], tuple(_axes(v, a)) or None),
    "Reshape": lambda v, a: np.reshape(v[0], [int(n) for n in np.ravel(v[1])]),
    "Transpose": lambda v, a: np.transpose(v[0], a.get("perm")),
    "Add": lambda v, a: np.add(v[0], v[1]),
    "Sub": lambda v, a: np.subtract(v[0], v[1]),
    "Mul": lambda v, a: np.multiply(v[0], v[1]),
    "Div": _divide,
    "Sqrt": lambda v, a: np.sqrt(v[0]),
    "Neg": lambda v, a: np.negative(v[0]),
    "Floor": lambda v, a: np.floor(v[0]),
    "Ceil": lambda v, a: np.ceil(v[0]),
    "ConstantOfShape": _constant_of_shape,
    "Equal": lambda v, a: np.equal(v[0], v[1]),
    "Where": lambda v, a: np.where(v[0], v[1], v[2]),
    "ReduceProd": lambda v, a: np.prod(
        v[0], tuple(_axes(v, a)) or None, keepdims=bool(a.get("keepdims", 1))
    ),
}
