"""The segmentation's pure functions: fragments, links, agreement with the truth."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.workloads import code_of


@pytest.fixture(scope="module")
def partition() -> Iterator[ModuleType]:
    with code_of("segmentation", "partition") as module:
        yield module


@pytest.fixture(scope="module")
def metrics() -> Iterator[ModuleType]:
    with code_of("segmentation", "metrics") as module:
        yield module


def rooms(walls: float = 1.0) -> np.ndarray:
    """Membranes of four rooms of 20 x 20 with walls of 2 px between them."""
    membranes = np.zeros((42, 42), np.float32)
    membranes[20:22] = walls
    membranes[:, 20:22] = walls
    return membranes


def test_rooms_are_cut_at_their_walls(partition: ModuleType) -> None:
    labels = partition.cut(rooms(), partition.Settings(smooth_px=0.5, merge=0.3))
    assert len(np.unique(labels)) == 4
    for y, x in itertools.product((slice(19), slice(23, None)), repeat=2):
        assert len(np.unique(labels[y, x])) == 1


def test_a_faint_wall_is_no_border(partition: ModuleType) -> None:
    membranes = rooms()
    membranes[:20, 20:22] = 0.2
    labels = partition.cut(membranes, partition.Settings(smooth_px=0.5, inside=0.15, merge=0.35))
    assert len(np.unique(labels)) == 3
    assert labels[5, 5] == labels[5, 30] != labels[30, 5]


def test_an_empty_section_is_one_object(partition: ModuleType) -> None:
    labels = partition.cut(np.zeros((30, 30), np.float32), partition.Settings())
    assert np.all(labels == 1)
    labels = partition.cut(np.ones((30, 30), np.float32), partition.Settings())
    assert np.all(labels == 1)


def test_links_need_both_to_agree(partition: ModuleType) -> None:
    one = np.array([[1, 1, 1, 2, 2, 0]])
    other = np.array([[7, 7, 8, 8, 8, 9]])
    a, b = partition.overlaps(one, other, 0.5)
    assert list(zip(a.tolist(), b.tolist(), strict=True)) == [(1, 7), (2, 8)]


def test_what_is_joined_has_the_name_of_its_first(partition: ModuleType) -> None:
    names = np.array([3, 5, 9, 11])
    edges = [(np.array([11]), np.array([3])), (np.array([], int), np.array([], int))]
    assert partition.first_of(names, edges).tolist() == [3, 5, 9, 3]
    chain = [(np.array([11, 5]), np.array([9, 9]))]
    assert partition.first_of(names, chain).tolist() == [3, 5, 5, 5]
    assert partition.first_of(names[:0], []).tolist() == []


labels_of = st.lists(st.integers(0, 5), min_size=2, max_size=40)


@given(labels_of)
def test_the_same_labels_agree(metrics: ModuleType, labels: list[int]) -> None:
    truth = np.array(labels) + 1
    found = metrics.agreement((truth * 7) % 43, truth)  # other names of the same parts
    assert found.rand_error == pytest.approx(0, abs=1e-9)
    assert found.information_bits == pytest.approx(0, abs=1e-9)


@given(st.integers(2, 40), st.randoms(use_true_random=False))
def test_the_errors_are_those_of_all_pairs(metrics: ModuleType, count: int, rng: object) -> None:
    truth = np.array([rng.randint(1, 3) for _ in range(count)])  # type: ignore[attr-defined]
    found = np.array([rng.randint(1, 4) for _ in range(count)])  # type: ignore[attr-defined]
    both = ours = theirs = 0
    for i, j in itertools.product(range(count), repeat=2):  # ordered pairs, i = j too
        same_found, same_truth = found[i] == found[j], truth[i] == truth[j]
        both += same_found and same_truth
        ours += same_found
        theirs += same_truth
    precision, recall = both / ours, both / theirs
    expected = 1 - 2 * precision * recall / (precision + recall)
    assert metrics.agreement(found, truth).rand_error == pytest.approx(expected, abs=1e-9)


def test_splits_and_merges_are_told_apart(metrics: ModuleType) -> None:
    truth = np.repeat([1, 2], 8)
    halves = np.repeat([1, 2, 3, 4], 4)
    split, merged = metrics.agreement(halves, truth), metrics.agreement(np.ones(16, int), truth)
    assert (split.split_bits, split.merge_bits) == (pytest.approx(1), pytest.approx(0))
    assert (merged.split_bits, merged.merge_bits) == (pytest.approx(0), pytest.approx(1))


def test_what_the_truth_leaves_out_does_not_count(metrics: ModuleType) -> None:
    truth = np.array([1, 1, 0, 2, 2])
    assert metrics.agreement(np.array([5, 5, 9, 6, 6]), truth).rand_error == pytest.approx(0)
    with pytest.raises(ValueError, match="no object"):
        metrics.agreement(truth, np.zeros(5, int))
    with pytest.raises(ValueError, match="shapes"):
        metrics.agreement(truth, truth[:3])


def test_truth_moves_with_its_section() -> None:
    with code_of("segmentation", "prepare") as prepare:
        inside = np.indices((400, 320)).sum(0) // 25 % 2 == 0
        section = np.where(inside, 200, 50).astype(np.uint8)
        first, second = (prepare.moved(section, inside, seed) for seed in (0, 1))
    for grey, truth in (first, second):
        assert grey.shape == truth.shape == (360, 280)
        assert np.mean((grey > 125) == (truth > 127)) > 0.99
    assert np.mean(first[1] == second[1]) < 0.9  # each goes its own way


@pytest.mark.parametrize("seed", range(4))
def test_the_untrained_net_is_sure_of_nothing(seed: int) -> None:
    """Logits of tens at the start are what some trainings never find back from."""
    import torch

    torch.manual_seed(seed)
    with code_of("segmentation", "membrane_net") as module:
        logits = module.MembraneNet()(torch.randn(1, 1, 3, 64, 64))
    assert float(logits.detach().abs().mean()) < 2
