"""The compiled callable: threads, batches, targets, the cache, odd inputs, golden graph."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import hyper_inference
from hyper.errors import InvalidArgumentError
from hyper_inference import ShapeError
from hyper_inference.compiler.cache import CodeCache
from hyper_inference.compiler.codegen.conv_direct import choose_block
from hyper_inference.compiler.compile import load_graph
from hyper_inference.compiler.frontend.builder import GraphBuilder
from hyper_inference.compiler.interpret import interpret
from hyper_inference.compiler.memory_plan import plan_memory
from hyper_inference.compiler.pipeline import run_pipeline
from hyper_inference.compiler.receptive_field import receptive_field
from hyper_inference.compiler.verify import IllegalGraphError, verify
from tests.compiler.nets import bandpass_model, small_unet_model

pytestmark = pytest.mark.timeout(120)
SHAPE = (1, 1, 6, 20, 38)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x = noise(2, 1, 6, 20, 38)
    one = hyper_inference.compile(small_unet_model(), SHAPE, threads=1)(x)
    for threads in (2, 3, 7):
        net = hyper_inference.compile(small_unet_model(), SHAPE, threads=threads)
        for _ in range(5):
            assert np.array_equal(net(x), one)


def test_callers_at_the_same_time_do_not_disturb_each_other() -> None:
    net = hyper_inference.compile(small_unet_model(), SHAPE, threads=2)
    inputs = [noise(*SHAPE) * n for n in range(1, 5)]
    expected = [net(x) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(10):
            if not np.array_equal(net(inputs[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_batch_is_its_samples() -> None:
    net = hyper_inference.compile(small_unet_model(), SHAPE)
    batch = noise(3, 1, 6, 20, 38)
    assert np.array_equal(net(batch), np.concatenate([net(batch[n : n + 1]) for n in range(3)]))
    assert net(batch[:0]).shape == (0, 2, 6, 20, 38)


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 130])
@pytest.mark.parametrize("height", [1, 3, 5])
def test_every_tail(width: int, height: int) -> None:
    shape = (1, 1, height, width)
    net = hyper_inference.compile(bandpass_model(5), shape)
    x = noise(*shape)
    expected = interpret(load_graph(bandpass_model(5), shape), x.reshape(1, 1, height, width))
    assert np.abs(net(x)[0] - expected[:, 0]).max() < 1e-5


def test_nan_and_infinity_spread_only_as_far_as_the_kernels() -> None:
    net = hyper_inference.compile(bandpass_model(5), (1, 1, 40, 50))
    x = noise(1, 1, 40, 50)
    clean = net(x)
    for bad in (np.nan, np.inf):
        x[0, 0, 20, 21] = bad
        hit = ~np.isfinite(net(x)[0, 0])
        assert hit[18:23, 19:24].all()
        assert hit.sum() == 25
    x[0, 0, 20, 21] = noise(1, 1, 40, 50)[0, 0, 20, 21]
    assert np.array_equal(net(x), clean)  # nothing of it stays in memory


def test_inputs_are_converted_or_refused() -> None:
    net = hyper_inference.compile(bandpass_model(5), (1, 1, 20, 30))
    x = np.random.default_rng(0).integers(0, 255, (1, 1, 30, 20)).astype(np.uint8).swapaxes(2, 3)
    assert np.array_equal(net(x), net(np.ascontiguousarray(x, np.float32)))
    for bad in (x[:, :, :-1], x[0], x[None], np.zeros((1, 2, 20, 30))):
        with pytest.raises(ShapeError, match="compiled for"):
            net(bad)
    with pytest.raises(InvalidArgumentError):
        net(np.zeros((1, 1, 20, 30), object))
    for options in ({"mode": "magic"}, {"threads": 0}, {"target": "mips"}):
        with pytest.raises(InvalidArgumentError):
            hyper_inference.compile(bandpass_model(5), (1, 1, 20, 30), **options)


def test_the_cache_ignores_damaged_entries(tmp_path: Path) -> None:
    x = noise(1, 1, 20, 30)
    expected = hyper_inference.compile(bandpass_model(5), x.shape)(x)
    for damage in (b"", b"garbage", None):
        net = hyper_inference.compile(bandpass_model(5), x.shape, cache=tmp_path)
        assert np.array_equal(net(x), expected)
        (entry,) = tmp_path.iterdir()
        if damage is not None:
            entry.write_bytes(damage)
    data = entry.read_bytes()
    entry.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert CodeCache(tmp_path).get(entry.stem) is None
    unusable = tmp_path / "file"
    unusable.write_text("")
    net = hyper_inference.compile(bandpass_model(5), x.shape, cache=unusable / "below")
    assert np.array_equal(net(x), expected)


GOLDEN = """\
onnx (%input: 1x4x8x12) -> %probability
  %down_act: 6x4x8x12 = conv 6x1x3x3x3 pad 1,1,1 relu (%input)
  %pool: 6x2x4x6 = max_pool 2,2,2 stride 2,2,2 (%down_act)
  %deep_act: 8x2x4x6 = conv 8x6x3x3x3 pad 1,1,1 elu(1) (%pool)
  %up: 6x4x8x12 = conv_transpose 8x6x2x2x2 (%deep_act)
  %skip: 12x4x8x12 = concat (%down_act, %up)
  %join_act: 5x4x8x12 = conv 5x12x1x3x3 pad 0,1,1 leaky_relu(0.1) (%skip)
  %probability: 2x4x8x12 = conv 2x5x1x1x1 sigmoid (%join_act)"""


def test_the_graph_after_all_passes() -> None:
    graph = run_pipeline(load_graph(small_unet_model(), (1, 1, 4, 8, 12)))
    assert str(graph) == GOLDEN
    assert receptive_field(graph) == (6, 7, 7)


def test_concatenations_are_written_in_place_and_memory_is_shared() -> None:
    graph = run_pipeline(load_graph(small_unet_model(), (1, 1, 4, 8, 12)))
    plan = plan_memory(graph)
    assert plan.in_place == {("skip", "down_act"), ("skip", "up")}
    whole, up = plan.places["skip"], plan.places["up"]
    assert up.offset == whole.offset + 6 * whole.channel
    assert plan.buffers < len(graph.nodes)


def test_a_slice_beside_its_source_in_a_concatenation() -> None:
    """Both lie in the concatenation's buffer, and the slice is not in place: it is copied."""
    builder = GraphBuilder([1, 2, 2, 5])
    part = builder.slice("input", [0, 1, 0, 0], [1, 2, 2, 5], [1, 1, 1, 1], "part")
    graph = builder.finish(builder.concat([part, "input"], "both"))
    x = noise(1, 2, 2, 5)
    output = hyper_inference.compile(graph, x.shape)(x)
    assert np.array_equal(output, np.concatenate([x[:, 1:], x], axis=1))


