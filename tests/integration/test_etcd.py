"""The etcd wrapper against real servers, broken connections included."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from aetcd import rpc
from aetcd.rpc import rpc_pb2_grpc

from hyper.errors import ConflictError, UnavailableError
from hyper_servicekit.announce import announce, announced
from hyper_servicekit.etcd import (
    Change,
    Compare,
    Election,
    Etcd,
    KeyValue,
    LeaseLostError,
    Op,
    Snapshot,
)
from hyper_servicekit.server import Running
from tests.support.proxy import fault_proxy
from tests.support.servers import EtcdServer, run_etcd


@pytest.fixture
async def etcd(etcd_server: EtcdServer) -> AsyncIterator[Etcd]:
    async with Etcd([etcd_server.endpoint]) as client:
        yield client


async def compact(endpoint: str, revision: int) -> None:
    async with grpc.aio.insecure_channel(endpoint) as channel:
        request = rpc.CompactionRequest(revision=revision, physical=True)
        await rpc_pb2_grpc.KVStub(channel).Compact(request)


async def gone(etcd: Etcd, key: str) -> None:
    """Return once `key` is not there."""
    async with etcd.watching(key) as events:
        async for event in events:
            if isinstance(event, Snapshot) and not event.items:
                return
            if isinstance(event, Change) and event.value is None:
                return


async def there(etcd: Etcd, key: str) -> None:
    """Return once `key` is there."""
    async with etcd.watching(key) as events:
        async for event in events:
            if isinstance(event, Snapshot) and event.items:
                return
            if isinstance(event, Change) and event.value is not None:
                return


class TestReadsAndWrites:
    async def test_put_get_delete(self, etcd: Etcd, etcd_prefix: str) -> None:
        key = f"{etcd_prefix}/a"
        assert await etcd.get(key) is None
        created = await etcd.put(key, b"1")
        changed = await etcd.put(key, b"\x00\xff")
        assert changed > created
        assert await etcd.get(key) == KeyValue(key, b"\x00\xff", created, changed, 2, 0)
        assert await etcd.delete(key)
        assert not await etcd.delete(key)

    async def test_listing_is_paged_and_in_order(self, etcd: Etcd, etcd_prefix: str) -> None:
        keys = [f"{etcd_prefix}/{i:03}" for i in range(23)]
        for key in keys:
            await etcd.put(key, key.encode())
        await etcd.put(f"{etcd_prefix}0", b"a sibling, not below the prefix")
        items, revision = await etcd.get_prefix(f"{etcd_prefix}/", page=5)
        assert [item.key for item in items] == keys
        assert revision >= items[-1].mod_revision
        assert await etcd.delete_prefix(f"{etcd_prefix}/") == 23
        assert (await etcd.get_prefix(f"{etcd_prefix}/"))[0] == []

    async def test_a_listing_is_of_one_revision(
        self, etcd_server: EtcdServer, etcd_prefix: str
    ) -> None:
        class Meddled(Etcd):
            """Somebody writes between the pages."""

            async def _read(self, method: Any, request: Any) -> Any:
                answer = await super()._read(method, request)
                await self.put(f"{etcd_prefix}/z-late", b"")
                return answer

        async with Meddled([etcd_server.endpoint]) as etcd:
            for name in "abcde":
                await etcd.put(f"{etcd_prefix}/{name}", b"")
            items, _ = await etcd.get_prefix(f"{etcd_prefix}/", page=2)
            assert [item.key[-1] for item in items] == list("abcde")

    async def test_unreachable_is_named_and_in_time(self) -> None:
        async with Etcd(["127.0.0.1:1", "127.0.0.1:2"], timeout_s=0.3) as etcd:
            with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1, 127\.0\.0\.1:2") as caught:
                await etcd.get("a")
            assert caught.value.reason == "ETCD_UNREACHABLE"
            assert caught.value.exit_code == 2
            with pytest.raises(UnavailableError, match="read back"):
                await etcd.put("a", b"")

    async def test_a_dead_member_is_passed_over(
        self, etcd_server: EtcdServer, etcd_prefix: str
    ) -> None:
        async with Etcd(["127.0.0.1:1", f"localhost:{etcd_server.port}"]) as etcd:
            for i in range(10):
                await etcd.put(f"{etcd_prefix}/{i}", b"")
            assert len((await etcd.get_prefix(f"{etcd_prefix}/"))[0]) == 10

    async def test_reads_are_tried_twice_and_writes_once(self) -> None:
        calls: list[str] = []

        class Broken(rpc_pb2_grpc.KVServicer):  # type: ignore[misc]  # an untyped base
            async def Range(self, request: Any, context: Any) -> Any:
                calls.append("Range")
                await context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: leader changed")

            async def Put(self, request: Any, context: Any) -> Any:
                calls.append("Put")
                await context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: leader changed")

            async def Txn(self, request: Any, context: Any) -> Any:
                calls.append("Txn")
                await context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: leader changed")

        server = grpc.aio.server()
        rpc_pb2_grpc.add_KVServicer_to_server(Broken(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with Etcd([f"127.0.0.1:{port}"]) as etcd:
                for call in (etcd.get("a"), etcd.put("a", b""), etcd.transact([], [])):
                    with pytest.raises(UnavailableError, match="leader changed"):
                        await call
        finally:
            await server.stop(0)
        assert calls == ["Range", "Range", "Put", "Txn"]


class TestTransactions:
    async def test_compares_and_answers(self, etcd: Etcd, etcd_prefix: str) -> None:
        a, b = f"{etcd_prefix}/a", f"{etcd_prefix}/b"
        first = await etcd.transact([Compare.missing(a)], [Op.put(a, b"1"), Op.get(a), Op.get(b)])
        assert first.succeeded
        assert first.responses[0] is None
        assert first.responses[1] == KeyValue(a, b"1", first.revision, first.revision, 1, 0)
        assert first.responses[2] is None
        second = await etcd.transact([Compare.missing(a)], [Op.put(a, b"2")], [Op.get(a)])
        assert not second.succeeded
        assert isinstance(second.responses[0], KeyValue)
        holding = [
            Compare.exists(a),
            Compare.create_revision(a, first.revision),
            Compare.mod_revision(a, first.revision),
            Compare.value(a, b"1"),
            Compare.missing(b),
            Compare.mod_revision(b, 0),
        ]
        third = await etcd.transact(holding, [Op.delete(a), Op.delete_prefix(etcd_prefix + "/x")])
        assert third.succeeded
        assert third.responses == (1, 0)

    async def test_a_stale_write_is_refused(self, etcd: Etcd, etcd_prefix: str) -> None:
        revision = await etcd.put(etcd_prefix, b"1")
        await etcd.put(etcd_prefix, b"2")
        result = await etcd.transact(
            [Compare.mod_revision(etcd_prefix, revision)], [Op.put(etcd_prefix, b"3")]
        )
        assert not result.succeeded
        found = await etcd.get(etcd_prefix)
        assert found is not None
        assert found.value == b"2"

    async def test_limits_of_a_transaction(self, etcd: Etcd, etcd_prefix: str) -> None:
        operations = [Op.put(f"{etcd_prefix}/{i}", b"") for i in range(129)]
        with pytest.raises(ValueError, match="129 success"):
            await etcd.transact([], operations)
        assert (await etcd.transact([], operations[:128])).succeeded

    async def test_a_put_under_a_dead_lease(self, etcd: Etcd, etcd_prefix: str) -> None:
        lease = await etcd.grant(5)
        await lease.revoke()
        with pytest.raises(LeaseLostError):
            await etcd.put(etcd_prefix, b"", lease=lease.id)
        with pytest.raises(LeaseLostError):
            await etcd.transact([], [Op.put(etcd_prefix, b"", lease.id)])
        assert issubclass(LeaseLostError, ConflictError)
        assert await etcd.get(etcd_prefix) is None


class TestWatch:
    async def test_a_snapshot_and_then_every_change(self, etcd: Etcd, etcd_prefix: str) -> None:
        key = f"{etcd_prefix}/a"
        await etcd.put(key, b"1")
        async with etcd.watching(f"{etcd_prefix}/") as events:
            first = await anext(events)
            assert isinstance(first, Snapshot)
            assert [item.value for item in first.items] == [b"1"]
            put = await etcd.put(key, b"2")
            assert await anext(events) == Change(key, b"2", put)
            await etcd.delete(key)
            assert await anext(events) == Change(key, None, put + 1)

    async def test_nothing_is_lost_or_doubled_over_broken_connections(
        self, etcd_server: EtcdServer, etcd_prefix: str
    ) -> None:
        async with (
            fault_proxy(etcd_server.endpoint) as proxy,
            Etcd([proxy.endpoint]) as far,
            Etcd([etcd_server.endpoint]) as near,
            far.watching(f"{etcd_prefix}/") as events,
        ):
            assert isinstance(await anext(events), Snapshot)
            expected: list[Change] = []
            seen: list[Snapshot | Change] = []
            for round_number in range(3):
                for i in range(5):
                    key = f"{etcd_prefix}/{i}"
                    expected.append(Change(key, b"x", await near.put(key, b"x")))
                    if i == 2:
                        proxy.cut()
                        proxy.restore()
                while len(seen) < 5 * (round_number + 1):
                    seen.append(await anext(events))
            assert seen == expected

    async def test_it_lists_again_after_a_compaction(
        self, etcd_server: EtcdServer, etcd_prefix: str
    ) -> None:
        async with (
            fault_proxy(etcd_server.endpoint) as proxy,
            Etcd([proxy.endpoint]) as far,
            Etcd([etcd_server.endpoint]) as near,
            far.watching(f"{etcd_prefix}/") as events,
        ):
            await near.put(f"{etcd_prefix}/early", b"")
            assert isinstance(await anext(events), Snapshot)
            proxy.cut()
            await near.delete(f"{etcd_prefix}/early")
            last = 0
            for i in range(5):
                last = await near.put(f"{etcd_prefix}/late", str(i).encode())
            await compact(etcd_server.endpoint, last)
            proxy.restore()
            again = await anext(events)
            assert isinstance(again, Snapshot)
            assert [(item.key, item.value) for item in again.items] == [
                (f"{etcd_prefix}/late", b"4")
            ]
            revision = await near.put(f"{etcd_prefix}/late", b"5")
            assert await anext(events) == Change(f"{etcd_prefix}/late", b"5", revision)

    async def test_it_outlives_a_restart_of_etcd(self, tmp_path: Path) -> None:
        with run_etcd(tmp_path) as server:
            async with (
                Etcd([server.endpoint], timeout_s=20) as etcd,
                etcd.watching("/w/") as events,
            ):
                assert isinstance(await anext(events), Snapshot)
                await etcd.put("/w/a", b"1")
                assert isinstance(await anext(events), Change)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                revision = await etcd.put("/w/a", b"2")
                assert await anext(events) == Change("/w/a", b"2", revision)

    async def test_unreachable_at_the_start(self) -> None:
        async with Etcd(["127.0.0.1:1"], timeout_s=0.2) as etcd, etcd.watching("a") as events:
            with pytest.raises(UnavailableError):
                await anext(events)


class TestLease:
    async def test_kept_beyond_its_time_and_gone_afterwards(
        self, etcd: Etcd, etcd_prefix: str
    ) -> None:
        lease = await etcd.grant(2)
        loop = asyncio.get_running_loop()
        async with lease.keep():
            await etcd.put(etcd_prefix, b"", lease=lease.id)
            first_end = loop.time() + lease.remaining_s
            with pytest.raises(TimeoutError):
                async with asyncio.timeout_at(first_end + 0.3):
                    await lease.lost.wait()
            assert lease.remaining_s > 0
            assert await etcd.get(etcd_prefix) is not None
        assert lease.lost.is_set()
        assert await etcd.get(etcd_prefix) is None

    async def test_lost_here_before_the_server_lets_go(
        self, etcd_server: EtcdServer, etcd_prefix: str
    ) -> None:
        loop = asyncio.get_running_loop()
        async with (
            fault_proxy(etcd_server.endpoint) as proxy,
            Etcd([proxy.endpoint], timeout_s=1) as far,
            Etcd([etcd_server.endpoint]) as near,
        ):
            lease = await far.grant(6)
            await far.put(etcd_prefix, b"", lease=lease.id)
            assert await near.get(etcd_prefix) is not None  # and it is connected
            async with lease.keep():
                proxy.stall()
                await lease.lost.wait()
                lost_at = loop.time()
                assert lease.remaining_s == 0
                assert await near.get(etcd_prefix) is not None
                await gone(near, etcd_prefix)
                assert lost_at < loop.time()
                proxy.restore()

    async def test_a_short_silence_is_survived(
        self, etcd_server: EtcdServer, etcd_prefix: str
    ) -> None:
        async with (
            fault_proxy(etcd_server.endpoint) as proxy,
            Etcd([proxy.endpoint], timeout_s=1) as etcd,
        ):
            lease = await etcd.grant(3)
            end = asyncio.get_running_loop().time() + lease.remaining_s
            async with lease.keep():
                proxy.cut()
                proxy.restore()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout_at(end + 0.2):
                        await lease.lost.wait()

    async def test_revoked_by_somebody_else(self, etcd: Etcd, etcd_server: EtcdServer) -> None:
        lease = await etcd.grant(2)
        async with lease.keep():
            async with grpc.aio.insecure_channel(etcd_server.endpoint) as channel:
                request = rpc.LeaseRevokeRequest(ID=lease.id)
                await rpc_pb2_grpc.LeaseStub(channel).LeaseRevoke(request)
            async with asyncio.timeout(2):
                await lease.lost.wait()

    async def test_the_body_s_error_comes_out_as_it_is(self, etcd: Etcd) -> None:
        lease = await etcd.grant(5)
        with pytest.raises(KeyError):
            async with lease.keep():
                raise KeyError("mine")


class TestElection:
    async def test_one_leads_then_the_next_with_a_greater_epoch(
        self, etcd: Etcd, etcd_prefix: str
    ) -> None:
        key, epochs, leading = f"{etcd_prefix}/leader", [], 0

        async def contend(name: str) -> None:
            nonlocal leading
            async with Election(etcd, key, name.encode(), 5).lead() as leadership:
                leading += 1
                assert leading == 1
                epochs.append(leadership.epoch)
                holder = await Election(etcd, key, b"", 5).leader()
                assert holder is not None
                assert holder.value == name.encode()
                result = await etcd.transact(
                    [leadership.fence], [Op.put(f"{etcd_prefix}/state", name.encode())]
                )
                assert result.succeeded
                leading -= 1

        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "c"):
                group.create_task(contend(name))
        assert epochs == sorted(set(epochs))
        assert len(epochs) == 3
        assert await etcd.get(key) is None

    async def test_a_silent_leader_is_fenced_off(
        self, etcd_server: EtcdServer, etcd_prefix: str
    ) -> None:
        key, loop = f"{etcd_prefix}/leader", asyncio.get_running_loop()
        async with (
            fault_proxy(etcd_server.endpoint) as proxy,
            Etcd([proxy.endpoint], timeout_s=1) as far,
            Etcd([etcd_server.endpoint]) as near,
            Election(far, key, b"old", 2).lead() as old,
        ):
            proxy.stall()

            async def lost_at() -> float:
                await old.lost.wait()
                return loop.time()

            async with asyncio.TaskGroup() as group:
                losing = group.create_task(lost_at())
                async with Election(near, key, b"new", 5).lead() as new:
                    assert old.lost.is_set()
                    assert losing.result() <= loop.time()
                    assert new.epoch > old.epoch
                    proxy.restore()
                    stale = await near.transact([old.fence], [Op.put(f"{etcd_prefix}/x", b"")])
                    assert not stale.succeeded
            assert await near.get(f"{etcd_prefix}/x") is None

    async def test_a_lost_reply_does_not_lose_the_election(
        self, etcd_server: EtcdServer, etcd_prefix: str
    ) -> None:
        key = f"{etcd_prefix}/leader"
        holding = asyncio.Event()

        async def hold(proxy: Any) -> None:
            await holding.wait()
            proxy.stall_replies()

        class Slow(Etcd):
            async def transact(self, *args: Any, **kwargs: Any) -> Any:
                if not holding.is_set():
                    holding.set()
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                return await super().transact(*args, **kwargs)

        async with (
            fault_proxy(etcd_server.endpoint) as proxy,
            Slow([proxy.endpoint], timeout_s=0.5) as far,
            Etcd([etcd_server.endpoint]) as near,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(hold(proxy))

            async def heal() -> None:
                await there(near, key)
                with pytest.raises(UnavailableError):
                    await far.get("anything")  # its reply is lost, too: the fault is in place
                proxy.restore()

            group.create_task(heal())
            async with Election(far, key, b"me", 10).lead() as leadership:
                held = await near.get(key)
                assert held is not None
                assert leadership.epoch == held.create_revision

    async def test_a_deleted_key_ends_the_leadership(self, etcd: Etcd, etcd_prefix: str) -> None:
        async with Election(etcd, etcd_prefix, b"me", 30).lead() as leadership:
            await etcd.delete(etcd_prefix)
            async with asyncio.timeout(5):
                await leadership.lost.wait()

    async def test_the_body_s_error_comes_out_and_the_key_goes(
        self, etcd: Etcd, etcd_prefix: str
    ) -> None:
        with pytest.raises(UnavailableError, match="of the body"):
            async with Election(etcd, etcd_prefix, b"me", 30).lead():
                raise UnavailableError("of the body")
        assert await etcd.get(etcd_prefix) is None


class TestAnnounce:
    async def test_from_bound_to_drained(
        self, etcd: Etcd, etcd_server: EtcdServer, etcd_prefix: str
    ) -> None:
        async with AsyncExitStack() as stack:
            running = Running("echo", "one", stack, etcd_prefix=etcd_prefix)
            await announce(running, etcd)
            running.address, running.metrics_address = "127.0.0.1:7", "127.0.0.1:8"
            key = f"{etcd_prefix}/services/echo/one"
            assert await etcd.get(key) is None
            for hook in running.on_bound:
                await hook()
            item = await etcd.get(key)
            assert item is not None
            assert json.loads(item.value) == {
                "address": "127.0.0.1:7",
                "metrics_address": "127.0.0.1:8",
            }
            (found,) = await announced(etcd, etcd_prefix)
            assert (found.service, found.instance, found.address) == ("echo", "one", "127.0.0.1:7")
            assert await announced(etcd, etcd_prefix, "other") == []
            for hook in running.on_drain:
                await hook()
            assert await etcd.get(key) is None

    async def test_a_lost_lease_is_replaced(
        self, etcd: Etcd, etcd_server: EtcdServer, etcd_prefix: str
    ) -> None:
        async with AsyncExitStack() as stack:
            running = Running("echo", "two", stack, etcd_prefix=etcd_prefix)
            await announce(running, etcd, ttl_s=2)
            for hook in running.on_bound:
                await hook()
            key = f"{etcd_prefix}/services/echo/two"
            item = await etcd.get(key)
            assert item is not None
            async with etcd.watching(key) as events:
                await anext(events)
                async with grpc.aio.insecure_channel(etcd_server.endpoint) as channel:
                    request = rpc.LeaseRevokeRequest(ID=item.lease)
                    await rpc_pb2_grpc.LeaseStub(channel).LeaseRevoke(request)
                values = [(await anext(events)).value for _ in range(2)]  # type: ignore[union-attr]
            assert values == [None, item.value]
        assert await etcd.get(key) is None

    async def test_unreachable_etcd_fails_the_start(self) -> None:
        async with Etcd(["127.0.0.1:1"], timeout_s=0.2) as etcd, AsyncExitStack() as stack:
            running = Running("echo", "three", stack)
            await announce(running, etcd)
            with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
                await running.on_bound[0]()
