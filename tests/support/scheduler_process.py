"""The scheduler as a process, and thin calls on it over real gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest

from hyper._wire_errors import from_rpc_error
from hyper.errors import HyperError
from hyper_servicekit.config import S3Settings
from hyperapi.scheduler.v1 import cluster_service_pb2_grpc as cluster_grpc
from hyperapi.scheduler.v1 import workflow_pb2 as nouns
from hyperapi.scheduler.v1 import workflow_service_pb2 as pb
from hyperapi.scheduler.v1 import workflow_service_pb2_grpc as pb_grpc
from tests.support.servers import EtcdServer

RECIPE = """
name: shards
experiments:
  work:
    function: tests.jobs:work
    parameters: {shard: {range: [0, %d]}}
  sum:
    depends_on: [work]
    command: "echo {{total}}"
    parameters: {total: 7}
"""


@dataclass
class Scheduler:
    """A scheduler process; `start` again after `kill`."""

    environment: dict[str, str]
    ready_file: Path
    log: Path
    process: asyncio.subprocess.Process | None = None
    address: str = ""

    async def start(self) -> None:
        self.ready_file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hyper_scheduler", env=self.environment, stderr=log
            )
        process = self.process

        def ready() -> bool:
            if process.returncode is not None:
                pytest.fail(f"the scheduler ended:\n{self.log.read_text()}")
            return self.ready_file.exists()

        await until(ready, 30)
        self.address = json.loads(self.ready_file.read_text())["address"]

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 20)


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (of other processes: there is no event)
            await asyncio.sleep(0.01)


async def answers(call: Callable[[], Awaitable[object]], timeout_s: float = 15.0) -> None:
    """Wait until a call is answered: a leader is there."""
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                await call()
                return
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                await asyncio.sleep(0.05)


Make = Callable[..., Awaitable[Scheduler]]


@pytest.fixture
async def make_scheduler(
    etcd_server: EtcdServer, s3_settings: S3Settings, etcd_prefix: str, tmp_path: Path
) -> AsyncIterator[Make]:
    schedulers: list[Scheduler] = []

    async def make(name: str, changes: Mapping[str, str] | None = None) -> Scheduler:
        environment = (
            os.environ
            | {
                "HYPER_SCHEDULER__ETCD_ENDPOINTS": json.dumps([etcd_server.endpoint]),
                "HYPER_SCHEDULER__ETCD_PREFIX": etcd_prefix,
                "HYPER_SCHEDULER__INSTANCE": name,
                "HYPER_SCHEDULER__READY_FILE": str(tmp_path / f"{name}.json"),
                "HYPER_SCHEDULER__LEASE_S": "2",
                "HYPER_SCHEDULER__HEARTBEAT_S": "0.5",
                "HYPER_SCHEDULER__LEADER_TTL_S": "2",
                "HYPER_SCHEDULER__DRAIN_GRACE_S": "2",
                "HYPER_SCHEDULER__S3__ENDPOINT": s3_settings.endpoint,
                "HYPER_SCHEDULER__S3__BUCKET": s3_settings.bucket,
                "HYPER_SCHEDULER__S3__PREFIX": s3_settings.prefix,
                "HYPER_SCHEDULER__S3__ACCESS_KEY": s3_settings.access_key,
                "HYPER_SCHEDULER__S3__SECRET_KEY": s3_settings.secret_key.get_secret_value(),
            }
            | dict(changes or {})
        )
        scheduler = Scheduler(environment, tmp_path / f"{name}.json", tmp_path / f"{name}.log")
        schedulers.append(scheduler)
        await scheduler.start()
        return scheduler

    yield make
    for scheduler in schedulers:
        print(f"--- {scheduler.log.name}\n{scheduler.log.read_text()}")  # shown where a test fails
        assert await scheduler.stop() in (0, -signal.SIGKILL), scheduler.log.read_text()


class Client:
    """Thin calls on one scheduler."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.workflows = pb_grpc.WorkflowServiceStub(channel)
        self.nodes = pb_grpc.NodeServiceStub(channel)
        self.cluster = cluster_grpc.ClusterServiceStub(channel)

    async def submit(
        self, recipe: str, request_id: str | None = None, tenant: str = "t"
    ) -> nouns.Workflow:
        request = pb.CreateWorkflowRequest(
            parent=f"tenants/{tenant}",
            recipe_yaml=recipe,
            request_id=request_id or str(uuid.uuid4()),
        )
        return (await self.workflows.CreateWorkflow(request, timeout=10)).workflow

    async def get(self, name: str) -> nouns.Workflow:
        request = pb.GetWorkflowRequest(name=name)
        return (await self.workflows.GetWorkflow(request, timeout=10)).workflow

    async def wait(self, name: str, timeout_s: float = 20) -> nouns.Workflow:
        """Watch to the end; dial again when the stream breaks."""
        last = nouns.Workflow()
        async with asyncio.timeout(timeout_s):
            while last.state in (0, nouns.RUN_STATE_PENDING, nouns.RUN_STATE_RUNNING):
                try:
                    request = pb.WatchWorkflowRequest(name=name)
                    async for response in self.workflows.WatchWorkflow(request):
                        last = response.workflow
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                    await asyncio.sleep(0.05)
        return last

    async def tasks(self, parent: str, page_size: int = 0, state: int = 0) -> list[nouns.Task]:
        found: list[nouns.Task] = []
        token = ""
        while True:
            request = pb.ListTasksRequest(
                parent=parent, page_size=page_size, page_token=token, state=state
            )
            response = await self.workflows.ListTasks(request, timeout=10)
            found += response.tasks
            token = response.next_page_token
            if not token:
                return found

    async def leads(self) -> None:
        request = pb.ListWorkersRequest()
        await answers(lambda: self.nodes.ListWorkers(request, timeout=5))


@asynccontextmanager
async def client(scheduler: Scheduler) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(scheduler.address) as channel:
        yield Client(channel)


async def refused(call: Awaitable[object]) -> HyperError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value)
