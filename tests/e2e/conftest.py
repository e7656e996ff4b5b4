"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyper.images import write_png
from hyper.sample_data import synthetic_stack
from tests.support.local_cluster import local_cluster

__all__ = ["local_cluster", "small_stack"]


@pytest.fixture(scope="session")
def small_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four synthetic sections of 288 x 288."""
    folder = tmp_path_factory.mktemp("stack")
    stack = synthetic_stack(4, 288, seed=3, max_shift_px=12)
    for z, section in enumerate(stack.sections):
        write_png(folder / f"s{z:02}.png", section)
    return folder
