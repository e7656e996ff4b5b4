"""The ordered list of passes: what happens to a graph between a frontend and the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from hyper_inference.compiler.ir import Graph
from hyper_inference.compiler.passes.drop_dead import drop_dead
from hyper_inference.compiler.passes.flatten_concat import flatten_concat
from hyper_inference.compiler.passes.fold_affine import fold_affine
from hyper_inference.compiler.passes.fuse_activation import fuse_activation
from hyper_inference.compiler.passes.fuse_pad import fuse_pad
from hyper_inference.compiler.passes.fuse_residual_add import fuse_residual_add
from hyper_inference.compiler.verify import verify

Pass: TypeAlias = Callable[[Graph], Graph]

PIPELINE: tuple[Pass, ...] = (
    drop_dead,
    flatten_concat,
    fuse_pad,
    fold_affine,
    fuse_residual_add,
    fold_affine,  # batch norm after the residual add
    fuse_activation,
    drop_dead,
)


def run_pipeline(
    graph: Graph,
    passes: tuple[Pass, ...] = PIPELINE,
    on_pass: Callable[[str, Graph], None] | None = None,
) -> Graph:
    """Apply every pass; the graph is verified before and after each.

    Args:
        graph: as a frontend made it.
        passes: in order.
        on_pass: told the name and result of each, to print it.
    """
    graph = verify(graph)
    for step in passes:
        graph = verify(step(graph), after=step.__name__)
        if on_pass is not None:
            on_pass(step.__name__, graph)
    return graph
