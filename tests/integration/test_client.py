"""The client against servers that come, go, and send it elsewhere."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from hyper import workflows
from hyper._wire_errors import to_status
from hyper.client import Client
from hyper.cluster.processes import wait_until
from hyper.errors import DeadlineError, HyperError, NotFoundError, UnavailableError, WorkFailedError
from hyper.status import RunState
from hyperapi.scheduler.v1 import (
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    workflow_pb2,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

NAME = "tenants/default/workflows/w"


class FakeScheduler(
    workflow_service_pb2_grpc.WorkflowServiceServicer,
    cluster_service_pb2_grpc.ClusterServiceServicer,
):
    """Answers what the test says; can stop and start again on its port."""

    def __init__(self) -> None:
        self.port = 0
        self.failures: list[HyperError] = []
        self.calls: list[str] = []  # but those of GetCluster, which clients make by themselves
        self.looks = 0
        self.looks_fail = False
        self.requests: list[Any] = []
        self.states = [workflow_pb2.RUN_STATE_RUNNING, workflow_pb2.RUN_STATE_SUCCEEDED]
        self.break_watch_after: int | None = None
        self.matchers: tuple[int, ...] = (2, 1)
        self.schedulers: tuple[str, ...] = ()
        self.release = threading.Event()
        self.release.set()
        self.ending = threading.Event()
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        workflow_service_pb2_grpc.add_WorkflowServiceServicer_to_server(self, self._server)
        cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self.release.set()
            self.ending.set()
            self._server.stop(None).wait()
            self._server = None

    def _begin(self, method: str, request: Any, context: Any) -> None:
        self.calls.append(method)
        self.requests.append(request)
        if self.failures:
            context.abort_with_status(rpc_status.to_status(to_status(self.failures.pop(0))))

    def GetWorkflow(self, request: Any, context: Any) -> Any:
        self._begin("GetWorkflow", request, context)
        self.release.wait(10)
        workflow = workflow_pb2.Workflow(name=request.name, state=self.states[0])
        return workflow_service_pb2.GetWorkflowResponse(workflow=workflow)

    def CreateWorkflow(self, request: Any, context: Any) -> Any:
        self._begin("CreateWorkflow", request, context)
        workflow = workflow_pb2.Workflow(name=NAME, state=self.states[0])
        return workflow_service_pb2.CreateWorkflowResponse(workflow=workflow)

    def WatchWorkflow(self, request: Any, context: Any) -> Iterator[Any]:
        self._begin("WatchWorkflow", request, context)
        for i, state in enumerate(self.states):
            if self.break_watch_after == i:
                self.break_watch_after = None
                status = to_status(UnavailableError("lost", reason="DRAINING"))
                context.abort_with_status(rpc_status.to_status(status))
            workflow = workflow_pb2.Workflow(name=request.name, state=state, message="because")
            yield workflow_service_pb2.WatchWorkflowResponse(workflow=workflow)
        if self.states[-1] == workflow_pb2.RUN_STATE_RUNNING:
            self.ending.wait(10)

    def GetCluster(self, request: Any, context: Any) -> Any:
        self.looks += 1
        if self.looks_fail:
            error = NotFoundError("no")
            context.abort_with_status(rpc_status.to_status(to_status(error)))
        instances = [
            cluster_service_pb2.ServiceInstance(service="matcher", address=f"127.0.0.1:{port}")
            for port in self.matchers
        ]
        instances += [
            cluster_service_pb2.ServiceInstance(service="scheduler", address=address)
            for address in self.schedulers
        ]
        return cluster_service_pb2.GetClusterResponse(instances=instances, leader=self.address)


@pytest.fixture
def scheduler() -> Iterator[FakeScheduler]:
    fake = FakeScheduler()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def client(scheduler: FakeScheduler, notices: list[str]) -> Iterator[Client]:
    with Client(scheduler.address, patience_s=15.0, notice=notices.append) as made:
        yield made


def test_services_are_found_through_the_scheduler(scheduler: FakeScheduler, client: Client) -> None:
    for _ in range(3):
        assert client.addresses("matcher") == ("127.0.0.1:1", "127.0.0.1:2")
    assert scheduler.looks == 1
    client.forget("matcher")
    client.addresses("matcher")
    assert scheduler.looks == 2
    info = client.cluster()
    assert (info.leader, len(info.instances)) == (scheduler.address, 2)
    with pytest.raises(UnavailableError, match="no inference runs in this cluster"):
        client.addresses("inference")


def test_replicas_that_come_are_noticed(
    scheduler: FakeScheduler, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyper.client._LOOK_AGAIN_S", 0.05)
    assert len(client.addresses("matcher")) == 2
    scheduler.matchers = (1, 2, 3)
    assert wait_until(lambda: len(client.addresses("matcher")) == 3, 20)
    # what is asked beside the calls fails in silence, and what was known stays
    scheduler.looks_fail, looks = True, scheduler.looks
    assert wait_until(lambda: bool(client.addresses("matcher")) and scheduler.looks > looks + 2, 20)
    assert len(client.addresses("matcher")) == 3


def test_schedulers_that_were_heard_of_are_tried_too(scheduler: FakeScheduler) -> None:
    scheduler.schedulers = (scheduler.address, "127.0.0.1:7")
    with Client(scheduler.address, patience_s=0) as client:
        assert client.addresses("scheduler") == (scheduler.address,)
        client.workflow("w")
        assert wait_until(lambda: len(_scheduler_addresses(client)) == 2, 20)
        assert _scheduler_addresses(client) == (scheduler.address, "127.0.0.1:7")


def _scheduler_addresses(client: Client) -> tuple[str, ...]:
    client.forget("scheduler")
    return client.addresses("scheduler")


def test_errors_keep_their_class_and_reason(scheduler: FakeScheduler, client: Client) -> None:
    scheduler.failures = [NotFoundError("no workflow w; see `hyper ps`")]
    with pytest.raises(NotFoundError, match="see `hyper ps`") as caught:
        client.workflow("w")
    assert scheduler.calls == ["GetWorkflow"]
    shown = "".join(traceback.format_exception(caught.value))
    assert "grpc._channel" not in shown


def test_a_scheduler_that_comes_back_is_waited_for(
    scheduler: FakeScheduler, client: Client, notices: list[str]
) -> None:
    workflow = client.workflow("w")
    scheduler.stop()

    def start_once_it_is_missed() -> None:
        deadline = time.monotonic() + 20
        while not notices and time.monotonic() < deadline:
            time.sleep(0.01)
        scheduler.start()

    thread = threading.Thread(target=start_once_it_is_missed)
    thread.start()
    workflow.refresh()
    thread.join()
    assert [n.partition(",")[0] for n in notices] == ["waiting for scheduler", "scheduler is back"]


def test_patience_ends(scheduler: FakeScheduler) -> None:
    scheduler.stop()
    with (
        Client(scheduler.address, patience_s=0.0) as client,
        pytest.raises(UnavailableError, match="cannot reach scheduler") as caught,
    ):
        client.workflow("w")
    assert caught.value.exit_code == 3


def test_the_named_leader_is_asked(scheduler: FakeScheduler, client: Client) -> None:
    leader = FakeScheduler()
    leader.start()
    try:
        scheduler.failures = [
            UnavailableError("ask", reason="NOT_LEADER", metadata={"leader": leader.address})
        ]
        client.submit("name: x\n")
        client.submit("name: x\n")
        assert leader.calls == ["CreateWorkflow"] * 2
        assert scheduler.calls == ["CreateWorkflow"]
        assert leader.requests[0].request_id != leader.requests[1].request_id
    finally:
        leader.stop()
    scheduler.failures = []
    client.submit("name: x\n")  # the leader is gone: back to where it started


def test_a_repeated_request_keeps_its_id(scheduler: FakeScheduler, client: Client) -> None:
    scheduler.failures = [UnavailableError("later", reason="ETCD_UNREACHABLE")] * 3
    client.submit("name: x\n")
    assert len({request.request_id for request in scheduler.requests}) == 1


def test_a_deadline_is_not_repeated(scheduler: FakeScheduler, client: Client) -> None:
    scheduler.release.clear()
    with pytest.raises(DeadlineError):
        client.call(
            "scheduler",
            workflow_service_pb2_grpc.WorkflowServiceStub,
            "GetWorkflow",
            workflow_service_pb2.GetWorkflowRequest(name=NAME),
            timeout_s=0.2,
        )
    assert scheduler.calls == ["GetWorkflow"]


def test_a_broken_watch_goes_on(scheduler: FakeScheduler, client: Client) -> None:
    workflow = client.workflow("w")
    scheduler.break_watch_after = 1
    states = [status.state for status in workflow.watch()]
    assert states == [RunState.RUNNING, RunState.RUNNING, RunState.SUCCEEDED]


def test_wait_tells_failure_from_success(scheduler: FakeScheduler, client: Client) -> None:
    assert client.workflow("w").wait().state is RunState.SUCCEEDED
    scheduler.states[-1] = workflow_pb2.RUN_STATE_FAILED
    workflow = client.workflow("w")
    assert workflow.wait().state is RunState.FAILED
    with pytest.raises(WorkFailedError, match="failed: because"):
        workflow.wait(check=True)


def test_wait_gives_up_in_time(scheduler: FakeScheduler, client: Client) -> None:
    scheduler.states = [workflow_pb2.RUN_STATE_RUNNING]
    with pytest.raises(DeadlineError, match=r"still runs after 0\.3 s"):
        client.workflow("w").wait(timeout_s=0.3)


def test_leaving_a_watch_ends_the_call(scheduler: FakeScheduler, client: Client) -> None:
    scheduler.states = [workflow_pb2.RUN_STATE_RUNNING]
    watch = client.workflow("w").watch()
    next(watch)
    watch.close()
    assert client.workflow("w").state is RunState.RUNNING


def test_threads_share_a_client(scheduler: FakeScheduler, client: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: client.workflow("w").name, range(50)))
    assert set(found) == {NAME}
    assert len(client._channels) == 1


def test_a_client_notices_a_fork(scheduler: FakeScheduler, client: Client) -> None:
    client.workflow("w")
    parents = dict(client._channels)
    client._pid = os.getpid() - 1  # as if this process were a fork
    client.workflow("w")
    assert client._channels.values() != parents.values()
    for channel in parents.values():
        channel.close()


def test_lists_are_read_page_by_page(client: Client) -> None:
    with pytest.raises(HyperError):  # the fake has no lists: the error still is ours
        list(workflows.list_workflows(client))
