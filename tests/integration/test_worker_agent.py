"""The agent against a scripted scheduler: real gRPC, real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from hyper import _transport
from hyper.errors import UnavailableError
from hyper_servicekit.server import Running
from hyper_worker import connection
from hyper_worker.__main__ import build
from hyper_worker.config import WorkerSettings
from hyper_worker.core import machine
from hyper_worker.folders import Folders
from hyper_worker.runner.guard import Guard
from hyperapi.worker.v1 import agent_service_pb2 as wire
from tests.support.fake_scheduler import ENDED, FakeScheduler, task_key

MODULE = "tests.integration.worker_functions"

# HYPER_TEST_LARGE=1: the sizes that are promised, rather than a hundredth of them
LARGE = os.environ.get("HYPER_TEST_LARGE") == "1"


@pytest.fixture
async def scheduler() -> AsyncIterator[FakeScheduler]:
    async with FakeScheduler() as fake:
        yield fake


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm processes find the tests' functions; containers have tests of their own."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")


@asynccontextmanager
async def agent(scheduler: FakeScheduler, folder: Path, **settings: Any) -> AsyncIterator[Running]:
    """An agent in this process, connected."""
    async with AsyncExitStack() as stack:
        running = Running("worker", "test", stack)
        values = {"slots": 2, "drain_grace_s": 1.0, "log_flush_s": 0.05, **settings}
        await build(
            WorkerSettings(scheduler_endpoint=scheduler.address, workdir=folder, **values), running
        )
        await scheduler.connected()
        yield running


async def leave(running: Running) -> None:
    for hook in running.on_drain:
        await hook()


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("agent-*"))


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until_gone(*pids: int) -> None:
    async with asyncio.timeout(10):
        while not all(gone(pid) for pid in pids):  # noqa: ASYNC110  (not ours to wait for)
            await asyncio.sleep(0.02)


async def test_hello_and_heartbeats(scheduler: FakeScheduler, tmp_path: Path) -> None:
    async with agent(scheduler, tmp_path, labels={"zone": "a"}):
        hello = scheduler.connections[0].hello
        assert hello.worker.startswith("test-")
        assert (hello.slots, hello.labels["zone"]) == (2, "a")
        assert hello.memory_bytes > 0
        await scheduler.until(lambda: scheduler.connections[0].heartbeats >= 2)


async def test_a_command_gets_its_parameters_as_data(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    evil = "$(touch owned); `touch owned`; ' \" \\ & | > owned\n*"
    async with agent(scheduler, tmp_path):
        scheduler.assign(
            0,
            command="printf '%s|' {{v}} \"{{v}}\" '{{v}}' x{{ v }}y {{n}}; ls; echo $HYPER_TASK",
            parameters={"v": evil, "n": [1, 2]},
        )
        end = await scheduler.ended(0)
        assert end.outcome == wire.OUTCOME_SUCCEEDED
        text = (await scheduler.log_closed(0)).decode()
        assert text == f"{evil}|{evil}|{evil}|x{evil}y|[1, 2]|" + f"{task_key(0).task}\n"
        assert end.wall.ToNanoseconds() > 0


async def test_a_busy_worker_passes_on_at_once_what_attempts_say_of_themselves(
    scheduler: FakeScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.heartbeat_s = 1e4  # which would take everything with it
    said = """echo '::hyper report {"step": 1, "metrics": {"auc": 0.5}}'"""
    async with agent(scheduler, tmp_path, slots=1):
        monkeypatch.setattr(connection, "_BUSY_FACTOR", 1e9)
        scheduler.assign(0, 1, command=f"sleep 0.3; {said}; exec sleep 1000")
        await scheduler.until(lambda: scheduler.connections[0].metrics)
        (told,) = scheduler.connections[0].metrics
        assert told.key == task_key(0)
        await scheduler.running(0)
        scheduler.stop_tasks(task_key(0), task_key(1))


async def test_output_is_kept_in_order_and_byte_for_byte(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, command=r"echo out; echo err >&2; printf '\377\000\n'; exit 7")
        end = await scheduler.ended(0)
        assert (end.outcome, end.exit_code) == (wire.OUTCOME_FAILED, 7)
        assert end.message == "exited with status 7"
        assert scheduler.log(0) == b"out\nerr\n\xff\x00\n"  # a failure comes after its log


async def test_no_output_no_log(scheduler: FakeScheduler, tmp_path: Path) -> None:
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, command="true")
        await scheduler.ended(0)
    assert not scheduler.log_parts


@pytest.mark.parametrize(
    "spec",
    [
        {"command": "ls", "workdir": "hyper://bob/private@1"},
        {"command": "ls", "workdir": "hyper://bob/private@1", "setup": "ls"},
        {"function": f"{MODULE}:count", "workdir": "bob/private"},
        {"command": "ls", "inputs": [wire.Binding(path="in", address="hyper://bob/private")]},
        {"command": "ls", "outputs": [wire.Binding(path="out", address="hyper://bob/private")]},
    ],
    ids=["workdir", "setup", "function", "input", "output"],
)
async def test_nothing_of_another_tenant_is_touched(
    scheduler: FakeScheduler, tmp_path: Path, spec: dict[str, Any]
) -> None:
    """The worker's token is good for all tenants: a recipe may name what is its own's alone."""
    async with agent(scheduler, tmp_path, fetch_patience_s=0.1):
        scheduler.assign(0, **spec)
        end = await scheduler.ended(0)
        assert end.outcome == wire.OUTCOME_FAILED
        assert "bob/private" in end.message and "another tenant" in end.message


async def test_functions_share_a_warm_process(scheduler: FakeScheduler, tmp_path: Path) -> None:
    async with agent(scheduler, tmp_path, slots=1):
        scheduler.assign(*range(5), function=f"{MODULE}:count")
        results = [json.loads((await scheduler.ended(i)).result_json) for i in range(5)]
        assert len({result["pid"] for result in results}) == 1
        assert [result["calls"] for result in results] == [1, 2, 3, 4, 5]


async def test_a_rank_has_a_process_of_its_own(scheduler: FakeScheduler, tmp_path: Path) -> None:
    """Its process group and the store at MASTER_PORT would meet the next attempt in it."""
    place = wire.Rank(world_size=1, local_world_size=1, master_addr="127.0.0.1", master_port=1234)
    async with agent(scheduler, tmp_path, slots=1):
        pids = []
        for index in range(2):
            scheduler.assign(index, function=f"{MODULE}:count", rank=place)
            pids.append(json.loads((await scheduler.ended(index)).result_json)["pid"])
            await until_gone(pids[-1])
        assert pids[0] != pids[1]


async def test_a_gang_of_one_listens_where_it_can(scheduler: FakeScheduler, tmp_path: Path) -> None:
    """The machine's address is for others: a rank without a network has the loopback only."""
    place = wire.Rank(world_size=1, local_world_size=1, master_addr="192.0.2.1")
    async with agent(scheduler, tmp_path, slots=1):
        scheduler.assign(0, command='echo "$RANK $MASTER_ADDR $MASTER_PORT"', rank=place)
        await scheduler.ended(0)
        rank, address, port = (await scheduler.log_closed(0)).decode().split()
    assert (rank, address) == ("0", "127.0.0.1")
    assert 1024 <= int(port) < 65536