def test_explain_names_every_step() -> None:
    net = hyper_inference.compile(small_unet_model(), SHAPE)
    assert net.layer_shares() == {}
    net(noise(*SHAPE))
    text = net.explain()
    for word in ("deep_act", "ConvDirect", "ConvTransposeDirect", "GFLOP", "arena", "MB", "ms"):
        assert word in text
    if net.target.has_clock:
        assert set(net.layer_shares()) == {step.name for step in net.steps}
        assert 0.5 < sum(net.layer_shares().values()) < 1.5


def test_a_broken_pass_is_caught() -> None:
    graph = load_graph(small_unet_model(), (1, 1, 4, 8, 12))

    def lose_a_node(graph):
        from dataclasses import replace

        return replace(graph, nodes=graph.nodes[1:])

    with pytest.raises(IllegalGraphError, match="lose_a_node"):
        run_pipeline(graph, (lose_a_node,))
    assert verify(graph) is graph


@pytest.mark.parametrize("accumulators", [12, 28])
def test_blocks_fit_the_registers(accumulators: int) -> None:
    for channels in (1, 2, 3, 14, 28, 36, 80):
        for size in (1, 8, 40, 256):
            c, r, x = choose_block(channels, 64, size, 3, 16, accumulators)
            assert 1 <= c <= channels
            assert c * r * x <= accumulators
