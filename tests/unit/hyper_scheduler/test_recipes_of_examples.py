"""Every recipe of the examples is right, at full size too."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyper_scheduler.recipe import parse_recipe

ROOT = Path(__file__).resolve().parents[3] / "examples"


@pytest.mark.parametrize(
    "recipe", sorted(ROOT.rglob("*.yaml")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_recipe(recipe: Path) -> None:
    assert parse_recipe(recipe.read_text()).experiments
