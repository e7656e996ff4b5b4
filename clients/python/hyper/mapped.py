"""The task function behind `Client.map`: one call of the function that was shipped.

It runs in the work folder, which holds the function's source and the items.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyper.tasks import ITEMS_FILE, TaskFunction

if TYPE_CHECKING:
    from hyper.context import TaskContext

importing = ""
"""The module that is being imported to find the function, else nothing."""


def call(context: TaskContext, *, target: str, with_context: bool, index: int) -> Any:
    """Call `target` ("module:function") with item `index`; what it returns is the result."""
    args, kwargs = _item(str(Path.cwd()), index)
    function = _function(target)
    return function(context, *args, **kwargs) if with_context else function(*args, **kwargs)


@lru_cache(maxsize=16)
def _function(target: str) -> Callable[..., Any]:
    global importing
    module_name, _, path = target.partition(":")
    importing = module_name
    try:
        found: Any = importlib.import_module(module_name)
    finally:
        importing = ""
    for part in path.split("."):
        found = getattr(found, part)
    function: Callable[..., Any] = found.function if isinstance(found, TaskFunction) else found
    return function


@lru_cache(maxsize=4)
def _lines(folder: str) -> list[bytes]:
    return Path(folder, ITEMS_FILE).read_bytes().split(b"\n")


def _item(folder: str, index: int) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = json.loads(_lines(folder)[index])
    return args, kwargs
