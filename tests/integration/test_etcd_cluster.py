"""Several etcd members: losing the leading one is a pause, not an error."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio
from aetcd import rpc
from aetcd.rpc import rpc_pb2_grpc

from hyper.errors import UnavailableError
from hyper_servicekit.etcd import Change, Compare, Election, Etcd, Op, Snapshot
from tests.support.etcd_cluster import run_etcd_cluster
from tests.support.servers import EtcdServer


async def leader_of(members: list[EtcdServer]) -> EtcdServer:
    """The member that leads; also shows that all of them are ours and serve."""
    for member in members:
        async with grpc.aio.insecure_channel(member.endpoint) as channel:
            status = await rpc_pb2_grpc.MaintenanceStub(channel).Status(
                rpc.StatusRequest(), timeout=30, wait_for_ready=True
            )
            known = await rpc_pb2_grpc.ClusterStub(channel).MemberList(
                rpc.MemberListRequest(), timeout=30, wait_for_ready=True
            )
        assert {one.name for one in known.members} == {one.name for one in members}
        if status.leader == status.header.member_id:
            return member
    raise AssertionError("no member leads")


async def test_the_loss_of_the_leader_is_a_pause(tmp_path: Path) -> None:
    with run_etcd_cluster(tmp_path) as members:
        endpoints = [member.endpoint for member in members]
        async with (
            Etcd(endpoints, timeout_s=20) as etcd,
            Election(etcd, "/leader", b"me", 10).lead() as leadership,
            etcd.watching("/data/") as events,
        ):
            assert isinstance(await anext(events), Snapshot)
            leader = await leader_of(members)
            expected: list[Change] = []
            for i in range(40):
                if i == 20:
                    await asyncio.to_thread(leader.kill)
                expected.append(await stored(etcd, leadership.fence, i))
            assert [await anext(events) for _ in expected] == expected
            assert not leadership.lost.is_set()


async def stored(etcd: Etcd, fence: Compare, i: int) -> Change:
    """Write once and only once, reading back whenever the outcome is unknown."""
    key, value = f"/data/{i}", str(i).encode()
    while True:
        try:
            await etcd.transact([fence, Compare.missing(key)], [Op.put(key, value)])
            found = await etcd.get(key)
        except UnavailableError:
            continue
        assert found is not None
        assert found.version == 1
        return Change(key, value, found.mod_revision)
