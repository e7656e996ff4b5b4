"""What travels with a function, and what cannot."""

from __future__ import annotations

import importlib.util
import json as js
import linecache
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hyper
from hyper import shipping
from hyper.errors import InvalidArgumentError

CELL = """
import math as m
import numpy as np
from json import dumps
import hyper

LIMIT = {"a": [1, 2.5, None]}

class Shape:
    sides = 4
    def area(self, edge):
        return helper(edge) * self.sides

def helper(value):
    return value + m.pi + LIMIT["a"][0]

def even(n):
    return n == 0 or odd(n - 1)

def odd(n):
    return n != 0 and even(n - 1)

@hyper.task(retries=1)
def work(value):
    return dumps([Shape().area(value), int(np.sum([value])), even(value)])

broken = open

opened = object()
def uses_an_object():
    return opened
"""


def cell(source: str = CELL) -> dict[str, Any]:
    """The names of a notebook's cell after it was run."""
    name = f"<cell {len(linecache.cache)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    scope: dict[str, Any] = {"__name__": "a_notebook"}
    exec(compile(source, name, "exec"), scope)
    return scope


def arrived(shipped: shipping.Shipped, folder: Path) -> Callable[..., Any]:
    """The function as a worker imports it, without anything of this process."""
    module_name, _, name = shipped.target.partition(":")
    file = folder / f"{module_name}.py"
    for path, content in shipped.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[module_name]
    found: Callable[..., Any] = getattr(module, name)
    return found


def test_a_cells_function_brings_what_it_uses(tmp_path: Path) -> None:
    work = cell()["work"]
    shipped = shipping.ship(work.function)
    here, there = js.loads(work(4)), js.loads(arrived(shipped, tmp_path)(4))
    assert here == there == [pytest.approx(4 * (4 + math.pi + 1)), 4, True]
    assert shipped == shipping.ship(work.function)  # the same bytes: uploaded once


def test_what_cannot_travel_says_what_to_do() -> None:
    scope = cell()
    with pytest.raises(InvalidArgumentError, match=r"opened, a object .* inside the function"):
        shipping.ship(scope["uses_an_object"])
    with pytest.raises(InvalidArgumentError, match="`def`"):
        shipping.ship(lambda: 1)
    with pytest.raises(InvalidArgumentError, match="`def`"):
        shipping.ship(len)

    def inner() -> None:
        """Nothing."""

    with pytest.raises(InvalidArgumentError, match="top of its file"):
        shipping.ship(inner)


def test_a_closure_is_refused() -> None:
    source = "def outer():\n    n = 3\n    def f():\n        return n\n    return f\nf = outer()\n"
    function = cell(source)["f"]
    function.__qualname__ = "f"
    with pytest.raises(InvalidArgumentError, match="hand it over"):
        shipping.ship(function)


def load(folder: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_files_function_brings_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def work(n):\n    return n\n")
    (tmp_path / "other.py").write_text("")
    (tmp_path / "data.bin").write_bytes(b"0" * 100)
    (tmp_path / ".hidden.py").write_text("")
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    (tmp_path / "env" / "big.py").write_text("")
    module = load(tmp_path, "mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    shipped = shipping.ship(module.work)
    assert shipped.target == "mine:work"
    assert sorted(shipped.files) == ["mine.py", "other.py"]
    monkeypatch.setattr(shipping, "FILES_MAX", 1)
    with pytest.raises(InvalidArgumentError, match="a folder of its own"):
        shipping.ship(module.work)


def test_an_installed_function_needs_nothing() -> None:
    assert shipping.ship(js.dumps) == shipping.Shipped("json:dumps", {})


def test_options_of_a_task() -> None:
    @hyper.task(cpus=2, retries=0)
    def work(value: int) -> int:
        """What it does."""
        return value + 1

    assert work(3) == 4 and work.__doc__ == "What it does."
    assert work.options == {"cpus": 2, "retries": 0}
    with pytest.raises(InvalidArgumentError, match=r"no 'memroy'.*memory"):
        hyper.task(memroy="1GiB")
