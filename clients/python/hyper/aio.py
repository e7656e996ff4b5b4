"""The SDK for asyncio: the same calls, awaited.

```python
async with hyper.connect_async() as client:
    workflow = await client.submit("recipe.yaml")
    async for status in workflow.watch():
        print(status.state)
    volume = await client.open_array("lab/brain/aligned")
    block = await volume.read[0:4, :512, :512]
```

The calls run on a bounded pool of threads of the client's own, so the event loop never blocks. A
call that is cancelled is no longer waited for; what it has begun on the cluster goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from hyper.client import Client, connect

if TYPE_CHECKING:
    import numpy as np

    from hyper.arrays import Array
    from hyper.datasets import Dataset
    from hyper.sessions import Session
    from hyper.status import TaskInfo, WorkerInfo, WorkflowStatus
    from hyper.workflows import Workflow

P = ParamSpec("P")
R = TypeVar("R")

THREADS = 16
"""Calls at once; more wait for one of them to end."""


class AsyncClient:
    """A cluster, as seen from a coroutine; use it in an `async with`, or `await close()`.

    Args:
        client: does the work.
        threads: calls at once.
    """

    def __init__(self, client: Client, *, threads: int = THREADS) -> None:
        self.sync = client
        self._pool = ThreadPoolExecutor(threads, "hyper-async")

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; calls that still run end with an error."""
        await asyncio.to_thread(self.sync.close)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Any call of the SDK, off the event loop: `await client.run(dataset.read, "a.txt")`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(call, *args, **kwargs))

    async def each(self, make: Callable[[], Iterator[R]]) -> AsyncIterator[R]:
        """Any iterator of the SDK, item by item."""
        items = await self.run(make)
        end = object()
        try:
            while (item := await self.run(next, items, end)) is not end:
                yield item  # type: ignore[misc]  # `end` is the only other thing
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                await asyncio.shield(self.run(_close, close))

    async def open_dataset(self, address: str) -> Dataset:
        """The dataset at `tenant/name[@version]`; read it by `run`."""
        return await self.run(self.sync.open_dataset, address)

    async def open_array(self, address: str) -> AsyncArray:
        """The array at `tenant/name[@version]/array`."""
        return AsyncArray(self, await self.run(self.sync.open_array, address))

    async def session(self, dataset: str) -> Session:
        """A new session on `tenant/name`; write and commit by `run`."""
        return await self.run(self.sync.session, dataset)

    async def submit(
        self, recipe: str | Path | Mapping[str, Any], *, request_id: str | None = None
    ) -> AsyncWorkflow:
        """Start a recipe: a path, YAML text or a mapping."""
        started = await self.run(self.sync.submit, recipe, request_id=request_id)
        return AsyncWorkflow(self, started)

    async def check(self, recipe: str | Path | Mapping[str, Any]) -> WorkflowStatus:
        """What a recipe would become; starts nothing."""
        return await self.run(self.sync.check, recipe)

    async def workflow(self, name: str) -> AsyncWorkflow:
        """A workflow by its resource name, or by its last part alone."""
        return AsyncWorkflow(self, await self.run(self.sync.workflow, name))

    def workflows(self) -> AsyncIterator[WorkflowStatus]:
        """The tenant's workflows, newest first."""
        return self.each(self.sync.workflows)

    async def workers(self) -> list[WorkerInfo]:
        """The machines that run tasks."""
        return await self.run(self.sync.workers)

    async def map(self, function: Callable[..., R], *iterables: Any, **options: Any) -> list[R]:
        """`Client.map`, waited for: what every call returned, in order."""
        started = await self.run(self.sync.map, function, *iterables, **options)
        return await self.run(started.results)


class AsyncWorkflow:
    """A submitted recipe."""

    def __init__(self, client: AsyncClient, workflow: Workflow) -> None:
        self._client = client
        self.sync = workflow

    @property
    def name(self) -> str:
        """Its resource name."""
        return self.sync.name

    @property
    def status(self) -> WorkflowStatus:
        """What was last heard of it."""
        return self.sync.status

    def watch(self) -> AsyncIterator[WorkflowStatus]:
        """The workflow now, then after each change, up to and with its end."""
        return self._client.each(self.sync.watch)

    async def wait(self, *, check: bool = False) -> WorkflowStatus:
        """Wait for the end.

        Raises:
            WorkFailedError: `check` is set, and it failed or was cancelled.
        """
        return await self._client.run(self.sync.wait, check=check)

    async def cancel(self, reason: str = "") -> WorkflowStatus:
        """Stop it."""
        return await self._client.run(self.sync.cancel, reason)

    async def task(self, experiment: str, index: int) -> TaskInfo:
        """One task, with its result."""
        return await self._client.run(self.sync.task, experiment, index)

    def tasks(self, experiment: str) -> AsyncIterator[TaskInfo]:
        """The tasks of one experiment, in order."""
        return self._client.each(partial(self.sync.tasks, experiment))


class AsyncArray:
    """An array; `await array.read[0:4]` reads, `await array.write(np.s_[0:4], values)` writes."""

    def __init__(self, client: AsyncClient, array: Array) -> None:
        self._client = client
        self.sync = array

    @property
    def read(self) -> _Reader:
        """Awaitable slices."""
        return _Reader(self._client, self.sync)

    async def write(self, selection: Any, values: Any) -> None:
        """Write a selection (`numpy.s_[...]`), in a session."""
        await self._client.run(self.sync.__setitem__, selection, values)


class _Reader:
    def __init__(self, client: AsyncClient, array: Array) -> None:
        self._client, self._array = client, array

    async def __getitem__(self, selection: Any) -> np.ndarray:
        found: np.ndarray = await self._client.run(self._array.__getitem__, selection)
        return found


def connect_async(endpoint: str | None = None, **options: Any) -> AsyncClient:
    """A client for asyncio of the cluster at `endpoint`; options as for `connect`."""
    return AsyncClient(connect(endpoint, **options))


def _close(close: Callable[[], None]) -> None:
    try:
        close()
    except ValueError:  # the generator is running: its thread ends it
        return
