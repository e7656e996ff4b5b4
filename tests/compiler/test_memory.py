"""The arena: nothing in use overlaps, halos are zero whatever used their memory before."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hyper_inference
from hyper_inference.compiler import arena
from hyper_inference.compiler.arena import Block
from hyper_inference.compiler.compile import load_graph
from hyper_inference.compiler.interpret import interpret
from hyper_inference.compiler.memory_plan import plan_memory
from hyper_inference.compiler.outline import outline
from hyper_inference.compiler.pipeline import run_pipeline
from tests.compiler.nets import small_unet_model

SHAPE = (1, 1, 6, 20, 38)

blocks = st.builds(
    lambda size, born, length: Block(size, born, born + length),
    st.integers(1, 100), st.integers(-1, 20), st.integers(0, 8),
)  # fmt: skip


@settings(deadline=None)  # machines of tests are shared
@given(st.lists(blocks, max_size=20))
def test_blocks_in_use_together_lie_apart(given_blocks: list[Block]) -> None:
    offsets, total = arena.place(given_blocks)
    for (one, a), (other, b) in itertools.combinations(zip(given_blocks, offsets, strict=True), 2):
        if one.meets(other):
            assert a + one.size <= b or b + other.size <= a
    ends = [offset + block.size for block, offset in zip(given_blocks, offsets, strict=True)]
    assert total == max(ends, default=0)
    assert min(offsets, default=0) >= 0
    steps = range(-1, 30)
    needed = max(sum(b.size for b in given_blocks if b.born <= n <= b.dies) for n in steps)
    assert needed <= total <= sum(block.size for block in given_blocks)


def test_a_chain_takes_two_blocks() -> None:
    chain = [Block(10, n, n + 1) for n in range(8)]
    assert arena.place(chain)[1] == 20


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_halos_are_zero_again_in_every_run(mode: str) -> None:
    net = hyper_inference.compile(small_unet_model(), SHAPE, mode=mode)
    assert net.plan.clears
    random = np.random.default_rng(3)
    x = random.standard_normal(SHAPE).astype(np.float32)
    net(np.full(SHAPE, np.nan, np.float32))  # leaves NaN wherever anything is written
    expected = interpret(load_graph(small_unet_model(), SHAPE), x[0].astype(np.float64))
    for _ in range(2):
        assert np.abs(net(x)[0] - expected).max() < 1e-4


def test_memory_is_near_the_least_possible() -> None:
    graph = run_pipeline(load_graph(small_unet_model(), (1, 1, 32, 64, 64)))
    types = graph.types()
    whole = sum(4 * types[name].elements for name in types)
    assert plan_memory(graph).floats * 4 < 0.75 * whole


def test_a_compiled_net_keeps_one_copy_of_its_weights() -> None:
    graph = load_graph(small_unet_model(), SHAPE)
    kept = outline(graph)
    assert str(kept) == str(graph)
    for node in kept.nodes:
        weight = getattr(node.op, "weight", None)
        assert weight is None or not any(weight.strides)
    net = hyper_inference.compile(graph, SHAPE)
    for step in net.steps:
        assert step.constants.size == 0 or np.shares_memory(step.constants, net._constants)
