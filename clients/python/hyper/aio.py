"""The SDK for asyncio: the same calls, awaited.

```python
async with hyper.connect_async() as client:
    workflow = await client.submit("recipe.yaml")
    async for status in workflow.watch():
        print(status.state)
    volume = await client.open_array("lab/brain/aligned")
    block = await volume.read[0:4, :512, :512]
```

Names and arguments are those of `hyper.Client`, `hyper.Workflow` and `hyper.Array`. The calls run
on bounded pools of threads of the client's own, so the event loop never blocks: short calls on one,
whatever lasts (waiting, watching, following a log, running a net) on another, so that a hundred
awaited workflows hold up no `cancel`. A call that is cancelled is no longer waited for; what it has
begun on the cluster goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from hyper.client import Client, connect
from hyper.workflows import check_succeeded, still_runs

if TYPE_CHECKING:
    import numpy as np

    from hyper.arrays import Array
    from hyper.compute_matching import PairMatches
    from hyper.datasets import Dataset
    from hyper.placement import Cost, Plan
    from hyper.sessions import Session
    from hyper.status import (
        ClusterInfo,
        RunState,
        TaskInfo,
        TaskState,
        WorkerInfo,
        WorkflowStatus,
    )
    from hyper.tasks import MapRun
    from hyper.workflows import Workflow

P = ParamSpec("P")
R = TypeVar("R")

THREADS = 16
"""Short calls at once; more wait for one of them to end."""
LONG_THREADS = 256
"""Calls that last at once: waits, watches, followed logs."""
_TURN_S = 5.0  # for which a wait holds its thread; one that is cancelled lets go at its end
_UPDATES = 1000  # of a watch that nobody has taken yet; older ones are dropped


class AsyncClient:
    """A cluster, as seen from a coroutine; use it in an `async with`, or `await close()`.

    Args:
        client: does the work.
        threads: short calls at once.
    """

    def __init__(self, client: Client, *, threads: int = THREADS) -> None:
        self.sync = client
        self._pool = ThreadPoolExecutor(threads, "hyper-async")
        self._long = ThreadPoolExecutor(LONG_THREADS, "hyper-async-long")

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; calls that still run end with an error."""
        await asyncio.to_thread(self.sync.close)
        for pool in (self._pool, self._long):
            pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Any call of the SDK, off the event loop: `await client.run(dataset.read, "a.txt")`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(call, *args, **kwargs))

    async def run_long(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The same for a call that lasts: it takes no place from the short ones."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._long, partial(call, *args, **kwargs))

    async def each(self, make: Callable[[], Iterator[R]]) -> AsyncIterator[R]:
        """Any iterator of the SDK, item by item."""
        items = await self.run_long(make)
        end = object()
        try:
            while (item := await self.run_long(next, items, end)) is not end:
                yield item  # type: ignore[misc]  # `end` is the only other thing
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                await asyncio.shield(self.run(_close, close))

    # Data

    async def open(self, address: str) -> Dataset | AsyncArray:
        """A dataset, `tenant/name[@version]`, or an array in one, `tenant/name[@version]/array`."""
        from hyper.arrays import Array

        opened = await self.run(self.sync.open, address)
        return AsyncArray(self, opened) if isinstance(opened, Array) else opened

    async def open_dataset(self, address: str) -> Dataset:
        """The dataset at `tenant/name[@version]`; read it by `run`."""
        return await self.run(self.sync.open_dataset, address)

    async def open_array(self, address: str) -> AsyncArray:
        """The array at `tenant/name[@version]/array`."""
        return AsyncArray(self, await self.run(self.sync.open_array, address))

    async def session(self, dataset: str) -> Session:
        """A new session on `tenant/name`; write and commit by `run`."""
        return await self.run(self.sync.session, dataset)

    async def attach(self, name: str) -> Session:
        """An open session of someone else, by its resource name."""
        return await self.run(self.sync.attach, name)

    # Computing

    async def predict(self, model: str, array: np.ndarray, *, mode: str = "fast") -> np.ndarray:
        """The output of `model` on `array`, (n, c, y, x) or (n, c, z, y, x)."""
        return await self.run_long(self.sync.predict, model, array, mode=mode)

    async def infer_volume(
        self, model: str, source: Array | AsyncArray, destination: Array | AsyncArray,
        **options: Any,
    ) -> None:  # fmt: skip
        """Run `model` over a whole array; options as for `Client.infer_volume`."""
        await self.run_long(
            self.sync.infer_volume, model, _plain(source), _plain(destination), **options
        )

    def match_sections(
        self, array: Array | AsyncArray, pairs: Sequence[tuple[int, int]], **options: Any
    ) -> AsyncIterator[PairMatches]:
        """Match pairs of sections; options as for `Client.match_sections`."""
        return self.each(partial(self.sync.match_sections, _plain(array), pairs, **options))

    # Workflows

    async def submit(
        self, recipe: str | Path | Mapping[str, Any], *, request_id: str | None = None
    ) -> AsyncWorkflow:
        """Start a recipe: a path, YAML text or a mapping."""
        started = await self.run(self.sync.submit, recipe, request_id=request_id)
        return AsyncWorkflow(self, started)

    async def check(self, recipe: str | Path | Mapping[str, Any]) -> WorkflowStatus:
        """What a recipe would become; starts nothing."""
        return await self.run(self.sync.check, recipe)

    async def plan(
        self,
        recipe: str | Path | Mapping[str, Any],
        *,
        task_s: float | None = None,
        tasks: Mapping[str, int] | None = None,
        samples: int = 0,
    ) -> Plan:
        """What a recipe would run on and cost; nothing is launched."""
        return await self.run_long(
            self.sync.plan, recipe, task_s=task_s, tasks=tasks, samples=samples
        )

    async def cost(self) -> Cost:
        """What the tenant's workflows have spent on machines, and what is paid for now."""
        return await self.run(self.sync.cost)

    async def workflow(self, name: str) -> AsyncWorkflow:
        """A workflow by its resource name, or by its last part alone."""
        return AsyncWorkflow(self, await self.run(self.sync.workflow, name))

    def workflows(self, *, every_tenant: bool = False) -> AsyncIterator[WorkflowStatus]:
        """The tenant's workflows, newest first; or those of all, with a token of all tenants."""
        return self.each(lambda: self.sync.workflows(every_tenant=every_tenant))

    async def workers(self) -> list[WorkerInfo]:
        """The machines that run tasks."""
        return await self.run(self.sync.workers)

    async def drain(self, worker: str) -> WorkerInfo:
        """Let a worker finish what it runs and give it nothing new."""
        return await self.run(self.sync.drain, worker)

    async def cluster(self) -> ClusterInfo:
        """Every replica of every service, and which scheduler leads."""
        return await self.run(self.sync.cluster)

    async def map(
        self,
        function: Callable[..., R],
        *iterables: Iterable[Any],
        workers: int | None = None,
        name: str | None = None,
        **constants: Any,
    ) -> list[R]:
        """`Client.map`, waited for: what every call returned, in order."""
        start: Callable[[], MapRun[R]] = partial(
            self.sync.map, function, *iterables, workers=workers, name=name, **constants
        )
        started = await self.run(start)
        await AsyncWorkflow(self, started.workflow).wait()
        return await self.run(started.results)


class AsyncWorkflow:
    """A submitted recipe."""

    def __init__(self, client: AsyncClient, workflow: Workflow) -> None:
        self._client = client
        self.sync = workflow

    def __repr__(self) -> str:
        return f"<AsyncWorkflow {self.name} {self.state}>"

    def _repr_html_(self) -> str:
        return self.sync._repr_html_()

    @property
    def name(self) -> str:
        """Its resource name."""
        return self.sync.name

    @property
    def status(self) -> WorkflowStatus:
        """What was last heard of it; `refresh` asks anew."""
        return self.sync.status

    @property
    def state(self) -> RunState:
        """The state that was last heard of."""
        return self.sync.state

    async def refresh(self) -> WorkflowStatus:
        """Ask the scheduler for the workflow as it is now."""
        return await self._client.run(self.sync.refresh)

    async def watch(self) -> AsyncGenerator[WorkflowStatus, None]:
        """The workflow now, then after each change, up to and with its end.

        A reader that is slower than a thousand changes misses the oldest of them.
        """
        loop = asyncio.get_running_loop()
        heard: deque[WorkflowStatus] = deque(maxlen=_UPDATES)
        come = asyncio.Event()
        last: WorkflowStatus | None = None

        def take(status: WorkflowStatus) -> None:
            heard.append(status)
            come.set()

        def tell(status: WorkflowStatus) -> None:
            loop.call_soon_threadsafe(take, status)

        while last is None or not last.state.ended:
            turn = asyncio.ensure_future(self._turn(_TURN_S, tell))
            turn.add_done_callback(lambda _: come.set())
            try:
                while True:
                    over = turn.done()
                    while heard:
                        status = heard.popleft()
                        if status != last:  # each turn begins with what is known
                            last = status
                            yield status
                    if over:
                        break
                    await come.wait()
                    come.clear()
                turn.result()
            finally:
                turn.cancel()

    async def wait(
        self,
        timeout_s: float | None = None,
        on_update: Callable[[WorkflowStatus], None] | None = None,
        *,
        check: bool = False,
    ) -> WorkflowStatus:
        """Wait for the end; `on_update` is called in the event loop with every new status.

        Raises:
            WorkFailedError: `check` is set, and it failed or was cancelled.
            DeadlineError: it still runs after `timeout_s`; it goes on running.
        """
        try:
            async with asyncio.timeout(timeout_s):
                async with aclosing(self.watch()) as statuses:
                    async for status in statuses:
                        if on_update is not None:
                            on_update(status)
        except TimeoutError:
            if timeout_s is None:
                raise
            raise still_runs(self.name, timeout_s) from None
        if check:
            check_succeeded(self.sync)
        return self.status

    async def _turn(self, turn_s: float, tell: Callable[[WorkflowStatus], None]) -> bool:
        end = time.monotonic() + turn_s
        return await self._client.run_long(self.sync._watch_until, end, tell)

    async def cancel(self, reason: str = "") -> WorkflowStatus:
        """Stop it."""
        return await self._client.run(self.sync.cancel, reason)

    async def retry(self) -> WorkflowStatus:
        """Run the failed and cancelled tasks again; done tasks stay done."""
        return await self._client.run(self.sync.retry)

    async def pause(self) -> WorkflowStatus:
        """Start nothing more of it until `resume`; what runs goes on."""
        return await self._client.run(self.sync.pause)

    async def resume(self) -> WorkflowStatus:
        """Go on with a paused workflow."""
        return await self._client.run(self.sync.resume)

    async def task(self, experiment: str, index: int) -> TaskInfo:
        """One task, with its result."""
        return await self._client.run(self.sync.task, experiment, index)

    def tasks(
        self, experiment: str, state: TaskState | None = None, *, results: bool = False
    ) -> AsyncIterator[TaskInfo]:
        """The tasks of one experiment in order, all or those in `state`; with their `results`."""
        return self._client.each(partial(self.sync.tasks, experiment, state, results=results))

    def logs(
        self,
        task: TaskInfo | str,
        follow: bool = False,
        source: str = "program",
        *,
        since: datetime | None = None,
        tail_bytes: int = 0,
    ) -> AsyncIterator[bytes]:
        """The output of a task's newest attempt, in parts; see `Workflow.logs`."""
        make = partial(self.sync.logs, task, follow, source, since=since, tail_bytes=tail_bytes)
        return self._client.each(make)

    async def log_tail(self, task: TaskInfo | str, lines: int = 10) -> list[str]:
        """The last lines of a task's output."""
        return await self._client.run_long(self.sync.log_tail, task, lines)

    async def first_failure(self) -> TaskInfo | None:
        """A failed task, of the first experiment in topological order that has one."""
        return await self._client.run(self.sync.first_failure)


class AsyncArray:
    """An array; `await array.read[0:4]` reads, `await array.write(np.s_[0:4], values)` writes."""

    def __init__(self, client: AsyncClient, array: Array) -> None:
        self._client = client
        self.sync = array

    def __repr__(self) -> str:
        return f"<Async{repr(self.sync).removeprefix('<')}"

    def _repr_html_(self) -> str:
        return self.sync._repr_html_()

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


def _plain(array: Array | AsyncArray) -> Array:
    return array.sync if isinstance(array, AsyncArray) else array


def _close(close: Callable[[], None]) -> None:
    try:
        close()
    except ValueError:  # the generator is running: its thread ends it
        return
