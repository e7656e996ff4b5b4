"""Random graphs: every pass keeps the meaning, compiled code computes it, whatever the machine."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hyper_inference
from hyper_inference.compiler.codegen.target import targets
from hyper_inference.compiler.interpret import interpret
from hyper_inference.compiler.ir import Graph
from hyper_inference.compiler.pipeline import PIPELINE, run_pipeline
from hyper_inference.compiler.verify import verify
from tests.compiler.nets import graphs

quiet = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
few = settings(quiet, max_examples=25)


def sample_of(graph: Graph, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(graph.input_type.shape).astype(np.float32)


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    return float(np.abs(actual - expected).max() / max(1e-6, np.abs(expected).max()))


@pytest.mark.parametrize("step", sorted(set(PIPELINE), key=lambda p: p.__name__))
@quiet
@given(graph=graphs(), seed=st.integers(0, 99))
def test_a_pass_keeps_the_meaning(step, graph: Graph, seed: int) -> None:
    after = verify(step(verify(graph)), after=step.__name__)
    x = sample_of(graph, seed)
    assert error(interpret(after, x), interpret(graph, x)) < 1e-6


@quiet
@given(graph=graphs(max_nodes=9), seed=st.integers(0, 99))
def test_the_pipeline_keeps_the_meaning(graph: Graph, seed: int) -> None:
    x = sample_of(graph, seed)
    assert error(interpret(run_pipeline(graph), x), interpret(graph, x)) < 1e-6


@pytest.mark.timeout(300)
@few
@given(graph=graphs(), seed=st.integers(0, 99))
def test_compiled_code_computes_the_graph(graph: Graph, seed: int) -> None:
    x = sample_of(graph, seed)
    expected = interpret(graph, x)
    c, z, y, width = expected.shape
    seen = (c, z, y, width) if graph.spatial == 3 else (c, y, width)
    sizes = graph.input_type.shape
    shape = (1, sizes[0], *sizes[4 - graph.spatial :])
    batch = x.reshape(shape)
    results = []
    for target in targets():
        net = hyper_inference.compile(graph, shape, threads=2, target=target.name)
        first, again = net(batch), net(batch)
        assert np.array_equal(first, again)  # nothing is left over from the first run
        results.append(first)
    assert error(results[0], expected.reshape(1, *seen)) < 2e-5
    for other in results[1:]:
        assert np.array_equal(results[0], other)  # every vector width gives the same bits
