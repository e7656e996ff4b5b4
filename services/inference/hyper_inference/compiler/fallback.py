"""Nets that the compiler does not cover, run by torch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

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


def run_by_torch(model: Any, why: UnsupportedOp) -> TorchNet:
    """The module itself, with a warning; anything but a torch module raises `why`."""
    from hyper_inference.compiler.frontend.torch_export import is_torch_model

    if not is_torch_model(model):
        raise why
    module = model.module() if hasattr(model, "graph_signature") else model.eval()
    warnings.warn(f"{why}; torch runs the whole net", RuntimeWarning, stacklevel=3)
    return TorchNet(module, why)
