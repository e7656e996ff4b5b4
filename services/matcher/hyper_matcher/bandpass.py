"""The band-pass filter: a difference of Gaussians, as a numpy function and as an ONNX model.

Both compute the same: values outside the image are zero, kernels are cut at three sigmas, the
mean grey (`offset`) is taken off first so that the border does not ring more than it must, and
tanh bounds the result, which tames dust and folds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import scipy.ndimage
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


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
    """tanh(gain x (G_low - G_high) * (image - offset)), zero outside the image.

    Args:
        image: (H, W).
        sigma_low_px: of the narrow Gaussian; finer detail goes.
        sigma_high_px: of the wide one; coarser shading goes.
        offset: grey value taken off first.
        gain: scale in front of tanh, 1 / grey levels.
        bounded: False leaves tanh out.
    """
    _check(sigma_low_px, sigma_high_px)
    centred = image.astype(np.float32) - np.float32(offset)

    def blur(sigma: float) -> NDArray[np.float32]:
        kernel = gaussian_kernel(sigma).astype(np.float32)
        rows = scipy.ndimage.correlate1d(centred, kernel, axis=0, mode="constant")
        return np.asarray(scipy.ndimage.correlate1d(rows, kernel, axis=1, mode="constant"))

    difference = (blur(sigma_low_px) - blur(sigma_high_px)) * np.float32(gain)
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

    grey = constant("offset", np.array([[[[offset]]]]))
    nodes.append(helper.make_node("Sub", ["image", grey], ["centred"], name="centre"))
    narrow, wide = blur("narrow", sigma_low_px, gain), blur("wide", sigma_high_px, gain)
    last = "difference" if bounded else "features"
    nodes.append(helper.make_node("Sub", [narrow, wide], [last], name="difference_of_gaussians"))
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


def _check(sigma_low_px: float, sigma_high_px: float) -> None:
    if not 0 < sigma_low_px < sigma_high_px:
        raise ValueError(
            "a band-pass needs 0 < sigma_low_px < sigma_high_px, not "
            f"{sigma_low_px} and {sigma_high_px}"
        )
