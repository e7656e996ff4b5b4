"""A trained net as an ONNX model that the inference service compiles: no torch at matching time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hyper_matcher.nccnet.model import Block, NCCNet


class _Graph:
    """Nodes and weights as they are added; every method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, name: str, values: NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(values.astype("float32"), name))
        return name

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x: str, name: str, layer: Any, *, stride: int = 1, pad: int = 0) -> str:
        weight = self.constant(f"{name}_weight", layer.weight.detach().numpy())
        bias = self.constant(f"{name}_bias", layer.bias.detach().numpy())
        return self.add(
            "Conv", [x, weight, bias], name,
            kernel_shape=list(layer.kernel_size), strides=[stride] * 2, pads=[pad] * 4,
        )  # fmt: skip

    def pool(self, x: str, name: str, edge: int) -> str:
        return self.add("AveragePool", [x], name, kernel_shape=[edge] * 2, strides=[edge] * 2)

    def block(self, x: str, name: str, block: Block) -> str:
        slope = float(block.activation.negative_slope)
        for part, layer in (("first", block.first), ("second", block.second)):
            x = self.conv(x, f"{name}_{part}", layer, pad=1)
            x = self.add("LeakyRelu", [x], f"{name}_{part}_active", alpha=slope)
        return x

    def blur(self, x: str, name: str, kernel: NDArray[Any]) -> str:
        radius = len(kernel) // 2
        if radius == 0:
            return x
        column = self.constant(f"{name}_column", kernel.reshape(1, 1, -1, 1))
        row = self.constant(f"{name}_row", kernel.reshape(1, 1, 1, -1))
        rows = self.add(
            "Conv", [x, column], f"{name}_rows",
            kernel_shape=[len(kernel), 1], pads=[radius, 0, radius, 0],
        )  # fmt: skip
        return self.add(
            "Conv", [rows, row], name, kernel_shape=[1, len(kernel)], pads=[0, radius, 0, radius]
        )


def to_onnx(net: NCCNet) -> bytes:
    """The model's bytes: `section` (1, 1, Y, X) float32 grey values -> `features`.

    Y and X are symbolic and must be multiples of `net.config.multiple`.
    """
    config, g = net.config, _Graph()
    scale = g.constant("inverse_spread", 1 / net.spread.numpy().reshape(1, 1, 1, 1))
    offset = g.constant("mean", net.mean.numpy().reshape(1, 1, 1, 1))
    x = g.add("Sub", ["section", offset], "centred")
    x = g.add("Mul", [x, scale], "normalised")
    small = g.pool(x, "small", config.factor)
    texture = g.conv(x, "texture", net.texture, stride=config.factor)
    x = g.add("Concat", [small, texture], "seen", axis=1)
    skips = []
    for level, block in enumerate(net.down):
        x = g.block(g.pool(x, f"pool{level}", 2) if level else x, f"down{level}", block)
        skips.append(x)
    x = skips.pop()
    sizes = g.constant("twice", np.array([1, 1, 2, 2]))
    for number, block in enumerate(net.up):
        grown = g.add(
            "Resize", [x, "", sizes], f"grow{number}",
            mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        )  # fmt: skip
        joined = g.add("Concat", [skips.pop(), grown], f"join{number}", axis=1)
        x = g.block(joined, f"up{number}", block)
    narrow, wide = (
        g.blur(small, "narrow", net.narrow.numpy()),
        g.blur(small, "wide", net.wide.numpy()),
    )
    band = g.add("Sub", [narrow, wide], "difference")
    band = g.add("Mul", [band, g.constant("gain", np.full((1, 1, 1, 1), config.gain))], "band")
    total = g.add("Add", [band, g.conv(x, "head", net.heads[0])], "total")
    g.add("Tanh", [total], "features")
    graph = helper.make_graph(
        g.nodes,
        "nccnet",
        [helper.make_tensor_value_info("section", TensorProto.FLOAT, [1, 1, "height", "width"])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 1, "rows", "columns"])],
        initializer=g.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.producer_name = "hyper"
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
