"""List, then watch; resume behind the last change; list again after a compaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from aetcd import rpc

from hyper.errors import UnavailableError
from hyper_servicekit.etcd.errors import CompactedError
from hyper_servicekit.etcd.login import Metadata
from hyper_servicekit.etcd.values import Change, Snapshot, prefix_end
from hyper_servicekit.logs import get_logger

if TYPE_CHECKING:
    from hyper_servicekit.etcd.client import Etcd

log = get_logger(__name__)
_BACKOFF_S = (0.05, 2.0)  # first and longest pause after a broken stream
_HAS_LEADER = (("hasleader", "true"),)  # a member cut off from its cluster must say so


async def list_then_watch(
    etcd: Etcd, stub: Any, prefix: str
) -> AsyncGenerator[Snapshot | Change, None]:
    """See `Etcd.watch`."""
    items, revision = await etcd.get_prefix(prefix)
    yield Snapshot(tuple(items), revision)
    pause_s = _BACKOFF_S[0]
    while True:
        stream: _Stream | None = None
        shown: Metadata = ()
        try:
            shown = await etcd.shown()
            stream = _Stream(stub, prefix, revision + 1, shown)
            async for response in stream.responses():
                pause_s = _BACKOFF_S[0]
                for event in response.events:
                    deleted = event.type == rpc.Event.DELETE
                    value = None if deleted else event.kv.value
                    yield Change(event.kv.key.decode(), value, event.kv.mod_revision)
                    # Only the last event of the batch ends its revision; resuming happens
                    # between batches alone, so moving on here loses nothing.
                    revision = event.kv.mod_revision
                if not response.events and not response.created:  # a progress notice
                    revision = max(revision, response.header.revision)
            etcd.refused(shown)  # etcd has ended it
        except CompactedError:
            log.info("watch relists", prefix=prefix, revision=revision)
            try:
                items, revision = await etcd.get_prefix(prefix)
            except UnavailableError as error:
                log.warning("watch cannot list", prefix=prefix, error=str(error))
            else:
                yield Snapshot(tuple(items), revision)
                continue
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else "BROKEN"
            log.warning("watch broken, resumes", prefix=prefix, revision=revision, code=code)
            etcd.refused(shown)
        finally:
            if stream is not None:
                stream.cancel()
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _BACKOFF_S[1])


class _Stream:
    """One watch stream from `start` on."""

    def __init__(self, stub: Any, prefix: str, start: int, shown: Metadata) -> None:
        self._call = stub.Watch(wait_for_ready=True, metadata=_HAS_LEADER + shown)
        self._request = rpc.WatchRequest(
            create_request=rpc.WatchCreateRequest(
                key=prefix.encode(),
                range_end=prefix_end(prefix),
                start_revision=start,
                progress_notify=True,
            )
        )

    async def responses(self) -> AsyncIterator[Any]:
        """The server's answers until the stream ends.

        Raises:
            CompactedError: `start` is gone.
            grpc.aio.AioRpcError: the stream broke.
        """
        await self._call.write(self._request)
        while (response := await self._call.read()) is not grpc.aio.EOF:
            if response.compact_revision:
                raise CompactedError(f"compacted at {response.compact_revision}")
            if response.canceled:
                log.warning("watch cancelled by etcd", reason=response.cancel_reason)
                return
            yield response

    def cancel(self) -> None:
        """End the stream."""
        self._call.cancel()
