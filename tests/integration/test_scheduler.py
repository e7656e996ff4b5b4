"""The scheduler process over real gRPC, etcd and S3; the worker is scripted."""

from __future__ import annotations

import json
import uuid

import pytest

from hyper_servicekit.config import S3Settings
from hyperapi.scheduler.v1 import cluster_service_pb2 as cluster
from hyperapi.scheduler.v1 import workflow_pb2 as nouns
from hyperapi.scheduler.v1 import workflow_service_pb2 as pb
from hyperapi.worker.v1 import agent_service_pb2 as agent
from tests.support.fake_worker import FakeWorker, fail, fake_worker, hang, key_of, succeed
from tests.support.proxy import fault_proxy
from tests.support.scheduler_process import (
    RECIPE,
    Make,
    client,
    make_scheduler,
    refused,
    until,
)
from tests.support.servers import EtcdServer

__all__ = ["make_scheduler"]


async def test_a_workflow_from_submit_to_results(make_scheduler: Make) -> None:
    scheduler = await make_scheduler("one")
    async with client(scheduler) as c, fake_worker("w1", scheduler.address) as worker:
        await c.leads()
        request_id = str(uuid.uuid4())
        created = await c.submit(RECIPE % 50, request_id)
        assert (await c.submit(RECIPE % 50, request_id)).name == created.name
        assert created.state == nouns.RUN_STATE_RUNNING
        done = await c.wait(created.name)
        assert done.state == nouns.RUN_STATE_SUCCEEDED, done
        assert done.tasks.succeeded == done.tasks.total == 51
        parent = f"{created.name}/experiments/work"
        tasks = await c.tasks(parent, page_size=20)
        assert [task.index for task in tasks] == list(range(50))
        assert {task.worker for task in tasks} == {"workers/w1"}
        request = pb.GetTaskRequest(name=f"{parent}/tasks/7")
        task = (await c.workflows.GetTask(request, timeout=5)).task
        assert json.loads(task.result_json) == {"shard": 7}
        assert task.attempt.epoch > 0
        assert task.end_time.ToNanoseconds() >= task.start_time.ToNanoseconds() > 0
        await until(lambda: not worker.unacknowledged)
        assert len(worker.started) == 51


async def test_failures_count_and_end_the_workflow(make_scheduler: Make) -> None:
    scheduler = await make_scheduler("one")
    recipe = """
name: bad
experiments:
  a: {command: "false", retries: 2}
  b: {command: "true", depends_on: [a]}
  c: {command: "sleep 1000"}
"""

    def act(start: agent.TaskStart, spec: agent.TaskSpec) -> agent.TaskStatus | None:
        return fail(start, spec) if spec.command == "false" else hang(start, spec)

    async with client(scheduler) as c, fake_worker("w1", scheduler.address, act) as worker:
        await c.leads()
        name = (await c.submit(recipe)).name
        done = await c.wait(name)
        assert done.state == nouns.RUN_STATE_FAILED
        assert "experiment a: task 0 failed 3 times: boom" in done.message
        states = {each.name.rpartition("/")[2]: each.state for each in done.experiments}
        assert states == {
            "a": nouns.RUN_STATE_FAILED,
            "b": nouns.RUN_STATE_CANCELLED,
            "c": nouns.RUN_STATE_CANCELLED,
        }
        assert len(worker.stopped) == 1  # c was told to stop
        worker.behaviour = succeed
        retry = pb.RetryWorkflowRequest(name=name, request_id=str(uuid.uuid4()))
        await c.workflows.RetryWorkflow(retry, timeout=5)
        assert (await c.wait(name)).state == nouns.RUN_STATE_SUCCEEDED
        error = await refused(
            c.workflows.RetryWorkflow(
                pb.RetryWorkflowRequest(name=name, request_id=str(uuid.uuid4())), timeout=5
            )
        )
        assert error.reason == "WORKFLOW_FINISHED"


