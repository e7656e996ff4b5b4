"""Whole nets of nnU-Net and MONAI, compiled, against torch in float64."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hyper_inference
from hyper.errors import InvalidArgumentError
from hyper_inference import InvalidModelError, UnsupportedOp
from hyper_inference.compiler.compile import load_graph
from hyper_inference.compiler.frontend import pt2
from hyper_inference.compiler.ir import Conv
from tests.support import nets

pytestmark = [
    pytest.mark.timeout(240),
    # torch 2.13's own modules warn while they are imported and exported
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
NETS = {
    "nnunet": (nets.PlainNnUNet, (2, 1, 8, 20, 36)),
    "nnunet_residual": (nets.ResidualNnUNet, (1, 1, 8, 16, 36)),
    "basic_unet": (nets.BasicUNet, (1, 1, 9, 18, 37)),
    "monai_unet": (nets.MonaiUNet, (1, 1, 8, 20, 36)),
    "dyn_unet": (nets.DynUNet, (1, 1, 6, 16, 44)),
    "seg_res_net": (nets.SegResNet, (1, 1, 6, 18, 34)),
}


def prepared(module: nn.Module) -> nn.Module:
    """In eval mode, norms and slopes with weights that matter."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm3d, nn.BatchNorm2d)):
            part.running_mean.uniform_(-0.3, 0.3)
            part.running_var.uniform_(0.5, 2)
        if isinstance(part, (nn.InstanceNorm3d, nn.GroupNorm, nn.InstanceNorm2d)) and part.affine:
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
        if isinstance(part, nn.PReLU):
            nn.init.uniform_(part.weight, 0.1, 0.4)
    return module.eval()


def error(module: nn.Module, x: torch.Tensor, mode: str = "fast") -> float:
    """Largest difference to torch in float64, relative to the largest value."""
    actual = hyper_inference.compile(module, x, mode=mode)(x)
    with torch.no_grad():
        expected = module.double()(x.double())
    module.float()
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", sorted(NETS))
def test_nets(name: str) -> None:
    make, shape = NETS[name]
    assert error(prepared(make()), torch.randn(shape) + 0.5) < 1e-4


def test_exact_is_closer() -> None:
    assert error(prepared(nets.PlainNnUNet()), torch.randn(1, 1, 8, 16, 20), "exact") < 1e-5


class ReadAgain(nn.Module):
    """Residuals that are read after they were added, or are what is convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv3d(6, 6, 3, padding=1) for _ in range(2))
        self.up = nn.ConvTranspose3d(6, 6, (1, 2, 2), (1, 2, 2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a = torch.relu(self.first(x))
        b = torch.relu(self.second(a) + a)
        c = self.second(b) + a
        large = nn.functional.interpolate(c, scale_factor=(1, 2, 2))
        return b, torch.cat([c, a], 1), self.up(b) + large, large


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_what_is_read_again_is_not_written_over(mode: str) -> None:
    module, x = prepared(ReadAgain()), torch.randn(2, 6, 3, 7, 21)
    actual = hyper_inference.compile(module, x, mode=mode)(x)
    with torch.no_grad():
        expected = module.double()(x.double())
    for one, other in zip(actual, expected, strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5


class Gate(nn.Module):
    """Squeeze and excite, chunks, pooling to one voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.mean((2, 3), keepdim=True)
        y = torch.sigmoid(self.excite(nn.functional.silu(self.squeeze(y)))) * x
        a, b = y.chunk(2, dim=1)
        middle = nn.functional.adaptive_max_pool2d(y, 1)[:, :3]
        return torch.cat([a / (b.abs() + 1), b - middle, -a.clamp(-0.5, 0.25), a**2], 1)


LAYERS = {
    "instance": (nn.InstanceNorm2d(5, affine=True), (2, 5, 19, 37)),
    "instance_3d": (nn.InstanceNorm3d(3), (1, 3, 3, 9, 130)),
    "instance_running": (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (1, 4, 9, 9)),
    "group": (nn.GroupNorm(3, 12), (1, 12, 2, 11, 23)),
    "layer": (nn.LayerNorm([3, 10, 20]), (1, 3, 10, 20)),
    "gelu": (nn.GELU(), (1, 2, 9, 40)),
    "gelu_tanh": (nn.GELU(approximate="tanh"), (1, 2, 9, 40)),
    "silu": (nn.SiLU(), (1, 2, 9, 40)),
    "hardswish": (nn.Hardswish(), (1, 2, 9, 40)),
    "hardsigmoid": (nn.Hardsigmoid(), (1, 2, 9, 40)),
    "relu6": (nn.ReLU6(), (1, 2, 9, 40)),
    "prelu": (nn.PReLU(7), (1, 7, 9, 40)),
    "softmax": (nn.Softmax(dim=1), (1, 5, 9, 21)),
    "transposed": (nn.ConvTranspose2d(6, 9, 3, 2, 1, output_padding=1), (1, 6, 9, 19)),
    "transposed_grouped": (
        nn.ConvTranspose3d(6, 4, (1, 4, 3), (1, 2, 3), (0, 1, 0), groups=2, dilation=(1, 2, 1)),
        (1, 6, 2, 9, 19),
    ),
    "transposed_stride_1": (nn.ConvTranspose2d(3, 2, 5, padding=2), (1, 3, 9, 19)),
    "adaptive": (nn.AdaptiveAvgPool2d((3, None)), (1, 3, 12, 19)),
    "global": (nn.AdaptiveAvgPool3d(1), (1, 3, 5, 12, 119)),
    "ceil": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (1, 3, 12, 20)),
    "ceil_mean": (nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False), (1, 3, 12, 21)),
    "exact_nearest": (nn.Upsample(size=(13, 50), mode="nearest-exact"), (1, 3, 7, 21)),
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (1, 2, 7, 21)),
    "shuffle": (nn.PixelShuffle(3), (1, 18, 7, 21)),
    "gate": (Gate(), (1, 6, 9, 21)),
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layers(name: str) -> None:
    layer, shape = LAYERS[name]
    assert error(prepared(layer), 2 * torch.randn(shape) + 1) < 4e-6


