"""A TCP proxy that breaks connections in the ways networks do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FaultProxy:
    """Forwards a port of this machine to a server until told otherwise; see `fault_proxy`."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._requests, self._replies, self._accepts = asyncio.Event(), asyncio.Event(), True
        self._delay_s = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.endpoint = ""
        self.restore()

    def restore(self) -> None:
        """Everything passes again."""
        self._accepts, self._delay_s = True, 0.0
        self._requests.set()
        self._replies.set()

    def stall(self) -> None:
        """Nothing passes, nothing is closed: a machine that has gone silent."""
        self._requests.clear()
        self._replies.clear()

    def stall_replies(self) -> None:
        """Requests arrive, replies are held back."""
        self._replies.clear()

    def slow(self) -> None:
        """Every packet takes a third of a second, in both directions."""
        self._delay_s = 1 / 3

    def cut(self) -> None:
        """Close all connections and every new one until `restore`."""
        self._accepts = False
        for writer in list(self._writers):
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            if not self._accepts:
                return
            other_reader, other = await asyncio.open_connection(self._host, self._port)
            self._writers |= {writer, other}
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, other, self._requests))
                    group.create_task(self._pump(other_reader, writer, self._replies))
            finally:
                self._writers -= {writer, other}
                other.close()
        except (OSError, ExceptionGroup):
            return  # the server is not there, or a side went away: so does this connection
        finally:
            writer.close()

    async def close(self) -> None:
        """End every connection."""
        self.cut()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            await gate.wait()
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("closed by one side")


@asynccontextmanager
async def fault_proxy(endpoint: str, on: str = "127.0.0.1") -> AsyncIterator[FaultProxy]:
    """A proxy before `endpoint` ("host:port"), at an address of this machine; its port is free."""
    host, _, port = endpoint.rpartition(":")
    proxy = FaultProxy(host, int(port))
    server = await asyncio.start_server(proxy.serve, on, 0)
    proxy.endpoint = f"{on}:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