async def test_cancel_stops_what_runs(make_scheduler: Make) -> None:
    scheduler = await make_scheduler("one")
    async with client(scheduler) as c, fake_worker("w1", scheduler.address, hang) as worker:
        await c.leads()
        name = (await c.submit(RECIPE % 10)).name
        await until(lambda: len(worker.running) == 4)
        request = pb.CancelWorkflowRequest(name=name, request_id=str(uuid.uuid4()), reason="tired")
        await c.workflows.CancelWorkflow(request, timeout=5)
        done = await c.wait(name)
        assert (done.state, done.message) == (nouns.RUN_STATE_CANCELLED, "cancelled: tired")
        assert done.tasks.cancelled == 11
        assert not worker.running


async def test_a_lost_worker_fails_nothing(make_scheduler: Make) -> None:
    scheduler = await make_scheduler("one")
    async with client(scheduler) as c:
        await c.leads()
        async with fake_worker("w1", scheduler.address, hang) as first:
            name = (await c.submit(RECIPE % 8)).name
            await until(lambda: len(first.running) == 4)
        async with fake_worker("w2", scheduler.address) as second:
            done = await c.wait(name)
            assert done.state == nouns.RUN_STATE_SUCCEEDED
            assert done.tasks.lost == 4
            assert len(second.started) == 9
            workers = (await c.nodes.ListWorkers(pb.ListWorkersRequest(), timeout=5)).workers
            states = {worker.name: worker.state for worker in workers}
            assert states == {
                "workers/w2": nouns.WORKER_STATE_READY,
                "workers/w1": nouns.WORKER_STATE_LOST,
            }


async def test_a_silent_worker_is_lost(make_scheduler: Make) -> None:
    scheduler = await make_scheduler("one")
    async with client(scheduler) as c, fake_worker("w1", scheduler.address, hang) as first:
        await c.leads()
        name = (await c.submit(RECIPE % 2)).name
        await until(lambda: len(first.running) == 2)
        async with fake_worker("w2", scheduler.address) as second:
            await until(lambda: second.welcomes == 1)
            first.silent = True
            done = await c.wait(name)
            assert done.state == nouns.RUN_STATE_SUCCEEDED
            assert (done.tasks.lost, len(second.started)) == (2, 3)
            await until(lambda: len(first.stopped) == 2)  # it was cut off, and dialled again


async def test_drained_workers_get_nothing_new(make_scheduler: Make) -> None:
    scheduler = await make_scheduler("one")
    async with client(scheduler) as c, fake_worker("w1", scheduler.address, hang) as first:
        await c.leads()
        name = (await c.submit(RECIPE % 6)).name
        await until(lambda: len(first.running) == 4)
        request = pb.DrainWorkerRequest(name="workers/w1", request_id=str(uuid.uuid4()))
        drained = (await c.nodes.DrainWorker(request, timeout=5)).worker
        assert drained.state == nouns.WORKER_STATE_DRAINING
        await until(lambda: first.drained)
        for key in list(first.running):
            first.finish(key, agent.OUTCOME_SUCCEEDED)
        async with fake_worker("w2", scheduler.address) as second:
            assert (await c.wait(name)).state == nouns.RUN_STATE_SUCCEEDED
            assert (len(first.started), len(second.started)) == (4, 3)


