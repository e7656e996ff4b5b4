"""The band-pass filter: a difference of Gaussians, as a numpy function and as an ONNX model.

Both compute the same: values outside the image are zero, kernels are cut at three sigmas, the
mean grey (`offset`) is taken off first so that the border does not ring more than it must, and
tanh bounds the result, which tames dust and folds. Pixels of 0 mean that there is no tissue: where
they fill a box of 9 x 9, they count as the mean and have no feature, so that the outline of the
tissue, which is the strongest edge of all and says nothing, is not matched.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import scipy.ndimage
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_BLANK_PX = 9  # zeros that fill a box of this edge are no tissue; fewer are dark tissue


def tissue_mask(image: NDArray[Any]) -> NDArray[np.float32]:
    """1 where there is tissue, 0 inside of boxes of zeros; (H, W) of unsigned values."""
    known = np.clip(image, 0, 1).astype(np.float32)
    widened = scipy.ndimage.maximum_filter(known, _BLANK_PX, mode="nearest")
    return np.asarray(scipy.ndimage.minimum_filter(widened, _BLANK_PX, mode="nearest"))


def gaussian_kernel(sigma_px: float) -> NDArray[np.float64]:
    """A one-dimensional Gaussian of unit sum, cut at three sigmas: (2 ceil(3 sigma) + 1,)."""
    if not (math.isfinite(sigma_px) and sigma_px > 0):
        raise ValueError(f"a Gaussian's sigma is above 0, not {sigma_px}")
    radius = max(1, math.ceil(3 * sigma_px))
    x = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (x / sigma_px) ** 2)
    return np.asarray(kernel / kernel.sum())


def bandpass(
    image: NDArray[Any],
    sigma_low_px: float,
    sigma_high_px: float,
    *,
    offset: float = 128.0,
    gain: float = 1.0 / 24.0,
    bounded: bool = True,
) -> NDArray[np.float32]:
    """tanh(gain x (G_low - G_high) * (image - offset)), zero outside the tissue.

    Args:
        image: (H, W).
        sigma_low_px: of the narrow Gaussian; finer detail goes.
        sigma_high_px: of the wide one; coarser shading goes.
        offset: grey value taken off first.
        gain: scale in front of tanh, 1 / grey levels.
        bounded: False leaves tanh out.
    """
    _check(sigma_low_px, sigma_high_px)
    tissue = tissue_mask(image)
    centred = (image.astype(np.float32) - np.float32(offset)) * tissue

    def blur(sigma: float) -> NDArray[np.float32]:
        kernel = gaussian_kernel(sigma).astype(np.float32)
        rows = scipy.ndimage.correlate1d(centred, kernel, axis=0, mode="constant")
        return np.asarray(scipy.ndimage.correlate1d(rows, kernel, axis=1, mode="constant"))

    difference = (blur(sigma_low_px) - blur(sigma_high_px)) * np.float32(gain) * tissue
    return np.tanh(difference) if bounded else difference


def bandpass_onnx(
    sigma_low_px: float,
    sigma_high_px: float,
    *,
    offset: float = 128.0,
    gain: float = 1.0 / 24.0,
    bounded: bool = True,
    shape: tuple[int, int] | None = None,
) -> bytes:
    """The same filter as an ONNX model: input `image` (1, 1, H, W) float32, output `features`.

    Each Gaussian is two one-dimensional convolutions (the kernel is separable). H and W are
    symbolic unless `shape` gives them.
    """
    _check(sigma_low_px, sigma_high_px)
    weights: list[Any] = []
    nodes: list[Any] = []

    def constant(name: str, values: NDArray[Any]) -> str:
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def blur(name: str, sigma: float, scale: float) -> str:
        kernel = gaussian_kernel(sigma)
        radius = len(kernel) // 2
        column = constant(f"{name}_column", kernel.reshape(1, 1, -1, 1))
        row = constant(f"{name}_row", scale * kernel.reshape(1, 1, 1, -1))
        nodes.append(
            helper.make_node(
                "Conv", ["centred", column], [f"{name}_rows"], name=f"{name}_vertical",
                kernel_shape=[len(kernel), 1], pads=[radius, 0, radius, 0],
            )
        )  # fmt: skip
        nodes.append(
            helper.make_node(
                "Conv", [f"{name}_rows", row], [name], name=f"{name}_horizontal",
                kernel_shape=[1, len(kernel)], pads=[0, radius, 0, radius],
            )
        )  # fmt: skip
        return name

    nodes += _tissue_nodes(
        constant("one", np.ones((1, 1, 1, 1))), constant("zero", np.zeros((1, 1, 1, 1)))
    )
    grey = constant("offset", np.array([[[[offset]]]]))
    nodes.append(helper.make_node("Sub", ["image", grey], ["grey"], name="centre"))
    nodes.append(helper.make_node("Mul", ["grey", "tissue"], ["centred"], name="leave_out_blank"))
    narrow, wide = blur("narrow", sigma_low_px, gain), blur("wide", sigma_high_px, gain)
    last = "difference" if bounded else "features"
    nodes.append(helper.make_node("Sub", [narrow, wide], ["band"], name="difference_of_gaussians"))
    nodes.append(helper.make_node("Mul", ["band", "tissue"], [last], name="no_feature_in_blank"))
    if bounded:
        nodes.append(helper.make_node("Tanh", ["difference"], ["features"], name="bound"))
    dimensions = [1, 1, *(shape if shape is not None else ("height", "width"))]
    graph = helper.make_graph(
        nodes,
        "bandpass",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, dimensions)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, dimensions)],
        initializer=weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.producer_name = "hyper"
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _tissue_nodes(one: str, zero: str) -> list[Any]:
    """`tissue_mask` as nodes: min(image, 1), widened and narrowed by maxima over a box."""
    radius = _BLANK_PX // 2

    def widen(source: str, target: str) -> Any:
        return helper.make_node(
            "MaxPool", [source], [target], name=target, strides=[1, 1],
            kernel_shape=[_BLANK_PX, _BLANK_PX], pads=[radius] * 4,
        )  # fmt: skip

    return [
        helper.make_node("Relu", ["image"], ["above_0"], name="above_0"),
        helper.make_node("Sub", ["above_0", one], ["less_1"], name="less_1"),
        helper.make_node("Relu", ["less_1"], ["above_1"], name="above_1"),
        helper.make_node("Sub", ["above_0", "above_1"], ["known"], name="known"),
        widen("known", "widened"),
        helper.make_node("Sub", [zero, "widened"], ["blank"], name="blank"),
        widen("blank", "not_tissue"),
        helper.make_node("Sub", [zero, "not_tissue"], ["tissue"], name="tissue"),
    ]


def _check(sigma_low_px: float, sigma_high_px: float) -> None:
    if not 0 < sigma_low_px < sigma_high_px:
        raise ValueError(
            "a band-pass needs 0 < sigma_low_px < sigma_high_px, not "
            f"{sigma_low_px} and {sigma_high_px}"
        )