PHASES = {
    "3d_3_2": (nn.ConvTranspose3d(3, 2, 3, 2, 1, output_padding=1), (4, 5, 21), True),
    "3d_3_2_odd": (nn.ConvTranspose3d(3, 9, 3, 2, 1), (4, 5, 21), True),
    "3d_3_2_grouped": (nn.ConvTranspose3d(6, 4, 3, 2, groups=2), (3, 5, 18), True),
    "2d_4_2": (nn.ConvTranspose2d(5, 3, 4, 2, 1), (9, 21), True),
    "2d_4_2_cut": (nn.ConvTranspose2d(5, 3, 4, 2, 3), (9, 21), False),
    "2d_5_3": (nn.ConvTranspose2d(5, 8, 5, 3, 2), (9, 21), True),
    "2d_dilated": (nn.ConvTranspose2d(3, 2, 3, 2, 2, dilation=3), (9, 21), True),
    "2d_gaps": (nn.ConvTranspose2d(3, 2, 2, 3, output_padding=2), (9, 21), False),
    "3d_4_2": (nn.ConvTranspose3d(3, 2, 4, 2, 1), (4, 5, 21), False),
    "2d_16_8": (nn.ConvTranspose2d(2, 2, 16, 8, 4), (5, 9), False),
}


@pytest.mark.parametrize("name", sorted(PHASES))
def test_phases_of_a_transposed_convolution_are_split_where_that_saves(name: str) -> None:
    layer, size, split = PHASES[name]
    x = torch.randn(1, layer.in_channels, *size)
    layer = prepared(layer)
    assert error(layer, x) < 4e-6
    graph = load_graph(layer, tuple(x.shape))
    convolutions = sum(isinstance(node.op, Conv) for node in graph.nodes)
    assert convolutions == (math.prod(layer.stride) if split else 1)


def saved(module: nn.Module, shape: tuple[int, ...]) -> bytes:
    program = torch.export.export(module, (torch.zeros(shape),))
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


class Running:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a pickle ran",)


def test_saved_programs_are_read_without_running_what_they_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()).eval()
    data = saved(module, (1, 1, 12, 12))
    (tmp_path / "net.pt2").write_bytes(data)
    x = torch.randn(1, 1, 12, 12)
    net = hyper_inference.compile(tmp_path / "net.pt2", x)
    assert torch.allclose(net(x), module(x), atol=1e-5)
    pickled = data.replace(b'"use_pickle": false', b'"use_pickle": true ')
    for damaged in (data[:500], b"", b"text", pickled):
        with pytest.raises(InvalidModelError):
            pt2.load(damaged)
    evil = io.BytesIO()
    torch.save(Running(), evil)
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        for name, content in (
            ("data/sample_inputs/model.pt", evil.getvalue()),
            ("data/constants/custom_obj_0", b"x"),
            ("data/aotinductor/model/net.so", b"x"),
            ("models/model.json", b'{"as_expr": {"expr_str": "__import__(1)"}}'),
        ):
            target = io.BytesIO()
            with zipfile.ZipFile(target, "w") as changed:
                root = source.namelist()[0].partition("/")[0]
                for entry in source.namelist():
                    if entry != f"{root}/{name}":
                        changed.writestr(entry, source.read(entry))
                changed.writestr(f"{root}/{name}", content)
            with pytest.raises(InvalidModelError):
                pt2.load(target.getvalue())
    assert "a pickle ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["seg_res_net", "monai_unet", "nnunet_residual"])
def test_nets_by_onnx(name: str) -> None:
    make, shape = NETS[name]
    module, x = prepared(make()), torch.randn(1, *shape[1:])
    file = io.BytesIO()
    torch.onnx.export(module, (x,), file, dynamo=False, opset_version=17)
    actual = hyper_inference.compile(file.getvalue(), x)(x)
    expected = module(x)
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-4


class Uncovered(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, dim=2)


def test_fallback_runs_the_net_by_torch_and_says_so() -> None:
    x = torch.randn(2, 1, 8, 8)
    with pytest.raises(UnsupportedOp):
        hyper_inference.compile(Uncovered(), x)
    with pytest.warns(RuntimeWarning, match=r"cumsum.*torch runs"):
        net = hyper_inference.compile(Uncovered(), x, fallback="torch")
    assert torch.equal(net(x), torch.cumsum(x, 2))
    assert np.array_equal(net(x.numpy()), torch.cumsum(x, 2).numpy())
    with pytest.raises(InvalidArgumentError):
        hyper_inference.compile(Uncovered(), x, fallback="magic")
