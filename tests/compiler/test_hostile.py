"""Models and inputs from people who mean no good: a clear error, or a result; never a crash."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import hyper_inference
from hyper.errors import InvalidArgumentError
from hyper_inference import ShapeError, UnsupportedOp
from hyper_inference.compiler.compile import load_graph
from hyper_inference.compiler.frontend import pt2
from hyper_inference.compiler.memory_plan import plan_memory
from hyper_inference.compiler.pipeline import run_pipeline
from tests.compiler.nets import onnx_model, small_unet_model

pytestmark = [
    pytest.mark.timeout(240),
    # torch 2.13's own modules warn while they are imported and exported
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SHAPE = (1, 6, 8, 12)
HUGE = 2**40


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def one_node(op: str, *constants: np.ndarray, **attributes: Any) -> bytes:
    names = [f"c{index}" for index in range(len(constants))]
    node = helper.make_node(op, ["x", *names], ["y"], name="only", **attributes)
    weights = dict(zip(names, constants, strict=True))
    return onnx_model([node], weights, list(SHAPE), opset=18)


HOSTILE: dict[str, bytes] = {
    "expand_huge": one_node("Expand", ints(1, 6, HUGE, 12)),
    "expand_batch": one_node("Expand", ints(7, 6, 8, 12)),
    "expand_overflow": one_node("Expand", ints(1, 6, 2**62, 2**62)),
    "expand_negative": one_node("Expand", ints(1, 6, -8, 12)),
    "resize_huge": one_node("Resize", np.zeros(0, np.float32), np.float32([1, 1, 1e12, 1])),
    "resize_nan": one_node("Resize", np.zeros(0, np.float32), np.float32([1, 1, np.nan, 1])),
    "pad_huge": one_node("Pad", ints(0, 0, HUGE, 0, 0, 0, 0, 0)),
    "pad_everything_away": one_node("Pad", ints(0, 0, -8, 0, 0, 0, 0, 0)),
    "transpose_batch": one_node("Transpose", perm=[1, 0, 2, 3]),
    "transpose_twice_one": one_node("Transpose", perm=[0, 1, 1, 3]),
    "transpose_unknown": one_node("Transpose", perm=[0, 1, 2, 9]),
    "reshape_overflow": one_node("Reshape", ints(1, 2**62, 4, 2**62)),
    "reshape_to_nothing": one_node("Reshape", ints(1, 0, -1), allowzero=1),
    "reshape_two_unknown": one_node("Reshape", ints(-1, -1)),
    "squeeze_what_is_not_one": one_node("Squeeze", ints(1)),
    "unsqueeze_far_away": one_node("Unsqueeze", ints(99)),
    "flatten_batch": one_node("Flatten", axis=0),
    "flatten_far_away": one_node("Flatten", axis=77),
    "gather_outside": one_node("Gather", ints(99), axis=44),
    "gather_many": one_node("Gather", ints(0, 2, 4), axis=1),
    "gemm_of_four_axes": one_node("Gemm", np.ones((12, 3), np.float32)),
    "matmul_other_size": one_node("MatMul", np.ones((5, 3), np.float32)),
    "matmul_vector": one_node("MatMul", np.ones(12, np.float32)),
    "softmax_batch": one_node("Softmax", axis=0),
    "softmax_far_away": one_node("Softmax", axis=31),
    "mean_batch": one_node("ReduceMean", ints(0), keepdims=1),
    "mean_all": one_node("ReduceMean", keepdims=1),
    "layer_norm_batch": one_node("LayerNormalization", np.ones(4, np.float32), axis=0),
    "layer_norm_other": one_node("LayerNormalization", np.ones(5, np.float32), axis=-1),
    "group_norm_odd": one_node(
        "GroupNormalization", np.ones(4, np.float32), np.ones(4, np.float32), num_groups=4
    ),
    "instance_norm_short": one_node(
        "InstanceNormalization", np.ones(2, np.float32), np.ones(2, np.float32)
    ),
    "batch_norm_short": one_node("BatchNormalization", *[np.ones(3, np.float32)] * 4),
    "space_to_depth_odd": one_node("SpaceToDepth", blocksize=5),
    "depth_to_space_zero": one_node("DepthToSpace", blocksize=0, mode="CRD"),
    "split_negative": one_node("Split", ints(-1, 7), axis=1),
    "pool_no_kernel": one_node("MaxPool", kernel_shape=[0, 0]),
    "pool_dilated_huge": one_node("MaxPool", kernel_shape=[3, 3], dilations=[HUGE, HUGE]),
    "pool_stride_zero": one_node("AveragePool", kernel_shape=[2, 2], strides=[0, 1]),
    "conv_stride_negative": one_node("Conv", np.ones((2, 6, 1, 1), np.float32), strides=[-1, 1]),
    "conv_dilation_huge": one_node(
        "Conv", np.ones((2, 6, 3, 3), np.float32), dilations=[HUGE, 1], pads=[HUGE, 0, HUGE, 0]
    ),
    "conv_groups_zero": one_node("Conv", np.ones((2, 6, 1, 1), np.float32), group=0),
    "transposed_stride_huge": one_node(
        "ConvTranspose", np.ones((6, 2, 2, 2), np.float32), strides=[2**20, 2**20]
    ),
    **{
        f"transposed_bias_of_{count}": one_node(
            "ConvTranspose", np.ones((6, 2, 3, 3), np.float32), np.ones(count, np.float32),
            strides=[2, 2],
        )
        for count in (0, 1, 3, 8)
    },
    "power_of_map": one_node("Pow", np.ones((8, 12), np.float32) * 2),
    "add_batches": one_node("Add", np.ones((5, 6, 8, 12), np.float32)),
    "add_more_axes": one_node("Add", np.ones((1, 1, 6, 8, 12), np.float32)),
    "slice_backwards": one_node("Slice", ints(-1), ints(-99), ints(2), ints(-1)),
    "cast_to_text": one_node("Cast", to=TensorProto.STRING),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_nodes_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        hyper_inference.compile(HOSTILE[name], SHAPE)
    assert caught.value.reason in ("INVALID_MODEL", "SHAPE_MISMATCH")
    assert "\n" not in str(caught.value)


def test_broadcasting_grows_no_value_beyond_the_limit() -> None:
    nodes, last = [], "x"
    weights = {}
    for axis in range(1, 4):  # (1, 6, 8, 12) grows by what is added to it
        shape = [1, 1, 1, 1]
        shape[axis] = 6 * 10**4 if axis > 1 else 6
        weights[f"w{axis}"] = np.ones(shape, np.float32)
        nodes.append(helper.make_node("Add", [last, f"w{axis}"], [f"y{axis}"], name=f"n{axis}"))
        last = f"y{axis}"
    model = onnx_model(nodes, weights, [1, 6, 1, 1], output=last)
    with pytest.raises(ShapeError, match="elements"):
        hyper_inference.compile(model, (1, 6, 1, 1))


def test_many_nodes_and_deep_graphs() -> None:
    nodes = [helper.make_node("Relu", [f"v{n}"], [f"v{n + 1}"], name=f"r{n}") for n in range(3000)]
    nodes[0].input[0] = "x"
    model = onnx_model(nodes, {}, [1, 1, 4, 4], output="v3000")
    graph = run_pipeline(load_graph(model, (1, 1, 4, 4)))
    assert len(graph.nodes) == 3000
    with pytest.raises(InvalidArgumentError, match="nodes"):
        many = [helper.make_node("Relu", ["x"], [f"v{n}"]) for n in range(100_001)]
        load_graph(onnx_model(many, {}, [1, 1, 4, 4], output="v0"), (1, 1, 4, 4))


@pytest.mark.parametrize("shape", [
    (), (1,), (1, 1, 4), (1, 1, 1, 4, 8, 8), (1, 1, -4, 8, 8), (1, 1, 4, 8, "x"), None, 7, "1x1",
    (1, 1, 2**62, 2**62, 2**62), (1, 2**33, 4, 8, 8), ((1, 1, 4, 8, 8), (1, 1, 4, 8, 8)), ((),),
])  # fmt: skip
def test_shapes_that_are_none(shape: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        hyper_inference.compile(small_unet_model(), shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["exact", "fast", "faster"])
def test_nan_and_infinity_stay_where_they_are(mode: str) -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 8, 16, 40)).astype(np.float32)
    net = hyper_inference.compile(small_unet_model(), x.shape, mode=mode)
    clean = net(x)
    for bad in (np.nan, np.inf, -np.inf, np.float32(3e38)):
        dirty = x.copy()
        dirty[0, 0, 3, 7, 9] = bad
        output = net(dirty)
        assert np.isnan(output).any() or np.isfinite(bad)
        assert np.array_equal(output[..., 30:], clean[..., 30:])  # beyond what the voxel reaches
        assert np.array_equal(net(x), clean)  # nothing of it stays in memory


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        y = torch.cat([y, nn.functional.max_pool2d(y, 3, 1, 1)], 1)[:, :3]
        return self.head(y.mean((2, 3))) + torch.arange(2)


@pytest.fixture(scope="module")
def saved() -> bytes:
    program = torch.export.export(Small().eval(), (torch.zeros(1, 1, 8, 8),))
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for at, item in enumerate(value) for leaf in leaves(item, (*path, at))]
    return [path]


def put(value: Any, path: Sequence[Any], new: Any) -> None:
    for step in path[:-1]:
        value = value[step]
    value[path[-1]] = new


def with_json(data: bytes, change: Any) -> bytes:
    """The file with its graph changed."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as made:
        for entry in source.namelist():
            content = source.read(entry)
            if entry.endswith("models/model.json"):
                graph = json.loads(content)
                change(graph)
                content = json.dumps(graph).encode()
            made.writestr(entry, content)
    return target.getvalue()


