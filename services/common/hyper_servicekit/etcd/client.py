"""The etcd client: one channel to all members, bounded calls, no blind retry of a write."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self

import grpc
import grpc.aio
from aetcd import rpc
from aetcd.rpc import rpc_pb2_grpc

from hyper.errors import UnavailableError
from hyper_servicekit.config import ServiceSettings, split_address
from hyper_servicekit.etcd.errors import CompactedError, translate
from hyper_servicekit.etcd.lease import Lease
from hyper_servicekit.etcd.login import Login, Metadata
from hyper_servicekit.etcd.values import (
    MAX_OPERATIONS,
    Change,
    Compare,
    KeyValue,
    Op,
    Snapshot,
    TxnResult,
    key_value,
    prefix_end,
    txn_result,
)
from hyper_servicekit.etcd.watch import list_then_watch

_LISTING_ATTEMPTS = 3  # a listing that compaction overtakes starts again this often
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.enable_retries", 0),  # they can lose a stream and its deadline (ADR 0009)
    ("grpc.keepalive_time_ms", 10_000),  # etcd refuses pings more often than every 5 s
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 64 << 20),  # a page of large values, a batch of changes
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class Etcd:
    """An async context manager over an etcd cluster.

    A call waits for a connection, up to `timeout_s` in all, and then raises `UnavailableError`
    (ETCD_UNREACHABLE). A read is tried once more when its connection breaks; a write never is:
    its outcome is unknown, so read back before trying again.

    Args:
        endpoints: "host:port" of the members.
        timeout_s: for one call, retry included.
        credentials: for TLS; the certificate must be for the host of the first endpoint.
        login: who we are, where etcd asks for a user and a password.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout_s: float = 5.0,
        credentials: grpc.ChannelCredentials | None = None,
        login: Login | None = None,
    ) -> None:
        if not endpoints:
            raise ValueError("no etcd endpoint is set")
        for endpoint in endpoints:
            split_address(endpoint)
        self.endpoints = tuple(endpoints)
        self.timeout_s = timeout_s
        self._credentials = credentials
        self._login = login or Login()
        self._channel: grpc.aio.Channel | None = None

    @classmethod
    def of(cls, settings: ServiceSettings, *, timeout_s: float = 5.0) -> Self:
        """The etcd that a service's settings name."""
        tls = settings.etcd_tls
        return cls(
            settings.etcd_endpoints,
            timeout_s=timeout_s,
            credentials=None if tls is None else tls.credentials(),
            login=Login(settings.etcd_user, settings.etcd_password.get_secret_value()),
        )

    async def __aenter__(self) -> Self:
        target = await _target(self.endpoints)
        if self._credentials is None:
            channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        else:
            name = ("grpc.ssl_target_name_override", split_address(self.endpoints[0])[0])
            channel = grpc.aio.secure_channel(target, self._credentials, options=[*_OPTIONS, name])
        self._channel = channel
        self._kv = rpc_pb2_grpc.KVStub(channel)
        self._watch = rpc_pb2_grpc.WatchStub(channel)
        self._lease = rpc_pb2_grpc.LeaseStub(channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def get(self, key: str) -> KeyValue | None:
        """The key, or None."""
        answer = await self._read(self._kv.Range, rpc.RangeRequest(key=key.encode()))
        return key_value(answer.kvs[0]) if answer.kvs else None

    async def get_prefix(self, prefix: str, *, page: int = 1000) -> tuple[list[KeyValue], int]:
        """Every key under `prefix` in order, all as of the one revision that is returned."""
        for _ in range(_LISTING_ATTEMPTS):
            try:
                return await self._list(prefix, page)
            except CompactedError:
                continue  # the listing took longer than etcd keeps revisions: begin again
        raise UnavailableError(
            f"etcd compacts its history faster than {prefix!r} can be listed; "
            "raise --auto-compaction-retention",
            reason="ETCD_UNREACHABLE",
        )

    async def _list(self, prefix: str, page: int) -> tuple[list[KeyValue], int]:
        start, end, revision = prefix.encode(), prefix_end(prefix), 0
        items: list[KeyValue] = []
        while True:
            request = rpc.RangeRequest(key=start, range_end=end, limit=page, revision=revision)
            answer = await self._read(self._kv.Range, request)
            revision = revision or answer.header.revision
            items.extend(key_value(item) for item in answer.kvs)
            if not answer.more:
                return items, revision
            start = answer.kvs[-1].key + b"\0"

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Set a key; returns the revision.

        Raises:
            LeaseLostError: the lease is gone.
        """
        request = rpc.PutRequest(key=key.encode(), value=value, lease=lease)
        revision: int = (await self._write(self._kv.Put, request)).header.revision
        return revision

    async def delete(self, key: str) -> bool:
        """Remove a key; False if it was not there."""
        request = rpc.DeleteRangeRequest(key=key.encode())
        return bool((await self._write(self._kv.DeleteRange, request)).deleted)

    async def delete_prefix(self, prefix: str) -> int:
        """Remove every key under `prefix`; returns how many there were."""
        request = rpc.DeleteRangeRequest(key=prefix.encode(), range_end=prefix_end(prefix))
        return int((await self._write(self._kv.DeleteRange, request)).deleted)

    async def transact(
        self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TxnResult:
        """Run `success` if every condition holds, else `failure`; all at one revision.

        Raises:
            ValueError: more than 128 conditions or operations.
            LeaseLostError: the lease of a put is gone; nothing was done.
        """
        for what, parts in (("compares", compares), ("success", success), ("failure", failure)):
            if len(parts) > MAX_OPERATIONS:
                raise ValueError(f"{len(parts)} {what}: etcd takes at most {MAX_OPERATIONS}")
        request = rpc.TxnRequest(
            compare=[compare.to_rpc() for compare in compares],
            success=[operation.to_rpc() for operation in success],
            failure=[operation.to_rpc() for operation in failure],
        )
        return txn_result(await self._write(self._kv.Txn, request))

    async def compact(self, revision: int) -> None:
        """Forget what keys were before `revision`; the space is used again.

        Raises:
            CompactedError: that has been done already.
        """
        await self._write(self._kv.Compact, rpc.CompactionRequest(revision=revision))

    async def snapshot(self) -> AsyncIterator[bytes]:
        """The whole database at one revision, as `etcdctl snapshot restore` takes it."""
        assert self._channel is not None
        stub = rpc_pb2_grpc.MaintenanceStub(self._channel)
        try:
            shown = await self.shown()
            async for part in stub.Snapshot(rpc.SnapshotRequest(), metadata=shown):
                yield part.blob
        except grpc.aio.AioRpcError as error:
            raise translate(error, self.endpoints) from error

    async def watch(self, prefix: str) -> AsyncGenerator[Snapshot | Change, None]:
        """First a `Snapshot` of everything under `prefix`, then every `Change` after it, in order.

        The first listing raises when etcd is unreachable. After it the watch outlives broken
        connections and restarts of etcd: it resumes behind the last change, and where etcd has
        compacted that away it lists again and yields a new `Snapshot`.
        """
        async with aclosing(list_then_watch(self, self._watch, prefix)) as changes:
            async for change in changes:
                yield change

    @asynccontextmanager
    async def watching(self, prefix: str) -> AsyncIterator[AsyncIterator[Snapshot | Change]]:
        """`watch` whose stream ends with the block, also when the loop over it is left early."""
        async with aclosing(self.watch(prefix)) as changes:
            yield changes

    async def grant(self, ttl_s: float) -> Lease:
        """A new lease; it expires after `ttl_s` (rounded up to seconds) unless kept."""
        asked_at = asyncio.get_running_loop().time()
        request = rpc.LeaseGrantRequest(TTL=max(1, math.ceil(ttl_s)))
        answer = await self._write(self._lease.LeaseGrant, request)
        return Lease(self, self._lease, answer.ID, float(answer.TTL), asked_at)

    async def shown(self, timeout_s: float | None = None) -> Metadata:
        """What streams of this client's stubs have to show; unary calls do by themselves.

        Raises:
            grpc.aio.AioRpcError: etcd cannot be reached, or does not know us.
        """
        assert self._channel is not None
        return await self._login.metadata(self._channel, timeout_s or self.timeout_s)

    def refused(self, shown: Metadata) -> None:
        """A stream was refused, perhaps because of what it showed."""
        self._login.forget(shown)

    async def _ask(self, method: Any, request: Any, timeout_s: float) -> Any:
        """A unary call. One whose token is refused was not carried out, and is made again."""
        for last in (False, True):
            shown = await self.shown(timeout_s)
            try:
                return await method(request, timeout=timeout_s, wait_for_ready=True, metadata=shown)
            except grpc.aio.AioRpcError as error:
                if last or not self._login.was_refused(error, shown):
                    raise
        raise AssertionError("unreachable")

    async def _write(self, method: Any, request: Any) -> Any:
        try:
            return await self._ask(method, request, self.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise translate(error, self.endpoints, write=True) from error

    async def _read(self, method: Any, request: Any) -> Any:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout_s
        for last in (False, True):
            try:
                left = max(0.001, deadline - loop.time())
                return await self._ask(method, request, left)
            except grpc.aio.AioRpcError as error:
                if last or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise translate(error, self.endpoints) from error
        raise AssertionError("unreachable")


async def _target(endpoints: Sequence[str]) -> str:
    """One gRPC target for all members; names are looked up now when there are several."""
    if len(endpoints) == 1:
        return endpoints[0]
    loop = asyncio.get_running_loop()
    found: list[str] = []
    for endpoint in endpoints:
        host, port = split_address(endpoint)
        try:
            known = await loop.getaddrinfo(
                host, port, family=socket.AF_INET, type=socket.SOCK_STREAM
            )
        except OSError:
            continue  # the other members may do; with none left the error below names all
        found.extend(f"{address[0]!s}:{port}" for *_, address in known[:1])
    if not found:
        raise UnavailableError(
            f"no etcd endpoint of {', '.join(endpoints)} can be resolved; check the names",
            reason="ETCD_UNREACHABLE",
            metadata={"endpoints": ",".join(endpoints)},
        )
    return "ipv4:" + ",".join(found)
