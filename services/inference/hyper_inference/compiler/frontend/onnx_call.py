"""One node of an ONNX file, for the functions that translate it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hyper_inference.compiler.frontend.builder import GraphBuilder
from hyper_inference.compiler.frontend.views import Seen, View
from hyper_inference.errors import UnsupportedOp


@dataclass(frozen=True, slots=True)
class Grouped:
    """A value seen as (n, groups, rest): how exporters write group norm."""

    value: str
    groups: int


class Call:
    """One node to translate."""

    def __init__(
        self,
        builder: GraphBuilder,
        op: str,
        where: str,
        inputs: list[Any],
        attributes: Any,
        outputs: int = 1,
    ) -> None:
        self.builder, self.op, self.where = builder, op, where
        self.inputs, self.attributes, self.outputs = inputs, attributes, outputs

    def seen(self, index: int = 0) -> Seen:
        """Input `index`, which must be computed, however it is seen."""
        value = self.inputs[index]
        if not isinstance(value, (str, View)):
            raise UnsupportedOp(self.op, self.where, f"input {index} is a constant")
        return value

    def with_inputs(self, inputs: list[Any]) -> Call:
        """The same node with other inputs."""
        return Call(self.builder, self.op, self.where, inputs, self.attributes, self.outputs)

    def tensor(self, index: int = 0) -> str:
        """Input `index`, which must be a value of the graph, seen as (n, c, [z,] y, x)."""
        value = self.inputs[index]
        if isinstance(value, View):
            raise UnsupportedOp(
                self.op, self.where, "its input is permuted or flattened, not (n, c, ...)"
            )
        if not isinstance(value, str):
            raise UnsupportedOp(self.op, self.where, f"input {index} is a constant")
        return value

    def constant(self, index: int, default: Any = None) -> Any:
        """Input `index`, which must be known now."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(value, (str, Grouped, View)):
            raise UnsupportedOp(self.op, self.where, f"input {index} is not a constant")
        return default if value is None else value

    def get(self, name: str, default: Any) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def refuse(self, why: str) -> UnsupportedOp:
        """The error for a use that is not covered."""
        return UnsupportedOp(self.op, self.where, why)

    def pads(
        self, kernel: Sequence[int], stride: Any, dilation: Any
    ) -> tuple[list[int], list[int]]:
        """(before, after) along the spatial axes, from `pads` or `auto_pad`."""
        spatial = self.builder.spatial
        mode = self.get("auto_pad", "NOTSET")
        if mode == "VALID":
            return [0] * spatial, [0] * spatial
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            before, after = [], []
            sizes = self.builder.shape(self.tensor())[2:]
            for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
                total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
                small, large = total // 2, total - total // 2
                before.append(small if mode == "SAME_UPPER" else large)
                after.append(large if mode == "SAME_UPPER" else small)
            return before, after
        pads = [int(n) for n in self.get("pads", [0] * (2 * spatial))]
        if len(pads) != 2 * spatial:
            raise self.refuse(f"pads {pads[:8]} in a {spatial}D net")
        return pads[:spatial], pads[spatial:]
