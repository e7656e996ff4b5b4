"""The functions that the examples' recipes name are there, and take what they are given."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

from examples.workloads import code_of

ROOT = Path(__file__).resolve().parents[3] / "examples"
pytest.importorskip("torch")


@pytest.mark.parametrize(
    "recipe", sorted(ROOT.rglob("*.yaml")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_functions_fit_their_parameters(recipe: Path) -> None:
    for name, experiment in yaml.safe_load(recipe.read_text())["experiments"].items():
        if "function" not in experiment:
            continue
        module_name, _, function_name = experiment["function"].partition(":")
        if "workdir" in experiment:
            with code_of(str(recipe.parent.relative_to(ROOT)), module_name) as module:
                function = getattr(module, function_name)
        else:
            function = getattr(importlib.import_module(module_name), function_name)
        given = dict.fromkeys(experiment.get("parameters", {}))
        assert inspect.signature(function).bind(None, **given), name