async def test_a_function_knows_its_task_and_logs_what_it_prints(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    async with agent(scheduler, tmp_path):
        scheduler.assign(3, function=f"{MODULE}:facts")
        end = await scheduler.ended(3)
        assert end.outcome == wire.OUTCOME_SUCCEEDED, end.message
        assert json.loads(end.result_json) == {
            "task": task_key(3).task,
            "attempt": "1.1",
            "endpoint": scheduler.address,
            "numpy": [0, 1, 2],
            "empty": [],
        }
        assert end.peak_rss_bytes > 10 << 20
        log = await scheduler.log_closed(3)
        said = b'::hyper report {"step": 1, "metrics": {"auc": 0.5}}\n'
        assert log == said + b"to stderr\nstraight to the descriptor\n"


async def test_each_call_has_its_own_log(scheduler: FakeScheduler, tmp_path: Path) -> None:
    async with agent(scheduler, tmp_path, slots=1):
        scheduler.assign(*range(20), function=f"{MODULE}:add", parameters={"a": 1, "b": 2})
        for index in range(20):
            assert (await scheduler.ended(index)).result_json == "3"
            assert await scheduler.log_closed(index) == b"%d: 1 + 2\n" % index


@pytest.mark.parametrize(
    ("function", "parameters", "message"),
    [
        ("fail", {}, "ValueError: the volume is upside down"),
        ("add", {"a": 1}, "TypeError: add() missing 1 required keyword-only argument: 'b'"),
        ("large", {"size": 70_000}, "70002 bytes of JSON, over the limit of 65536"),
        ("unserialisable", {}, "not JSON"),
        ("nothing", {}, "has no 'nothing'"),
    ],
)
async def test_a_function_that_fails_says_why(
    scheduler: FakeScheduler,
    tmp_path: Path,
    function: str,
    parameters: dict[str, Any],
    message: str,
) -> None:
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, function=f"{MODULE}:{function}", parameters=parameters)
        end = await scheduler.ended(0)
        assert end.outcome == wire.OUTCOME_FAILED
        assert message in end.message
        assert "\n" not in end.message
        log = scheduler.log(0).decode()
        assert message.partition(",")[0] in log
        assert "runner/child.py" not in log
        assert ("in fail" in log) == (function == "fail")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("leave", "the function ended its process with status 3"),
        ("crash", "the function's process was killed by SIGABRT"),
    ],
)
async def test_a_crash_is_a_failure_and_the_process_is_replaced(
    scheduler: FakeScheduler, tmp_path: Path, function: str, message: str
) -> None:
    async with agent(scheduler, tmp_path, slots=1):
        scheduler.assign(0, function=f"{MODULE}:{function}")
        end = await scheduler.ended(0)
        assert (end.outcome, end.message) == (wire.OUTCOME_FAILED, message)
        assert function.encode()[:4] in scheduler.log(0)
        scheduler.assign(1, function=f"{MODULE}:count")
        assert (await scheduler.ended(1)).outcome == wire.OUTCOME_SUCCEEDED


