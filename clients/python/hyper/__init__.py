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

from hyper import _fork_support

if TYPE_CHECKING:
    from hyper import errors
    from hyper.aio import AsyncClient, connect_async
    from hyper.arrays import Array
    from hyper.client import Client, connect
    from hyper.client import open_default as open  # noqa: A004  (reads as hyper.open)
    from hyper.context import TaskContext, report, result
    from hyper.datasets import Dataset
    from hyper.errors import HyperError
    from hyper.placement import Cost, Plan
    from hyper.sessions import Session
    from hyper.status import TaskInfo, WorkflowStatus
    from hyper.tasks import MapRun, TaskFunction, task
    from hyper.workflows import Workflow

__all__ = [
    "Array",
    "AsyncClient",
    "Client",
    "Cost",
    "Dataset",
    "HyperError",
    "MapRun",
    "Plan",
    "Session",
    "TaskContext",
    "TaskFunction",
    "TaskInfo",
    "Workflow",
    "WorkflowStatus",
    "connect",
    "connect_async",
    "errors",
    "open",
    "report",
    "result",
    "task",
]

_fork_support.switch_off()

# Imported when first asked for: a task or a command pays only for what it uses.
_LAZY = {
    "Array": "hyper.arrays:Array",
    "AsyncClient": "hyper.aio:AsyncClient",
    "Client": "hyper.client:Client",
    "Cost": "hyper.placement:Cost",
    "Dataset": "hyper.datasets:Dataset",
    "HyperError": "hyper.errors:HyperError",
    "MapRun": "hyper.tasks:MapRun",
    "Plan": "hyper.placement:Plan",
    "Session": "hyper.sessions:Session",
    "TaskContext": "hyper.context:TaskContext",
    "TaskFunction": "hyper.tasks:TaskFunction",
    "TaskInfo": "hyper.status:TaskInfo",
    "Workflow": "hyper.workflows:Workflow",
    "WorkflowStatus": "hyper.status:WorkflowStatus",
    "connect": "hyper.client:connect",
    "connect_async": "hyper.aio:connect_async",
    "errors": "hyper.errors",
    "open": "hyper.client:open_default",
    "report": "hyper.context:report",
    "result": "hyper.context:result",
    "task": "hyper.tasks:task",
}


def __getattr__(name: str) -> Any:
    place = _LAZY.get(name)
    if place is None:
        raise AttributeError(f"module 'hyper' has no attribute {name!r}")
    module_name, _, attribute = place.partition(":")
    module = importlib.import_module(module_name)
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value
    return value
