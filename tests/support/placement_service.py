"""The placement service on real gRPC, with a state that tests make and no cluster behind it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import grpc.aio

from hyper_scheduler.autoscaler import Autoscaler
from hyper_scheduler.placement_servicer import PlacementServicer
from hyper_servicekit.interceptor import CallInterceptor
from hyperapi.scheduler.v1 import placement_service_pb2_grpc as placement


class Leading:
    """The parts of a driver that the service needs, of one that leads."""

    def __init__(self, state: Any, autoscaler: Autoscaler | None) -> None:
        self.autoscaler = autoscaler
        self._term = SimpleNamespace(state=state, ended=False)

    async def leading(self) -> Any:
        return self._term


@contextmanager
def placement_service(state: Any, autoscaler: Autoscaler | None) -> Iterator[str]:
    """Its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, str]:
        server = grpc.aio.server(interceptors=[CallInterceptor()])
        servicer = PlacementServicer(cast(Any, Leading(state, autoscaler)))
        placement.add_PlacementServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, f"127.0.0.1:{port}"

    try:
        server, address = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
        try:
            yield address
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
