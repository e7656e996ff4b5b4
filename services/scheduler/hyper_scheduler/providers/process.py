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
from typing import Any

import psutil

from hyper_scheduler.providers.base import Instance, Order, RefusedError, all_of

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
        self._starting: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def launch(self, order: Order) -> str:
        """Start an agent; one that was started under this name before is it."""
        for each in await self.instances():
            if each.machine == order.machine:
                return each.id
        self._starting.add(order.machine)
        try:
            return await self._start(order)
        finally:
            self._starting.discard(order.machine)

    async def _start(self, order: Order) -> str:
        more: Mapping[str, str] = json.loads(order.options.get("environment", "{}"))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_PROVIDER_ONLY)}
        workdir = self._folder / order.machine
        environment = kept | dict(order.environment) | {"HYPER_WORKER__WORKDIR": str(workdir)}
        environment |= {name: str(value) for name, value in more.items()}
        log = self._folder / f"{order.machine}.log"
        self._remember(order.machine, "")  # found by its folder, should we not come to know its pid
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
            (self._folder / f"{order.machine}.json").unlink(missing_ok=True)
            raise RefusedError("CannotStart", str(error)) from error
        self._remember(order.machine, name)
        return name

    async def instances(self) -> Sequence[Instance]:
        """Those whose process lives; files of the others are removed."""
        found = []
        for file in sorted(self._folder.glob("*.json")):
            facts = _facts(file)
            if facts.get("cluster", self._cluster) != self._cluster:
                continue
            machine = str(facts.get("machine", file.stem))
            name = str(facts.get("id", ""))
            if not name and machine not in self._starting:
                # whoever started it has not lived to write down which process it is
                name = await asyncio.to_thread(_agent_in, self._folder / machine)
            if _lives(name):
                found.append(Instance(name, machine))
            elif machine not in self._starting:
                file.unlink(missing_ok=True)
        return found

    def _remember(self, machine: str, name: str) -> None:
        """Write an agent's file, whole or not at all."""
        facts = {"id": name, "machine": machine, "cluster": self._cluster}
        file = self._folder / f"{machine}.json"
        new = file.with_suffix(".new")
        new.write_text(json.dumps(facts))
        new.replace(file)

    async def terminate(self, ids: Sequence[str]) -> None:
        """SIGTERM, and SIGKILL to those that have not ended in time."""
        for name in ids:
            _signal(name, signal.SIGTERM)
        await all_of(self._end, ids, at_once=max(1, len(ids)))

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


def _facts(file: Path) -> dict[str, Any]:
    """What an agent's file says; nothing where an older version was cut off while it wrote."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _agent_in(workdir: Path) -> str:
    """The agent whose work folder this is, as `launch` names it; "": there is none."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("HYPER_WORKER__WORKDIR") == str(workdir) and (
                process.cmdline()[-2:] == ["-m", "hyper_worker"]
            ):
                return f"{process.pid}-{_started(process.pid)}"
        except (psutil.Error, OSError):  # of somebody else, or gone
            continue
    return ""


def _lives(name: str) -> bool:
    pid, _, started = name.partition("-")
    if not pid or not started:
        return False
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