def read_or_refuse(data: bytes) -> None:
    try:
        net = load_graph(data, (1, 1, 8, 8))
        plan_memory(run_pipeline(net), max_bytes=2**30)
    except InvalidArgumentError as error:
        assert "\n" not in str(error)


def test_a_saved_program_is_read(saved: bytes) -> None:
    x = torch.randn(2, 1, 8, 8)
    expected = pt2.load(saved).module()(x[:1])
    assert torch.allclose(hyper_inference.compile(saved, x)(x)[:1], expected, atol=1e-5)
    with pytest.raises(ShapeError, match="does not fit"):
        hyper_inference.compile(saved, (1, 1, 9, 8))


def test_saved_programs_with_changed_graphs_never_crash(saved: bytes) -> None:
    chosen = random.Random(0)
    strange: list[Any] = [
        -1, 0, 1, 7, 2**31, 2**62, 2**80, -(2**63), 1e300, None, "", "x", "aten.from_file", [], {},
        True, "torch.ops.aten.relu.default", "os.system",
    ]  # fmt: skip
    for _ in range(120):

        def change(graph: Any) -> None:
            for _ in range(chosen.randint(1, 3)):
                put(graph, chosen.choice(leaves(graph)), copy.deepcopy(chosen.choice(strange)))

        read_or_refuse(with_json(saved, change))


def test_saved_programs_with_damaged_bytes_never_crash(saved: bytes) -> None:
    chosen = random.Random(1)
    for _ in range(60):
        data = bytearray(saved)
        for _ in range(chosen.randint(1, 4)):
            data[chosen.randrange(len(data))] = chosen.randrange(256)
        read_or_refuse(bytes(data))


def test_a_program_cannot_read_files_or_make_huge_constants(saved: bytes) -> None:
    def rename(to: str) -> Any:
        def change(graph: Any) -> None:
            nodes = graph["graph_module"]["graph"]["nodes"]
            (node,) = (n for n in nodes if "arange" in n["target"])
            node["target"] = to

        return change

    with pytest.raises(InvalidArgumentError):
        load_graph(with_json(saved, rename("torch.ops.aten.from_file.default")), (1, 1, 8, 8))

    class Wide(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.zeros(2**14, 2**14).sum()

    with pytest.raises(UnsupportedOp, match="too large"):
        load_graph(Wide(), (1, 1, 8, 8))
