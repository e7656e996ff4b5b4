"""Fully connected layers on any view: convolutions whose kernel is what the layer sees."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyper_inference.compiler.frontend.builder import GraphBuilder
from hyper_inference.compiler.frontend.views import Seen, View, settle, view_of
from hyper_inference.errors import InvalidModelError, UnsupportedOp


def linear(b: GraphBuilder, seen: Seen, weight: Any, bias: Any | None, op: str, hint: str) -> Seen:
    """`x @ weight.T + bias` along the last axis.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,) or None.
    """
    view = view_of(b, seen)
    sizes = b.sizes(view.value)
    matrix = np.asarray(weight)
    group = view.axes[-1] if view.axes else ()
    inputs = [sizes[axis] for axis in group]
    if matrix.ndim != 2 or matrix.shape[1] != int(np.prod(inputs)):
        raise InvalidModelError(f"node {hint!r}: a weight of {matrix.shape} for {inputs} numbers")
    if bias is not None and np.size(bias) not in (1, matrix.shape[0]):
        raise InvalidModelError(f"node {hint!r}: a bias of {np.shape(bias)} for {matrix.shape}")
    if 0 not in group and sizes[0] > 1:
        raise UnsupportedOp(op, hint, "along another axis than the channels")
    kernel = matrix.reshape(len(matrix), *inputs)
    missing = [axis for axis in range(4) if axis not in group]
    kernel = kernel.reshape(*kernel.shape, *[1] * len(missing))
    places = [*group, *missing]
    kernel = kernel.transpose(0, *(1 + places.index(axis) for axis in range(4)))
    drop = 3 - b.spatial
    kernel = kernel.reshape(*kernel.shape[:2], *kernel.shape[2 + drop :])
    offsets = None if bias is None else np.broadcast_to(np.ravel(bias), (len(matrix),))
    result = b.conv(view.value, kernel, offsets, hint)
    return settle(b, View(result, (*view.axes[:-1], (0,))))
