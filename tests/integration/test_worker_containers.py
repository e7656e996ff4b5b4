"""Commands in real containers. Opt-in: HYPER_TEST_DOCKER=1, a daemon, and the image below."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest

from hyper_servicekit.server import Running
from hyper_worker.__main__ import build
from hyper_worker.config import WorkerSettings
from hyperapi.worker.v1 import agent_service_pb2 as wire
from tests.support.containers import IMAGE, NEEDS_DOCKER
from tests.support.fake_scheduler import FakeScheduler, task_key
from tests.support.registry import registry

pytestmark = [*NEEDS_DOCKER, pytest.mark.timeout(120)]


@pytest.fixture
async def scheduler() -> AsyncIterator[FakeScheduler]:
    async with FakeScheduler() as fake:
        yield fake


@pytest.fixture
def api() -> Iterator[docker.APIClient]:
    client = docker.from_env(version="auto").api
    yield client
    client.close()


@asynccontextmanager
async def agent(scheduler: FakeScheduler, folder: Path, **settings: Any) -> AsyncIterator[Running]:
    async with AsyncExitStack() as stack:
        running = Running("worker", "test", stack)
        values = {"slots": 4, "drain_grace_s": 5.0, "log_flush_s": 0.05, **settings}
        await build(
            WorkerSettings(scheduler_endpoint=scheduler.address, workdir=folder, **values), running
        )
        await scheduler.connected()
        yield running


def entries(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if each.name != "cache"]


def ours(api: docker.APIClient, folder: Path) -> list[dict[str, Any]]:
    """Containers of the agents in `folder`."""
    found = api.containers(all=True, filters={"label": "hyper.task"})
    return [each for each in found if each["Labels"]["hyper.agent"].startswith(str(folder))]


async def test_a_command_in_its_image(
    scheduler: FakeScheduler, tmp_path: Path, api: docker.APIClient
) -> None:
    async with agent(scheduler, tmp_path):
        scheduler.assign(
            0,
            image=IMAGE,
            command=r"python -V; echo {{v}}; echo err >&2; printf '\377\000\n'; "
            "echo $ENV_VAR; exit 7",
            parameters={"v": "$(id)"},
            env={"ENV_VAR": "value"},
        )
        end = await scheduler.ended(0, 60)
        assert (end.outcome, end.exit_code) == (wire.OUTCOME_FAILED, 7)
        lines = scheduler.log(0).split(b"\n")
        assert lines[0].startswith(b"Python 3.11")  # in order, stdout and stderr
        assert lines[1:] == [b"$(id)", b"err", b"\xff\x00", b"value", b""]
        assert ours(api, tmp_path) == []


async def test_what_a_hostile_program_finds(scheduler: FakeScheduler, tmp_path: Path) -> None:
    """No root, no capabilities, nothing of the host, no network, no room to write but /tmp."""
    program = """\
import os, socket, pathlib
status = pathlib.Path("/proc/self/status").read_text()
print("uid", os.getuid())
for line in status.splitlines():
    if line.startswith(("CapEff", "CapBnd", "NoNewPrivs")):
        print(*line.split())
for path in ("/etc/x", "/usr/x", "/x"):
    try:
        pathlib.Path(path).write_text("x")
        print("wrote", path)
    except OSError as error:
        print("cannot write", path)
pathlib.Path("/tmp/x").write_text("x")
for address in (("169.254.169.254", 80), ("1.1.1.1", 53)):
    try:
        socket.create_connection(address, timeout=2)
        print("reached", address)
    except OSError as error:
        print("no way to", address[0])
