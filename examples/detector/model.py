"""A detector after YOLO: one look, a grid of cells, each with a box, its confidence and its class.

The loss is a sum over samples divided by the size of the whole batch, and nothing in the net looks
at other samples: so ranks that share a batch and add their gradients take the step that one
process with the whole batch takes.

Sources: Redmon et al., "You Only Look Once", CVPR 2016 (cells, confidence, the loss's terms); boxes
as in YOLOv3 (arXiv 1804.02767): sigmoid for the centre, exponential for the size.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scenes import CLASSES, Box
from torch import Tensor, nn
from torch.nn import functional

PRIOR = 0.25  # size that an output of 0 stands for, as a share of the image
BOXES_MAX = 256  # of an image
_SLOPE = 0.1
_EMPTY_WEIGHT = 0.5
_BOX_WEIGHT = 5.0


class Detector(nn.Module):
    """(n, 3, y, x) -> (n, 5 + classes, y / 8, x / 8): confidence, dx, dy, log w, log h, classes."""

    def __init__(self, width: int = 16, classes: int = len(CLASSES)) -> None:
        super().__init__()
        w = width
        self.width, self.classes = width, classes
        plan = [(3, w, 2), (w, 2 * w, 2), (2 * w, 4 * w, 2), (4 * w, 8 * w, 1), (8 * w, 4 * w, 1)]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=s, padding=1) for a, b, s in plan)
        self.head = nn.Conv2d(4 * w, 5 + classes, 1)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.bias[0] = -3.0  # most cells are empty

    def forward(self, x: Tensor) -> Tensor:
        """The grid."""
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), _SLOPE)
        return self.head(x)


def encode(boxes: list[Box]) -> NDArray[np.float32]:
    """(BOXES_MAX, 5) of class, x, y, width, height; class -1 where there is none.

    Raises:
        ValueError: there are more.
    """
    if len(boxes) > BOXES_MAX:
        raise ValueError(f"an image with {len(boxes)} boxes: at most {BOXES_MAX}")
    rows = np.full((BOXES_MAX, 5), -1, np.float32)
    for row, box in zip(rows, boxes, strict=False):
        row[:] = box.kind, box.x, box.y, box.width, box.height
    return rows


def loss_sum(grid: Tensor, boxes: Tensor) -> Tensor:
    """Sum of the loss over a batch.

    Args:
        grid: (n, 5 + classes, rows, columns), of `Detector`.
        boxes: (n, BOXES_MAX, 5), of `encode`.
    """
    n, _, rows, columns = grid.shape
    real = boxes[..., 0] >= 0
    sample = torch.arange(n, device=grid.device)[:, None].expand_as(real)[real]
    kind, x, y, width, height = boxes[real].unbind(-1)
    column = (x * columns).long().clamp(0, columns - 1)
    row = (y * rows).long().clamp(0, rows - 1)
    wanted = torch.zeros(n, rows, columns, device=grid.device)
    wanted[sample, row, column] = 1
    weight = torch.where(wanted > 0, 1.0, _EMPTY_WEIGHT)
    confidence = functional.binary_cross_entropy_with_logits(
        grid[:, 0], wanted, weight=weight, reduction="sum"
    )
    cell = grid[sample, :, row, column]  # (boxes, 5 + classes)
    centre = torch.stack([x * columns - column, y * rows - row], -1)
    size = torch.log(torch.stack([width, height], -1) / PRIOR)
    place = functional.mse_loss(cell[:, 1:3].sigmoid(), centre, reduction="sum")
    place = place + functional.mse_loss(cell[:, 3:5], size, reduction="sum")
    named = functional.cross_entropy(cell[:, 5:], kind.long(), reduction="sum")
    return confidence + _BOX_WEIGHT * place + named


def to_onnx(net: Detector) -> bytes:
    """The model `image` (1, 3, y, x) -> `grid`, for the CPU engine; y and x are symbolic."""
    nodes, weights, x = [], [], "image"
    layers = [(f"conv{i}", layer) for i, layer in enumerate(net.layers)] + [("grid", net.head)]
    for name, layer in layers:
        for part in ("weight", "bias"):
            values = getattr(layer, part).detach().cpu().numpy()
            weights.append(numpy_helper.from_array(values, f"{name}_{part}"))
        edge, step = layer.kernel_size[0], layer.stride[0]
        node = helper.make_node(
            "Conv", [x, f"{name}_weight", f"{name}_bias"], [name], name=name,
            kernel_shape=[edge] * 2, strides=[step] * 2, pads=[edge // 2] * 4,
        )  # fmt: skip
        nodes.append(node)
        x = name
        if name != "grid":
            active = f"{name}_active"
            nodes.append(helper.make_node("LeakyRelu", [x], [active], name=active, alpha=_SLOPE))
            x = active
    graph = helper.make_graph(
        nodes, "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info(
            "grid", TensorProto.FLOAT, [1, 5 + net.classes, "rows", "columns"])],
        initializer=weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def pack(**state: Any) -> bytes:
    """Tensors, numbers and lists as bytes that `unpack` reads."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, Any]:
    """What `pack` has written; no pickled code is run."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state
