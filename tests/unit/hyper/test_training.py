"""The order of training: a permutation, shared out, resumed exactly."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.errors import InvalidArgumentError
from hyper.training import Loader, Plan


def plan(length: int = 10, batch_size: int = 3, **changes: object) -> Plan:
    facts: dict[str, object] = {
        "name": "n", "length": length, "batch_size": batch_size, "shuffle": True, "seed": 1,
        "rank": 0, "world": 1, "drop_last": False,
    }  # fmt: skip
    return Plan(**{**facts, **changes})  # type: ignore[arg-type]


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 7), st.integers(0, 3))
def test_ranks_share_every_sample(length: int, batch: int, world: int, epoch: int) -> None:
    ranks = [plan(length, batch, rank=rank, world=world) for rank in range(world)]
    batches = [rank.batches(epoch) for rank in ranks]
    assert len({len(b) for b in batches}) == 1
    seen = [i for rank in batches for b in rank for i in b]
    assert set(seen) == set(range(length))
    assert len(seen) - length < world


@given(st.integers(1, 100), st.integers(1, 9), st.integers(0, 30), st.booleans())
def test_batches_from_the_middle_are_the_same(
    length: int, batch: int, start: int, drop_last: bool
) -> None:
    whole = plan(length, batch, drop_last=drop_last).batches(2)
    assert plan(length, batch, drop_last=drop_last).batches(2, start) == whole[start:]
    assert all(len(b) == batch for b in whole[: length // batch])


def test_epochs_and_seeds_differ_and_repeat() -> None:
    orders = [plan(100, seed=s).order(e).tolist() for s, e in itertools.product(range(3), range(3))]
    assert len({tuple(order) for order in orders}) == 9
    assert plan(100, seed=0).order(0).tolist() == orders[0]
    assert plan(5, shuffle=False).order(7).tolist() == list(range(5))


@pytest.mark.parametrize("change", [{"batch_size": 4}, {"seed": 2}, {"name": "m"}, {"world": 2}])
def test_a_state_of_another_run_is_refused(change: dict[str, object]) -> None:
    mine, other = Loader([], plan(), {}), Loader([], plan(**change), {})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=next(iter(change))):
        mine.resume(other.state())


class _SlowToPickle:
    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._number = number

    def __reduce__(self) -> tuple[Callable[[int], int], tuple[int]]:
        (self._folder / f"begun-{self._number}").touch()
        time.sleep(0.3)
        (self._folder / f"ended-{self._number}").touch()
        return int, (self._number,)


class _SlowSource:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __len__(self) -> int:
        return 10

    def __getitems__(self, indices: Sequence[int]) -> list[_SlowToPickle]:
        return [_SlowToPickle(self._folder, index) for index in indices]


def _as_it_is(batch: object) -> object:
    return batch


def _note(worker: int) -> None:
    (Path.cwd() / f"worker-{worker}").touch()


@pytest.mark.timeout(90)
def test_a_spawned_worker_ends_when_it_has_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch aborts a process whose interpreter ends while a thread of it pickles tensors."""
    monkeypatch.chdir(tmp_path)
    options = {
        "num_workers": 1, "multiprocessing_context": "spawn", "collate_fn": _as_it_is,
        "worker_init_fn": _note,
    }  # fmt: skip
    for batch in Loader(_SlowSource(tmp_path), plan(batch_size=1, shuffle=False), options):
        assert batch == [0]
        break
    begun, ended = (sorted(p.name[6:] for p in tmp_path.glob(f"{e}-*")) for e in ("begun", "ended"))
    assert len(begun) > 1
    assert begun == ended
    assert (tmp_path / "worker-0").exists(), "the caller's own worker_init_fn"
