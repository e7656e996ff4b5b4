"""Programs that know nothing of Hyper: code, inputs, outputs and checkpoints, on a cluster."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from hyper import running
from hyper.cli import main as cli
from hyper.client import Client
from hyper.errors import InvalidArgumentError, NotFoundError
from hyper.status import RunState
from hyper.workflows import Workflow
from hyper_servicekit.etcd import Etcd
from hyper_worker.runner.isolation import cannot_bind
from tests.support.servers import EtcdServer, S3Server
from tests.support.services import Services, run_services
from tests.support.waiting import until

SCRIPT = """\
import pathlib, sys
import helper
source, target = map(pathlib.Path, sys.argv[1:])
total = sum(int(file.read_text()) for file in sorted(source.glob("*.txt")))
target.mkdir(parents=True, exist_ok=True)
(target / "total.txt").write_text(helper.shout(total))
(target / "deep" / "er").mkdir(parents=True)
(target / "deep" / "er" / "raw").write_bytes(b"\\xff\\x00")
pathlib.Path("written-beside-the-code").write_text("x")
print("summed", total)
"""

# HYPER_TEST_LARGE=1: the sizes that are promised, rather than a tenth of them
LARGE = os.environ.get("HYPER_TEST_LARGE") == "1"


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, etcd_server: EtcdServer, s3_server: S3Server
) -> Iterator[Services]:
    fast = {"HEARTBEAT_S": "0.3", "LEASE_S": "1.5", "LEADER_TTL_S": "2"}
    fast["SECRETS_KEY"] = base64.b64encode(secrets.token_bytes(32)).decode()
    name = f"test-{secrets.token_hex(8)}"
    with run_services(
        tmp_path_factory.mktemp("services"),
        etcd_server,
        s3_server.settings(name),
        f"/{name}",
        scheduler_settings=fast,
    ) as running:
        yield running


@pytest.fixture
def client(cluster: Services) -> Iterator[Client]:
    for process in cluster.workers:
        if process.child is None or process.child.poll() is not None:
            process.start()
    with cluster.client() as connected:
        yield connected


def recipe(**experiments: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "name": "test", "experiments": experiments}


def store(client: Client, files: dict[str, str]) -> str:
    """A dataset of these files; its address."""
    name = f"test/data-{secrets.token_hex(4)}"
    with client.session(name) as session:
        session.write_many(files.items())
    return f"hyper://{name}"


def done(workflow: Workflow, count: int) -> bool:
    return workflow.refresh().tasks.succeeded >= count


def log_of(workflow: Workflow, task: str = "e/0") -> str:
    try:
        return b"".join(workflow.logs(task)).decode(errors="replace")
    except NotFoundError:
        return ""


def finish(workflow: Workflow, state: RunState = RunState.SUCCEEDED) -> None:
    status = workflow.wait(800 if LARGE else 60)
    assert status.state is state, f"{status.message}\n{log_of(workflow)}"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("absolute", [False, True])
def test_an_unmodified_script(
    client: Client, tmp_path: Path, cluster: Services, absolute: bool
) -> None:
    if absolute and (problem := cannot_bind()):
        pytest.skip(f"no mount namespaces here: {problem}")
    (tmp_path / "main.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("def shout(n): return f'{n}!'\n")
    data = store(client, {"a.txt": "1", "b.txt": "41", "c.bin": "no"})
    output = f"test/out-{secrets.token_hex(4)}"
    source, target = ("/in/data", "/out/put") if absolute else ("data", "result/here")
    text = f"""\
name: unmodified
experiments:
  e:
    command: python main.py {source} {target}
    workdir: {tmp_path}
    inputs: {{{source}: "{data}@1"}}
    outputs: {{{target}: "hyper://{output}-{{{{i}}}}"}}
    parameters: {{i: [1, 2]}}
