"""What a hostile process finds with `isolation: user`: root only, as the setting is."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from hyper_servicekit.server import Running
from hyper_worker.__main__ import build
from hyper_worker.config import WorkerSettings
from hyper_worker.runner.isolation import cannot_bind
from hyperapi.worker.v1 import agent_service_pb2 as wire
from tests.support.fake_scheduler import FakeScheduler

FIRST_ID = 61_000
MODULE = "tests.integration.worker_functions"


def why_not() -> str:
    if os.geteuid() != 0:
        return "user ids of their own need root"
    if shutil.which("ip") is None and not Path("/sbin/ip").exists():
        return "there is no `ip` to close the metadata address with"
    return cannot_bind()


REASON = why_not()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")

PROBE = """\
import os, pathlib, signal, socket
def attempt(what, action):
    try:
        print(what, action())
    except OSError as error:
        print(what, "refused:", error.strerror)
agent, scratch = AGENT, SCRATCH
print("uid", os.getuid(), os.getgroups())
attempt("environ", lambda: open(f"/proc/{agent}/environ").read())
attempt("memory", lambda: open(f"/proc/{agent}/mem").read(1))
attempt("kill", lambda: os.kill(agent, signal.SIGTERM))
attempt("others", lambda: [pid for pid in os.listdir("/proc") if pid.isdecimal()
                           and os.stat(f"/proc/{pid}").st_uid != os.getuid()])
attempt("scratch", lambda: [f for r, d, f in os.walk(scratch) for f in f if "secret" in f])
attempt("write", lambda: pathlib.Path("/etc/hyper-was-here").write_text("x"))
attempt("shadow", lambda: open("/etc/shadow").read())
attempt("root", lambda: os.setuid(0))
attempt("metadata", lambda: socket.create_connection(("169.254.169.254", 80), timeout=3))
pathlib.Path("/tmp/mine").write_text("x")
print("settings", sorted(name for name in os.environ if "SECRET" in name or "__" in name))
print("tmp", os.listdir("/tmp"))
pathlib.Path("out/result").write_text("fine")
"""


@pytest.fixture(autouse=True)
def no_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have tests of their own; functions are found."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")


@pytest.fixture
async def scheduler() -> AsyncIterator[FakeScheduler]:
    async with FakeScheduler() as fake:
        yield fake


@asynccontextmanager
async def agent(scheduler: FakeScheduler, folder: Path) -> AsyncIterator[Running]:
    async with AsyncExitStack() as stack:
        running = Running("worker", "test", stack)
        settings = WorkerSettings(
            scheduler_endpoint=scheduler.address, workdir=folder, slots=2, drain_grace_s=1.0,
            log_flush_s=0.05, isolation="user", first_user_id=FIRST_ID,
        )  # fmt: skip
        await build(settings, running)
        await scheduler.connected()
        yield running


async def test_a_hostile_process(
    scheduler: FakeScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the agent")
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, command="echo mine > secret-0; echo up; sleep 600")
        await scheduler.logged(0, b"up")
        program = PROBE.replace("AGENT", str(os.getpid())).replace("SCRATCH", repr(str(tmp_path)))
        scheduler.assign(
            1, command="mkdir out; python -c {{p}}", parameters={"p": program}, env={"SEEN": "yes"}
        )
        end = await scheduler.ended(1)
        found = dict(
            line.split(" ", 1) for line in (await scheduler.log_closed(1)).decode().splitlines()
        )
    assert end.outcome == wire.OUTCOME_SUCCEEDED, found
    uid, groups = found.pop("uid").split(" ", 1)
    assert FIRST_ID <= int(uid) < FIRST_ID + 6 and groups == "[]"
    for what in ("environ", "memory", "kill", "write", "shadow", "root", "metadata"):
        assert found.pop(what).startswith("refused:"), what
    assert "'mine'" in found.pop("tmp")
    assert found == {"others": "[]", "scratch": "[]", "settings": "[]"}
    assert not Path("/etc/hyper-was-here").exists()  # noqa: ASYNC240


async def test_daemons_of_an_isolated_task_are_ended(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """Whatever it does to hide: no process of its user is left."""
    hide = (
        "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n"
        "        if os.fork() == 0:\n            os.environ.clear()\n"
        "            os.execve('/bin/sleep', ['sleep', '600'], {})\n        os._exit(0)\n"
    )
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, command="python -c {{p}}; id -u", parameters={"p": hide})
        await scheduler.ended(0)
        uid = int(await scheduler.log_closed(0))
        assert [p for p in _users() if p == uid] == []


def _users() -> list[int]:
    """The users of all processes that run; one may end while it is looked at."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with contextlib.suppress(OSError):
                status = (path / "status").read_text()
                if "\nState:\tZ" not in status:
                    found.append(path.stat().st_uid)
    return found


async def test_functions_are_isolated_too(scheduler: FakeScheduler, tmp_path: Path) -> None:
    async with agent(scheduler, tmp_path):
        for index in (0, 1):
            scheduler.assign(index, function=f"{MODULE}:count")
            end = await scheduler.ended(index)
            assert end.outcome == wire.OUTCOME_SUCCEEDED, (end.message, scheduler.log(index))
