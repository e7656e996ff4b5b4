"""Makes machines of moto's instances: their user data are run, by real agents, on this machine.

moto plays EC2's API and starts nothing. What EC2 would do beside is done here: a machine boots with
its user data, finds metadata of its own (a fake of ours: no IMDS is here), is shut down when it is
terminated, and is terminated when it shuts down.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.http_server import http_server
from tests.support.imds import Metadata, answer_of

POLL_S = 0.1
_LIVE = ("pending", "running")


@dataclass
class Machine:
    """One that has booted."""

    instance: str
    boot: subprocess.Popen[bytes]
    metadata: Metadata


@dataclass
class Machines:
    """Those of one region."""

    client: Any
    folder: Path
    there: dict[str, Machine] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def live(self) -> list[str]:
        """Ids of instances that EC2 says are there."""
        return [name for name, state in self._states().items() if state in _LIVE]

    def look(self) -> None:
        """Boot what is new, end what was terminated, terminate what has shut down."""
        states = self._states()
        for name, state in states.items():
            machine = self.there.get(name)
            if machine is None and state in _LIVE:
                self.there[name] = self._boot(name)
            elif machine is not None and machine.boot.poll() is None and state not in _LIVE:
                self._signal(machine, signal.SIGTERM)
            elif machine is not None and machine.boot.poll() is not None and state in _LIVE:
                self.client.terminate_instances(InstanceIds=[name])

    def close(self) -> None:
        """Kill what is left."""
        for machine in self.there.values():
            if machine.boot.poll() is None:
                self._signal(machine, signal.SIGKILL)
            machine.boot.wait()
        self.stack.close()

    def _states(self) -> dict[str, str]:
        pages = self.client.get_paginator("describe_instances").paginate()
        return {
            each["InstanceId"]: each["State"]["Name"]
            for page in pages for part in page["Reservations"] for each in part["Instances"]
        }  # fmt: skip

    def _boot(self, name: str) -> Machine:
        told = self.client.describe_instance_attribute(InstanceId=name, Attribute="userData")
        script = base64.b64decode(told["UserData"]["Value"]).decode()
        folder = self.folder / name
        programs = folder / "bin"
        programs.mkdir(parents=True)
        for program, text in (("python3", f'exec {sys.executable} "$@"'), ("shutdown", "exit 0")):
            file = programs / program
            file.write_text(f"#!/bin/sh\n{text}\n")
            file.chmod(0o755)
        metadata = Metadata()
        metadata.url = self.stack.enter_context(http_server(answer_of(metadata), "text/plain"))
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(Path.cwd()),
            "HYPER_WORKER__METADATA_URL": metadata.url, "HYPER_WORKER__NOTICE_EVERY_S": "0.2",
            "HYPER_WORKER__WORKDIR": str(folder / "work"), "HOME": str(folder),
        }  # fmt: skip
        with (folder / "log").open("wb") as log:
            boot = subprocess.Popen(
                ["/bin/sh", "-c", script], env=environment, cwd=folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return Machine(name, boot, metadata)

    def _signal(self, machine: Machine, which: signal.Signals) -> None:
        try:
            os.killpg(machine.boot.pid, which)
        except ProcessLookupError:
            return


@contextmanager
def machines(client: Any, folder: Path) -> Iterator[Machines]:
    """As long as this lasts instances of the client's region are machines."""
    found, over = Machines(client, folder), threading.Event()

    def run() -> None:
        while not over.wait(POLL_S):
            found.look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found.close()
