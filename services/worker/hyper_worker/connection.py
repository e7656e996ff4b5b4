"""One connection to a scheduler: hello, then batches both ways until it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from typing import Protocol

import grpc
import grpc.aio

from hyper._transport import aio_channel, call_metadata
from hyper.errors import DeadlineError, InternalError
from hyper_servicekit.logs import get_logger
from hyper_worker import convert
from hyper_worker.core.model import Acknowledged, Assigned, Event, Status, StopAsked
from hyperapi.scheduler.v1 import workflow_pb2
from hyperapi.worker.v1 import agent_service_pb2 as wire
from hyperapi.worker.v1.agent_service_pb2_grpc import AgentServiceStub

log = get_logger(__name__)

_RENEW = (0.4, 0.6)  # of a token's life: workers that came together do not go together
_BUSY_FACTOR = 10.0  # reports are gathered so much longer while more work waits here

Call = grpc.aio.StreamStreamCall[wire.ConnectRequest, wire.ConnectResponse]


class Owner(Protocol):
    """Whom a connection works for."""

    def hello(self) -> wire.Hello:
        """The first message up."""

    def welcomed(self, welcome: wire.Welcome) -> None:
        """The scheduler has taken this worker in."""

    def dispatch(self, event: Event) -> None:
        """The scheduler wants something."""

    def exec(self, request: wire.Exec) -> None:
        """Run a command beside an attempt."""

    def usage(self) -> workflow_pb2.NodeUsage:
        """What this machine uses now."""

    def drain(self, reason: str) -> None:
        """The scheduler will give out nothing more."""

    def busy(self) -> bool:
        """More work waits here: the scheduler need not hear at once."""

    def next_batch(self) -> tuple[int, tuple[Status, ...]] | None:
        """Reports to send now."""

    def next_metrics(self) -> list[wire.MetricReport]:
        """What attempts have said of themselves since the last time."""


class Connection:
    """Speaks `AgentService.Connect` over one channel.

    Args:
        addresses: of schedulers.
        owner: the agent.
        welcome_timeout_s: for the answer to Hello.
        gather_s: reports are gathered for this long before they are sent.
    """

    def __init__(
        self,
        addresses: tuple[str, ...],
        owner: Owner,
        *,
        welcome_timeout_s: float,
        gather_s: float,
    ) -> None:
        self._addresses, self._owner = addresses, owner
        self._welcome_timeout_s, self._gather_s = welcome_timeout_s, gather_s
        self._reports = asyncio.Event()
        self._urgent = asyncio.Event()
        self._more: deque[wire.ConnectRequest] = deque()
        self._specs: dict[str, wire.TaskSpec] = {}
        self._heartbeat_s = 1.0
        self._renew_s: float | None = None

    def send(self, message: wire.ConnectRequest) -> None:
        """Send something that is lost with the connection."""
        self._more.append(message)
        self._reports.set()

    def wake(self, *, urgent: bool = False) -> None:
        """There are reports to send; urgent ones are not gathered for longer while this is busy."""
        self._reports.set()
        if urgent:
            self._urgent.set()

    async def run(self) -> None:
        """Speak until the stream ends, or it is time to fetch a newer token with the next one.

        Raises:
            grpc.RpcError: it broke, or the scheduler refused.
            DeadlineError: no Welcome came in time.
        """
        async with aio_channel(self._addresses) as channel:
            call = AgentServiceStub(channel).Connect(metadata=call_metadata())
            try:
                await self._greet(call)
                self._reports.set()
                await self._speak(call)
            finally:
                call.cancel()

    async def _greet(self, call: Call) -> None:
        try:
            async with asyncio.timeout(self._welcome_timeout_s):
                await call.write(wire.ConnectRequest(hello=self._owner.hello()))
                response = await call.read()
        except TimeoutError as error:
            raise DeadlineError(
                f"no Welcome from {', '.join(self._addresses)} in {self._welcome_timeout_s:g} s"
            ) from error
        except asyncio.InvalidStateError:  # refused: the status says why
            response = grpc.aio.EOF
        if not isinstance(response, wire.ConnectResponse):  # EOF
            await _raise_status(call)
            raise InternalError("the scheduler ended the stream without a Welcome")
        if response.WhichOneof("kind") != "welcome":
            raise InternalError("the scheduler's first message is not Welcome")
        self._heartbeat_s = max(convert.seconds(response.welcome.heartbeat_interval), 0.05)
        if response.welcome.token:
            lifetime_s = convert.seconds(response.welcome.token_lifetime)
            self._renew_s = lifetime_s * random.uniform(*_RENEW)
        self._owner.welcomed(response.welcome)

    async def _speak(self, call: Call) -> None:
        """Read and write until one of the two ends."""
        reading = asyncio.create_task(self._read(call))
        writing = asyncio.create_task(self._write(call))
        try:
            done, _ = await asyncio.wait(
                {reading, writing}, timeout=self._renew_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for task in (reading, writing):
                task.cancel()
            results = await asyncio.gather(reading, writing, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, asyncio.InvalidStateError):
                raise result
        if done:
            await _raise_status(call)

    async def _read(self, call: Call) -> None:
        while True:
            response = await call.read()
            if not isinstance(response, wire.ConnectResponse):  # EOF
                return
            self._take(response)

    def _take(self, response: wire.ConnectResponse) -> None:
        match response.WhichOneof("kind"):
            case "tasks":
                for spec in response.tasks.specs:
                    self._specs[spec.experiment] = spec
                jobs = tuple(convert.jobs_from_proto(response.tasks, self._specs))
                self._owner.dispatch(Assigned(jobs))
            case "stop":
                keys = tuple(convert.key_from_proto(key) for key in response.stop.keys)
                self._owner.dispatch(StopAsked(keys))
            case "ack":
                self._owner.dispatch(Acknowledged(response.ack.sequence))
            case "exec":
                self._owner.exec(response.exec)
            case "drain":
                self._owner.drain(response.drain.reason)
            case other:
                log.warning("message not understood", kind=other)

    async def _write(self, call: Call) -> None:
        """Send reports as they come, and a heartbeat whenever it is time."""
        loop = asyncio.get_running_loop()
        heartbeat_at = loop.time() + self._heartbeat_s
        beats = 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(heartbeat_at):
                    await self._reports.wait()
                    await self._gather()
            self._reports.clear()
            self._urgent.clear()
            if metrics := self._owner.next_metrics():
                message = wire.StatusBatch(metrics=metrics)
                await call.write(wire.ConnectRequest(status=message))
            while self._more:
                await call.write(self._more.popleft())
            while (batch := self._owner.next_batch()) is not None:
                sequence, statuses = batch
                message = convert.batch_to_proto(sequence, statuses)
                await call.write(wire.ConnectRequest(status=message))
            if loop.time() >= heartbeat_at:
                beats += 1
                beat = wire.Heartbeat(sequence=beats, usage=self._owner.usage())
                await call.write(wire.ConnectRequest(heartbeat=beat))
                heartbeat_at = loop.time() + self._heartbeat_s

    async def _gather(self) -> None:
        """Let more reports come; what attempts say of themselves may be waited for elsewhere."""
        if self._owner.busy():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._gather_s * (_BUSY_FACTOR - 1)):
                    await self._urgent.wait()
        await asyncio.sleep(self._gather_s)


async def _raise_status(call: Call) -> None:
    """Raise the call's status if it is an error."""
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(),
            details=await call.details(),
        )  # fmt: skip
