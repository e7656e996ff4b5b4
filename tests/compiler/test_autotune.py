"""Autotune: whatever it chooses, the bits are the same; what it measured is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hyper_inference
from hyper_inference.compiler import autotune
from hyper_inference.compiler.cache import CodeCache
from hyper_inference.compiler.codegen.conv_direct import ConvDirect
from hyper_inference.compiler.codegen.conv_winograd import ConvWinograd
from hyper_inference.compiler.codegen.target import find_target
from tests.compiler.test_winograd import conv_graph

pytestmark = pytest.mark.timeout(240)
CASES = [("fast", (3, 3, 3), (4, 9, 70)), ("exact", (1, 3, 3), (2, 9, 35))]


@pytest.mark.parametrize(("mode", "kernel", "shape"), CASES)
def test_every_candidate_gives_the_same_bits(
    mode: str, kernel: tuple[int, int, int], shape: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    graph = conv_graph((7, 18), kernel, shape)
    x = np.random.default_rng(0).standard_normal((1, 7, *shape)).astype(np.float32)
    plain = hyper_inference.compile(graph, x.shape, mode=mode)
    expected, family = plain(x), ConvDirect if mode == "exact" else ConvWinograd
    (usual,) = {s.kernel for s in plain.steps if isinstance(s.kernel, family)}
    blocks = {usual.block}
    for index, candidate in enumerate(autotune.candidates(usual, find_target())[1:]):
        monkeypatch.setattr(
            hyper_inference.compiler.compile, "tune", lambda *_, c=candidate: {usual: c}
        )
        net = hyper_inference.compile(graph, x.shape, mode=mode, autotune=True)
        (chosen,) = {s.kernel for s in net.steps if isinstance(s.kernel, family)}
        assert chosen == candidate
        blocks.add(chosen.block)
        assert np.array_equal(net(x), expected), index
    assert len(blocks) > 4


def test_the_fastest_is_chosen_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = conv_graph((7, 18), (3, 3, 3), (2, 8, 40))
    shape = (1, 7, 2, 8, 40)
    steps = hyper_inference.compile(graph, shape).steps
    (usual,) = {s.kernel for s in steps if isinstance(s.kernel, ConvWinograd)}
    options = autotune.candidates(usual, find_target())
    measured: list[int] = []

    def measure(trials: object, *_: object) -> list[float]:
        measured.append(len(trials))  # type: ignore[arg-type]
        return [9.0, 9.0, 1.0, *[5.0] * (len(options) - 3)]

    monkeypatch.setattr(autotune, "_measure", measure)
    store, target = CodeCache(tmp_path), find_target()
    for _ in range(2):
        assert autotune.autotune(steps, 100, target, store) == {usual: options[2]}
    assert measured == [len(options)]
    for foreign in (b"[1, 2]", b"{}", b"not json", b'["a"]'):
        (entry,) = tmp_path.iterdir()
        store.put(entry.stem, foreign)
        assert autotune.autotune(steps, 100, target, store) == {usual: options[2]}
    assert len(measured) == 5


def test_it_measures_on_this_machine(tmp_path: Path) -> None:
    graph = conv_graph((7, 18), (3, 3, 3), (2, 8, 40), residual=True)
    x = np.random.default_rng(0).standard_normal((1, 7, 2, 8, 40)).astype(np.float32)
    expected = hyper_inference.compile(graph, x.shape)(x)
    for _ in range(2):
        net = hyper_inference.compile(graph, x.shape, autotune=True, cache=tmp_path)
        assert np.array_equal(net(x), expected)
    assert any(path.stem.endswith("-blocks") for path in tmp_path.iterdir())
