"""A scheduler that launches machines, with a real Prometheus beside it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hyper.client import Client
from hyper.cluster import probes
from hyper.cluster.ports import HeldPorts
from hyper.cluster.programs import find_prometheus
from hyper.config import SCHEDULER
from hyperapi.scheduler.v1 import placement_service_pb2 as placement
from hyperapi.scheduler.v1.placement_service_pb2_grpc import PlacementServiceStub
from tests.support.servers import ServerProcess

SCRAPE_S = 1


def offer(name: str, **changes: Any) -> dict[str, Any]:
    """Of the process provider."""
    return {"name": name, "provider": "process", "zone": name, "instance_type": name, "cpus": 2,
            "spot": 0.1, "on_demand": 0.3, "max": 8, **changes}  # fmt: skip


def settings(
    tmp_path: Path, offers: list[dict[str, Any]], prometheus: str = "", **changes: Any
) -> dict[str, str]:
    """Variables of a scheduler."""
    file = tmp_path / "offers.yaml"
    file.write_text(json.dumps({"version": 1, "as_of": "2026-11-01", "offers": offers}))
    placed = {"offers": str(file), "interval_s": 0.5, "drain_s": 5, "window": "10s",
              "cluster": tmp_path.name, "prometheus": prometheus,
              "options": {"process": {"folder": str(tmp_path / "agents")}}} | changes  # fmt: skip
    return {
        f"HYPER_SCHEDULER__PLACEMENT__{key.upper()}": (
            json.dumps(value) if isinstance(value, dict) else str(value)
        )
        for key, value in placed.items()
    } | {"HYPER_SCHEDULER__METRICS_LISTEN": "127.0.0.1:0"}


def agents(tmp_path: Path) -> list[psutil.Process]:
    """Agents that the process provider has started and that live."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        try:
            mine = (process.info["environ"] or {}).get("HYPER_WORKER__WORKDIR", "")
            line = process.info["cmdline"] or []
        except psutil.Error:
            continue
        if mine.startswith(str(tmp_path / "agents")) and line[-2:] == ["-m", "hyper_worker"]:
            found.append(process)
    return found


def end_agents(tmp_path: Path) -> None:
    """Kill what a failed test has left."""
    for process in agents(tmp_path):
        process.kill()


def cost(client: Client) -> placement.GetCostResponse:
    """What the tenant has spent."""
    request = placement.GetCostRequest(parent="tenants/default")
    response: placement.GetCostResponse = client.call(
        SCHEDULER, PlacementServiceStub, "GetCost", request
    )
    return response


@dataclass(frozen=True, slots=True)
class PrometheusServer:
    """One that runs, and the file that says whom it scrapes."""

    url: str
    targets: Path
    server: ServerProcess

    def scrape(self, address: str) -> None:
        """From now on."""
        new = self.targets.with_suffix(".new")
        new.write_text(json.dumps([{"targets": [address]}]))
        new.replace(self.targets)

    def start(self) -> None:
        """Start it, or start it again after `kill` or `stop`."""
        self.server.start(lambda: ready(self.url))


@contextmanager
def prometheus_server(folder: Path) -> Iterator[PrometheusServer]:
    """A real one, on a port of the kernel's."""
    program = find_prometheus()
    assert program is not None
    folder.mkdir()
    targets = folder / "targets.json"
    targets.write_text("[]")
    jobs = [{"job_name": "hyper", "file_sd_configs": [{"files": [str(targets)],
                                                      "refresh_interval": "1s"}]}]  # fmt: skip
    config = folder / "prometheus.json"
    config.write_text(
        json.dumps({"global": {"scrape_interval": f"{SCRAPE_S}s"}, "scrape_configs": jobs})
    )
    with HeldPorts() as held:
        port = held.one()
    command = [
        str(program.path), f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}",
        f"--storage.tsdb.path={folder / 'data'}",
    ]  # fmt: skip
    process = ServerProcess("prometheus", command, folder, folder / "log")
    server = PrometheusServer(f"http://127.0.0.1:{port}", targets, process)
    try:
        server.start()
        yield server
    finally:
        process.kill()


async def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition of other processes."""
    try:
        async with asyncio.timeout(timeout_s):
            while not await asyncio.to_thread(condition):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not after {timeout_s:g} s: {what}") from None


def ready(url: str) -> bool:
    """Whether a Prometheus answers."""
    return probes.answers(url.removeprefix("http://"), "/-/ready")
