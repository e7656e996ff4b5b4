"""Winograd's kernels against the interpreter, over tails, odd sizes, threads and vector widths."""

from __future__ import annotations

import itertools
import platform
from dataclasses import replace

import numpy as np
import pytest
import torch

import hyper_inference
from hyper_inference.compiler import algorithm
from hyper_inference.compiler import compile as compile_module
from hyper_inference.compiler.algorithm import MODES, Winograd, choose_winograd
from hyper_inference.compiler.cache import CodeCache
from hyper_inference.compiler.codegen.abi import build_module
from hyper_inference.compiler.codegen.bfloat import pack_pairs
from hyper_inference.compiler.codegen.conv_winograd import Blocking, ConvWinograd, choose_blocking
from hyper_inference.compiler.codegen.jit import compile_object
from hyper_inference.compiler.codegen.lower import lower
from hyper_inference.compiler.codegen.target import Target, targets
from hyper_inference.compiler.codegen.transform_weights import CachedTransforms
from hyper_inference.compiler.codegen.winograd import points
from hyper_inference.compiler.frontend.builder import GraphBuilder
from hyper_inference.compiler.interpret import interpret
from hyper_inference.compiler.ir import Activation, Conv, Graph
from hyper_inference.compiler.memory_plan import plan_memory

pytestmark = pytest.mark.timeout(240)