print(sorted(name for name in os.environ if "HYPER" in name))
print(os.path.exists(AGENT), sorted(os.listdir("/proc"))[:3])
""".replace("AGENT", repr(str(tmp_path)))
    async with agent(scheduler, tmp_path):
        scheduler.assign(
            0, image=IMAGE, command="python -c {{p}}; setpriv --reuid 0 id; unshare -r id",
            parameters={"p": program},
        )  # fmt: skip
        await scheduler.ended(0, 60)
        text = (await scheduler.log_closed(0)).decode()
    assert "uid 0" not in text and "uid=0" not in text
    assert "CapEff: 0000000000000000" in text and "CapBnd: 0000000000000000" in text
    assert "NoNewPrivs: 1" in text
    assert "wrote" not in text and text.count("cannot write") == 3
    assert "reached" not in text and text.count("no way to") == 2
    assert "['HYPER_ATTEMPT', 'HYPER_PARAMETERS', 'HYPER_PARAMETER_p', 'HYPER_TASK']" in text
    assert "False ['1'," in text


async def test_a_gang_of_one_needs_no_network(scheduler: FakeScheduler, tmp_path: Path) -> None:
    program = """\
import os, socket
address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
with socket.create_server(address), socket.create_connection(address, timeout=2):
    print("met at", address[0])
"""
    place = wire.Rank(world_size=1, local_world_size=1, master_addr="192.0.2.1")
    async with agent(scheduler, tmp_path):
        scheduler.assign(
            0, image=IMAGE, command="python -c {{p}}", parameters={"p": program}, rank=place
        )
        end = await scheduler.ended(0, 60)
        assert end.outcome == wire.OUTCOME_SUCCEEDED, end.message
        assert b"met at 127.0.0.1" in await scheduler.log_closed(0)


async def test_limits(scheduler: FakeScheduler, tmp_path: Path) -> None:
    eat = "python -c 'x = bytearray(200 << 20); print(len(x))'"
    fork = "for i in $(seq 200); do sleep 5 & done; wait"
    async with agent(scheduler, tmp_path, container_pids=40):
        hardware = wire.Hardware(memory_bytes=100 << 20, cpus=1)
        scheduler.assign(0, image=IMAGE, command=eat, hardware=hardware)
        scheduler.assign(1, image=IMAGE, command=eat, hardware=wire.Hardware(memory_bytes=1 << 30))
        scheduler.assign(2, image=IMAGE, command="kill -9 $$; sleep 5")
        scheduler.assign(3, image=IMAGE, command=fork)
        out = await scheduler.ended(0, 60)
        assert out.outcome == wire.OUTCOME_FAILED
        assert "out of memory" in out.message and "100 MiB" in out.message
        assert (await scheduler.ended(1, 60)).outcome == wire.OUTCOME_SUCCEEDED
        killed = await scheduler.ended(2, 60)
        assert killed.exit_code == 137 and killed.message == "killed by SIGKILL, not by Hyper"
        assert "out of memory" not in killed.message
        await scheduler.ended(3, 60)
        assert b"ork" in scheduler.log(3)  # Cannot fork


async def test_stop_with_grace(
    scheduler: FakeScheduler, tmp_path: Path, api: docker.APIClient
) -> None:
    polite = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, image=IMAGE, command=polite, grace_s=20)
        scheduler.assign(1, image=IMAGE, command="trap '' TERM; echo up; sleep 600", grace_s=0.5)
        scheduler.assign(
            2, image=IMAGE, command="setsid sleep 600 & echo up; sleep 600", timeout_s=5
        )
        for index in (0, 1, 2):
            await scheduler.logged(index, b"up")
        scheduler.stop_tasks(task_key(0), task_key(1))
        assert (await scheduler.ended(0)).outcome == wire.OUTCOME_STOPPED
        log = scheduler.log(0)  # the shell may tell of its `sleep`, too
        assert log.startswith(b"up\n") and b"\nbye\n" in log
        assert (await scheduler.ended(1)).outcome == wire.OUTCOME_STOPPED
        assert "timeout" in (await scheduler.ended(2)).message
        assert ours(api, tmp_path) == []


async def test_an_image_is_fetched_before_it_is_needed(
    scheduler: FakeScheduler, tmp_path: Path, api: docker.APIClient
) -> None:
    """While the only slot is taken."""
    folder = tmp_path / "image"
    folder.mkdir()
    with registry(folder, IMAGE, "") as served:
        try:
            async with agent(scheduler, tmp_path / "work", slots=1):
                scheduler.assign(0, command="echo up; sleep 600")
                await scheduler.logged(0, b"up")
                scheduler.assign(1, image=served.image, command="echo here")
                async with asyncio.timeout(60):
                    while not api.images(served.image):  # noqa: ASYNC110  (the daemon's)
                        await asyncio.sleep(0.1)
                assert scheduler.end_of(0) is None
                scheduler.stop_tasks(task_key(0))
                assert (await scheduler.ended(1, 60)).outcome == wire.OUTCOME_SUCCEEDED
        finally:
            api.remove_image(served.image, force=True)


async def test_no_such_image(scheduler: FakeScheduler, tmp_path: Path) -> None:
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, image="localhost:1/no/such:image", command="true")
        end = await scheduler.ended(0, 60)
        assert "cannot be fetched" in end.message


async def test_no_daemon(
    scheduler: FakeScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    async with agent(scheduler, tmp_path):
        scheduler.assign(1, image=IMAGE, command="true")
        end = await scheduler.ended(1, 60)
        assert "no Docker daemon answers" in end.message


async def test_a_network_without_metadata(scheduler: FakeScheduler, tmp_path: Path) -> None:
    """It reaches this machine's bridge, neither the metadata address nor a neighbour."""
    if os.geteuid() != 0:
        pytest.skip("rules of routing need root")
    program = """\
import socket, time
print(socket.gethostbyname(socket.gethostname()), flush=True)
try:
    socket.create_connection(("169.254.169.254", 80), timeout=3)
    print("reached")
except OSError as error:
    print("no way:", error)
"""
    async with agent(scheduler, tmp_path):
        scheduler.assign(
            0, image=IMAGE, command="python -c {{p}}", parameters={"p": program}, network=True
        )
        await scheduler.ended(0, 60)
        text = (await scheduler.log_closed(0)).decode()
    assert "no way:" in text and "timed out" not in text
    assert text.split(".")[0] in ("172", "192", "10")


