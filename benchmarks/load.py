"""`python -m benchmarks.load [--clients 1000] [--minutes 5] [--json]`: many clients at once.

A thousand clients, each with connections of its own to the scheduler and the storage gateway, call
both in turn with a pause between calls, as programs that watch and read do. Every half minute:
calls, latency (p50, p99), the services' memory. Then the pauses are left out, on a cluster that
takes in few calls at once: those too many must be refused with RESOURCE_EXHAUSTED and a time to
come back (`RetryInfo`), none may fail in another way, and the services must go on.

`--json` ends with one object: {"steady": {"minutes": [...], "p50_s", "p99_s", "failed",
"memory_growth"}, "overload": {"ok", "refused", "refused_without_retry_info", "failed", "alive"}}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil

from benchmarks.scheduler.cluster import Cluster, cluster, recipe
from hyper._wire_errors import from_rpc_error
from hyper.client import Client
from hyper.errors import ResourceExhaustedError
from hyperapi.scheduler.v1 import cluster_service_pb2, workflow_service_pb2
from hyperapi.scheduler.v1.cluster_service_pb2_grpc import ClusterServiceStub
from hyperapi.scheduler.v1.workflow_service_pb2_grpc import WorkflowServiceStub
from hyperapi.storage.v1 import dataset_service_pb2
from hyperapi.storage.v1.dataset_service_pb2_grpc import DatasetServiceStub

DATASET = "bench/load"
PAUSE_S = 4.0  # between the calls of a client, on average
PERIOD_S = 30.0
TIMEOUT_S = 30.0
FEW = {"MAX_CONCURRENT_RPCS": "64"}
OVERLOAD_S = 30.0


@dataclass
class Tally:
    """What calls have come to."""

    seconds: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    without_retry_info: int = 0

    def failed(self, error: grpc.aio.AioRpcError) -> float:
        """Count a call that failed; returns when to come back."""
        translated = from_rpc_error(error)
        if not isinstance(translated, ResourceExhaustedError):
            self.codes[error.code().name] += 1
            return PAUSE_S
        self.refused += 1
        if not translated.retry_after_s:
            self.without_retry_info += 1
        return translated.retry_after_s or PAUSE_S


class Caller:
    """One client: two connections, and calls in turn."""

    def __init__(self, where: Cluster, workflow: str, tally: Tally) -> None:
        # a pool of its own for each: otherwise gRPC shares one connection among all
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._scheduler = grpc.aio.insecure_channel(where.address("scheduler"), options)
        self._storage = grpc.aio.insecure_channel(where.address("storage-gateway"), options)
        cluster_, workflows = (
            ClusterServiceStub(self._scheduler),
            WorkflowServiceStub(self._scheduler),
        )
        data = DatasetServiceStub(self._storage)
        tenant, _, name = DATASET.partition("/")
        dataset = f"tenants/{tenant}/datasets/{name}"
        version = f"{dataset}/versions/1"
        self._calls: list[tuple[Any, Any]] = [
            (workflows.GetWorkflow, workflow_service_pb2.GetWorkflowRequest(name=workflow)),
            (data.GetDataset, dataset_service_pb2.GetDatasetRequest(name=dataset)),
            (cluster_.GetCluster, cluster_service_pb2.GetClusterRequest()),
            (data.ListFiles, dataset_service_pb2.ListFilesRequest(parent=version, page_size=100)),
            (workflows.ListTasks, workflow_service_pb2.ListTasksRequest(
                parent=f"{workflow}/experiments/noop", page_size=100)),
            (data.GetFiles, dataset_service_pb2.GetFilesRequest(parent=version, paths=["f/7"])),
        ]  # fmt: skip
        self._tally = tally

    async def run(self, end: float, pause_s: float) -> None:
        """Call until `end`, with pauses of `pause_s` on average."""
        turn = random.randrange(len(self._calls))
        await asyncio.sleep(random.uniform(0, pause_s))
        while time.perf_counter() < end:
            call, request = self._calls[turn % len(self._calls)]
            turn += 1
            start = time.perf_counter()
            wait_s = random.uniform(0, 2 * pause_s)
            try:
                await call(request, timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                wait_s = max(wait_s, self._tally.failed(error))
            else:
                self._tally.seconds.append(time.perf_counter() - start)
            await asyncio.sleep(min(wait_s, max(0.0, end - time.perf_counter())))

    async def close(self) -> None:
        """Close both connections."""
        await asyncio.gather(self._scheduler.close(), self._storage.close())


def memory_mb(where: Cluster) -> dict[str, float]:
    """Of the two services."""
    return {
        role: round(sum(psutil.Process(p).memory_info().rss for p in where.pids(role)) / 1e6, 1)
        for role in ("scheduler", "storage-gateway")
    }


def alive(where: Cluster) -> bool:
    """Whether every process of the cluster still runs."""
    return all(psutil.pid_exists(int(each["pid"])) for each in where.processes)


def prepare(where: Cluster) -> str:
    """A workflow and a dataset to ask for; the workflow's name."""
    with Client(where.endpoint, tenant="bench") as client:
        with client.session(DATASET) as session:
            session.write_many((f"f/{k}", b"x" * 100) for k in range(1000))
        workflow = client.submit(recipe(200))
        workflow.wait(timeout_s=120, check=True)
        return workflow.name