def conv_graph(
    channels: tuple[int, int], kernel: tuple[int, int, int], shape: tuple[int, int, int],
    *, residual: bool = False, pads: bool = True, skips: int = 0,
) -> Graph:  # fmt: skip
    """One convolution, with an ELU, perhaps a residual and a concatenation around it."""
    random = np.random.default_rng(sum(shape) + channels[0])
    builder = GraphBuilder([1, channels[0], *shape])
    pad = [k // 2 if pads else 0 for k in kernel]

    def conv(value: str, count: int, out: int, size: tuple[int, int, int], name: str) -> str:
        weight = random.standard_normal((out, count, *size)) / np.sqrt(count * np.prod(size))
        around = pad if size == kernel else [0, 0, 0]
        return builder.conv(
            value, weight.astype(np.float32), random.standard_normal(out).astype(np.float32), name,
            stride=[1, 1, 1], dilation=[1, 1, 1], pad_before=around, pad_after=around, groups=1,
        )  # fmt: skip

    value = conv(builder.input, channels[0], channels[1], kernel, "tested")
    if residual:
        other = conv(builder.input, channels[0], channels[1], (1, 1, 1), "other")
        value = builder.arithmetic("add", value, other, "sum")
    value = builder.activation(value, Activation("elu", 1.0), "act")
    if skips:
        value = builder.concat([builder.input, value], "joined")
        value = conv(value, sum(channels), channels[1], kernel, "second")
    return builder.finish(value)


def run(graph: Graph, mode: str, threads: int = 1, target: str | None = None) -> np.ndarray:
    shape = graph.input_type.shape
    x = np.random.default_rng(7).standard_normal((1, *shape)).astype(np.float32)
    net = hyper_inference.compile(graph, x.shape, mode=mode, threads=threads, target=target)
    assert any(isinstance(step.kernel, ConvWinograd) for step in net.steps) == (mode != "exact")
    first = net(x)
    assert np.array_equal(first, net(x))
    return np.asarray(first[0])


def error(actual: np.ndarray, graph: Graph) -> float:
    x = np.random.default_rng(7).standard_normal((1, *graph.input_type.shape)).astype(np.float32)
    expected = interpret(graph, x[0].astype(np.float64))
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


SIZES = [
    (1, 4, 16), (2, 8, 8), (3, 5, 7), (4, 9, 15), (5, 6, 17), (2, 4, 33), (3, 7, 48), (1, 13, 81),
    (4, 4, 130), (6, 8, 10), (1, 5, 530), (2, 5, 700),
]  # fmt: skip


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("depth", [1, 3])
def test_every_size_has_its_tails(
    shape: tuple[int, int, int], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(algorithm, "LEAST_GAIN", 0.0)  # even where direct is faster
    graph = conv_graph((7, 9), (depth, 3, 3), shape, residual=True)
    assert error(run(graph, "fast"), graph) < 5e-6


@pytest.mark.parametrize("shape", [(1, 4, 16), (3, 5, 7), (2, 7, 33), (5, 6, 150)])
@pytest.mark.parametrize("depth", [1, 3])
def test_small_tiles_have_their_tails(
    shape: tuple[int, int, int], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(algorithm, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(algorithm, "READ_COST", 10**9)
    graph = conv_graph((7, 9), (depth, 3, 3), shape, residual=True)
    assert error(run(graph, "fast"), graph) < 3e-6


@pytest.mark.parametrize("shape", [(2, 5, 21), (1, 9, 300), (2, 8, 8)])
@pytest.mark.parametrize("channels", [(7, 3), (6, 9)])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_sum_takes_the_place_of_its_residual(
    mode: str, channels: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    graph = conv_graph(channels, (1, 3, 3), shape, residual=True)
    x = np.random.default_rng(7).standard_normal((1, *graph.input_type.shape)).astype(np.float32)
    for autotune in (False, True) if shape[1] == 5 else (False,):
        net = hyper_inference.compile(graph, x.shape, mode=mode, autotune=autotune)
        (node,) = [n for n in net.graph.nodes if len(n.inputs) == 2]
        assert net.plan.places[node.name] == net.plan.places[node.inputs[1]]
        first = net(x)
        assert error(first[0], graph) < 1e-5
        assert np.array_equal(first, net(x))


@pytest.mark.parametrize("shape", [(4, 8, 16), (5, 7, 21), (9, 12, 9)])
def test_every_mode(shape: tuple[int, int, int]) -> None:
    graph = conv_graph((12, 8), (3, 3, 3), shape, skips=1)
    bounds = {"exact": 1e-5, "fast": 1e-4, "faster": 1e-4, "bf16": 5e-2}
    for mode in MODES:
        assert error(run(graph, mode), graph) < bounds[mode]


@pytest.mark.parametrize(("kernel", "shape"), [((3, 3, 1), (4, 8, 20)), ((1, 3, 5), (2, 9, 40))])
def test_other_taps_along_x_and_no_padding(
    kernel: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    for pads in (True, False):
        graph = conv_graph((6, 11), kernel, shape, pads=pads)
        assert error(run(graph, "fast"), graph) < 5e-6


def sixteen_lanes() -> Target:
    """AVX-512's code for CPUs without: LLVM makes two vectors of each."""
    best = targets()[0]
    return replace(best, name="sixteen", width=16, accumulators=28)


@pytest.mark.parametrize("mode", ["fast", "bf16"])
@pytest.mark.parametrize(
    ("channels", "kernel", "shape"),
    [((9, 13), (3, 3, 3), (5, 7, 21)), ((16, 70), (3, 3, 3), (4, 8, 8)),
     ((8, 8), (1, 3, 3), (2, 10, 150))],
)  # fmt: skip
def test_threads_and_vector_widths_give_the_same_bits(
    channels: tuple[int, int], kernel: tuple[int, int, int], shape: tuple[int, int, int],
    mode: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    graph = conv_graph(channels, kernel, shape, residual=True)
    expected = run(graph, mode)
    for target, threads in itertools.product(targets(), (1, 3)):
        assert np.array_equal(run(graph, mode, threads, target.name), expected)
    monkeypatch.setattr(compile_module, "find_target", lambda _: sixteen_lanes())
    assert np.array_equal(run(graph, mode), expected)


def test_bfloat_products_are_one_instruction_where_the_cpu_has_it() -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("an instruction of x86")
    features = "+avx512f,+avx512bf16,+avx512vl,+avx512bw,+avx512dq,+fma,-prefer-256-bit"
    target = Target("avx512", 16, 28, "znver4", features)
    graph = conv_graph((9, 13), (3, 3, 3), (5, 7, 21))
    plan = plan_memory(graph, mode="bf16", align=target.width)
    code = build_module(lower(graph, plan, target, "bf16"), target)
    assert "llvm.x86.avx512bf16.dpbf16ps.512" in code
    assert compile_object(code, target).startswith(b"\x7fELF")


@pytest.mark.parametrize("number", [0.0, 1.0, 1.00390625, -3.1415927, 1e-39, 6e37, 65537.0])
def test_weights_are_rounded_to_the_nearest_bfloat(number: float) -> None:
    words = pack_pairs(np.full((1, 1, 1), number, np.float32)).view(np.uint32)
    expected = torch.tensor(number, dtype=torch.float32).to(torch.bfloat16).float().item()
    low = np.array([words.item() << 16], np.uint32).view(np.float32).item()
    assert low == (0.0 if abs(number) < 1e-38 else expected)
    assert words.item() >> 16 == 0


def test_blocking_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = conv_graph((10, 40), (3, 3, 3), (4, 16, 18))
    expected = run(graph, "fast")
    from hyper_inference.compiler.codegen import conv_winograd

    whole = -(-18 // targets()[0].width) * targets()[0].width

    for block in (
        Blocking(5, 1, 1, whole, 48, 40), Blocking(8, 2, 3, whole, 48, 16),
        Blocking(7, 3, 4, whole, 20, 21), Blocking(13, 2, 8, whole, 20, 52),
        Blocking(8, 1, 1, 16, 32, 8),
    ):  # fmt: skip
        monkeypatch.setattr(conv_winograd, "choose_blocking", lambda *_, b=block: b)
        assert np.array_equal(run(graph, "fast"), expected)


def test_the_transforms_compute_a_filter() -> None:
    """In float64: A^T ((G g) * (B^T d)), with B and A as the definition of F(4, 3) gives them."""
    b4 = np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                   [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]])  # fmt: skip
    a4 = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0],
                   [0, 1, -1, 8, -8, 1]])  # fmt: skip
    random = np.random.default_rng(0)
    taps, d = random.standard_normal(3).astype(np.float32), random.standard_normal(6)
    g = np.zeros(6, np.float32)
    transforms = CachedTransforms(CodeCache(None))
    transforms.winograd(taps.reshape(1, 1, 1, 3, 1), Winograd(1, 4), g.reshape(6, 1, 1, 1))
    direct = [taps @ d[n : n + 3] for n in range(4)]
    assert np.allclose(a4 @ (g * (b4 @ d)), direct, atol=1e-6)
    assert [points(n) for n in (1, 2, 4)] == [1, 4, 6]


def test_the_choice_depends_on_shape_and_mode_alone() -> None:
    def conv(out: int, channels: int, kernel: tuple[int, int, int], **options: object) -> Conv:
        weight = np.zeros((out, channels, *kernel), np.float32)
        return Conv(weight, np.zeros(out, np.float32), **options)  # type: ignore[arg-type]

    usual = conv(16, 16, (3, 3, 3))
    assert choose_winograd(usual, (16, 8, 32, 32), "exact") is None
    assert choose_winograd(usual, (16, 8, 32, 32), "fast") == Winograd(2, 4)
    assert choose_winograd(usual, (16, 8, 32, 32), "faster") == Winograd(4, 4)
    assert choose_winograd(usual, (16, 2, 32, 32), "faster") == Winograd(2, 4)
    wide = conv(64, 32, (3, 3, 3))
    assert choose_winograd(wide, (64, 32, 64, 64), "fast") == Winograd(4, 4)
    assert choose_winograd(wide, (64, 32, 64, 64), "bf16") == Winograd(2, 4)
    assert choose_winograd(wide, (64, 8, 16, 16), "fast") == Winograd(2, 4), "weights outweigh it"
    assert choose_winograd(wide, (64, 8, 16, 16), "faster") == Winograd(4, 4)
    assert choose_winograd(usual, (16, 4, 6, 6), "fast") == Winograd(2, 2)
    assert choose_winograd(usual, (16, 1, 4, 4), "fast") == Winograd(2, 4)
    assert choose_winograd(conv(16, 16, (1, 3, 3)), (16, 8, 32, 32), "fast") == Winograd(1, 4)
    for odd in (
        conv(16, 1, (3, 3, 3)), conv(2, 16, (3, 3, 3)), conv(16, 16, (1, 5, 5)),
        conv(16, 16, (3, 3, 3), stride=(1, 2, 2)), conv(16, 16, (3, 3, 3), dilation=(1, 2, 2)),
    ):  # fmt: skip
        assert choose_winograd(odd, (16, 8, 32, 32), "fast") is None
    assert choose_winograd(usual, (16, 1, 1, 32), "fast") is None


@pytest.mark.parametrize("accumulators", [12, 28])
@pytest.mark.parametrize("width", [4, 8, 16])
def test_blocks_fit_registers_and_scratch(width: int, accumulators: int) -> None:
    for channels, size in itertools.product((6, 28, 80, 512), (1, 8, 17, 40, 64, 256)):
        block = choose_blocking(
            channels, channels, 3, Winograd(2, 4), (8, size, size), width, accumulators
        )
        assert block.channels * block.vectors <= accumulators
        assert block.slice % block.channels == 0
        assert block.columns % width == 0
