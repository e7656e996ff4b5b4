from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyper import sample_data


def test_the_synthetic_stack_is_the_same_each_time() -> None:
    first = sample_data.synthetic_stack(3, 96, seed=5, max_shift_px=8)
    again = sample_data.synthetic_stack(3, 96, seed=5, max_shift_px=8)
    other = sample_data.synthetic_stack(3, 96, seed=6, max_shift_px=8)
    assert first.sections.shape == (3, 96, 96) and first.sections.dtype == np.uint8
    assert np.array_equal(first.sections, again.sections)
    assert not np.array_equal(first.sections, other.sections)
    assert first.sections.min() >= 1, "0 means: no tissue"
    assert np.abs(first.shift_px).max() <= 8


def test_neighbours_look_alike_where_they_are_not_moved() -> None:
    stack = sample_data.synthetic_stack(6, 128, seed=1, max_shift_px=0)
    a, b, far = (stack.sections[z].astype(float) for z in (0, 1, 5))
    middle = np.s_[40:88, 40:88]  # rotation is about the centre: little motion there

    def correlation(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.corrcoef(p[middle].ravel(), q[middle].ravel())[0, 1])

    assert correlation(a, b) > correlation(a, far)


def test_find_prefers_the_configured_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / sample_data.SAMPLE
    folder.mkdir(parents=True)
    (folder / "z00.png").write_bytes(b"x")
    monkeypatch.setenv("HYPER_DATA_DIR", str(tmp_path))
    assert sample_data.find() == folder


def test_find_says_none_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYPER_DATA_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert sample_data.find() is None