"""
    workflow = client.submit(text)
    finish(workflow)
    assert "summed 42" in log_of(workflow, "e/1")
    for index in (1, 2):
        version = client.open_dataset(f"{output}-{index}")
        assert version.version == 1
        assert [file.path for file in version.files()] == ["deep/er/raw", "total.txt"]
        assert version.read("total.txt") == b"42!"
        assert version.read("deep/er/raw") == b"\xff\x00"
    work = cluster.workers[0].folder / "work"
    assert not list(work.glob("agent-*/task-*"))
    assert not list((work / "cache" / "trees").glob("*/written-beside-the-code"))


@pytest.mark.timeout(120)
def test_a_setup_runs_once(client: Client, tmp_path: Path) -> None:
    (tmp_path / "lib.py").write_text("answer = 42\n")
    counter = tmp_path / "count"
    workflow = client.submit(
        recipe(
            e={
                "setup": [
                    f"echo x >> {counter}",
                    "mkdir -p $PIP_TARGET/bin",
                    "printf '#!/bin/sh\\necho installed tool\\n' > $PIP_TARGET/bin/tool",
                    "chmod +x $PIP_TARGET/bin/tool",
                    "echo 'value = 7' > $PIP_TARGET/installed.py",
                    "echo made > made.txt",
                ],
                "command": "tool; cat made.txt; python -c 'import lib, installed; "
                "print(lib.answer + installed.value)'",
                "workdir": str(tmp_path / "."),
                "parameters": {"i": {"range": [0, 6]}},
            }
        )
    )
    finish(workflow)
    for index in range(6):
        assert log_of(workflow, f"e/{index}").split("\n")[-4:] == [
            "installed tool",
            "made",
            "49",
            "",
        ]
    assert counter.read_text() == "x\n"


@pytest.mark.timeout(120)
def test_a_setup_that_fails(client: Client) -> None:
    work = {"setup": "echo no such thing; exit 3", "command": "true", "retries": 0}
    workflow = client.submit(recipe(e=work))
    finish(workflow, RunState.FAILED)
    assert "the setup exited with status 3" in workflow.task("e", 0).message
    assert "no such thing" in log_of(workflow)


@pytest.mark.timeout(120)
def test_outputs_of_failures_are_not_seen(client: Client) -> None:
    name = f"test/out-{secrets.token_hex(4)}"
    work = {
        "command": "echo x > out/x; exit 1",
        "outputs": {"out": f"hyper://{name}"},
        "retries": 1,
    }
    workflow = client.submit(recipe(e=work))
    finish(workflow, RunState.FAILED)
    with pytest.raises(NotFoundError):
        client.open_dataset(name)


@pytest.mark.timeout(120)
def test_hostile_outputs(client: Client, tmp_path: Path) -> None:
    """Links lead nowhere, pipes hold nothing up, what cannot be stored is said."""
    (tmp_path / "secret").write_text("of the agent")
    name = f"test/out-{secrets.token_hex(4)}"
    command = f"""\
mkdir -p out/a; echo fine > out/a/file; mkfifo out/pipe; chmod 000 out/a/file
ln -s {tmp_path}/secret out/link; ln -s {tmp_path} out/folder; ln -s / out/a/root"""
    outputs = {"out": f"hyper://{name}"}
    finish(client.submit(recipe(e={"command": command, "outputs": outputs})))
    assert [file.path for file in client.open_dataset(name).files()] == ["a/file"]

    for trick in (f"rm -r out; ln -s {tmp_path} out", "touch \"$(printf 'out/\\377')\""):
        work = {"command": trick, "outputs": outputs, "retries": 0}
        workflow = client.submit(recipe(e=work))
        finish(workflow, RunState.FAILED)
        assert "its outputs cannot be stored" in workflow.task("e", 0).message
    assert client.open_dataset(name).version == 1
    work = {"command": "true", "inputs": {"in": "hyper://other/data"}, "retries": 0}
    with pytest.raises(InvalidArgumentError, match="another tenant"):
        client.submit(recipe(e=work))


CHECKPOINTED = """\
import os, pathlib, sys, time
ckpt = pathlib.Path("ckpt")
start = int((ckpt / "step").read_text()) if (ckpt / "step").exists() else 0
print("starts at", start, flush=True)
for step in range(start, 10_000):
    (ckpt / "new").write_text(str(step))
    os.replace(ckpt / "new", ckpt / "step")
    if pathlib.Path(sys.argv[1]).exists():
        print("done at", step)
        sys.exit(0)
    time.sleep(0.02)
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_checkpoint_outlives_its_worker(
    client: Client, cluster: Services, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "main.py").write_text(CHECKPOINTED)
    flag = tmp_path.parent / f"{tmp_path.name}.flag"
    work = {
        "command": f"exec python main.py {flag}",
        "workdir": str(tmp_path),
        "checkpoint": {"path": "ckpt", "every": "1s"},
    }
    workflow = client.submit(recipe(e=work))
    until(lambda: "starts at" in log_of(workflow), "the program runs")
    key = workflow.name + "/experiments/e/tasks/0"
    until(lambda: checkpoint_version(client, key) >= 3, "two saves")
    worker = workflow.task("e", 0).worker
    victim = next(w for w in cluster.workers if worker.removeprefix("workers/").startswith(w.name))
    victim.stop(number)
    until(lambda: log_of(workflow).count("starts at") == 1 and "checkpoint of" in log_of(workflow),
          "it goes on elsewhere")  # fmt: skip
    text = log_of(workflow)  # of the newest attempt
    assert int(text.split("starts at ")[1].split()[0]) > 0
    flag.touch()
    finish(workflow)
    task = workflow.task("e", 0)
    assert (task.failures, task.losses) == (0, 1)
    with pytest.raises(NotFoundError):
        client.open_dataset(checkpoint_name(key))


