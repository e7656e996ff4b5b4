"""A local cluster to measure: `hyper up` in a folder of its own, and the CPU time of its parts."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.scheduler import cpu
from hyper.client import Client

ROOT = Path(__file__).parents[2]
_ROLES = {"etcd", "s3", "scheduler", "storage-gateway", "worker"}


class Cluster:
    """What runs, and what it has used."""

    def __init__(self, home: Path) -> None:
        facts = json.loads((home / "cluster.json").read_text())
        self.endpoint = str(facts["endpoint"])
        self._s3: dict[str, str] = facts["s3"]
        self.processes: list[dict[str, Any]] = [
            each for each in facts["processes"] if each["role"] in _ROLES
        ]

    def s3(self) -> dict[str, str]:
        """What a program needs to open the bucket itself."""
        keys = configparser.ConfigParser()
        keys.read(self._s3["credentials_file"])
        found = keys["default"]
        return {
            "endpoint": self._s3["endpoint"],
            "bucket": self._s3["bucket"],
            "access_key": found["aws_access_key_id"],
            "secret_key": found["aws_secret_access_key"],
        }

    def address(self, role: str) -> str:
        """host:port of the first process of a role."""
        return str(next(each["address"] for each in self.processes if each["role"] == role))

    def pids(self, role: str) -> list[int]:
        """The processes of a role."""
        return [int(each["pid"]) for each in self.processes if each["role"] == role]

    def cpu_s(self) -> dict[str, float]:
        """CPU time so far by role; a worker's includes its tasks."""
        used: dict[str, float] = {}
        for each in self.processes:
            total = sum(map(cpu.cpu_s, cpu.descendants(int(each["pid"]))))
            used[each["role"]] = used.get(each["role"], 0.0) + total
        return used

    def metrics(self, role: str) -> str:
        """/metrics of the first process of a role."""
        address = next(each["metrics_address"] for each in self.processes if each["role"] == role)
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
        return text


def hyper(
    home: Path, *arguments: str, timeout_s: float = 240, settings: dict[str, str] | None = None
) -> None:
    """Run `hyper ...` on the cluster of `home`."""
    environment = {k: v for k, v in os.environ.items() if k != "HYPER_ENDPOINT"}
    environment |= {"HYPER_HOME": str(home), "PYTHONPATH": str(ROOT)} | (settings or {})
    subprocess.run(
        [sys.executable, "-m", "hyper.cli.main", *arguments],
        env=environment, check=True, timeout=timeout_s, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


@contextmanager
def cluster(
    workers: int = 1, slots: int = 2, settings: dict[str, str] | None = None
) -> Iterator[Cluster]:
    """`hyper up`, then `hyper down`."""
    with tempfile.TemporaryDirectory(prefix="hyper-bench-") as folder:
        home = Path(folder) / "home"
        hyper(home, "up", "--workers", str(workers), "--slots", str(slots), settings=settings)
        try:
            yield Cluster(home)
        finally:
            hyper(home, "down")


def recipe(
    tasks: int, milliseconds: int = 0, name: str = "bench", function: str = "task"
) -> dict[str, Any]:
    """No-op tasks, each with parameters of its own."""
    return {
        "version": 1,
        "name": name,
        "experiments": {
            "noop": {
                "function": f"benchmarks.scheduler.work:{function}",
                "parameters": {
                    "i": {"range": [0, tasks]},
                    "group": "g",
                    "milliseconds": milliseconds,
                },
            }
        },
    }


def run(where: Cluster, client: Client, what: dict[str, Any]) -> dict[str, Any]:
    """Submit, wait for the end, and say what it cost."""
    before, start = where.cpu_s(), time.perf_counter()
    workflow = client.submit(what)
    workflow.wait(timeout_s=600)
    wall_s = time.perf_counter() - start
    after = where.cpu_s()
    by_role = {role: after[role] - before.get(role, 0.0) for role in after}
    return {"wall_s": wall_s, "cpu_s": sum(by_role.values()), "by_role": by_role}
