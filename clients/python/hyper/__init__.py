"""Hyper: the Python SDK.

```python
import hyper

volume = hyper.open("fly/calyx/raw")        # an array of a dataset, on the cluster of `hyper up`
with hyper.connect() as client:
    workflow = client.submit("recipe.yaml")
    workflow.wait()
```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hyper import errors
from hyper.client import Client, connect
from hyper.client import open_default as open  # noqa: A004  (reads as hyper.open)
from hyper.errors import HyperError

if TYPE_CHECKING:
    from hyper.arrays import Array
    from hyper.context import TaskContext
    from hyper.datasets import Dataset
    from hyper.sessions import Session
    from hyper.workflows import Workflow

__all__ = [
    "Array",
    "Client",
    "Dataset",
    "HyperError",
    "Session",
    "TaskContext",
    "Workflow",
    "connect",
    "errors",
    "open",
]

# Imported when first asked for: a task or a command pays only for what it uses.
_LAZY = {
    "Array": "hyper.arrays",
    "Dataset": "hyper.datasets",
    "Session": "hyper.sessions",
    "TaskContext": "hyper.context",
    "Workflow": "hyper.workflows",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'hyper' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
