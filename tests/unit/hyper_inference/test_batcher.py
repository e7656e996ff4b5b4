"""Micro-batches: who waits for the same net runs with it; who has gone does not."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from hyper.errors import CancelledError
from hyper_inference.batcher import MAX_SAMPLES, Batcher


class Net:
    """Doubles; holds its first call until told, and remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.sizes.append(len(batch))
        self.begun.set()
        assert self.go.wait(30)
        if np.isnan(batch).any():
            raise ValueError("not a number")
        return batch * 2


def start(batcher: Batcher, net: Net, batch: np.ndarray, found: dict, key: int, gone=None):
    def work() -> None:
        try:
            found[key] = batcher.run(net, batch, gone or threading.Event())[0]
        except (CancelledError, ValueError) as error:
            found[key] = error

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def wait_for(batcher: Batcher, count: int) -> None:
    condition = threading.Event()
    while len(batcher._queue) < count:
        condition.wait(0.001)


def test_calls_that_wait_run_together() -> None:
    batcher, net, other = Batcher(), Net(), Net()
    other.go.set()
    found: dict[int, np.ndarray] = {}
    threads = [start(batcher, net, np.full((1, 2), 0.0), found, 0)]
    assert net.begun.wait(30)
    for key in range(1, 6):
        threads.append(start(batcher, net, np.full((key, 2), float(key)), found, key))
    threads.append(start(batcher, other, np.full((1, 2), 9.0), found, 9))
    threads.append(start(batcher, net, np.zeros((MAX_SAMPLES, 2)), found, 10))
    wait_for(batcher, 7)
    net.go.set()
    for thread in threads:
        thread.join(30)
    assert net.sizes[0] == 1
    assert sum(net.sizes) == 1 + 15 + MAX_SAMPLES
    assert len(net.sizes) == 3
    assert other.sizes == [1]
    for key in range(6):
        assert (found[key] == 2.0 * key).all()
        assert len(found[key]) == max(1, key)


def test_who_has_gone_is_not_computed() -> None:
    batcher, net, gone = Batcher(), Net(), threading.Event()
    found: dict[int, object] = {}
    first = start(batcher, net, np.zeros((1, 2)), found, 0)
    assert net.begun.wait(30)
    second = start(batcher, net, np.zeros((3, 2)), found, 1, gone)
    wait_for(batcher, 1)
    gone.set()
    net.go.set()
    first.join(30)
    second.join(30)
    assert net.sizes == [1]
    assert isinstance(found[1], CancelledError)
    assert isinstance(found[0], np.ndarray)


def test_an_error_of_the_net_comes_out_and_the_next_call_works() -> None:
    batcher, net = Batcher(), Net()
    net.go.set()
    with pytest.raises(ValueError, match="not a number"):
        batcher.run(net, np.full((1, 2), np.nan), threading.Event())
    assert (batcher.run(net, np.ones((1, 2)), threading.Event())[0] == 2).all()
