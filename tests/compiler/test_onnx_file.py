"""ONNX files: what protobuf's own parser reads, weights apart, and never a crash."""

from __future__ import annotations

import io
import random

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper

import hyper_inference
from hyper_inference import InvalidModelError
from hyper_inference.compiler.compile import load_graph
from hyper_inference.compiler.frontend import onnx_file
from hyper_inference.compiler.ir import Conv
from tests.compiler.nets import onnx_model, small_unet_model

SHAPE = (1, 8, 9, 10)


def convolutions() -> bytes:
    """Two, the weights of the first large; and initializers of every kind beside them."""
    random = np.random.default_rng(2)
    weights = {
        "large": random.standard_normal((24, 8, 3, 3)).astype(np.float32),
        "small": random.standard_normal((2, 24, 1, 1)).astype(np.float32),
        "double": random.standard_normal((900,)),
        "none": np.zeros(0, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "large"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["h", "small"], ["y"]),
    ]
    return onnx_model(nodes, weights, list(SHAPE))


def test_large_weights_lie_apart_and_the_rest_is_what_it_was() -> None:
    data = convolutions()
    whole = onnx.ModelProto.FromString(data)
    parsed = onnx_file.read_model(io.BytesIO(data))
    names = [tensor.name for tensor in whole.graph.initializer]
    apart = {name for name, raw in zip(names, parsed.raw, strict=True) if raw is not None}
    assert apart == {"large", "double"}
    for tensor, raw in zip(parsed.proto.graph.initializer, parsed.raw, strict=True):
        if raw is not None:
            assert not tensor.raw_data
            tensor.raw_data = raw.tobytes()
    assert parsed.proto == whole


def test_weights_are_not_copied() -> None:
    graph = load_graph(convolutions(), SHAPE)
    first = graph.nodes[0].op
    assert isinstance(first, Conv)
    assert not first.weight.flags.writeable
    base = first.weight.base
    assert base is not None
    while base.base is not None:
        base = base.base
    assert base.dtype == np.uint8
    assert not base.flags.writeable


def test_other_ways_to_store_weights_and_other_orders_of_fields() -> None:
    data = convolutions()
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    expected = hyper_inference.compile(data, SHAPE)(x)
    listed = onnx.ModelProto.FromString(data)
    for tensor in listed.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values.ravel().tolist())
    # A message is the sum of its parts: the graph in two pieces, weights behind nodes or before.
    head = onnx.ModelProto.FromString(data)
    head.graph.ClearField("initializer")
    tail = onnx.ModelProto()
    tail.graph.initializer.extend(onnx.ModelProto.FromString(data).graph.initializer)
    pieces = [head.SerializeToString(), tail.SerializeToString()]
    for other in (listed.SerializeToString(), b"".join(pieces), b"".join(reversed(pieces))):
        assert np.array_equal(hyper_inference.compile(other, SHAPE)(x), expected)


def test_damaged_files_are_refused_as_protobuf_refuses_them() -> None:
    data = small_unet_model()
    chance = random.Random(4)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 1, 3])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if chance.random() < 0.5:
            del damaged[chance.randrange(len(damaged)) :]
        try:
            whole = onnx.ModelProto.FromString(bytes(damaged))
        except DecodeError:
            refused += 1
            with pytest.raises(InvalidModelError):
                onnx_file.read_model(io.BytesIO(damaged))
            continue
        try:
            parsed = onnx_file.read_model(io.BytesIO(damaged))
        except InvalidModelError:
            continue
        assert [n.name for n in parsed.proto.graph.node] == [n.name for n in whole.graph.node]
    assert refused > 50


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x3a",  # a graph without a length
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a varint that never ends
        b"\x3a\x80\x80\x80\x80\x80\x80\x80\x80\x40",  # 4 exabytes
        b"\x3a\x06\x2a\x04\x4a\x7f\x00\x00",  # raw data longer than its tensor
        b"\x3b",  # a group
        bytes(1000),
    ],
)
def test_what_is_no_model_is_an_error(data: bytes) -> None:
    with pytest.raises(InvalidModelError, match="export it again"):
        onnx_file.read_model(io.BytesIO(data))
