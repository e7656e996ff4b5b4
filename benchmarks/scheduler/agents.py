"""Thousands of light workers in one process, over real gRPC: they answer every task at once.

`python -m benchmarks.scheduler.agents ADDRESS COUNT SECONDS` prints what they saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator

import grpc.aio

from hyperapi.worker.v1 import agent_service_pb2 as wire
from hyperapi.worker.v1.agent_service_pb2_grpc import AgentServiceStub

_CHANNELS = 20
_DIALS_AT_ONCE = 50


Call = grpc.aio.StreamStreamCall[wire.ConnectRequest, wire.ConnectResponse]


class Agents:
    """All of them; `broken` streams are what must not be."""

    def __init__(self) -> None:
        self.welcomed = self.broken = self.tasks = 0
        self.changed = asyncio.Event()

    async def one(self, channel: grpc.aio.Channel, name: str, gate: asyncio.Semaphore) -> None:
        """One worker's life: a stream that stays."""
        up: asyncio.Queue[wire.ConnectRequest] = asyncio.Queue()
        beat_s = 5.0

        async def requests() -> AsyncIterator[wire.ConnectRequest]:
            yield wire.ConnectRequest(hello=wire.Hello(worker=name, slots=1, cpus=1))
            sequence = 0
            while True:
                try:
                    async with asyncio.timeout(beat_s):
                        request = await up.get()
                except TimeoutError:
                    sequence += 1
                    request = wire.ConnectRequest(heartbeat=wire.Heartbeat(sequence=sequence))
                yield request

        await gate.acquire()
        call: Call = AgentServiceStub(channel).Connect(requests())
        batches = 0
        try:
            async for response in call:
                kind = response.WhichOneof("kind")
                if kind == "welcome":
                    interval = response.welcome.heartbeat_interval
                    beat_s = interval.seconds + interval.nanos / 1e9
                    self.welcomed += 1
                    gate.release()
                elif kind == "tasks":
                    batches += 1
                    batch = wire.StatusBatch(sequence=batches)
                    for group in response.tasks.groups:
                        count = len(group.indices)
                        self.tasks += count
                        batch.successes.add(
                            experiment=group.experiment, epoch=group.epoch,
                            indices=group.indices, numbers=group.numbers,
                            results_json=["1"] * count, wall_s=[1.0] * count,
                            cpu_s=[0.0] * count, peak_rss_bytes=[0] * count,
                        )  # fmt: skip
                    up.put_nowait(wire.ConnectRequest(status=batch))
        except grpc.aio.AioRpcError:
            pass
        self.broken += 1


async def main() -> None:
    """Connect all, stay for a while, say what happened."""
    address, count, stay_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    agents, gate, start = Agents(), asyncio.Semaphore(_DIALS_AT_ONCE), time.monotonic()
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(_CHANNELS)]
    tasks = [
        asyncio.create_task(agents.one(channels[i % _CHANNELS], f"light-{i:05d}", gate))
        for i in range(count)
    ]
    while agents.welcomed < count and not agents.broken:  # noqa: ASYNC110  (a benchmark's poll)
        await asyncio.sleep(0.1)
    connect_s = time.monotonic() - start
    print("connected", flush=True)
    await asyncio.sleep(stay_s)
    facts = {"connect_s": connect_s, "broken": agents.broken, "tasks": agents.tasks}
    print(json.dumps(facts), flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=20)


if __name__ == "__main__":
    asyncio.run(main())