def checkpoint_name(task: str) -> str:
    return f"test/checkpoint-{hashlib.sha256(task.encode()).hexdigest()[:32]}"


def checkpoint_version(client: Client, task: str) -> int:
    try:
        return client.open_dataset(checkpoint_name(task)).version
    except NotFoundError:
        return 0


@pytest.mark.timeout(180)
def test_outputs_appear_once_whenever_the_agent_is_killed(
    client: Client, cluster: Services
) -> None:
    """Kill agents again and again while many tasks write outputs."""
    name = f"test/many-{secrets.token_hex(4)}"
    work = {
        "command": "echo $HYPER_ATTEMPT > out/{{i}}; sleep 0.1",
        "outputs": {"out": f"hyper://{name}-{{{{i}}}}"},
        "parameters": {"i": {"range": [0, 16]}},
    }
    workflow = client.submit(recipe(e=work))
    for turn in range(4):
        victim = cluster.workers[turn % 2]
        until(partial(done, workflow, 2 * turn + 1), "some are done")
        children = psutil.Process(victim.pid).children(recursive=True)
        victim.stop(signal.SIGKILL)
        psutil.wait_procs(children, timeout=10)
        assert not [p for p in children if p.is_running() and p.status() != "zombie"]
        victim.start()
    finish(workflow)
    for index in range(16):
        version = client.open_dataset(f"{name}-{index}")
        assert version.version == 1
        assert [file.path for file in version.files()] == [str(index)]


@pytest.mark.timeout(900 if LARGE else 180)
def test_many_files(client: Client) -> None:
    name = f"test/files-{secrets.token_hex(4)}"
    count = 100_000 if LARGE else 10_000
    program = (
        f"import os\nfor i in range({count}):\n    os.close(os.open(f'out/{{i}}', os.O_CREAT))"
    )
    work = {
        "command": "python -c {{program}}",
        "parameters": {"program": program},
        "outputs": {"out": f"hyper://{name}"},
    }
    finish(client.submit(recipe(e=work)))
    assert client.open_dataset(name).file_count == count


@pytest.mark.timeout(120)
def test_secrets(client: Client, cluster: Services, etcd_server: EtcdServer) -> None:
    """They reach the task that names them; they are stored and logged nowhere in the clear."""
    value = f"s3cr3t-{secrets.token_hex(8)}"
    running.put_secret(client, "api-token", value)
    running.put_secret(client, "api-token", value)
    assert running.list_secrets(client) == ["api-token"]
    digest = hashlib.sha256(value.encode()).hexdigest()
    check = "test $(printf %s \"$TOKEN\" | sha256sum | cut -d' ' -f1) = {{digest}} && echo right"
    work = {"command": check, "secrets": {"TOKEN": "api-token"}, "parameters": {"digest": digest}}
    workflow = client.submit(recipe(e=work))
    finish(workflow)
    assert log_of(workflow) == "right\n"
    missing = {"command": "true", "secrets": ["nothing"], "retries": 0}
    workflow = client.submit(recipe(e=missing))
    finish(workflow, RunState.FAILED)
    assert "hyper secret put nothing" in workflow.task("e", 0).message
    for process in (cluster.scheduler, cluster.storage, *cluster.workers):
        assert value not in process.log.read_text(errors="replace")
    stored = asyncio.run(everything_in(etcd_server))
    assert value.encode() not in stored and b"secrets/test/api-token" in stored
    running.delete_secret(client, "api-token")
    assert running.list_secrets(client) == []