async def test_orphans_of_a_killed_agent_are_swept(
    scheduler: FakeScheduler, tmp_path: Path, api: docker.APIClient
) -> None:
    environment = {
        **os.environ,
        "HYPER_WORKER__SCHEDULER_ENDPOINT": scheduler.address,
        "HYPER_WORKER__WORKDIR": str(tmp_path),
        "HYPER_WORKER__LISTEN": "127.0.0.1:0",
    }
    victim = subprocess.Popen(  # noqa: ASYNC220  (returns at once)
        [sys.executable, "-m", "hyper_worker"], env=environment
    )
    try:
        await scheduler.connected()
        scheduler.assign(0, image=IMAGE, command="echo up; sleep 600")
        await scheduler.logged(0, b"up")
        other = api.create_container(
            IMAGE, ["sleep", "1"], labels={
                "hyper.task": "x", "hyper.host": socket.gethostname(),
                "hyper.agent": "/elsewhere/agent-x",
            },
        )["Id"]  # fmt: skip
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait(10)
    try:
        assert len(ours(api, tmp_path)) == 1
        async with agent(scheduler, tmp_path):
            assert ours(api, tmp_path) == []
            assert [each["Id"] for each in api.containers(all=True, filters={"id": other})] == [
                other
            ]
    finally:
        api.remove_container(other, force=True)


async def test_nothing_leaks(
    scheduler: FakeScheduler, tmp_path: Path, api: docker.APIClient
) -> None:
    open_files = psutil.Process().num_fds

    async with agent(scheduler, tmp_path):
        scheduler.assign(*range(8), image=IMAGE, command="true")
        for index in range(8):
            await scheduler.ended(index, 60)
        before, networks = open_files(), len(api.networks())
        scheduler.assign(*range(10, 40), image=IMAGE, command="true")
        for index in range(10, 40):
            await scheduler.ended(index, 60)
        async with asyncio.timeout(10):
            # the client's pool of connections may grow; one a container would be thirty
            while open_files() > before + 10:  # noqa: ASYNC110  (not ours to wait for)
                await asyncio.sleep(0.05)
        assert ours(api, tmp_path) == []
        assert len(api.networks()) == networks
        (mine,) = entries(tmp_path)
        assert not [each for each in entries(mine) if each.name.startswith("task-")]
