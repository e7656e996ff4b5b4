"""`python -m benchmarks.worker [--quick] [--json] [--image IMAGE]`: what a task costs on a node.

A process task beside a bare fork of the same shell, a container task beside `docker run` by hand,
in turn, round by round; then a thousand short container tasks, and what is left behind by them:
containers, networks, volumes, processes, descriptors. Without a daemon that answers, and an image,
the container figures are null with the reason.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hyper.client import Client
from hyper_worker.config import WorkerSettings
from hyper_worker.core.model import Exit, Job, Key
from hyper_worker.folders import Folders
from hyper_worker.gpus import GpuPool, Nvml
from hyper_worker.runner.base import Output, Runner
from hyper_worker.runner.container import ContainerRunner, ContainerSettings
from hyper_worker.runner.guard import Guard
from hyper_worker.runner.isolation import Isolation
from hyper_worker.runner.orphans import adopt_orphans
from hyper_worker.runner.process import ProcessRunner
from hyper_worker.secrets import Secrets
from hyper_worker.staging.cache import Cache
from hyper_worker.staging.stage import Stage

IMAGE = "python:3.11-slim-bookworm"
CONCURRENT = 4


class Log:
    """Takes output in."""

    def write(self, data: bytes) -> None:
        """Nothing is kept."""


class Ends:
    """Sees how attempts end."""

    def __init__(self) -> None:
        self.exits: list[Exit] = []

    def output(self, key: Key) -> Output:
        """See `Sink`."""
        return Log()

    def ended(self, ends: list[tuple[Key, Exit]]) -> None:
        """See `Sink`."""
        self.exits += [exit_ for _, exit_ in ends]

    def returned(self, keys: list[Key]) -> None:
        """See `Sink`."""
        raise AssertionError("commands are never handed back")


@dataclass(frozen=True, slots=True)
class Node:
    """A worker's parts without its agent."""

    stage: Stage
    processes: ProcessRunner
    containers: ContainerRunner


@contextmanager
def node() -> Iterator[Node]:
    """All parts in a folder that is gone at the end."""
    root = Path(tempfile.mkdtemp(prefix="hyper-bench-"))
    adopt_orphans()
    guard, folders = Guard(), Folders(root)
    isolation = Isolation(None, 0, [])
    settings = WorkerSettings()
    try:
        with ThreadPoolExecutor(8) as threads, Client("127.0.0.1:1") as client:
            stage = Stage(
                client, Cache(root / "cache", 1 << 30), folders.root, threads,
                lambda job: Secrets(), isolation, GpuPool(Nvml()),
            )  # fmt: skip
            containers = ContainerRunner(
                "",
                ContainerSettings(
                    settings.container_user, settings.container_pids, 0,
                    settings.container_tmp_bytes, settings.guard_metadata,
                ),
                folders.root,
                CONCURRENT,
            )  # fmt: skip
            yield Node(stage, ProcessRunner(guard, "", isolation), containers)
    finally:
        folders.close()
        guard.close()
        shutil.rmtree(root, ignore_errors=True)


async def task(where: Node, runner: Runner, index: int, image: str) -> None:
    """One task from its folder to its end."""
    ends = Ends()
    key = Key(f"tenants/bench/workflows/w/experiments/e/tasks/{index}", 1, 1)
    job = Job(key, command="true", image=image)
    await where.stage.begin(job, runner, ends).wait()
    if [exit_.exit_code for exit_ in ends.exits] != [0]:
        raise RuntimeError(f"a task failed: {ends.exits}")


async def by_hand(arguments: list[str]) -> None:
    """The peer: start a program and wait for it."""
    process = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.DEVNULL)
    if await process.wait() != 0:
        raise RuntimeError(f"{arguments} failed")


async def seconds(count: int, one: Callable[[int], Awaitable[None]]) -> float:
    """Of one, done `count` times one after the other."""
    start = time.perf_counter()
    for index in range(count):
        await one(index)
    return (time.perf_counter() - start) / count


async def beside(
    rounds: int, count: int, ours: Callable[[int], Awaitable[None]], peer: list[str]
) -> dict[str, Any]:
    """Ours and the peer in turn."""
    found: list[tuple[float, float]] = []
    await ours(0)
    await by_hand(peer)
    for _ in range(rounds):
        mine = await seconds(count, ours)
        theirs = await seconds(count, lambda index: by_hand(peer))
        found.append((mine, theirs))
    return {
        "task_s": statistics.median(mine for mine, _ in found),
        "peer_s": statistics.median(theirs for _, theirs in found),
        "overhead_s": statistics.median(mine - theirs for mine, theirs in found),
        "ratio": statistics.median(mine / theirs for mine, theirs in found),
        "ratios": [mine / theirs for mine, theirs in found],
    }


def docker(*arguments: str) -> list[str]:
    """Lines that the docker command prints."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.split()


def left_behind() -> dict[str, int]:
    """What a leak would add to."""
    me = psutil.Process()
    return {
        "containers": len(docker("ps", "-aq")),
        "networks": len(docker("network", "ls", "-q")),
        "volumes": len(docker("volume", "ls", "-q")),
        "processes": len(me.children(recursive=True)),
        "descriptors": me.num_fds(),
    }


async def many(where: Node, count: int, image: str) -> dict[str, Any]:
    """So many short containers, a few at a time, and the difference they make."""
    turns = asyncio.Semaphore(CONCURRENT)

    async def one(index: int) -> None:
        async with turns:
            await task(where, where.containers, index, image)

    await asyncio.gather(*(one(index) for index in range(2 * CONCURRENT)))
    before, start = left_behind(), time.perf_counter()
    await asyncio.gather(*(one(index) for index in range(count)))
    wall_s = time.perf_counter() - start
    after = left_behind()
    leaks = {name: after[name] - before[name] for name in before}
    return {"tasks": count, "wall_s": wall_s, "tasks_per_s": count / wall_s, "left_behind": leaks}


def why_no_containers(image: str) -> str:
    """The reason, or ""."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    done = subprocess.run(
        ["docker", "image", "inspect", image], capture_output=True, text=True, check=False
    )
    return done.stderr.strip()


async def measure(quick: bool, image: str, parts: set[str]) -> dict[str, Any]:
    """All figures."""
    rounds = 1 if quick else 3
    result: dict[str, Any] = {}
    with node() as where:
        if "process" in parts:
            result["process"] = await beside(
                rounds, 20 if quick else 100,
                lambda index: task(where, where.processes, index, ""),
                ["/bin/sh", "-c", "true"],
            )  # fmt: skip
        reason = why_no_containers(image)
        if reason:
            result |= {"container": None, "many": None, "container_reason": reason}
            return result
        if "container" in parts:
            run = ["docker", "run", "--rm", "--network", "none", image, "/bin/sh", "-c", "true"]
            result["container"] = await beside(
                rounds, 3 if quick else 10,
                lambda index: task(where, where.containers, index, image), run,
            )  # fmt: skip
        if "many" in parts:
            result["many"] = await many(where, 50 if quick else 1_000, image)
        await where.containers.close()
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and tasks")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--image", default=IMAGE, help="of container tasks; it must be here")
    parser.add_argument(
        "--part", action="append", choices=("process", "container", "many"), help="only this"
    )
    arguments = parser.parse_args()
    parts = set(arguments.part or ("process", "container", "many"))
    figures = asyncio.run(measure(arguments.quick, arguments.image, parts))
    for name, value in figures.items():
        print(f"{name}: {value}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
