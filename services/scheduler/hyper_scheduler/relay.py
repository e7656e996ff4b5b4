"""What passes through the scheduler to and from workers without being its state."""

from __future__ import annotations

import asyncio
import uuid

from hyper.errors import DeadlineError, FailedPreconditionError, NotFoundError
from hyper_scheduler.convert import duration, task_key
from hyper_scheduler.core.model import TaskId
from hyper_scheduler.core.pages import Status
from hyper_scheduler.term import Term
from hyperapi.scheduler.v1 import workflow_pb2
from hyperapi.worker.v1 import agent_service_pb2 as agent

EXEC_TIMEOUT_S = 60.0
EXEC_TIMEOUT_MAX_S = 3600.0
_ANSWER_S = 10.0  # beyond the command's own time


class Relay:
    """Commands beside tasks on their way down and up, and what machines last said they use."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[agent.ExecResult]] = {}
        self._usage: dict[str, workflow_pb2.NodeUsage] = {}

    async def exec_task(
        self, term: Term, task: TaskId, arguments: list[str], timeout_s: float
    ) -> agent.ExecResult:
        """Run a command beside a running task.

        Raises:
            FailedPreconditionError: the task does not run, or its worker cannot do this.
            DeadlineError: no answer came.
        """
        run = term.state.experiment(task)
        if run is None or task.index >= run.total:
            raise NotFoundError(f"there is no task {task.name}")
        record = run.record(task.index)
        if record is None or record.status is not Status.RUNNING or record.attempt is None:
            raise FailedPreconditionError(f"{task.name} does not run now")
        worker = term.state.workers.get(record.worker)
        link = None if worker is None else term.links.get(record.worker, worker.session)
        if link is None:
            raise FailedPreconditionError(f"the worker of {task.name} is out of touch")
        request = agent.Exec(
            id=uuid.uuid4().hex,
            key=task_key(task, record.attempt),
            arguments=arguments,
            timeout=duration(timeout_s),
        )
        future = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        try:
            link.send(agent.ConnectResponse(exec=request))
            async with asyncio.timeout(timeout_s + _ANSWER_S):
                result: agent.ExecResult = await future
        except TimeoutError:
            raise DeadlineError(f"{record.worker} has not answered in time") from None
        finally:
            del self._waiting[request.id]
        if result.message:
            raise FailedPreconditionError(result.message)
        return result

    def answered(self, result: agent.ExecResult) -> None:
        """A worker has run a command; nobody may be waiting any more."""
        future = self._waiting.get(result.id)
        if future is not None and not future.done():
            future.set_result(result)

    def used(self, worker: str, usage: workflow_pb2.NodeUsage) -> None:
        """What a machine uses now."""
        self._usage[worker] = usage

    def forget(self, worker: str) -> None:
        """A machine has gone."""
        self._usage.pop(worker, None)

    def show(self, message: workflow_pb2.Worker, *, tasks: bool) -> None:
        """Put what a machine uses into how people see it."""
        usage = self._usage.get(message.name.removeprefix("workers/"))
        if usage is not None:
            message.usage.CopyFrom(usage)
            if not tasks:
                del message.usage.tasks[:]