async def everything_in(server: EtcdServer) -> bytes:
    async with Etcd([server.endpoint]) as etcd:
        found, _ = await etcd.get_prefix("/")
    return b"".join(item.key.encode() + item.value for item in found)


@pytest.mark.timeout(120)
def test_looking_at_a_live_task(
    client: Client,
    cluster: Services,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HYPER_ENDPOINT", cluster.scheduler.address)
    monkeypatch.setenv("HYPER_TENANT", "test")
    (tmp_path / "note").write_text("from the work folder")
    work = {
        "command": "echo begun; trap 'exit 3' TERM; while :; do sleep 0.1; done",
        "workdir": str(tmp_path),
        "env": {"COLOUR": "green"},
        "retries": 0,
        "timeout": "8s",
    }
    workflow = client.submit(recipe(e=work))
    until(lambda: "begun" in log_of(workflow), "the program runs")
    target = f"{workflow.name.rpartition('/')[2]}/e/0"
    capfd.readouterr()
    assert cli.run(["exec", target, "--", "sh", "-c", "cat note; echo $COLOUR; exit 5"]) == 5
    assert capfd.readouterr().out == "from the work foldergreen\n"
    assert cli.run(["exec", target, "--json", "--", "sh", "-c", "echo $COLOUR; exit 5"]) == 5
    ran = json.loads(capfd.readouterr().out)
    assert ran == {"exit_code": 5, "output": "green\n", "truncated": False}
    assert cli.run(["exec", target, "--timeout", "0.2", "--", "sleep", "60"]) == 2
    assert "has not ended in 0.2 s" in capfd.readouterr().err
    until(lambda: "e/0" in top(capfd), "the task's use")
    finish(workflow, RunState.FAILED)
    capfd.readouterr()
    until(lambda: "timeout" in lines_of(capfd, target, "os")[-1].get("reason", "") or
          lines_of(capfd, target, "os")[-1]["event"] == "ended", "its end")  # fmt: skip
    events = lines_of(capfd, target, "os")
    assert [each["event"] for each in events] == ["signal", "ended"]
    assert (events[0]["name"], events[1]["exit_code"]) == ("SIGTERM", 3)
    series = lines_of(capfd, target, "usage")
    assert len(series) > 3
    assert all(each["memory_bytes"] > 0 for each in series)
    assert [each["t"] for each in series] == sorted(each["t"] for each in series)
    assert cli.run(["logs", target, "--since", "1h"]) == 0
    assert capfd.readouterr().out.startswith("begun\n")
    assert cli.run(["logs", target, "--since", "0s"]) == 0
    assert capfd.readouterr().out == ""
    assert cli.run(["exec", target, "--", "true"]) == 2
    assert "does not run now" in capfd.readouterr().err


def top(capfd: pytest.CaptureFixture[str]) -> str:
    assert cli.run(["top"]) == 0
    return capfd.readouterr().out


def lines_of(capfd: pytest.CaptureFixture[str], target: str, source: str) -> list[dict[str, Any]]:
    assert cli.run(["logs", target, "--source", source]) == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()] or [{"event": ""}]


@pytest.mark.timeout(120)
def test_join(client: Client, cluster: Services, tmp_path: Path) -> None:
    """Any machine that reaches the scheduler becomes a worker; it listens nowhere else."""
    environment = {**os.environ, "HYPER_WORKER__WORKDIR": str(tmp_path)}
    command = [
        sys.executable,
        "-c",
        "from hyper.cli.main import main; main()",
        "join",
        cluster.scheduler.address,
    ]
    command += ["--slots", "1", "--label", "place=here", "--token", "t"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until(lambda: [w for w in client.workers() if w.labels.get("place") == "here"], "it joins")
        work = {"command": "echo joined", "labels": {"place": "here"}}
        workflow = client.submit(recipe(e=work))
        finish(workflow)
        until(lambda: log_of(workflow) == "joined\n", "its log")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (tmp_path / "log").read_text()