@pytest.mark.timeout(90)
async def test_sigkill_of_the_scheduler_loses_nothing(make_scheduler: Make) -> None:
    scheduler = await make_scheduler("one")
    finished: list[str] = []
    held: list[FakeWorker] = []

    def act(start: agent.TaskStart, spec: agent.TaskSpec) -> agent.TaskStatus | None:
        if start.key.task.endswith(("tasks/3", "tasks/11")):
            return hang(start, spec)
        finished.append(start.key.task)
        return succeed(start, spec)

    async with fake_worker("w1", lambda: scheduler.address, act) as worker:
        held.append(worker)
        async with client(scheduler) as c:
            await c.leads()
            name = (await c.submit(RECIPE % 40)).name
            await until(lambda: len(finished) == 38 and not worker.unacknowledged)
        await scheduler.kill()
        # one ends while nobody leads, one goes on and is taken over
        assert len(worker.running) == 2
        early, late = list(worker.running)
        worker.finish(early, agent.OUTCOME_SUCCEEDED, result_json='"early"')
        await scheduler.start()
        async with client(scheduler) as c:
            await until(lambda: worker.welcomes >= 2, 30)
            await until(lambda: not worker.unacknowledged)
            worker.finish(late, agent.OUTCOME_SUCCEEDED, result_json='"late"')
            done = await c.wait(name)
            assert done.state == nouns.RUN_STATE_SUCCEEDED
            assert done.tasks.lost == 0
            assert len(worker.started) == 41  # nothing ran twice
            parent = f"{name}/experiments/work"
            results = {
                (
                    await c.workflows.GetTask(pb.GetTaskRequest(name=key[0]), timeout=5)
                ).task.result_json
                for key in (early, late)
            }
            assert results == {'"early"', '"late"'}
            assert len(await c.tasks(parent, state=nouns.TASK_STATE_SUCCEEDED)) == 40


@pytest.mark.timeout(90)
async def test_a_standby_takes_over(make_scheduler: Make) -> None:
    first = await make_scheduler("one")
    async with client(first) as c:
        await c.leads()
    second = await make_scheduler("two")
    where = [second]
    async with client(second) as c:
        error = await refused(c.submit(RECIPE % 3))
        assert (error.reason, error.metadata) == ("NOT_LEADER", {"leader": first.address})
        found = await c.cluster.GetCluster(cluster.GetClusterRequest(), timeout=5)
        assert found.leader == first.address
        assert {each.address for each in found.instances} == {first.address, second.address}
    async with fake_worker("w1", lambda: where[0].address, hang) as worker:
        await until(lambda: bool(worker.errors))
        assert "does not lead" in worker.errors[0]
        where[0] = first
        async with client(first) as c:
            name = (await c.submit(RECIPE % 3)).name
            await until(lambda: len(worker.running) == 3)
        async with client(second) as c:
            assert (await c.get(name)).tasks.total == 4  # a follower answers reads
            await first.kill()
            where[0] = second
            worker.behaviour = succeed
            await c.leads()
            await until(lambda: worker.welcomes == 2)
            for key in list(worker.running):
                worker.finish(key, agent.OUTCOME_SUCCEEDED)
            done = await c.wait(name)
            assert done.state == nouns.RUN_STATE_SUCCEEDED
            assert done.tasks.lost == 0
            assert len({key_of(agent.TaskKey()), *worker.started}) == 5


async def test_bad_requests_are_refused(make_scheduler: Make) -> None:
    scheduler = await make_scheduler("one")
    async with client(scheduler) as c:
        await c.leads()
        error = await refused(c.submit("name: x\nexperiments:\n  a: {comand: 'ls'}\n"))
        assert (error.reason, error.metadata["line"]) == ("INVALID_RECIPE", "3")
        assert error.metadata["key"] == "experiments.a.comand"
        error = await refused(c.submit(RECIPE % 3, "not-a-uuid"))
        assert error.reason == "INVALID_REQUEST"
        missing = "tenants/t/workflows/none"
        error = await refused(c.get(missing))
        assert error.reason == "NOT_FOUND"
        error = await refused(c.get("tenants/../workflows/none"))
        assert error.reason == "INVALID_NAME"
        request = pb.CancelWorkflowRequest(name=missing, request_id=str(uuid.uuid4()))
        error = await refused(c.workflows.CancelWorkflow(request, timeout=5))
        assert error.reason == "NOT_FOUND"
        dry = pb.CreateWorkflowRequest(
            parent="tenants/t", recipe_yaml=RECIPE % 3, request_id=str(uuid.uuid4()),
            validate_only=True,
        )  # fmt: skip
        preview = (await c.workflows.CreateWorkflow(dry, timeout=5)).workflow
        assert preview.tasks.total == 4
        assert not (
            await c.workflows.ListWorkflows(pb.ListWorkflowsRequest(parent="tenants/t"), timeout=5)
        ).workflows


