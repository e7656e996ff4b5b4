"""`python -m benchmarks.storage.latency HOST:PORT MS`: a TCP proxy whose replies come MS later.

Prints its own host:port; ends with its standard input. The delay is added to each piece of a reply,
not to each in turn: the rate stays that of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

_PIECE = 2**18
_WAITING = 64  # pieces of one connection on their way


async def _delayed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float
) -> None:
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING)

    async def send() -> None:
        while True:
            due, data = await pieces.get()
            if not data:
                writer.write_eof()  # or the other side would stay, with nobody to read it
                return
            await asyncio.sleep(max(0.0, due - loop.time()))
            writer.write(data)
            await writer.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        while data := await reader.read(_PIECE):
            await pieces.put((loop.time() + delay_s, data))
        await pieces.put((0.0, b""))


async def _serve(host: str, port: int, delay_s: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            OSError, ExceptionGroup, asyncio.CancelledError
        ):  # a side went away: so does the other
            there, back = await asyncio.open_connection(host, port)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_delayed(reader, back, 0.0))
                    group.create_task(_delayed(there, writer, delay_s))
            finally:
                back.close()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    asyncio.run(_serve(host, int(port), float(sys.argv[2]) / 1e3))


if __name__ == "__main__":
    main()
