"""The spool of logs against a plain bytes object."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper_worker.spool import Budget, Spool

OPERATIONS = st.lists(
    st.one_of(st.binary(max_size=200), st.integers(1, 250)),  # append, or read that many
    max_size=60,
)


@settings(max_examples=200)
@given(OPERATIONS, st.integers(0, 300))
def test_it_is_a_queue_of_bytes(operations: list[bytes | int], memory_bytes: int) -> None:
    budget = Budget(2000)
    spool = Spool(Path("/tmp"), memory_bytes, budget)
    model = b""
    for operation in operations:
        if isinstance(operation, bytes):
            taken = spool.append(operation)
            assert taken == min(len(operation), 2000 - len(model)) or spool.room_bytes == 0
            model += operation[:taken]
        else:
            data = spool.peek(operation)
            assert data == model[:operation]
            spool.drop(len(data))
            model = model[len(data) :]
        assert len(spool) == len(model) == budget.used_bytes
    spool.close()
    assert budget.used_bytes == 0


def test_budgets_are_shared(tmp_path: Path) -> None:
    budget = Budget(100)
    first, second = Spool(tmp_path, 10, budget), Spool(tmp_path, 10, budget)
    assert first.append(b"x" * 80) == 80
    assert second.append(b"y" * 80) == 20
    first.close()
    assert second.append(b"y" * 80) == 80
    assert second.append(b"forced", force=True) == 6
    second.close()


def test_no_file_is_left_behind(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10, Budget(1 << 20))
    spool.append(b"x" * 1000)
    assert not list(tmp_path.iterdir())
    spool.close()


def test_a_full_disk_drops_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, 10, Budget(1 << 20))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert spool.append(b"x" * 1000) == 0
    assert spool.append(b"y" * 5) == 5
    assert spool.peek(100) == b"y" * 5
    spool.close()