async def test_a_quota_binds_its_tenant_and_no_other(make_scheduler: Make) -> None:
    tenants = {"small": {"tasks": 8, "workflows": 1, "weight": 3}, "none": {"tasks": 1}}
    settings = {
        "HYPER_SCHEDULER__TENANTS": json.dumps(tenants),
        "HYPER_SCHEDULER__OTHER_TENANTS": json.dumps({"workflows": 2}),
    }
    scheduler = await make_scheduler("one", settings)

    async def refusal(tenant: str, tasks: int) -> str:
        error = await refused(c.submit(RECIPE % tasks, tenant=tenant))
        assert error.reason == "QUOTA_EXCEEDED"
        return error.message

    async with client(scheduler) as c, fake_worker("w1", scheduler.address, succeed):
        await c.leads()
        assert "tenant small may have 8 tasks at once, and would have 11" in await refusal(
            "small", 10
        )
        assert "tenant none may have 1 tasks" in await refusal("none", 1)
        for tenant in ("t", "u"):
            await c.submit(RECIPE % 10, tenant=tenant)
        done = await c.wait((await c.submit(RECIPE % 7, tenant="small")).name)
        assert done.state == nouns.RUN_STATE_SUCCEEDED
        again = await c.submit(RECIPE % 7, tenant="small")  # what has ended does not count
        assert (await c.wait(again.name)).state == nouns.RUN_STATE_SUCCEEDED


async def test_sigterm_hands_over_at_once(make_scheduler: Make) -> None:
    scheduler = await make_scheduler("one")
    async with fake_worker("w1", lambda: scheduler.address, hang) as worker:
        async with client(scheduler) as c:
            await c.leads()
            name = (await c.submit(RECIPE % 3)).name
            await until(lambda: len(worker.running) == 3)
        assert await scheduler.stop() == 0
        await scheduler.start()
        worker.behaviour = succeed
        async with client(scheduler) as c:
            await until(lambda: worker.welcomes == 2)
            for key in list(worker.running):
                worker.finish(key, agent.OUTCOME_SUCCEEDED)
            done = await c.wait(name)
            assert (done.state, done.tasks.lost) == (nouns.RUN_STATE_SUCCEEDED, 0)


@pytest.mark.timeout(90)
async def test_an_outage_of_the_stores_is_waited_for(
    make_scheduler: Make, etcd_server: EtcdServer, s3_settings: S3Settings
) -> None:
    async with (
        fault_proxy(etcd_server.endpoint) as etcd,
        fault_proxy(s3_settings.endpoint.removeprefix("http://")) as s3,
    ):
        behind = {
            "HYPER_SCHEDULER__ETCD_ENDPOINTS": json.dumps([etcd.endpoint]),
            "HYPER_SCHEDULER__S3__ENDPOINT": f"http://{s3.endpoint}",
            "HYPER_SCHEDULER__LEADER_TTL_S": "20",
            "HYPER_SCHEDULER__LEASE_S": "20",
        }
        scheduler = await make_scheduler("one", behind)
        async with client(scheduler) as c, fake_worker("w1", scheduler.address, hang) as worker:
            await c.leads()
            name = (await c.submit(RECIPE % 2)).name
            for proxy in (s3, etcd):
                await until(lambda: len(worker.running) > 0)
                proxy.cut()
                finished = next(iter(worker.running))
                worker.finish(finished, agent.OUTCOME_SUCCEEDED)
                await until(lambda: "commit waits" in scheduler.log.read_text())
                assert worker.unacknowledged  # not durable: not acknowledged
                proxy.restore()
                await until(lambda: not worker.unacknowledged)
                scheduler.log.write_text("")
            await until(lambda: len(worker.running) == 1)
            worker.finish(next(iter(worker.running)), agent.OUTCOME_SUCCEEDED)
            done = await c.wait(name)
            assert (done.state, done.tasks.lost) == (nouns.RUN_STATE_SUCCEEDED, 0)
