"""Agents as processes of this machine: for trying out, and for tests of everything above.

They are in sessions of their own and outlive the scheduler; a folder holds a file for each, so
that the next leader finds them. Options of an offer: `environment` (a JSON mapping) is added to
the agent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from hyper_scheduler.providers.base import Instance, Order, RefusedError

GRACE_S = 5.0
_PROVIDER_ONLY = ("HYPER_SCHEDULER__", "HYPER_STORAGE__")


# An agent is nobody's child: it goes on when this process, or the object that asyncio would keep
# of a child, goes.
_START = 'log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'


class ProcessProvider:
    """Starts agents here.

    Args:
        cluster: whose they are.
        folder: for their files, logs and work folders.
    """

    def __init__(self, cluster: str, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def launch(self, order: Order) -> str:
        """Start an agent; one that was started under this name before is it."""
        for each in await self.instances():
            if each.machine == order.machine:
                return each.id
        more: Mapping[str, str] = json.loads(order.options.get("environment", "{}"))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_PROVIDER_ONLY)}
        workdir = self._folder / order.machine
        environment = kept | dict(order.environment) | {"HYPER_WORKER__WORKDIR": str(workdir)}
        environment |= {name: str(value) for name, value in more.items()}
        log = self._folder / f"{order.machine}.log"
        try:
            shell = await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", _START, "sh", str(log), sys.executable, "-m", "hyper_worker",
                env=environment, start_new_session=True, stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            said, _ = await shell.communicate()
            pid = int(said)
            name = f"{pid}-{_started(pid)}"
        except (OSError, ValueError, psutil.Error) as error:
            raise RefusedError("CannotStart", str(error)) from error
        facts = {"id": name, "machine": order.machine, "cluster": self._cluster}
        (self._folder / f"{order.machine}.json").write_text(json.dumps(facts))
        return name

    async def instances(self) -> Sequence[Instance]:
        """Those whose process lives; files of the others are removed."""
        found = []
        for file in sorted(self._folder.glob("*.json")):
            facts = json.loads(file.read_text())
            if facts["cluster"] != self._cluster:
                continue
            if _lives(facts["id"]):
                found.append(Instance(facts["id"], facts["machine"]))
            else:
                file.unlink(missing_ok=True)
        return found

    async def terminate(self, ids: Sequence[str]) -> None:
        """SIGTERM, and SIGKILL to those that have not ended in time."""
        for name in ids:
            _signal(name, signal.SIGTERM)
        async with asyncio.TaskGroup() as group:
            for name in ids:
                group.create_task(self._end(name))

    async def notices(self) -> Sequence[str]:
        """Processes are not told before."""
        return ()

    async def tidy(self, networks: Sequence[str]) -> None:
        """One machine has one network."""

    async def close(self) -> None:
        """Agents go on: the next leader finds them."""

    async def _end(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + GRACE_S
        while _lives(name) and loop.time() < end:  # noqa: ASYNC110  (of another process)
            await asyncio.sleep(0.05)
        _signal(name, signal.SIGKILL)
        while _lives(name):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _started(pid: int) -> int:
    """Ticks since boot at which a process began: with the pid, it is never mistaken."""
    return int(psutil.Process(pid).create_time() * 100)


def _lives(name: str) -> bool:
    pid, _, started = name.partition("-")
    try:
        process = psutil.Process(int(pid))
        same = int(process.create_time() * 100) == int(started)
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(name: str, which: signal.Signals) -> None:
    if _lives(name):
        with contextlib.suppress(ProcessLookupError):  # it has ended this moment
            os.kill(int(name.partition("-")[0]), which)
