"""ONNX files: what is covered, and what is malformed."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import hyper_inference
from hyper.errors import InvalidArgumentError
from hyper_inference import InvalidModelError, ShapeError, UnsupportedOp
from hyper_inference.compiler.compile import load_graph
from hyper_inference.compiler.memory_plan import plan_memory
from hyper_inference.compiler.pipeline import run_pipeline
from tests.compiler.nets import bandpass_model, onnx_model, small_unet_model

pytestmark = pytest.mark.timeout(120)


def against_onnxruntime(model: bytes, x: np.ndarray) -> float:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})[0]
    actual = hyper_inference.compile(model, x.shape)(x)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", [9, 31])
def test_bandpass(size: int) -> None:
    assert against_onnxruntime(bandpass_model(size), noise(1, 1, 70, 93)) < 1e-5


def test_small_unet() -> None:
    assert against_onnxruntime(small_unet_model(), noise(1, 1, 6, 14, 38)) < 1e-5


@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
         "nearest_mode": "floor"},
        {"mode": "nearest", "coordinate_transformation_mode": "half_pixel"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_resize(attributes: dict[str, str], scale: float) -> None:
    nodes = [helper.make_node("Resize", ["x", "", "s"], ["y"], **attributes)]
    model = onnx_model(nodes, {"s": np.float32([1, 1, scale, scale])}, [1, 2, 5, 19])
    assert against_onnxruntime(model, noise(1, 2, 5, 19)) < 1e-5


@pytest.mark.parametrize("mode", ["DCR", "CRD", ""])
@pytest.mark.parametrize("factor", [2, 3])
def test_depth_to_space(mode: str, factor: int) -> None:
    attributes = {"mode": mode} if mode else {}
    nodes = [helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=factor, **attributes)]
    shape = (1, 2 * factor**2, 5, 19)
    assert against_onnxruntime(onnx_model(nodes, {}, list(shape)), noise(*shape)) == 0


def test_sizes_computed_from_shapes_are_folded() -> None:
    """What exporters write for "resize to the size of the skip"."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "axis"], ["height"], axis=0),
        helper.make_node("Mul", ["height", "two"], ["doubled"]),
        helper.make_node("Concat", ["ones", "doubled", "forty"], ["sizes"], axis=0),
        helper.make_node(
            "Resize", ["x", "", "", "sizes"], ["y"], mode="nearest",
            coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        ),
    ]  # fmt: skip
    weights = {
        "axis": np.int64([2]), "two": np.int64([2]), "ones": np.int64([1, 2]),
        "forty": np.int64([40]),
    }  # fmt: skip
    assert (
        against_onnxruntime(onnx_model(nodes, weights, [1, 2, "h", "w"]), noise(1, 2, 6, 20)) == 0
    )


