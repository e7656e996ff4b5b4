"""A cluster whose every process can be killed, stopped or cut off."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from hyper.client import Client
from hyper_servicekit.config import S3Settings
from scripts.fetch_etcd import CannotFetchError, fetch
from tests.support.proxy import FaultProxy, fault_proxy
from tests.support.servers import EtcdServer, run_etcd
from tests.support.services import ServiceProcess, s3_environment, started

HEARTBEAT_S, LEASE_S, LEADER_TTL_S = 0.5, 3.0, 2.0


class ProxyThread:
    """The fault proxy in a thread of its own, for tests that are not asynchronous."""

    def __init__(self, endpoint: str) -> None:
        self._target = endpoint
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()))
        self.proxy: FaultProxy | None = None

    def __enter__(self) -> ProxyThread:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._loop.close()

    @property
    def endpoint(self) -> str:
        assert self.proxy is not None
        return self.proxy.endpoint

    def do(self, name: str) -> None:
        """`cut`, `stall`, `stall_replies`, `slow` or `restore`."""
        assert self.proxy is not None
        self._loop.call_soon_threadsafe(getattr(self.proxy, name))

    async def _run(self) -> None:
        async with fault_proxy(self._target) as proxy:
            self.proxy = proxy
            self._ready.set()
            await self._stop.wait()


@dataclass
class FaultCluster:
    """etcd, two schedulers, a gateway, three workers; the last speaks through a proxy."""

    etcd: EtcdServer
    schedulers: list[ServiceProcess]
    storage: ServiceProcess
    workers: list[ServiceProcess]
    proxy: ProxyThread

    def client(self) -> Client:
        addresses = ",".join(each.address for each in self.schedulers)
        return Client(addresses, tenant="test", patience_s=60.0)

    def leader(self, client: Client) -> ServiceProcess:
        """The scheduler that leads."""
        address = client.cluster().leader
        return next(each for each in self.schedulers if each.address == address)


@contextmanager
def run_cluster(folder: Path, s3: S3Settings) -> Iterator[FaultCluster]:
    """All of it in `folder`; SIGKILL at the end for what is left."""
    try:
        program = fetch()
    except CannotFetchError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"tests that kill etcd need one that survives it: {error}")
    with ExitStack() as stack:
        etcd = stack.enter_context(run_etcd(folder, program))
        common = {
            "ETCD_ENDPOINTS": json.dumps([etcd.endpoint]),
            "ETCD_PREFIX": "/faults",
            "LOG_FORMAT": "console",
            **s3_environment(s3),
        }

        start = partial(started, stack, folder)
        timing = {
            "HEARTBEAT_S": str(HEARTBEAT_S), "LEASE_S": str(LEASE_S),
            "LEADER_TTL_S": str(LEADER_TTL_S),
        }  # fmt: skip
        schedulers = [
            start(f"scheduler-{i}", "hyper_scheduler", "SCHEDULER", common | timing)
            for i in range(2)
        ]
        storage = start("storage", "hyper_storage", "STORAGE", common)
        proxy = stack.enter_context(ProxyThread(schedulers[0].address))
        direct = ",".join(each.address for each in schedulers)
        workers = [
            start(
                f"worker-{i}",
                "hyper_worker",
                "WORKER",
                {
                    "SCHEDULER_ENDPOINT": direct if i < 2 else proxy.endpoint,
                    "SLOTS": "2",
                    "WORKDIR": str(folder / "work"),
                    "LOG_FORMAT": "console",
                    "INSTANCE": f"worker-{i}",
                },
            )
            for i in range(3)
        ]
        yield FaultCluster(etcd, schedulers, storage, workers, proxy)
