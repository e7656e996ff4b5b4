"""Torch modules, compiled, against torch itself."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn

import hyper_inference
from hyper_inference import UnsupportedOp
from hyper_inference.errors import InvalidModelError

pytestmark = [
    pytest.mark.timeout(240),
    # torch 2.13's own modules warn while they are imported and exported
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def error(module: nn.Module, shape: tuple[int, ...]) -> float:
    """Largest difference to torch in float64, relative to the largest value."""
    torch.manual_seed(1)
    module.eval()
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.BatchNorm3d)):
            part.running_mean.uniform_(-0.3, 0.3)
            part.running_var.uniform_(0.5, 2)
    x = torch.randn(shape)
    actual = hyper_inference.compile(module, x)(x)
    assert isinstance(actual, torch.Tensor)
    with torch.no_grad():
        expected = module.double()(x.double())
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


class Block2d(nn.Sequential):
    def __init__(self, i: int, o: int) -> None:
        super().__init__(
            nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True),
            nn.Conv2d(o, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True),
        )  # fmt: skip


class UNet2d(nn.Module):
    """Concatenating skips; transposed convolution or bilinear up-sampling."""

    def __init__(self, bilinear: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = Block2d(1, 6), Block2d(6, 13), Block2d(13, 17)
        self.pool = nn.MaxPool2d(2)
        up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.up2 = up if bilinear else nn.ConvTranspose2d(17, 17, 2, stride=2)
        self.up1 = up if bilinear else nn.ConvTranspose2d(13, 13, 2, stride=2)
        self.d2, self.d1 = Block2d(17 + 13, 13), Block2d(13 + 6, 6)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        b = self.b(self.pool(a))
        c = self.c(self.pool(b))
        y = self.d2(torch.cat([b, self.up2(c)], 1))
        return self.head(self.d1(torch.cat([a, self.up1(y)], dim=1)))


class Residual3d(nn.Module):
    """Sum skips, batch norm after the sum, ELU, anisotropic pooling: a small RSUNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 7, (1, 5, 5), padding=(0, 2, 2))
        self.conv = nn.Conv3d(7, 7, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm3d(7)
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.deep = nn.Conv3d(7, 18, 3, padding=1)
        self.up = nn.ConvTranspose3d(18, 7, (1, 2, 2), stride=(1, 2, 2), bias=False)
        self.up_norm = nn.BatchNorm3d(7)
        self.head = nn.Conv3d(7, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = nn.functional.elu(self.first(x))
        a = nn.functional.elu(self.norm(self.conv(a) + a))
        d = nn.functional.elu(self.deep(self.pool(a)))
        y = nn.functional.elu(self.up_norm(self.up(d) + a))
        return torch.sigmoid(self.head(y))


class Concat3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 16, 3, padding=1)
        self.up = nn.ConvTranspose3d(16, 16, 2, stride=2)
        self.d, self.head = nn.Conv3d(24, 8, 3, padding=1), nn.Conv3d(8, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(nn.functional.max_pool3d(a, 2)))
        y = torch.relu(self.d(torch.cat([a, self.up(b)], 1)))
        return self.head(y)


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (40, 92)])
def test_2d_unet(bilinear: bool, size: tuple[int, int]) -> None:
    assert error(UNet2d(bilinear), (2, 1, *size)) < 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 5, 32, 48), (2, 1, 3, 18, 22)])
def test_3d_residual_unet(shape: tuple[int, ...]) -> None:
    assert error(Residual3d(), shape) < 1e-5


def test_3d_concatenating_unet() -> None:
    assert error(Concat3d(), (1, 1, 8, 20, 36)) < 1e-5


LAYERS = {
    "large_kernel": (nn.Conv2d(1, 1, 31, padding=15), (1, 1, 50, 61)),
    "very_wide_kernel": (nn.Conv2d(2, 3, (1, 101), padding=(0, 50)), (1, 2, 5, 130)),
    "depthwise": (nn.Conv3d(20, 20, 3, padding=1, groups=20), (1, 20, 4, 9, 33)),
    "grouped": (nn.Conv2d(12, 18, 3, stride=2, groups=3, dilation=2), (1, 12, 20, 31)),
    "strided": (nn.Conv3d(3, 5, (1, 5, 5), stride=(1, 2, 3), padding=(0, 1, 2)), (1, 3, 2, 17, 40)),
    "many_channels": (nn.Conv3d(67, 45, (3, 3, 3), padding=1), (1, 67, 3, 5, 8)),
    "transpose3": (nn.ConvTranspose2d(5, 4, 3, stride=3), (1, 5, 7, 19)),
    "average_pool": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (1, 3, 11, 20)),
    "nearest": (nn.Upsample(scale_factor=2), (1, 3, 5, 6, 7)),
    "trilinear": (nn.Upsample(scale_factor=2, mode="trilinear"), (1, 3, 5, 6, 19)),
    "align_corners": (
        nn.Upsample(scale_factor=(2, 3), mode="bilinear", align_corners=True), (1, 2, 5, 19)
    ),
    "to_size": (nn.Upsample(size=(13, 7), mode="bilinear"), (1, 2, 5, 19)),
    "tanh": (nn.Tanh(), (1, 1, 8, 100)),
    "leaky": (nn.LeakyReLU(0.3), (1, 2, 8, 10)),
    "reflect": (nn.ReflectionPad2d((1, 2, 3, 4)), (1, 2, 8, 10)),
    "replicate": (nn.ReplicationPad3d(2), (1, 2, 4, 8, 10)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layers(name: str) -> None:
    layer, shape = LAYERS[name]
    assert error(layer, shape) < 1e-5


class Arithmetic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor([[[[1.0]], [[-2.0]]]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (3.0 - x) * 0.5 + self.offset
        return y * x / 2.0 - x[:, :1]


def test_arithmetic_with_constants() -> None:
    assert error(Arithmetic(), (1, 2, 9, 21)) < 1e-6


def test_what_is_not_covered_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, dim=2)

    with pytest.raises(UnsupportedOp, match=r"aten\.cumsum.*cumsum") as caught:
        hyper_inference.compile(Odd(), (1, 1, 8, 8))
    assert caught.value.metadata["op"].startswith("aten.cumsum")
    assert caught.value.reason == "INVALID_MODEL"

    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if bool(x.sum() > 0) else -x

    with pytest.raises(InvalidModelError, match=r"torch\.export"):
        hyper_inference.compile(Broken(), (1, 1, 8, 8))


def test_compiling_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    module[1].eval()
    hyper_inference.compile(module, (1, 1, 8, 8))
    assert module.training
    assert not module[1].training


@pytest.mark.parametrize("bilinear", [False, True])
def test_onnx_exported_by_torch(bilinear: bool) -> None:
    module = UNet2d(bilinear).eval()
    x = torch.randn(1, 1, 32, 48)
    file = io.BytesIO()
    torch.onnx.export(module, (x,), file, dynamo=False, opset_version=17)
    net = hyper_inference.compile(file.getvalue(), (1, 1, 32, 48))
    expected = module(x).detach().numpy()
    assert np.abs(net(x.numpy()) - expected).max() / np.abs(expected).max() < 1e-5