@pytest.mark.parametrize(
    ("op", "inputs", "weights", "attributes"),
    [
        ("AveragePool", ["x"], {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("MaxPool", ["x"], {}, {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}),
        ("Pad", ["x", "p"], {"p": np.int64([0, 0, 1, 2, 0, 0, 3, 4])}, {"mode": "reflect"}),
        ("Pad", ["x", "p"], {"p": np.int64([0, 0, -1, 2, 0, 0, 3, -4])}, {}),
        ("Slice", ["x", "a", "b", "c", "d"],
         {"a": np.int64([1, -9]), "b": np.int64([99, -2]), "c": np.int64([2, 3]),
          "d": np.int64([2, 1])}, {}),
        ("Conv", ["x", "w"], {"w": noise(4, 2, 3, 3)},
         {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("BatchNormalization", ["x", "s", "b", "m", "v"],
         {"s": noise(2), "b": noise(2), "m": noise(2), "v": np.abs(noise(2))}, {}),
        ("Elu", ["x"], {}, {"alpha": 0.5}),
        ("Div", ["x", "k"], {"k": np.float32(3.0)}, {}),
        ("InstanceNormalization", ["x", "w", "b"], {"w": noise(2), "b": noise(2)}, {}),
        ("PRelu", ["x", "s"], {"s": noise(2, 1, 1)}, {}),
        ("Clip", ["x", "a", "b"], {"a": np.float32(-0.5), "b": np.float32(1)}, {}),
        ("HardSwish", ["x"], {}, {}),
        ("HardSigmoid", ["x"], {}, {"alpha": 0.3, "beta": 0.4}),
        ("Erf", ["x"], {}, {}),
        ("Softmax", ["x"], {}, {"axis": 1}),
        ("GlobalAveragePool", ["x"], {}, {}),
        ("GlobalMaxPool", ["x"], {}, {}),
        ("ReduceMean", ["x"], {}, {"axes": [1]}),
        ("LayerNormalization", ["x", "w"], {"w": np.full((2, 12, 21), 0.5, np.float32)},
         {"axis": 1}),
        ("MaxPool", ["x"], {}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("ConvTranspose", ["x", "w"], {"w": noise(2, 3, 4, 3)},
         {"strides": [2, 3], "pads": [1, 0, 1, 0], "output_padding": [1, 2]}),
        ("ConvTranspose", ["x", "w", "b"], {"w": noise(2, 2, 3, 3), "b": noise(4)},
         {"strides": [1, 2], "dilations": [2, 1], "group": 2}),
        ("Sum", ["x", "x", "x"], {}, {}),
    ],
)  # fmt: skip
def test_ops(
    op: str, inputs: list[str], weights: dict[str, np.ndarray], attributes: dict[str, object]
) -> None:
    model = onnx_model([helper.make_node(op, inputs, ["y"], **attributes)], weights, [1, 2, 12, 21])
    assert against_onnxruntime(model, noise(1, 2, 12, 21)) < 1e-5


def test_an_uncovered_op_is_named() -> None:
    model = onnx_model([helper.make_node("CumSum", ["x"], ["y"], name="head")], {}, [1, 1, 8, 8])
    with pytest.raises(UnsupportedOp, match=r"'CumSum' \(node 'head'\)") as caught:
        hyper_inference.compile(model, (1, 1, 8, 8))
    assert (caught.value.op, caught.value.node) == ("CumSum", "head")


def test_every_cut_is_refused() -> None:
    data = small_unet_model()
    for end in [*range(200), *range(200, len(data) - 1, 37)]:
        with pytest.raises(InvalidArgumentError):
            hyper_inference.compile(data[:end], (1, 1, 4, 8, 8))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_bytes_never_crash(data: st.DataObject) -> None:
    """A flipped byte may leave a model, which then runs, or is refused; nothing else happens."""
    model = bytearray(bandpass_model(3))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(model) - 1))
        model[at] = data.draw(st.integers(0, 255))
    try:
        graph = hyper_inference.compiler.compile.load_graph(bytes(model), (1, 1, 9, 9))
    except InvalidArgumentError as error:
        assert "\n" not in str(error)
    else:
        assert graph.nodes


def many_ops_model() -> bytes:
    """One of every kind of op whose handler reads numbers from the file."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], name="conv"),
        node("InstanceNormalization", ["a", "one", "one"], ["b"], name="instance"),
        node("Reshape", ["b", "grouped"], ["c"]),
        node("InstanceNormalization", ["c", "pair", "pair"], ["d"], name="group"),
        node("Reshape", ["d", "back"], ["e"]),
        node("PRelu", ["e", "slope"], ["f"]),
        node("ConvTranspose", ["f", "t"], ["g"], strides=[2, 2], pads=[1, 1, 1, 1],
             output_padding=[1, 1]),
        node("MaxPool", ["g"], ["h"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Split", ["h"], ["i", "j"], axis=1),
        node("Resize", ["i", "", "scales"], ["k"], mode="linear"),
        node("Pad", ["j", "pads"], ["l"], mode="reflect"),
        node("GlobalAveragePool", ["l"], ["m"]),
        node("Mul", ["k", "m"], ["n"]),
        node("Clip", ["n", "low", "high"], ["o"]),
        node("Softmax", ["o"], ["y"], axis=1),
    ]  # fmt: skip
    weights = {
        "w": noise(4, 1, 3, 3), "one": np.ones(4, np.float32), "pair": np.ones(2, np.float32),
        "grouped": np.int64([1, 2, -1]), "back": np.int64([1, 4, 9, 10]),
        "slope": noise(4, 1, 1), "t": noise(4, 4, 3, 3), "scales": np.float32([1, 1, 2, 2]),
        "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]), "low": np.float32(-1), "high": np.float32(1),
    }  # fmt: skip
    return onnx_model(nodes, weights, [1, 1, 9, 10])


def test_many_ops_together() -> None:
    assert against_onnxruntime(many_ops_model(), noise(1, 1, 9, 10)) < 1e-5


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_models_of_many_ops_never_crash(data: st.DataObject) -> None:
    model = bytearray(many_ops_model())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(model) - 1))
        model[at] = data.draw(st.integers(0, 255))
    try:
        graph = run_pipeline(load_graph(bytes(model), (1, 1, 9, 10)))
        plan_memory(graph, max_bytes=2**30)
    except InvalidArgumentError as error:
        assert "\n" not in str(error)


def changed(change: object) -> bytes:
    model = onnx.ModelProto.FromString(bandpass_model(3))
    change(model)  # type: ignore[operator]  # a function of the model
    return bytes(model.SerializeToString())


def huge_dims(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**31, 2**31, 31, 31])


def overflowing_dims(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**62, 4, 1, 1])


def negative_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -1


def no_weights(model: onnx.ModelProto) -> None:
    del model.graph.initializer[:]


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


def huge_padding(model: onnx.ModelProto) -> None:
    del model.graph.node[0].attribute[0].ints[:]
    model.graph.node[0].attribute[0].ints.extend([2**40] * 4)


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 999


def unread_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "elsewhere"


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def own_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def short_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"1234"


@pytest.mark.parametrize(
    "change",
    [
        huge_dims, overflowing_dims, negative_dims, no_weights, external, huge_padding,
        unknown_type, unread_output, cycle, own_domain, short_weight,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_malformed_models_are_refused(change: object) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        hyper_inference.compile(changed(change), (1, 1, 16, 16))
    assert caught.value.reason in ("INVALID_MODEL", "SHAPE_MISMATCH")
    assert "\n" not in str(caught.value)


def test_shapes_that_do_not_fit() -> None:
    model = small_unet_model()
    with pytest.raises(ShapeError, match="does not fit"):
        hyper_inference.compile(model, (1, 2, 4, 8, 8))
    with pytest.raises(ShapeError, match="strides divide"):
        hyper_inference.compile(model, (1, 1, 4, 9, 8))
    with pytest.raises(ShapeError):
        hyper_inference.compile(model, (1, 1, 2**20, 2**20, 2**20))
    with pytest.raises(ShapeError, match="GiB"):
        hyper_inference.compile(model, (1, 1, 2**7, 2**9, 2**9), max_bytes=2**30)
    with pytest.raises(ShapeError):
        hyper_inference.compile(model, (1, 1, 0, 8, 8))
    with pytest.raises(InvalidModelError, match="cannot read"):
        hyper_inference.compile("no/such/file.onnx", (1, 1, 8, 8))
    with pytest.raises(InvalidArgumentError, match="cannot compile"):
        hyper_inference.compile({"a": "dict"}, (1, 1, 8, 8))


def test_weights_of_other_types_are_read() -> None:
    weight = numpy_helper.from_array(noise(2, 1, 3, 3).astype(np.float16), "w")
    model = onnx.ModelProto.FromString(
        onnx_model([helper.make_node("Conv", ["x", "w"], ["y"])], {}, [1, 1, 8, 8])
    )
    model.graph.initializer.append(weight)
    net = hyper_inference.compile(model, (1, 1, 8, 8))
    assert net(noise(1, 1, 8, 8)).shape == (1, 2, 6, 6)