async def test_a_crash_in_a_bundle_is_the_fault_of_one_call(
    scheduler: FakeScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "RETURN_S", 60.0)  # however slow this computer is
    async with agent(scheduler, tmp_path, slots=1):
        for index in range(30, 40):  # until it is known to be short
            scheduler.assign(index, function=f"{MODULE}:crash_at_seven")
            await scheduler.ended(index)
        scheduler.assign(*range(1, 21), function=f"{MODULE}:crash_at_seven")
        for index in range(1, 21):
            end = await scheduler.ended(index)
            if index == 7:
                assert (end.outcome, "SIGABRT" in end.message) == (wire.OUTCOME_FAILED, True)
            else:
                assert (end.outcome, end.result_json) == (wire.OUTCOME_SUCCEEDED, str(index))


async def test_a_long_call_holds_nothing_up_and_each_keeps_its_log(
    scheduler: FakeScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "RETURN_S", 60.0)  # however slow this computer is
    async with agent(scheduler, tmp_path, slots=2):
        for index in range(30, 40):
            scheduler.assign(index, function=f"{MODULE}:long_at_three")
            await scheduler.ended(index)
        scheduler.assign(*range(1, 21), function=f"{MODULE}:long_at_three")
        await scheduler.until(lambda: scheduler.end_of(3) is not None)
        order = [s.key.task for s in scheduler.statuses() if s.outcome in ENDED]
        assert len(order) == 30
        assert order[-1].endswith("/tasks/3")
        for index in range(1, 21):
            assert await scheduler.log_closed(index) == f"this is {index}\n".encode()


