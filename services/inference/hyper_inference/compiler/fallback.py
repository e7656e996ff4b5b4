"""Nets that the compiler does not cover, run by torch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from hyper.errors import InvalidArgumentError
from hyper_inference.compiler.compile import Compiled, compile_net
from hyper_inference.compiler.frontend.torch_export import is_torch_model
from hyper_inference.errors import UnsupportedOp


@dataclass(frozen=True, slots=True)
class TorchNet:
    """What `compile(..., fallback="torch")` gives then; called like a compiled net."""

    module: Any
    why: UnsupportedOp

    def __call__(self, batch: Any) -> Any:
        """Run on `(n, c, [z,] y, x)`; a torch tensor gives a torch tensor."""
        import torch

        given = hasattr(batch, "detach")
        dense = batch if given else torch.from_numpy(np.ascontiguousarray(batch, np.float32))
        with torch.no_grad():
            result = self.module(dense.float())
        return result if given else result.numpy()

    def explain(self) -> str:
        """Why torch runs it."""
        return f"run by torch: {self.why}"


@overload
def compile_or_fall_back(
    model: Any, example_or_shape: Any, *, fallback: None = None, **options: Any
) -> Compiled: ...
@overload
def compile_or_fall_back(
    model: Any, example_or_shape: Any, *, fallback: str | None, **options: Any
) -> Compiled | TorchNet: ...
def compile_or_fall_back(
    model: Any, example_or_shape: Any, *, fallback: str | None = None, **options: Any
) -> Compiled | TorchNet:
    """`compile_net`; with `fallback="torch"`, torch runs what is not covered.

    Args:
        model, example_or_shape, options: see `compile_net`.
        fallback: None, or "torch": warns, and gives a net that torch runs.

    Raises:
        UnsupportedOp: without a fallback, or where the model is a file.
    """
    if fallback not in (None, "torch"):
        raise InvalidArgumentError(f"fallback {fallback!r} is not 'torch'", field="fallback")
    try:
        return compile_net(model, example_or_shape, **options)
    except UnsupportedOp as error:
        if fallback is None:
            raise
        return run_by_torch(model, error)


def run_by_torch(model: Any, why: UnsupportedOp) -> TorchNet:
    """The module itself, with a warning; anything but a torch module raises `why`."""
    if not is_torch_model(model):
        raise why
    module = model.module() if hasattr(model, "graph_signature") else model.eval()
    warnings.warn(f"{why}; torch runs the whole net", RuntimeWarning, stacklevel=4)
    return TorchNet(module, why)
