"""What a task without isolation finds of its agent: not the token that is good for all tenants."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from hyperapi.worker.v1 import agent_service_pb2 as wire
from tests.support.fake_scheduler import FakeScheduler
from tests.support.services import REPOSITORY

SECRET = ("hyp1.k1.of-the-", "agent")  # apart: the probe must not find what it was told

# As a container has it: our user without a capability.
BARE = """\
import ctypes, os, sys
PR_CAPBSET_DROP, LAST = 24, int(open("/proc/sys/kernel/cap_last_cap").read())
if os.geteuid() == 0:
    libc = ctypes.CDLL(None)
    if any(libc.prctl(PR_CAPBSET_DROP, each, 0, 0, 0) for each in range(LAST + 1)):
        sys.exit("cannot give up capabilities")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

# Looks for the token in all that /proc tells of our user's processes; says what it could read.
PROBE = """\
import os, sys
secret = "".join(sys.argv[2:]).encode()
def attempt(what, pid, action):
    try:
        found = action()
    except OSError as error:
        return
    if secret in found:
        print("the token is in", what, "of", pid, open(f"/proc/{pid}/comm").read())
    elif pid == agent:
        print("read", what)
agent = int(sys.argv[1])
def memory(pid):
    parts = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            if "[heap]" in line:
                start, stop = (int(part, 16) for part in line.split()[0].split("-"))
                memory.seek(start)
                parts.append(memory.read(stop - start))
    return b"".join(parts)
def descriptors(pid):
    folder = f"/proc/{pid}/fd/"
    return b"".join(os.readlink(folder + name).encode() for name in os.listdir(folder))
for name in os.listdir("/proc"):
    if name.isdecimal() and int(name) != os.getpid():
        pid = int(name)
        if os.stat(f"/proc/{pid}").st_uid not in (os.getuid(), 0):
            continue
        if pid == agent or f"PPid:\\t{agent}\\n" in open(f"/proc/{pid}/status").read():
            attempt("environ", pid, lambda: open(f"/proc/{pid}/environ", "rb").read())
            attempt("memory", pid, lambda: memory(pid))
            attempt("fd", pid, lambda: descriptors(pid))
print("own", os.environ.get("HYPER_TOKEN"), os.environ.get("HYPER_TOKEN_FILE"))
"""


async def test_a_task_cannot_read_its_agent(tmp_path: Path) -> None:
    async with FakeScheduler() as scheduler:
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "DOCKER_HOST": "unix:///nowhere/docker.sock",
            "HYPER_TOKEN": "".join(SECRET),
            "HYPER_WORKER__SCHEDULER_ENDPOINT": scheduler.address,
            "HYPER_WORKER__WORKDIR": str(tmp_path / "work"),
            "HYPER_WORKER__LOG_FLUSH_S": "0.05",
        }
        with (tmp_path / "log").open("wb") as log:
            worker = await asyncio.create_subprocess_exec(
                sys.executable, "-c", BARE, "-m", "hyper_worker",
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            await scheduler.connected()
            scheduler.assign(
                0, command="python -c {{probe}} {{agent}} {{first}} {{rest}}",
                parameters={
                    "probe": PROBE, "agent": worker.pid, "first": SECRET[0], "rest": SECRET[1]
                },
            )  # fmt: skip
            end = await scheduler.ended(0)
            text = (await scheduler.log_closed(0)).decode()
        finally:
            worker.kill()
            await worker.wait()
    assert end.outcome == wire.OUTCOME_SUCCEEDED, text
    assert text == "own None None\n"
