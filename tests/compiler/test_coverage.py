"""Small modules of every op, through `torch.export` and through ONNX, against torch in float64."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import hyper_inference
from hyper_inference import UnsupportedOp
from hyper_inference.errors import InvalidModelError, ShapeError

pytestmark = [
    pytest.mark.timeout(240),
    # torch 2.13's own modules warn while they are imported and exported
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
Tensor = torch.Tensor
FLAT, DEEP = (2, 6, 9, 21), (2, 6, 3, 7, 10)


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


class Excite(nn.Module):
    """Squeeze and excite with fully connected layers, as it was published."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, 3), nn.ReLU(), nn.Linear(3, channels))

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        y = functional.adaptive_avg_pool2d(x, 1).view(n, c)
        return x * torch.sigmoid(self.fc(y)).view(n, c, 1, 1)


class ChannelsLast(nn.Module):
    """ConvNeXt's block: depthwise, layer norm and fully connected layers over the channels."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 24), nn.Linear(24, channels)
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(functional.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


class Classifier(nn.Module):
    """Flattened voxels into fully connected layers: (n, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 4, 3, stride=2)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(4 * 4 * 10, 16), nn.ELU(), nn.Linear(16, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.softmax(self.head(self.conv(x)), dim=1)


class Positions(nn.Module):
    """A stored value for every voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("map", torch.randn(6, 9, 21))
        self.register_buffer("row", torch.randn(1, 1, 9, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.map) * self.row - self.map / 2


class CriticAttention(nn.Module):
    """CBAM: channel attention by mean and maximum, spatial attention by 7 x 7."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, channels, 1))
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        mean, most = self.mlp(x.mean((2, 3), True)), self.mlp(x.amax((2, 3), True))
        x = x * torch.sigmoid(mean + most)
        both = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return x * torch.sigmoid(self.conv(both))


class AttentionGate(nn.Module):
    """Attention U-Net's gate: a coarse signal opens a fine skip."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv3d(6, 4, 1, stride=1)
        self.coarse, self.psi = nn.Conv3d(6, 4, 1), nn.Conv3d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        g = functional.max_pool3d(x, (1, 2, 2), ceil_mode=True)
        up = functional.interpolate(self.coarse(g), size=x.shape[2:], mode="trilinear")
        return x * torch.sigmoid(self.psi(torch.relu(self.fine(x) + up)))


def f(function: Callable[..., Any]) -> nn.Module:
    return Function(function)


MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "excite": (Excite(), FLAT),
    "channels_last": (ChannelsLast(), FLAT),
    "classifier": (Classifier(), FLAT),
    "positions": (Positions(), FLAT),
    "cbam": (CriticAttention(), FLAT),
    "attention_gate": (AttentionGate(), DEEP),
    "linear_3d": (f(lambda x: x.permute(0, 2, 3, 4, 1) @ torch.ones(6, 4)), DEEP),
    "linear_out": (nn.Sequential(nn.Flatten(), nn.Linear(6 * 3 * 7 * 10, 3)), DEEP),
    "tokens": (f(lambda x: x.flatten(2).transpose(1, 2).softmax(-1)), DEEP),
    "layer_norm_rows": (nn.LayerNorm(21), FLAT),
    "layer_norm_planes": (nn.LayerNorm([7, 10]), DEEP),
    "layer_norm_map": (nn.LayerNorm([6, 9, 21]), FLAT),
    "layer_norm_plain": (nn.LayerNorm([9, 21], elementwise_affine=False), FLAT),
    "adaptive_odd": (nn.AdaptiveAvgPool2d((4, 5)), FLAT),
    "adaptive_larger": (nn.AdaptiveAvgPool2d((11, 22)), FLAT),
    "adaptive_one_axis": (nn.AdaptiveAvgPool3d((None, 1, 4)), DEEP),
    "adaptive_max": (nn.AdaptiveMaxPool2d((4, 5)), FLAT),
    "adaptive_long": (nn.AdaptiveMaxPool2d((2, 3)), (1, 2, 40, 131)),
    "area": (f(lambda x: functional.interpolate(x, size=(5, 8), mode="area")), FLAT),
    "dilated_pool": (nn.MaxPool2d(3, 1, 1, dilation=2), FLAT),
    "mean_y": (f(lambda x: x.mean(2, keepdim=True)), FLAT),
    "mean_x": (f(lambda x: x.mean(3)), FLAT),
    "mean_channels": (f(lambda x: x.mean(1)), DEEP),
    "mean_all": (f(lambda x: x.mean((1, 2, 3))), FLAT),
    "mean_z_c": (f(lambda x: x.mean((1, 2))), DEEP),
    "sum": (f(lambda x: x.sum((2, 3), keepdim=True) + x), FLAT),
    "max_channels": (f(lambda x: x.amax(1, keepdim=True)), DEEP),
    "max_dim": (f(lambda x: x.max(2).values), FLAT),
    "min_dim": (f(lambda x: x.amin((2, 3))), FLAT),
    "variance": (f(lambda x: x.var((2, 3), keepdim=True)), FLAT),
    "deviation": (f(lambda x: x.std(1, unbiased=False)), FLAT),
    "softmax_y": (nn.Softmax(dim=2), FLAT),
    "softmax_x": (nn.Softmax(dim=-1), DEEP),
    "log_softmax": (nn.LogSoftmax(dim=1), DEEP),
    "softplus": (nn.Softplus(beta=2.0), FLAT),
    "mish": (nn.Mish(), FLAT),
    "selu": (nn.SELU(), FLAT),
    "celu": (nn.CELU(0.7), FLAT),
    "log_sigmoid": (nn.LogSigmoid(), FLAT),
    "exp": (f(lambda x: torch.exp(x) - torch.exp(-x)), FLAT),
    "log": (f(lambda x: torch.log(x.abs() + 0.1)), FLAT),
    "sqrt": (f(lambda x: torch.sqrt(x.abs()) + torch.rsqrt(x.abs() + 0.5)), FLAT),
    "reciprocal": (f(lambda x: 2 / (x.abs() + 1) + torch.reciprocal(x * x + 1)), FLAT),
    "powers": (f(lambda x: x**3 + (x.abs() + 1) ** 0.5 - (x.abs() + 1) ** -2), FLAT),
    "extremes": (f(lambda x: torch.maximum(x, -x) + torch.minimum(x, x.mean(1, True))), FLAT),
    "softsign": (nn.Softsign(), FLAT),
    "threshold": (nn.Hardtanh(-0.3, 0.4), FLAT),
    "glu": (nn.GLU(dim=1), FLAT),
    "unshuffle": (nn.PixelUnshuffle(3), FLAT),
    "shuffle_channels": (nn.ChannelShuffle(3), FLAT),
    "concat_y": (f(lambda x: torch.cat([x, x[:, :, 2:5], -x], 2)), FLAT),
    "concat_z": (f(lambda x: torch.cat([x, x * 2], dim=-3)), DEEP),
    "stack": (f(lambda x: torch.stack([x[:, 0], x[:, 3]], 1)), FLAT),
    "select": (f(lambda x: x[:, 2:3] * x[:, :, 4:5] - x[:, -1].unsqueeze(1)), FLAT),
    "squeeze": (f(lambda x: x[:, :1].squeeze(1).unsqueeze(1)), FLAT),
    "flip": (f(lambda x: torch.flip(x, (2, 3)) + x), FLAT),
    "roll": (f(lambda x: torch.roll(x, (1, -2), (2, 3))), FLAT),
    "expand": (f(lambda x: x.mean((2, 3), True).expand(-1, -1, 4, 5)), FLAT),
    "repeat": (f(lambda x: x.repeat(1, 2, 1, 3)), FLAT),
    "unbatched_view": (f(lambda x: x.view(-1, 6 * 9, 21)), FLAT),
}
NO_ONNX = {
    "adaptive_larger", "adaptive_long", "adaptive_max", "adaptive_odd", "adaptive_one_axis",
    "area", "channels_last", "flip", "repeat", "roll", "shuffle_channels", "unshuffle",
}  # fmt: skip
"""The exporter does not know them, or writes them as ops on six axes."""


def values(shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).standard_normal(shape).astype(np.float32))


def prepared(module: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    for part in module.modules():
        if isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return module.eval()


def expected_of(module: nn.Module, *x: Tensor) -> Any:
    with torch.no_grad():
        try:
            return module.double()(*(one.double() for one in x))
        finally:
            module.float()


def assert_close(actual: Any, expected: Any) -> None:
    if isinstance(expected, (tuple, list)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_close(one, other)
        return
    assert tuple(actual.shape) == tuple(expected.shape)
    error = (torch.as_tensor(actual) - expected).abs().max() / expected.abs().max()
    assert float(error) < 1e-5


@pytest.mark.parametrize("name", sorted(MODULES))
def test_by_export(name: str) -> None:
    module, shape = MODULES[name]
    x = values(shape)
    module = prepared(module)
    if name == "linear_3d":
        module = Function(lambda x: x.permute(0, 2, 3, 4, 1) @ torch.ones(6, 4, dtype=x.dtype))
    assert_close(hyper_inference.compile(module, x)(x), expected_of(module, x))


def onnx_of(module: nn.Module, *x: Tensor) -> bytes:
    file = io.BytesIO()
    torch.onnx.export(module, x, file, dynamo=False, opset_version=18)
    return file.getvalue()


@pytest.mark.parametrize("name", sorted(set(MODULES) - NO_ONNX))
def test_by_onnx(name: str) -> None:
    module, shape = MODULES[name]
    x = values((1, *shape[1:]))
    module = prepared(module)
    net = hyper_inference.compile(onnx_of(module, x), x)
    if name == "linear_3d":
        module = Function(lambda x: x.permute(0, 2, 3, 4, 1) @ torch.ones(6, 4, dtype=x.dtype))
    assert_close(net(x), expected_of(module, x))


class Branches(nn.Module):
    """Two inputs of different sizes; deep supervision, an input handed on, a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(3, 5, 3, stride=1, padding=1)
        self.head, self.coarse = nn.Conv2d(5, 2, 1), nn.Conv2d(5, 1, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        low = torch.relu(self.b(y))
        high = self.a(x) + functional.interpolate(low, scale_factor=2, mode="nearest")
        return self.head(high), self.coarse(low), high.mean((2, 3)), self.head(high) * 2


@pytest.mark.parametrize("way", ["export", "onnx"])
def test_several_inputs_and_outputs(way: str) -> None:
    module = Branches().eval()
    x, y = values((1, 2, 12, 22)), values((1, 3, 6, 11))
    model = module if way == "export" else onnx_of(module, x, y)
    net = hyper_inference.compile(model, (x, y))
    assert net.input_shapes == ((2, 12, 22), (3, 6, 11))
    assert net.output_shapes == ((2, 12, 22), (1, 6, 11), (5,), (2, 12, 22))
    both = torch.cat([x, -x]), torch.cat([y, y * 2])
    assert_close(net(*both), expected_of(module, *both))
    assert all(isinstance(part, np.ndarray) for part in net(x.numpy(), y.numpy()))
    for wrong in ((x,), (y, x), (x, y[:, :, :5]), (both[0], y), (x, y, y), ()):
        with pytest.raises(ShapeError, match="compiled for"):
            net(*wrong)
    with pytest.raises(InvalidModelError, match=r"2 inputs|required argument: 'y'"):
        hyper_inference.compile(model, x)


def test_an_input_and_a_value_may_be_outputs_twice() -> None:
    module = Function(lambda x: (x, x + 1, x.permute(0, 2, 3, 1)))
    x = values((2, 3, 5, 7))
    assert_close(hyper_inference.compile(module, x)(x), expected_of(module, x))


def test_values_beyond_the_range_of_exponentials() -> None:
    x = torch.tensor([-np.inf, -200.0, -104, -88, -1e-30, 0, 1e-30, 88, 89.5, 200, np.inf, np.nan])
    x = x.reshape(1, 1, 1, -1)
    for module in (f(torch.exp), nn.Softplus(), nn.Mish(), nn.Sigmoid(), nn.Tanh(), nn.ELU()):
        ours, theirs = hyper_inference.compile(module, x)(x), module(x)
        if isinstance(module, nn.Mish):  # -inf * 0
            ours, theirs = ours[..., 1:], theirs[..., 1:]
        assert torch.allclose(ours, theirs, rtol=2e-6, atol=1e-7, equal_nan=True), (module, ours)
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-45, 1e-39, 1e-30, 1, 1 + 1e-6, 3e38, np.inf, np.nan])
    x = x.reshape(1, 1, 1, -1)
    for function in (torch.log, torch.sqrt, torch.reciprocal):
        ours, theirs = hyper_inference.compile(f(function), x)(x), function(x)
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9, equal_nan=True), (function, ours)


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda x: x.mean(), "mean"),
        (lambda x: x.permute(1, 0, 2, 3), "permute"),
        (lambda x: torch.cat([x, x], 0), "cat"),
        (lambda x: x.transpose(2, 3) + x.transpose(2, 3).flip(1), "flip"),
        (lambda x: torch.nn.functional.max_pool2d(x.transpose(2, 3), 2), "max_pool2d"),
        (lambda x: x.reshape(1, 12, 81), "reshape"),
        (lambda x: torch.sort(x, dim=1).values, "sort"),
        (lambda x: x**1.7, "pow"),
    ],
)
def test_what_is_not_covered_names_op_and_node(function: Callable[..., Any], op: str) -> None:
    with pytest.raises(UnsupportedOp, match=op) as caught:
        hyper_inference.compile(f(function), (1, 6, 9, 18))
    assert caught.value.metadata["node"]
