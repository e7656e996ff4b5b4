"""The scheduler's ends of the workers' streams."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import groupby

from hyper.errors import HyperError, ResourceExhaustedError
from hyper_scheduler import convert, metrics
from hyper_scheduler.core.model import Attempt, TaskId
from hyper_scheduler.core.state import State
from hyper_scheduler.task_tokens import TaskTokens
from hyperapi.worker.v1 import agent_service_pb2 as agent

_SILENT_S = 1.0


class Way:
    """Workers that were given something and have not been heard since.

    Ten thousand answers at once would hold up everything else for seconds, the keepalive of the
    leader's lease included. So the core gives out only as much as there is room for (ADR 0136).

    Args:
        most: workers.
        now: the clock of events.
        on_room: half of `most` has become free after all was taken.
    """

    def __init__(self, most: int, now: Callable[[], float], on_room: Callable[[], None]) -> None:
        self.now, self._most, self._on_room = now, most, on_room
        self._since: OrderedDict[int, float] = OrderedDict()  # by session
        self._full = False

    def room(self) -> int:
        """To how many workers more something may be given now."""
        silent = self.now() - _SILENT_S
        while self._since and next(iter(self._since.values())) < silent:
            self._since.popitem(last=False)  # it has other things to do than to answer
        return max(0, self._most - len(self._since))

    def given(self, session: int) -> None:
        """A worker will be sent something."""
        self._since.setdefault(session, self.now())
        self._full |= len(self._since) >= self._most

    def heard(self, session: int) -> None:
        """A worker has said something, or is gone."""
        self._since.pop(session, None)
        if self._full and 2 * len(self._since) <= self._most:
            self._full = False
            self._on_room()


class Link:
    """What goes down one stream, in order. Bounded: a worker that does not read is cut off."""

    def __init__(self, worker: str, session: int, limit: int, tokens: TaskTokens, way: Way) -> None:
        self.worker, self.session = worker, session
        self._queue: asyncio.Queue[agent.ConnectResponse | None] = asyncio.Queue(limit)
        self._way = way
        self._asked: deque[float] = deque()  # when, for each batch of starts in the queue
        self._tokens = tokens
        self._specs: dict[str, str] = {}  # by name, with what token
        self._error: HyperError | None = None
        self._closed = False

    def send(self, message: agent.ConnectResponse) -> None:
        """Queue a message; closes the link when too many wait."""
        if self._closed:
            return
        try:
            self._queue.put_nowait(message)
        except asyncio.QueueFull:
            text = f"worker {self.worker} does not read its stream; connect again"
            self.close(ResourceExhaustedError(text, retry_after_s=1.0))

    def send_tasks(
        self, state: State, tasks: Iterable[tuple[TaskId, Attempt]], asked_at: float
    ) -> None:
        """Queue task starts; an experiment's spec goes with its first task on this stream.

        It goes again when its tenant has a newer token.
        """
        batch = agent.TaskBatch()
        for (workflow, experiment), items in groupby(tasks, key=lambda item: item[0][:2]):
            run = state.workflows[workflow].experiments[experiment]
            name = convert.experiment_name(workflow, experiment)
            token = self._tokens.of(convert.tenant_of(name))
            if self._specs.get(name) != token:
                self._specs[name] = token
                batch.specs.append(convert.task_spec(name, run.spec, token))
            batch.groups.append(convert.start_group(name, state, run, list(items)))
        if not self._closed:
            self._asked.append(asked_at)
            self._way.given(self.session)
        self.send(agent.ConnectResponse(tasks=batch))

    def heard(self) -> None:
        """The worker has said something."""
        self._way.heard(self.session)

    def close(self, error: HyperError | None = None) -> None:
        """End the stream, with an error or without; what is queued is dropped."""
        if self._closed:
            return
        self._closed, self._error = True, error
        self._asked.clear()
        self._way.heard(self.session)
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    async def messages(self) -> AsyncIterator[agent.ConnectResponse]:
        """Everything sent, until the link is closed."""
        while (message := await self._queue.get()) is not None:
            if self._asked and message.HasField("tasks"):
                waited_s = self._way.now() - self._asked.popleft()
                metrics.DISPATCH_SECONDS.observe(max(0.0, waited_s))
            yield message
        if self._error is not None:
            raise self._error


class Links:
    """The open streams of a term, one a worker."""

    def __init__(self, limit: int, tokens: TaskTokens, way: Way) -> None:
        self._limit, self._tokens, self._way = limit, tokens, way
        self._open: dict[str, Link] = {}
        self._sessions = 0

    def __len__(self) -> int:
        return len(self._open)

    def open(self, worker: str) -> Link:
        """A new link; one that the worker had before is closed."""
        self._sessions += 1
        older = self._open.get(worker)
        if older is not None:
            older.close()
        link = self._open[worker] = Link(
            worker, self._sessions, self._limit, self._tokens, self._way
        )
        return link

    def get(self, worker: str, session: int) -> Link | None:
        """The link, if it is still the worker's newest."""
        link = self._open.get(worker)
        return link if link is not None and link.session == session else None

    def forget(self, link: Link) -> None:
        """The stream has ended."""
        if self._open.get(link.worker) is link:
            del self._open[link.worker]

    def close_all(self, error: HyperError) -> None:
        """End every stream."""
        for link in list(self._open.values()):
            link.close(error)
        self._open.clear()
