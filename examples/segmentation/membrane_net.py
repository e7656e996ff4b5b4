"""A small 2.5D U-Net that tells membranes: three sections in, the middle one's membranes out.

Convolutions within sections at half the resolution, one across neighbouring sections at the start;
skips are added, so that the CPU engine fuses them. After Ronneberger et al., "U-Net", MICCAI 2015.
"""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

MEAN, SPREAD = 128.0, 64.0  # grey values become (value - MEAN) / SPREAD


class MembraneNet(nn.Module):
    """(n, 1, z + 2, y, x) normalised grey -> logits (n, 1, z, y, x) of membrane."""

    def __init__(self, widths: tuple[int, ...] = (20, 40, 64, 96)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        first = widths[0]
        self.stem = nn.Conv3d(1, first, (3, 5, 5), stride=(1, 2, 2), padding=(0, 2, 2))
        self.enter = nn.ModuleList(
            _conv(before, after) for before, after in itertools.pairwise(widths)
        )
        self.down = nn.ModuleList(_conv(w, w) for w in widths)
        self.leave = nn.ModuleList(
            nn.Conv3d(after, before, 1) for before, after in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList(_conv(w, w) for w in widths[:-1])
        self.narrow = nn.Conv3d(first, 8, 1)
        self.fine = nn.Conv3d(1, 8, (1, 3, 3), padding=(0, 1, 1))
        self.head = nn.Conv3d(8, 1, (1, 3, 3), padding=(0, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        # What is added to a skip begins small: else the logits begin at tens, and some seeds never
        # find back. After Zhang et al., "Fixup initialization", ICLR 2019.
        with torch.no_grad():
            for conv in (*self.down, *self.up, self.head):
                conv.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        middle = x[:, :, 1:-1]
        h = functional.relu(self.stem(x))
        skips = []
        for level, conv in enumerate(self.down):
            if level:
                h = functional.relu(self.enter[level - 1](functional.max_pool3d(h, (1, 2, 2))))
            h = functional.relu(conv(h) + h)
            skips.append(h)
        for level in range(len(self.up) - 1, -1, -1):
            h = _twice(self.leave[level](h)) + skips[level]
            h = functional.relu(self.up[level](h) + h)
        h = functional.relu(_twice(self.narrow(h)) + self.fine(middle))
        logits: Tensor = self.head(h)
        return logits


def _conv(before: int, after: int) -> nn.Conv3d:
    return nn.Conv3d(before, after, (1, 3, 3), padding=(0, 1, 1))


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")


def to_onnx(net: MembraneNet) -> bytes:
    """The model `grey` (1, 1, z, y, x) of 0 to 255 -> `membrane` of 0 to 1, of the same size.

    Sections beyond the first and last count as grey of `MEAN`, as in training.
    """
    graph = _Graph()
    offset = graph.constant("mean", np.full((1, 1, 1, 1, 1), MEAN, np.float32))
    factor = graph.constant("factor", np.full((1, 1, 1, 1, 1), 1 / SPREAD, np.float32))
    grey = graph.add("Mul", [graph.add("Sub", ["grey", offset], "centred"), factor], "normalised")
    h = graph.relu(graph.conv(grey, "stem", net.stem, pad_z=1))
    skips = []
    for level, conv in enumerate(net.down):
        if level:
            h = graph.add("MaxPool", [h], f"pool{level}", kernel_shape=[1, 2, 2],
                          strides=[1, 2, 2])  # fmt: skip
            h = graph.relu(graph.conv(h, f"enter{level}", net.enter[level - 1]))
        summed = graph.add("Add", [graph.conv(h, f"down{level}", conv), h], f"down{level}_sum")
        h = graph.relu(summed)
        skips.append(h)
    sizes = graph.constant("twice", np.array([1, 1, 1, 2, 2], np.float32))
    for level in range(len(net.up) - 1, -1, -1):
        grown = graph.twice(graph.conv(h, f"leave{level}", net.leave[level]), sizes)
        h = graph.add("Add", [grown, skips[level]], f"join{level}")
        summed = graph.add("Add", [graph.conv(h, f"up{level}", net.up[level]), h], f"up{level}_sum")
        h = graph.relu(summed)
    grown = graph.twice(graph.conv(h, "narrow", net.narrow), sizes)
    h = graph.relu(graph.add("Add", [grown, graph.conv(grey, "fine", net.fine)], "detail"))
    graph.add("Sigmoid", [graph.conv(h, "head", net.head)], "membrane")
    sides = [1, 1, "depth", "height", "width"]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, "membranes",
            [helper.make_tensor_value_info("grey", TensorProto.FLOAT, sides)],
            [helper.make_tensor_value_info("membrane", TensorProto.FLOAT, sides)],
            initializer=graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class _Graph:
    """Nodes and weights as they are added; every method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, name: str, values: NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def relu(self, x: str) -> str:
        return self.add("Relu", [x], f"{x}_active")

    def twice(self, x: str, sizes: str) -> str:
        return self.add(
            "Resize", [x, "", sizes], f"{x}_grown",
            mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        )  # fmt: skip

    def conv(self, x: str, name: str, layer: nn.Conv3d, pad_z: int = 0) -> str:
        assert layer.bias is not None
        weight = self.constant(f"{name}_weight", layer.weight.detach().numpy())
        bias = self.constant(f"{name}_bias", layer.bias.detach().numpy())
        edge = layer.kernel_size[-1] // 2
        return self.add(
            "Conv", [x, weight, bias], name, kernel_shape=list(layer.kernel_size),
            strides=list(layer.stride), pads=[pad_z, edge, edge] * 2,
        )  # fmt: skip


def pack(**state: Any) -> bytes:
    """Tensors, numbers and lists as bytes that `unpack` reads."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, Any]:
    """What `pack` has written; no pickled code is run."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return state
