"""What the scheduler leaves in etcd and S3, and an etcd that has no space left."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

import grpc
import grpc.aio
import pytest
from aetcd import rpc
from aetcd.rpc import rpc_pb2_grpc

from hyper.errors import ResourceExhaustedError
from hyper_scheduler.store import Store
from hyper_servicekit.config import S3Settings
from hyper_servicekit.etcd import Compare, Etcd
from hyper_servicekit.objects import MemoryStore, S3Store
from hyperapi.scheduler.v1 import workflow_pb2 as nouns
from hyperapi.scheduler.v1 import workflow_service_pb2 as pb
from hyperapi.worker.v1 import agent_service_pb2 as agent
from tests.support.fake_worker import fake_worker, hang, succeed
from tests.support.scheduler_process import Make, client, make_scheduler, refused, until
from tests.support.servers import EtcdServer, run_etcd

__all__ = ["make_scheduler"]

RECIPE = """
name: small
experiments:
  work: {function: "tests.jobs:work", parameters: {i: {range: [0, 20]}}}
"""


async def test_what_is_forgotten_leaves_nothing_behind(
    make_scheduler: Make, etcd_server: EtcdServer, etcd_prefix: str, s3_settings: S3Settings
) -> None:
    bounds = {
        "HYPER_SCHEDULER__KEPT_WORKFLOWS": "2",
        "HYPER_SCHEDULER__KEPT_LEAST_S": "0",
        "HYPER_SCHEDULER__COMPACT_MB": "0.001",
    }
    scheduler = await make_scheduler("one", bounds)
    async with (
        client(scheduler) as c,
        fake_worker("w1", scheduler.address, succeed),
        Etcd([etcd_server.endpoint]) as etcd,
        S3Store(s3_settings) as objects,
    ):
        await c.leads()
        request_ids = [str(uuid.uuid4()) for _ in range(5)]
        names = []
        for request_id in request_ids:
            names.append((await c.submit(RECIPE, request_id)).name)
            assert (await c.wait(names[-1])).state == nouns.RUN_STATE_SUCCEEDED

        async def there() -> set[str]:
            request = pb.ListWorkflowsRequest(parent="tenants/t")
            answer = await c.workflows.ListWorkflows(request, timeout=5)
            return {each.name for each in answer.workflows}

        async def notes() -> bool:
            return bool((await etcd.get_prefix(f"{etcd_prefix}/scheduler/forgotten/"))[0])

        await until(lambda: scheduler.log.read_text().count("workflow forgotten") == 3)
        async with asyncio.timeout(15):
            while await notes():  # noqa: ASYNC110  (of another process: there is no event)
                await asyncio.sleep(0.01)
        assert await there() == set(names[3:])
        keys = [item.key for item in (await etcd.get_prefix(f"{etcd_prefix}/scheduler/"))[0]]
        stored = [item.key async for item in objects.list("results/")]
        for name in names:
            short = name.rpartition("/")[2]
            kept = name in names[3:]
            assert any(f"/workflows/t/{short}/" in key for key in keys) == kept, keys
            assert any(f"/{short}/" in key for key in stored) == kept, stored
        assert (await refused(c.get(names[0]))).reason == "NOT_FOUND"
        assert (await refused(c.submit(RECIPE, request_ids[0]))).reason == "NOT_FOUND"
        assert (await c.submit(RECIPE, request_ids[4])).name == names[4]
        async with grpc.aio.insecure_channel(etcd_server.endpoint) as channel:
            old = rpc.RangeRequest(key=b"x", revision=1)
            with pytest.raises(grpc.aio.AioRpcError, match="compacted"):
                await rpc_pb2_grpc.KVStub(channel).Range(old, timeout=5)


@pytest.mark.timeout(90)
async def test_an_etcd_without_space_is_waited_for(make_scheduler: Make, tmp_path: Path) -> None:
    """By the leader, and by who is to lead next; nothing is lost."""
    (tmp_path / "full").mkdir()
    with run_etcd(tmp_path / "full", options=["--quota-backend-bytes=16777216"]) as server:
        where = {
            "HYPER_SCHEDULER__ETCD_ENDPOINTS": json.dumps([server.endpoint]),
            "HYPER_SCHEDULER__LEASE_S": "20",
        }
        first = await make_scheduler("one", where)
        second = await make_scheduler("two", where)
        leader = [first]
        async with (
            Etcd([server.endpoint]) as etcd,
            fake_worker("w1", lambda: leader[0].address, hang) as worker,
        ):
            async with client(first) as c:
                await c.leads()
                name = (await c.submit(RECIPE)).name
                await until(lambda: len(worker.running) > 0)
                with pytest.raises(ResourceExhaustedError, match="out of space"):
                    for number in range(100):
                        await etcd.put(f"/junk/{number:03d}", b"x" * 1_000_000)
                for key in list(worker.running):
                    worker.finish(key, agent.OUTCOME_SUCCEEDED)
                await until(lambda: "out of space" in first.log.read_text())
                assert worker.unacknowledged  # not durable: not acknowledged
                assert (await c.get(name)).state == nouns.RUN_STATE_RUNNING
            await first.kill()
            await until(lambda: "election interrupted" in second.log.read_text(), 30)
            await etcd.delete_prefix("/junk/")
            await make_room(server.endpoint)
            leader[0], worker.behaviour = second, succeed
            async with client(second) as c:
                await c.leads()
                await until(lambda: worker.welcomes >= 2)
                for key in list(worker.running):
                    worker.finish(key, agent.OUTCOME_SUCCEEDED)
                assert (await c.wait(name)).state == nouns.RUN_STATE_SUCCEEDED
                tasks = await c.tasks(f"{name}/experiments/work")
                assert [(each.failures, each.losses) for each in tasks] == [(0, 0)] * 20


async def make_room(endpoint: str) -> None:
    """What whoever runs etcd has to do."""
    async with grpc.aio.insecure_channel(endpoint) as channel:
        kv, maintenance = rpc_pb2_grpc.KVStub(channel), rpc_pb2_grpc.MaintenanceStub(channel)
        revision = (await kv.Range(rpc.RangeRequest(key=b"x"), timeout=5)).header.revision
        await kv.Compact(rpc.CompactionRequest(revision=revision, physical=True), timeout=10)
        await maintenance.Defragment(rpc.DefragmentRequest(), timeout=10)
        for alarm in (await maintenance.Alarm(rpc.AlarmRequest(action="GET"), timeout=5)).alarms:
            off = rpc.AlarmRequest(action="DEACTIVATE", memberID=alarm.memberID, alarm=alarm.alarm)
            await maintenance.Alarm(off, timeout=5)


async def test_a_ledger_larger_than_a_value_is_kept(
    etcd_server: EtcdServer, etcd_prefix: str
) -> None:
    async with Etcd([etcd_server.endpoint]) as etcd:
        store = Store(etcd, MemoryStore(), etcd_prefix, 60.0)
        fence = Compare.missing(f"{etcd_prefix}/leader")
        assert await store.load_ledger() == {}
        parts = {f"accounts/tenants/t/workflows/{i}": {"offer": "x" * 9_000} for i in range(300)}
        await store.save_ledger(parts, fence)
        first, revision = await etcd.get_prefix(f"{etcd_prefix}/scheduler/placement/")
        assert len(first) == 300
        del parts["accounts/tenants/t/workflows/0"]
        parts["accounts/tenants/t/workflows/1"] = {"offer": "y"}
        await store.save_ledger(parts, fence)
        items, _ = await etcd.get_prefix(f"{etcd_prefix}/scheduler/placement/")
        assert sum(item.mod_revision > revision for item in items) == 1  # the others as they were
        assert await Store(etcd, MemoryStore(), etcd_prefix, 60.0).load_ledger() == parts