async def steady(where: Cluster, workflow: str, clients: int, seconds: float) -> dict[str, Any]:
    """Calls with pauses; figures of every half minute and of all."""
    whole = Tally()
    callers = [Caller(where, workflow, whole) for _ in range(clients)]
    end = time.perf_counter() + seconds
    tasks = [asyncio.create_task(caller.run(end, PAUSE_S)) for caller in callers]
    periods: list[dict[str, Any]] = []
    seen = 0
    while time.perf_counter() < end:
        await asyncio.sleep(min(PERIOD_S, max(0.1, end - time.perf_counter())))
        part = whole.seconds[seen:]
        seen += len(part)
        if part:
            periods.append({**_figures(part), "calls": len(part), "memory_mb": memory_mb(where)})
            print(json.dumps(periods[-1]), file=sys.stderr, flush=True)
    await asyncio.gather(*tasks)
    await asyncio.gather(*(caller.close() for caller in callers))
    first, last = periods[1 if len(periods) > 2 else 0], periods[-1]
    growth = {r: round(last["memory_mb"][r] / first["memory_mb"][r], 3) for r in last["memory_mb"]}
    return {
        **_figures(whole.seconds), "calls": len(whole.seconds), "clients": clients,
        "failed": dict(whole.codes), "refused": whole.refused, "memory_growth": growth,
        "minutes": periods, "alive": alive(where),
    }  # fmt: skip


async def overload(where: Cluster, workflow: str, clients: int, seconds: float) -> dict[str, Any]:
    """Calls without pauses, far more than are taken in."""
    tally = Tally()
    callers = [Caller(where, workflow, tally) for _ in range(clients)]
    end = time.perf_counter() + seconds
    await asyncio.gather(*(caller.run(end, 0.0) for caller in callers))
    await asyncio.gather(*(caller.close() for caller in callers))
    after = memory_mb(where)
    with Client(where.endpoint, tenant="bench") as client:
        client.workflow(workflow)  # raises if it does not answer any more
    return {
        "clients": clients, "ok": len(tally.seconds), "refused": tally.refused,
        "refused_without_retry_info": tally.without_retry_info, "failed": dict(tally.codes),
        "memory_mb": after, "alive": alive(where), **_figures(tally.seconds),
    }  # fmt: skip


def _figures(seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, (50, 99)) if seconds else (0.0, 0.0)
    return {"p50_s": round(float(p50), 4), "p99_s": round(float(p99), 4)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--quick", action="store_true", help="100 clients, 20 s; says little")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    clients, seconds = arguments.clients, 60 * arguments.minutes
    if arguments.quick:
        clients, seconds = min(clients, 100), 20.0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with cluster(1, 2) as where:
        calm = asyncio.run(steady(where, prepare(where), clients, seconds))
    few = {
        f"HYPER_{service}__{k}": v for k, v in FEW.items() for service in ("SCHEDULER", "STORAGE")
    }
    with cluster(1, 2, settings=few) as where:
        rush = asyncio.run(
            overload(where, prepare(where), clients, 5.0 if arguments.quick else OVERLOAD_S)
        )
    result = {"steady": calm, "overload": rush}
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
