"""A scheduler and log store with a script, on real gRPC: what the worker's tests talk to."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status

from hyper._wire_errors import to_status
from hyper.errors import HyperError, UnauthenticatedError, UnavailableError
from hyperapi.scheduler.v1 import cluster_service_pb2, cluster_service_pb2_grpc, workflow_pb2
from hyperapi.storage.v1 import dataset_service_pb2, dataset_service_pb2_grpc
from hyperapi.worker.v1 import agent_service_pb2 as wire
from hyperapi.worker.v1 import agent_service_pb2_grpc

EXPERIMENT = "tenants/t/workflows/w/experiments/e"
Outcome = wire.Outcome
ENDED = (
    wire.OUTCOME_SUCCEEDED,
    wire.OUTCOME_FAILED,
    wire.OUTCOME_STOPPED,
    wire.OUTCOME_PREEMPTED,
)


def task_key(index: int, number: int = 1, epoch: int = 1) -> wire.TaskKey:
    attempt = workflow_pb2.Attempt(epoch=epoch, number=number)
    return wire.TaskKey(task=f"{EXPERIMENT}/tasks/{index}", attempt=attempt)


def statuses_of(batch: wire.StatusBatch) -> list[wire.TaskStatus]:
    """All reports of a batch, one by one."""
    found = list(batch.statuses)
    for group in batch.successes:
        columns = zip(
            group.indices, group.numbers, group.results_json,
            group.wall_s, group.cpu_s, group.peak_rss_bytes, strict=True,
        )  # fmt: skip
        for index, number, result, wall_s, cpu_s, peak_bytes in columns:
            status = wire.TaskStatus(
                key=wire.TaskKey(
                    task=f"{group.experiment}/tasks/{index}",
                    attempt=workflow_pb2.Attempt(epoch=group.epoch, number=number),
                ),
                outcome=wire.OUTCOME_SUCCEEDED,
                result_json=result,
                peak_rss_bytes=peak_bytes,
            )
            status.wall.FromNanoseconds(int(wall_s * 1e9))
            status.cpu.FromNanoseconds(int(cpu_s * 1e9))
            found.append(status)
    return found


class Connection:
    """One stream of one worker."""

    def __init__(self) -> None:
        self.hello = wire.Hello()
        self.shown = ""  # authorization
        self.statuses: list[wire.TaskStatus] = []
        self.metrics: list[wire.MetricReport] = []
        self.sequences: list[int] = []
        self.heartbeats = 0
        self.ended = False
        self.down: asyncio.Queue[wire.ConnectResponse | None] = asyncio.Queue()

    def send(self, response: wire.ConnectResponse) -> None:
        self.down.put_nowait(response)

    def hang_up(self) -> None:
        self.down.put_nowait(None)


class FakeScheduler(
    agent_service_pb2_grpc.AgentServiceServicer,
    cluster_service_pb2_grpc.ClusterServiceServicer,
    dataset_service_pb2_grpc.LogServiceServicer,
):
    """Welcomes workers, keeps what they say, sends what the test says."""

    def __init__(self) -> None:
        self.port = 0
        self.acknowledge = True
        self.heartbeat_s = 0.2
        self.tokens: list[str] = []  # given to whom comes next
        self.token_lifetime_s = 3600.0
        self.good_tokens: set[str] | None = None  # None: any, and none
        self.refuse: HyperError | None = None
        self.connections: list[Connection] = []
        self.logs: dict[tuple[str, int, int], bytearray] = defaultdict(bytearray)
        self.side_logs: dict[tuple[str, int, int, int], bytes] = defaultdict(bytes)
        self.closed_logs: set[tuple[str, int, int]] = set()
        self.log_parts: list[int] = []
        self.logs_away = False
        self.takes_whole_logs = True
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(self, self._server)
        dataset_service_pb2_grpc.add_LogServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(None)
        self._server = None

    async def __aenter__(self) -> FakeScheduler:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._server is not None:
            await self.stop()

    async def until(self, condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
        """Wait until `condition` holds; it is looked at after each message."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(condition)

    async def connected(self, count: int = 1) -> Connection:
        await self.until(lambda: len(self.connections) >= count)
        return self.connections[-1]

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # What it knows

    def statuses(self, index: int | None = None) -> list[wire.TaskStatus]:
        everything = [s for connection in self.connections for s in connection.statuses]
        if index is None:
            return everything
        return [s for s in everything if s.key.task.endswith(f"/tasks/{index}")]

    def end_of(self, index: int) -> wire.TaskStatus | None:
        return next((s for s in self.statuses(index) if s.outcome in ENDED), None)

    async def ended(self, index: int, timeout_s: float = 20.0) -> wire.TaskStatus:
        await self.until(lambda: self.end_of(index) is not None, timeout_s)
        end = self.end_of(index)
        assert end is not None
        return end

    async def running(self, index: int) -> None:
        await self.until(
            lambda: any(s.outcome == wire.OUTCOME_RUNNING for s in self.statuses(index))
        )

    def log(self, index: int, number: int = 1) -> bytes:
        return bytes(self.logs[(f"{EXPERIMENT}/tasks/{index}", 1, number)])

    async def logged(self, index: int, text: bytes) -> None:
        await self.until(lambda: text in self.log(index))

    async def log_closed(self, index: int, number: int = 1) -> bytes:
        await self.until(lambda: (f"{EXPERIMENT}/tasks/{index}", 1, number) in self.closed_logs)
        return self.log(index, number)

    # What it does

    def assign(
        self,
        *indices: int,
        number: int = 1,
        parameters: dict[str, Any] | None = None,
        timeout_s: float | None = None,
        grace_s: float | None = None,
        rank: wire.Rank | None = None,
        **spec: Any,
    ) -> None:
        message = wire.TaskSpec(experiment=EXPERIMENT, **spec)
        if timeout_s is not None:
            message.timeout.FromNanoseconds(int(timeout_s * 1e9))
        if grace_s is not None:
            message.grace.FromNanoseconds(int(grace_s * 1e9))
        starts = [
            wire.TaskStart(
                key=task_key(index, number),
                experiment=EXPERIMENT,
                parameters_json=json.dumps(parameters or {}),
            )
            for index in indices
        ]
        batch = wire.TaskBatch(specs=[message], starts=starts)
        if rank is not None:
            del batch.starts[:]
            batch.groups.add(
                experiment=EXPERIMENT,
                epoch=starts[0].key.attempt.epoch,
                indices=indices,
                numbers=[number] * len(indices),
                parameters_json=[json.dumps(parameters or {})] * len(indices),
                ranks=[rank] * len(indices),
            )
        self.connections[-1].send(wire.ConnectResponse(tasks=batch))

    def stop_tasks(self, *keys: wire.TaskKey) -> None:
        self.connections[-1].send(wire.ConnectResponse(stop=wire.StopBatch(keys=keys)))

    # gRPC

    async def Connect(
        self, request_iterator: AsyncIterator[wire.ConnectRequest], context: Any
    ) -> AsyncIterator[wire.ConnectResponse]:
        shown = str(dict(context.invocation_metadata()).get("authorization", ""))
        if self.good_tokens is not None and shown.removeprefix("Bearer ") not in self.good_tokens:
            error = UnauthenticatedError("the token has expired")
            await context.abort_with_status(rpc_status.to_status(to_status(error)))
        if self.refuse is not None:
            await context.abort_with_status(rpc_status.to_status(to_status(self.refuse)))
        connection = Connection()
        first = await anext(request_iterator)
        assert first.WhichOneof("kind") == "hello"
        connection.hello = first.hello
        welcome = wire.Welcome(epoch=1)
        welcome.heartbeat_interval.FromNanoseconds(int(self.heartbeat_s * 1e9))
        welcome.lease.FromSeconds(10)
        connection.shown = shown
        if self.tokens:
            welcome.token = self.tokens.pop(0)
            welcome.token_lifetime.FromNanoseconds(int(self.token_lifetime_s * 1e9))
        connection.send(wire.ConnectResponse(welcome=welcome))
        reader = asyncio.create_task(self._read(request_iterator, connection))
        self.connections.append(connection)
        await self._notify()
        try:
            while (response := await connection.down.get()) is not None:
                yield response
        finally:
            reader.cancel()
            connection.ended = True
            await self._notify()

    async def _read(
        self, request_iterator: AsyncIterator[wire.ConnectRequest], connection: Connection
    ) -> None:
        async for request in request_iterator:
            if request.WhichOneof("kind") == "heartbeat":
                connection.heartbeats += 1
            elif request.WhichOneof("kind") == "status":
                connection.statuses.extend(statuses_of(request.status))
                connection.metrics.extend(request.status.metrics)
                connection.sequences.append(request.status.sequence)
                if self.acknowledge:
                    ack = wire.StatusAck(sequence=request.status.sequence)
                    connection.send(wire.ConnectResponse(ack=ack))
            await self._notify()
        connection.hang_up()

    async def GetCluster(
        self, request: cluster_service_pb2.GetClusterRequest, context: Any
    ) -> cluster_service_pb2.GetClusterResponse:
        instance = cluster_service_pb2.ServiceInstance(
            service="storage-gateway", instance="gateway", address=self.address
        )
        return cluster_service_pb2.GetClusterResponse(instances=[instance], leader=self.address)

    async def AppendLogs(
        self, request: dataset_service_pb2.AppendLogsRequest, context: Any
    ) -> dataset_service_pb2.AppendLogsResponse:
        if not self.takes_whole_logs:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        for each in request.logs:
            whole = dataset_service_pb2.AppendLogRequest(
                task=f"{request.parent}/tasks/{each.task_index}", epoch=each.epoch,
                number=each.number, data=each.data, last=True,
            )  # fmt: skip
            await self.AppendLog(whole, context)
        return dataset_service_pb2.AppendLogsResponse()

    async def AppendLog(
        self, request: dataset_service_pb2.AppendLogRequest, context: Any
    ) -> dataset_service_pb2.AppendLogResponse:
        if self.logs_away:
            status = to_status(UnavailableError("no log store", reason="S3_UNREACHABLE"))
            await context.abort_with_status(rpc_status.to_status(status))
        key = (request.task, request.epoch, request.number)
        if request.source not in (0, dataset_service_pb2.LOG_SOURCE_PROGRAM):
            self.side_logs[(*key, request.source)] += request.data
            return dataset_service_pb2.AppendLogResponse()
        assert len(request.data) <= 1 << 20
        assert request.offset <= len(self.logs[key])
        if request.offset == len(self.logs[key]):
            self.logs[key] += request.data
        self.log_parts.append(len(request.data))
        if request.last:
            self.closed_logs.add(key)
        await self._notify()
        return dataset_service_pb2.AppendLogResponse()
