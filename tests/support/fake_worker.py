"""A worker that speaks the real protocol over real gRPC and does what a function tells it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio

from hyperapi.scheduler.v1 import workflow_pb2
from hyperapi.worker.v1 import agent_service_pb2 as agent
from hyperapi.worker.v1 import agent_service_pb2_grpc as agent_grpc

Key = tuple[str, int, int]
# What becomes of a started task: a status to report, or None to let it run on.
Behaviour = Callable[[agent.TaskStart, agent.TaskSpec], agent.TaskStatus | None]


def key_of(key: agent.TaskKey) -> Key:
    return key.task, key.attempt.epoch, key.attempt.number


def task_key(key: Key) -> agent.TaskKey:
    attempt = workflow_pb2.Attempt(epoch=key[1], number=key[2])
    return agent.TaskKey(task=key[0], attempt=attempt)


def succeed(start: agent.TaskStart, spec: agent.TaskSpec) -> agent.TaskStatus:
    """Return the parameters as the result, at once."""
    return agent.TaskStatus(
        key=start.key, outcome=agent.OUTCOME_SUCCEEDED, result_json=start.parameters_json
    )


def fail(start: agent.TaskStart, spec: agent.TaskSpec) -> agent.TaskStatus:
    """Exit with status 3."""
    return agent.TaskStatus(
        key=start.key, outcome=agent.OUTCOME_FAILED, exit_code=3, message="boom"
    )


def hang(start: agent.TaskStart, spec: agent.TaskSpec) -> None:
    """Run until stopped."""


@dataclass
class FakeWorker:
    """Keeps its reports until they are acknowledged, as a real one does; see `fake_worker`."""

    name: str
    slots: int
    behaviour: Behaviour
    address: Callable[[], str]
    running: dict[Key, agent.TaskStart] = field(default_factory=dict)
    unacknowledged: dict[int, agent.StatusBatch] = field(default_factory=dict)
    started: list[Key] = field(default_factory=list)
    stopped: list[Key] = field(default_factory=list)
    parameters: dict[str, object] = field(default_factory=dict)
    welcomes: int = 0
    drained: bool = False
    silent: bool = False  # keeps the stream open without heartbeats
    errors: list[str] = field(default_factory=list)
    _specs: dict[str, agent.TaskSpec] = field(default_factory=dict)
    _sequence: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _up: asyncio.Queue[agent.ConnectRequest] = field(default_factory=asyncio.Queue)

    async def run(self) -> None:
        """Connect, again and again."""
        while True:
            try:
                async with grpc.aio.insecure_channel(self.address()) as channel:
                    await self._stream(agent_grpc.AgentServiceStub(channel))
            except grpc.aio.AioRpcError as error:
                self.errors.append(f"{error.code().name}: {error.details()}")
            await asyncio.sleep(0.1)

    def finish(self, key: Key, outcome: agent.Outcome.ValueType, **facts: object) -> None:
        """Report a task that was left running."""
        del self.running[key]
        status = agent.TaskStatus(key=task_key(key), outcome=outcome, **facts)
        self._report([status])

    async def _stream(self, stub: agent_grpc.AgentServiceStub) -> None:
        self._up = asyncio.Queue()
        self._specs = {}
        hello = agent.Hello(
            worker=self.name, slots=self.slots, cpus=4, memory_bytes=8 << 30, version="test",
            running=[task_key(key) for key in self.running]
            + [each.key for batch in self.unacknowledged.values() for each in batch.statuses],
        )  # fmt: skip
        self._up.put_nowait(agent.ConnectRequest(hello=hello))
        for batch in self.unacknowledged.values():
            self._up.put_nowait(agent.ConnectRequest(status=batch))
        call = stub.Connect(self._requests())
        try:
            async for response in call:
                self._take(response)
        finally:
            call.cancel()

    async def _requests(self) -> AsyncIterator[agent.ConnectRequest]:
        sequence = itertools.count(1)
        while True:
            request: agent.ConnectRequest | None = None
            with contextlib.suppress(TimeoutError):
                request = await asyncio.wait_for(self._up.get(), 0.2)
            if request is None and not self.silent:
                beat = agent.Heartbeat(sequence=next(sequence))
                request = agent.ConnectRequest(heartbeat=beat)
            if request is not None:
                yield request

    def _take(self, response: agent.ConnectResponse) -> None:
        match response.WhichOneof("kind"):
            case "welcome":
                self.welcomes += 1
            case "tasks":
                self._start(response.tasks)
            case "stop":
                self._stop(response.stop)
            case "ack":
                for sequence in [s for s in self.unacknowledged if s <= response.ack.sequence]:
                    del self.unacknowledged[sequence]
            case "drain":
                self.drained = True

    def _start(self, batch: agent.TaskBatch) -> None:
        self._specs |= {spec.experiment: spec for spec in batch.specs}
        statuses = []
        starts = list(batch.starts)
        for group in batch.groups:
            columns = zip(group.indices, group.numbers, group.parameters_json, strict=True)
            starts += [
                agent.TaskStart(
                    key=task_key((f"{group.experiment}/tasks/{index}", group.epoch, number)),
                    experiment=group.experiment,
                    parameters_json=parameters,
                )
                for index, number, parameters in columns
            ]
        for start in starts:
            key = key_of(start.key)
            assert key not in self.started, f"{key} was started twice"
            self.started.append(key)
            self.parameters[start.key.task] = json.loads(start.parameters_json)
            status = self.behaviour(start, self._specs[start.experiment])
            if status is None:
                self.running[key] = start
            else:
                statuses.append(status)
        self._report(statuses)

    def _stop(self, batch: agent.StopBatch) -> None:
        statuses = []
        for key in batch.keys:
            self.stopped.append(key_of(key))
            if self.running.pop(key_of(key), None) is not None:
                statuses.append(agent.TaskStatus(key=key, outcome=agent.OUTCOME_STOPPED))
        self._report(statuses)

    def _report(self, statuses: list[agent.TaskStatus]) -> None:
        if statuses:
            sequence = next(self._sequence)
            batch = agent.StatusBatch(sequence=sequence, statuses=statuses)
            self.unacknowledged[sequence] = batch
            self._up.put_nowait(agent.ConnectRequest(status=batch))


@asynccontextmanager
async def fake_worker(
    name: str, address: str | Callable[[], str], behaviour: Behaviour = succeed, slots: int = 4
) -> AsyncIterator[FakeWorker]:
    """A worker that runs beside the body; leaving it is its death."""
    where = address if callable(address) else lambda: address
    worker = FakeWorker(name, slots, behaviour, where)
    task = asyncio.create_task(worker.run(), name=name)
    try:
        yield worker
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()