async def test_what_calls_of_a_bundle_print_is_each_ones_own(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    async with agent(scheduler, tmp_path, slots=1):
        for index in range(10):  # until it is known to be short
            scheduler.assign(index, function=f"{MODULE}:talk")
            await scheduler.ended(index)
        scheduler.assign(*range(10, 110), function=f"{MODULE}:talk")
        for index in range(10, 110):
            assert (await scheduler.ended(index)).outcome == wire.OUTCOME_SUCCEEDED
            if index % 5:
                printed = await scheduler.log_closed(index)
                assert printed.split() == [f"{index}".encode()] * len(printed.split())
                assert len(printed.split()) == (20_000 if index % 5 == 4 else 1)
            else:
                assert not scheduler.log(index)


async def test_a_gateway_of_the_last_release_gets_logs_one_by_one(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    scheduler.takes_whole_logs = False
    async with agent(scheduler, tmp_path, slots=2):
        scheduler.assign(*range(1, 10), function=f"{MODULE}:talk")
        for index in (1, 2, 3, 6, 7, 8):
            assert await scheduler.log_closed(index) == f"{index}\n".encode()


async def test_stop_lets_a_function_clean_up(scheduler: FakeScheduler, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    async with agent(scheduler, tmp_path / "work"):
        scheduler.assign(0, function=f"{MODULE}:sleep", parameters={"marker": str(marker)})
        await scheduler.logged(0, b"asleep")
        scheduler.stop_tasks(task_key(0))
        assert (await scheduler.ended(0)).outcome == wire.OUTCOME_STOPPED
    assert marker.read_text() == "cleaned up"


@pytest.mark.parametrize("busy", ["alone", "reporting", "child", "thread"])
async def test_a_process_that_heeds_a_stop_stays_unless_it_has_children_or_waited_for_a_thread(
    scheduler: FakeScheduler, tmp_path: Path, busy: str
) -> None:
    async with agent(scheduler, tmp_path, slots=1):
        scheduler.assign(0, function=f"{MODULE}:count")
        first = json.loads((await scheduler.ended(0)).result_json)["pid"]
        scheduler.assign(1, function=f"{MODULE}:sleep", parameters={"busy": busy}, grace_s=60.0)
        await scheduler.logged(1, b"asleep")
        scheduler.stop_tasks(task_key(1))
        assert (await scheduler.ended(1)).outcome == wire.OUTCOME_STOPPED
        scheduler.assign(2, function=f"{MODULE}:count")
        end = await scheduler.ended(2)
        assert end.outcome == wire.OUTCOME_SUCCEEDED
        assert (json.loads(end.result_json)["pid"] == first) is (busy in ("alone", "reporting"))


async def test_a_stubborn_function_and_its_children_are_killed(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, function=f"{MODULE}:stubborn", timeout_s=1.0, grace_s=0.3)
        await scheduler.logged(0, b"child ")
        child = int(scheduler.log(0).split()[1])
        end = await scheduler.ended(0)
        assert end.outcome == wire.OUTCOME_FAILED
        assert end.message == "ran into its timeout of 1 s"
        await until_gone(child)


async def test_a_command_that_ignores_sigterm_is_killed_with_its_group(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    async with agent(scheduler, tmp_path):
        command = "trap '' TERM; sleep 600 & echo child $!; setsid sleep 600 & sleep 600; sleep 600"
        scheduler.assign(0, command=command, grace_s=0.2)
        await scheduler.logged(0, b"child ")
        group = int(scheduler.log(0).split()[1])
        scheduler.stop_tasks(task_key(0))
        end = await scheduler.ended(0)
        assert (end.outcome, end.exit_code) == (wire.OUTCOME_STOPPED, -9)
        await until_gone(group)


async def test_a_command_over_its_memory_is_killed_with_its_children(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """Children count, too; one that keeps within it is left alone."""
    eat = "exec {python} -c 'x = bytearray({mib} << 20); print(1); import time; time.sleep({s})'"
    greedy = f"sleep 600 & echo child $!; ({eat}) & wait"
    hardware = wire.Hardware(memory_bytes=200 << 20)
    async with agent(scheduler, tmp_path):
        for index, command in enumerate(
            (greedy.format(python=sys.executable, mib=300, s=600),
             eat.format(python=sys.executable, mib=50, s=1))
        ):  # fmt: skip
            scheduler.assign(index, command=command, hardware=hardware)
        end = await scheduler.ended(0)
        assert end.outcome == wire.OUTCOME_FAILED
        assert end.message.startswith("out of memory: it used ")
        assert end.message.endswith(" MiB of the 200 MiB that `hardware: memory` promises")
        await until_gone(int(scheduler.log(0).split()[1]))
        assert (await scheduler.ended(1)).outcome == wire.OUTCOME_SUCCEEDED


async def test_what_a_command_leaves_behind_is_killed(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, command="sleep 600 & echo $!")
        assert (await scheduler.ended(0)).outcome == wire.OUTCOME_SUCCEEDED
        await until_gone(int(await scheduler.log_closed(0)))


async def test_daemons_end_with_their_task_and_no_other(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    daemon = "(setsid sh -c 'echo $$; (setsid sleep 601 &); exec sleep 600' &); sleep 0.2"
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, command=f"{daemon}; sleep 600")
        await scheduler.logged(0, b"\n")
        scheduler.assign(1, command=daemon)
        assert (await scheduler.ended(1)).outcome == wire.OUTCOME_SUCCEEDED
        await until_gone(int(await scheduler.log_closed(1)))
        bystander = int(scheduler.log(0))
        assert not gone(bystander)
        scheduler.stop_tasks(task_key(0))
        await scheduler.ended(0)
        await until_gone(bystander)
    left = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "601"]]
    assert left == []


async def test_slots_bound_what_runs_and_a_queued_task_can_be_stopped(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    async with agent(scheduler, tmp_path, slots=1):
        scheduler.assign(0, 1, command="sleep 600")
        await scheduler.running(0)
        scheduler.stop_tasks(task_key(1))
        assert (await scheduler.ended(1)).message == "stopped before it started"
        scheduler.stop_tasks(task_key(0))
        await scheduler.ended(0)


async def test_the_same_batch_twice_runs_once(scheduler: FakeScheduler, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    async with agent(scheduler, tmp_path / "work", slots=4):
        for _ in range(3):
            scheduler.assign(0, 1, command=f"echo x >> {counter}; sleep 0.1")
        await scheduler.ended(0)
        await scheduler.ended(1)
        scheduler.assign(0, 1, command=f"echo x >> {counter}")
        scheduler.assign(2, command="true")
        await scheduler.ended(2)
    assert counter.read_text() == "x\nx\n"


async def test_a_lost_scheduler_costs_nothing(scheduler: FakeScheduler, tmp_path: Path) -> None:
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, command="while ! [ -e go ]; do sleep 0.05; done; echo done")
        scheduler.assign(1, command=f"while ! [ -e {tmp_path}/go ]; do sleep 0.05; done")
        await scheduler.running(0)
        await scheduler.running(1)
        await scheduler.stop()
        (tmp_path / "go").touch()
        await scheduler.start()
        connection = await scheduler.connected(2)
        assert connection.hello.worker == scheduler.connections[0].hello.worker
        running = {key.task for key in connection.hello.running}
        assert task_key(0).task in running
        assert (await scheduler.ended(1)).outcome == wire.OUTCOME_SUCCEEDED
        scheduler.stop_tasks(task_key(0))
        assert (await scheduler.ended(0)).outcome == wire.OUTCOME_STOPPED


async def test_reports_are_sent_again_until_acknowledged(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    scheduler.acknowledge = False
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, command="true")
        await scheduler.ended(0)
        first = scheduler.connections[0]
        first.hang_up()
        second = await scheduler.connected(2)
        assert [key.task for key in second.hello.running] == [task_key(0).task]
        await scheduler.until(
            lambda: any(s.outcome == wire.OUTCOME_SUCCEEDED for s in second.statuses)
        )
        assert second.sequences[0] == first.sequences[0]
        second.send(wire.ConnectResponse(ack=wire.StatusAck(sequence=max(second.sequences))))
        second.hang_up()
        third = await scheduler.connected(3)
        await scheduler.until(lambda: third.heartbeats)
        assert not third.hello.running
        assert not third.statuses


async def test_it_goes_to_the_named_leader(scheduler: FakeScheduler, tmp_path: Path) -> None:
    async with FakeScheduler() as follower, AsyncExitStack() as stack:
        follower.refuse = UnavailableError(
            "another leads", reason="NOT_LEADER", metadata={"leader": scheduler.address}
        )
        settings = WorkerSettings(scheduler_endpoint=follower.address, workdir=tmp_path, slots=1)
        await build(settings, Running("worker", "test", stack))
        await scheduler.connected()


@pytest.fixture
def joining(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A token to join with, which no other test inherits, nor what comes of it."""
    monkeypatch.setenv("HYPER_TOKEN", "join")
    yield
    _transport.show_token("")


@pytest.mark.usefixtures("joining")
async def test_what_it_joined_with_is_renewed_for_ever(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    scheduler.tokens, scheduler.token_lifetime_s = ["first", "second", "third"], 1.0
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, command="sleep 2")
        await scheduler.connected(3)
        shown = [each.shown for each in scheduler.connections[:3]]
        assert shown == ["Bearer join", "Bearer first", "Bearer second"]
        assert (await scheduler.ended(0)).outcome == wire.OUTCOME_SUCCEEDED


@pytest.mark.usefixtures("joining")
async def test_of_two_tokens_the_good_one_is_shown(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    scheduler.tokens = ["own"]
    async with agent(scheduler, tmp_path):
        scheduler.good_tokens = {"own"}  # what it joined with has expired
        scheduler.connections[0].hang_up()
        await scheduler.connected(2)
        scheduler.good_tokens = {"join"}  # another key signs now, and its environment knew
        scheduler.connections[1].hang_up()
        await scheduler.connected(3)
        scheduler.good_tokens = {"own"}
        scheduler.connections[2].hang_up()
        assert (await scheduler.connected(4)).shown == "Bearer own"


async def test_leaving_preempts_what_runs(scheduler: FakeScheduler, tmp_path: Path) -> None:
    async with agent(scheduler, tmp_path, slots=2) as running:
        scheduler.assign(0, command="trap 'echo saved; exit 0' TERM; while :; do sleep 0.05; done")
        scheduler.assign(1, command="trap '' TERM; while :; do sleep 0.05; done", grace_s=60.0)
        scheduler.assign(2, command="true")
        await scheduler.running(0)
        await scheduler.running(1)
        await leave(running)
        outcomes = {i: scheduler.end_of(i) for i in range(3)}
        assert all(s is not None and s.outcome == wire.OUTCOME_PREEMPTED for s in outcomes.values())
        assert scheduler.log(0).endswith(b"saved\n")


async def test_the_log_store_may_be_away(scheduler: FakeScheduler, tmp_path: Path) -> None:
    scheduler.logs_away = True
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, command="echo kept; sleep 0.2; echo too")
        assert (await scheduler.ended(0)).outcome == wire.OUTCOME_SUCCEEDED
        assert scheduler.log(0) == b""
        scheduler.logs_away = False
        assert await scheduler.log_closed(0) == b"kept\ntoo\n"


@pytest.mark.timeout(600 if LARGE else 60)
async def test_a_task_that_shouts_cannot_fill_the_memory(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    size = 10 << 30 if LARGE else 100 << 20
    me = psutil.Process()
    async with agent(scheduler, tmp_path, log_spool_bytes=8 << 20):
        before = me.memory_info().rss
        scheduler.logs_away = True
        scheduler.assign(0, command=f"head -c {size} /dev/zero; echo end")
        end = await scheduler.ended(0, 500 if LARGE else 50)
        assert end.outcome == wire.OUTCOME_SUCCEEDED
        assert me.memory_info().rss - before < 64 << 20
        scheduler.logs_away = False
        log = await scheduler.log_closed(0)
    assert len(log) < 9 << 20
    missing = int(log.rstrip().rpartition(b"[hyper: ")[2].split()[0])
    assert b"bytes of output are missing here" in log[-200:]
    assert log.count(0) + missing == size + len(b"end\n")


async def test_a_large_log_arrives_whole(scheduler: FakeScheduler, tmp_path: Path) -> None:
    size = 30 << 20
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, command=f"head -c {size} /dev/zero; echo end")
        await scheduler.ended(0, 50)
        assert len(await scheduler.log_closed(0)) == size + 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"image": "python:3"}, "runs no containers"),
        ({"command": "echo {{missing}}"}, "{{missing}}, which is not a parameter"),
        ({"command": "echo {{nul}}"}, "holds a NUL"),
    ],
)
async def test_a_task_that_cannot_start_says_why(
    scheduler: FakeScheduler, tmp_path: Path, spec: dict[str, str], message: str
) -> None:
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, parameters={"nul": "\0"}, **spec)
        end = await scheduler.ended(0)
        assert end.outcome == wire.OUTCOME_FAILED
        assert message in end.message
        assert end.permanent == ("image" not in spec)  # which another worker may run
        assert message.encode() in scheduler.log(0)


def test_the_guard_is_replaced_and_still_knows_all() -> None:
    guard = Guard()
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    guard.watch(child.pid)
    first = psutil.Process(guard.pid)
    first.kill()
    first.wait(5)
    guard.watch(child.pid + 1_000_000)  # written to the new one
    assert guard.pid != first.pid
    guard.forget(child.pid + 1_000_000)
    guard.close()  # as when the agent dies
    assert child.wait(5) == -signal.SIGKILL


async def test_folders_of_killed_agents_are_swept(scheduler: FakeScheduler, tmp_path: Path) -> None:
    left = tmp_path / "agent-dead"
    left.mkdir()
    (left / "file").touch()
    async with agent(scheduler, tmp_path):
        (mine,) = entries(tmp_path)
        assert mine != left
        Folders(tmp_path).close()
        assert entries(tmp_path) == [mine]
    assert entries(tmp_path) == []


async def test_what_an_attempt_used_is_reported(scheduler: FakeScheduler, tmp_path: Path) -> None:
    burn = "import time; x = bytearray(80 << 20); t = time.process_time()\n"
    burn += "while time.process_time() - t < 0.3: pass"
    async with agent(scheduler, tmp_path):
        scheduler.assign(0, command="python -c {{program}}; true", parameters={"program": burn})
        end = await scheduler.ended(0)
        assert 0.3 <= end.cpu.ToNanoseconds() / 1e9 < 3
        assert end.cpu.ToNanoseconds() <= end.wall.ToNanoseconds() * 1.5
        assert 80 << 20 < end.peak_rss_bytes < 200 << 20
