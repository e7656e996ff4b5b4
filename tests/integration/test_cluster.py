"""`hyper up | down | status | restart` with a real etcd and S3 server.

Most tests put small fakes in the place of our services (`tests.support.fake_service`): what is
tested is the starting and stopping. The last part uses the real ones.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minio
import psutil
import pytest

from hyper.cluster import probes
from hyper.cluster.home import Home, record_made_by
from hyper.cluster.processes import ProcessId, marked, wait_until
from hyper.cluster.programs import find_etcd
from hyper.cluster.state import MARK
from hyper_servicekit.etcd import Etcd
from tests.support import fake_service

pytestmark = pytest.mark.timeout(180)

NAMES = [
    "etcd", "s3", "scheduler", "storage-gateway", "inference", "matcher", "worker-0", "worker-1",
]  # fmt: skip


@dataclass(slots=True)
class Hyper:
    """The `hyper` program on one HYPER_HOME."""

    home: Path
    environment: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "hyper.cli.main", *arguments]

    def run(
        self, *arguments: str, status: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that must end with `status`."""
        done = subprocess.run(
            self.command(*arguments),
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def refused(self, *arguments: str, status: int = 2, **environment: str) -> str:
        """Run a command that must be refused; returns its error."""
        text = self.run(*arguments, status=status, **environment).stderr
        return text[text.index("error: ") :]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command and go on."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def status(self, status: int = 0) -> dict[str, Any]:
        facts = json.loads(self.run("status", "--json", status=status).stdout)
        assert isinstance(facts, dict)
        return facts

    def processes(self) -> list[ProcessId]:
        """Everything of this cluster that runs, recorded or not."""
        return list(marked(MARK, str(self.home)))


def make_hyper(home: Path, **environment: str) -> Hyper:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HYPER_") or "ETCD" in k}
    return Hyper(home, {**kept, "HYPER_HOME": str(home), **environment})


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Hyper]:
    """A cluster of fakes, not yet started; stopped at the end."""
    folder = fake_service.install(tmp_path / "fakes")
    hyper = make_hyper(tmp_path / "home", PYTHONPATH=str(folder))
    yield hyper
    hyper.run("down")
    assert hyper.processes() == []


def pid_of(facts: dict[str, Any], name: str) -> int:
    pid = facts["services"][name]["pid"]
    assert isinstance(pid, int)
    return pid


def kill_and_wait(pid: int) -> None:
    process = ProcessId.of(pid)
    assert process is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not process.alive, 10)


def etcd_port(facts: dict[str, Any]) -> int:
    return int(facts["etcd"]["endpoint"].rpartition(":")[2])


def credentials(facts: dict[str, Any]) -> dict[str, str]:
    """The key pair in the file that `status --json` names."""
    file = ConfigParser(interpolation=None)
    file.read(facts["s3"]["credentials_file"])
    return dict(file["default"])


def write_marks(facts: dict[str, Any]) -> None:
    """One key into etcd, one object into S3."""

    async def put() -> None:
        async with Etcd([facts["etcd"]["endpoint"]]) as etcd:
            await etcd.put("/mark", b"etcd's")

    asyncio.run(put())
    s3_client(facts).put_object(facts["s3"]["bucket"], "mark", io.BytesIO(b"s3's"), 4)


def assert_marks(facts: dict[str, Any]) -> None:
    """Both are there."""

    async def get() -> bytes | None:
        async with Etcd([facts["etcd"]["endpoint"]]) as etcd:
            found = await etcd.get("/mark")
            return None if found is None else found.value

    assert asyncio.run(get()) == b"etcd's"
    response = s3_client(facts).get_object(facts["s3"]["bucket"], "mark")
    try:
        assert response.read() == b"s3's"
    finally:
        response.close()
        response.release_conn()


def s3_client(facts: dict[str, Any]) -> minio.Minio:
    """A client with nothing but what `status --json` tells."""
    profile = credentials(facts)
    return minio.Minio(
        facts["s3"]["endpoint"].removeprefix("http://"),
        profile["aws_access_key_id"],
        profile["aws_secret_access_key"],
        secure=False,
        region=facts["s3"]["region"],
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hyper]:
    """A cluster of fakes that runs; tests leave it whole."""
    folder = tmp_path_factory.mktemp("cluster")
    fakes_at = fake_service.install(folder / "fakes")
    # So deep that Unix sockets do not fit into it.
    hyper = make_hyper(folder / ("h" * 90), PYTHONPATH=str(fakes_at))
    try:
        done = hyper.run("up", HYPER_ENDPOINT="other:1")
        (folder / "up.txt").write_text(done.stderr)
        yield hyper
    finally:
        hyper.run("down")
    assert hyper.processes() == []


def test_up_says_what_it_does(running: Hyper) -> None:
    text = (running.home.parent / "up.txt").read_text()
    for name in ("etcd", "S3 server", *NAMES[2:]):
        assert re.search(rf"^starting {name}", text, re.M), name
        assert re.search(rf"^{name}.* is ready after [\d.]+ s on 127.0.0.1:\d+$", text, re.M), name
    order = [text.index(f"\nstarting {name}") for name in ("storage-gateway", "inference")]
    s3_ready = re.search(r"^S3 server .* is ready", text, re.M)
    assert s3_ready is not None
    assert s3_ready.start() < order[0] < order[1]
    (line,) = [each for each in text.splitlines() if "access control is off" in each]
    assert "127.0.0.1 alone" in line


def test_status_gives_every_endpoint(running: Hyper) -> None:
    facts = running.status()
    assert facts["state"] == "running"
    assert list(facts["services"])[: len(NAMES)] == NAMES
    for one in facts["services"].values():
        assert one["state"] == "running"
        assert re.fullmatch(r"127.0.0.1:\d+", one["address"])
        assert one["memory_bytes"] > 0
    assert facts["endpoint"] == facts["services"]["scheduler"]["address"]
    assert facts["disk_free_bytes"] > 0
    shown = running.run("status").stdout
    for word in (facts["endpoint"], facts["s3"]["endpoint"], "worker-1", facts["etcd"]["version"]):
        assert word in shown


def test_secrets_are_private(running: Hyper) -> None:
    facts = running.status()
    private = [Path(facts["s3"]["credentials_file"]), running.home / "cluster.json"]
    private.append(running.home / "s3" / "config.json")
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    secret = credentials(facts)["aws_secret_access_key"]
    for path in [running.home / "cluster.json", *(running.home / "logs").glob("s3*")]:
        assert secret not in path.read_text()
    processes = subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
    assert secret not in processes


def test_servers_are_those_of_this_cluster(running: Hyper) -> None:
    facts = running.status()
    made_by = json.loads((running.home / "etcd" / "made-by.json").read_text())
    assert made_by["version"] == facts["etcd"]["version"]
    assert made_by["source"] == facts["etcd"]["source"]
    assert probes.etcd_member(etcd_port(facts)) == made_by["name"]
    assert s3_client(facts).bucket_exists(facts["s3"]["bucket"])
    with pytest.raises(minio.error.S3Error):
        host = facts["s3"]["endpoint"].removeprefix("http://")
        minio.Minio(host, "someone", "else", secure=False, region="us-east-1").list_buckets()


def test_everything_listens_on_loopback_only(running: Hyper) -> None:
    pids = {process.pid for process in running.processes()}
    listening = [
        c for c in psutil.net_connections("inet") if c.pid in pids and c.status == "LISTEN"
    ]
    assert len(listening) >= 8
    assert {c.laddr[0] for c in listening} == {"127.0.0.1"}


def test_services_are_told_where_everything_is(running: Hyper) -> None:
    facts = running.status()
    environment = psutil.Process(pid_of(facts, "inference")).environ()
    assert environment["HYPER_ENDPOINT"] == facts["endpoint"]  # not the caller's "other:1"
    assert environment["HYPER_INFERENCE__SCHEDULER_ENDPOINT"] == facts["endpoint"]
    etcd = json.loads(environment["HYPER_INFERENCE__ETCD_ENDPOINTS"])
    assert etcd == [facts["etcd"]["endpoint"]]
    assert "HYPER_INFERENCE__S3__SECRET_KEY" not in environment
    storage = psutil.Process(pid_of(facts, "storage-gateway")).environ()
    assert storage["HYPER_STORAGE__S3__ENDPOINT"] == facts["s3"]["endpoint"]
    worker = psutil.Process(pid_of(facts, "worker-1")).environ()
    assert worker["HYPER_WORKER__SLOTS"] == "1"
    assert not [name for name in worker if "S3" in name or "ETCD_ENDPOINTS" in name]


def test_a_second_up_is_refused(running: Hyper) -> None:
    text = running.refused("up")
    assert text.count("\n") == 1
    assert "already running" in text
    assert "hyper down" in text


def test_a_dead_service_is_shown_with_its_log_and_started_again(running: Hyper) -> None:
    before = running.status()
    kill_and_wait(pid_of(before, "scheduler"))
    facts = running.status(status=1)
    assert facts["state"] == "degraded"
    dead = facts["services"]["scheduler"]
    assert dead["state"] == "dead"
    assert any("settings" in line for line in dead["log_tail"])
    shown = running.run("status", status=1).stdout
    assert "scheduler is dead; start it again with `hyper restart scheduler`" in shown
    assert running.refused("up").count("\n") == 1

    answer = json.loads(running.run("restart", "scheduler", "--json").stdout)
    assert answer["address"] == before["services"]["scheduler"]["address"]
    after = running.status()
    for key in ("address", "metrics_address"):
        assert after["services"]["scheduler"][key] == before["services"]["scheduler"][key]
    assert pid_of(after, "scheduler") != pid_of(before, "scheduler")


def test_servers_keep_their_data_when_started_again(running: Hyper) -> None:
    facts = running.status()
    write_marks(facts)
    kill_and_wait(pid_of(facts, "s3"))
    running.run("restart", "etcd")
    running.run("restart", "s3")
    assert_marks(running.status())


def test_restart_of_an_unknown_process_names_the_known(running: Hyper) -> None:
    text = running.refused("restart", "nobody")
    assert "choose from etcd, s3, scheduler" in text


def test_a_crash_while_starting_shows_the_logs_end_and_stops_the_rest(fakes: Hyper) -> None:
    text = fakes.refused("up", status=1, FAKE_CRASH="scheduler")
    first, *log = text.splitlines()
    assert first.startswith("error: scheduler stopped while starting")
    assert str(fakes.home / "logs" / "scheduler.log") in first
    assert log == ["one", "two", "the reason why"]
    assert fakes.processes() == []
    assert not (fakes.home / "cluster.json").exists()


def test_an_etcd_that_cannot_start_is_one_error(fakes: Hyper) -> None:
    program = find_etcd()
    home = Home(fakes.home)
    home.make()
    record_made_by(home, program, "x")
    home.etcd_data.write_text("not a folder")
    text = fakes.refused("up")
    assert text.startswith(f"error: etcd {program.version}")
    assert str(fakes.home / "logs" / "etcd.log") in text.splitlines()[0]
    assert fakes.processes() == []


def test_an_s3_server_that_cannot_start_is_one_error(fakes: Hyper, tmp_path: Path) -> None:
    weed = tmp_path / "weed"
    weed.write_text("#!/bin/sh\necho 'write: no space left on device'; exit 1\n")
    weed.chmod(0o755)
    text = fakes.refused("up", HYPER_WEED=str(weed))
    assert text.startswith("error: the disk of ")
    assert text.count("\n") == 1
    weed.write_text("#!/bin/sh\necho something is wrong; exit 1\n")
    text = fakes.refused("up", HYPER_WEED=str(weed))
    assert text.splitlines()[0].startswith("error: S3 server")
    assert text.splitlines()[1:] == ["something is wrong"]
    assert fakes.processes() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_starting_stops_everything(fakes: Hyper, number: signal.Signals) -> None:
    with fakes.start("up") as up:
        assert up.stderr is not None
        for line in up.stderr:
            if line.startswith("S3 server"):
                up.send_signal(number)
                break
        text = up.stderr.read()
        assert up.wait(60) == 130
    assert "Traceback" not in text
    assert fakes.processes() == []
    assert fakes.status(status=3)["state"] == "stopped"


def test_down_cleans_up_after_an_up_that_was_killed(fakes: Hyper) -> None:
    with fakes.start("up") as up:
        assert up.stderr is not None
        for line in up.stderr:
            if line.startswith("etcd"):
                up.send_signal(signal.SIGSTOP)  # or it is done before we have looked
                assert fakes.status(status=3)["state"] == "starting"
                assert "is changing the cluster" in fakes.refused("up")
                up.kill()
                break
        up.wait(60)
    assert fakes.processes() != []
    assert "earlier cluster" in fakes.refused("up")
    assert "hyper down" in fakes.run("status", status=3).stdout
    assert json.loads(fakes.run("down", "--json").stdout)["strays"] >= 2
    assert fakes.processes() == []


def test_down_works_on_a_half_dead_cluster(fakes: Hyper) -> None:
    fakes.run("up", FAKE_STRAY="worker-0", FAKE_STUBBORN="matcher")
    facts = fakes.status()
    kill_and_wait(pid_of(facts, "worker-0"))
    kill_and_wait(pid_of(facts, "etcd"))
    done = json.loads(fakes.run("down", "--grace", "1", "--json").stdout)
    assert sorted(done["dead"]) == ["etcd", "worker-0"]
    assert "matcher" in done["stopped"]
    assert done["strays"] == 1
    assert fakes.processes() == []


# The real services


def test_data_and_workflows_are_there_after_down_and_up(tmp_path: Path) -> None:
    """With our own services: what was stored or submitted before `down` goes on after `up`."""
    hyper = make_hyper(tmp_path / "home")
    gate = tmp_path / "gate"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nname: gated\nexperiments:\n  wait:\n    parameters: {x: [1, 2, 3]}\n"
        f"    command: \"sh -c 'until test -e {gate}; do sleep 0.1; done; echo {{{{x}}}}'\"\n"
    )
    try:
        hyper.run("up", "--workers", "1", "--slots", "2")
        first = hyper.status()
        assert list(first["services"])[: len(NAMES) - 1] == NAMES[:-1]
        write_marks(first)
        submitted = json.loads(hyper.run("submit", str(recipe), "--json").stdout.splitlines()[-1])
        name = submitted["name"].rpartition("/")[2]
        text = hyper.run("down").stderr
        order = [text.index(f"stopping {name}") for name in ("worker-0", "inference", "scheduler")]
        assert order == sorted(order) and order[-1] < text.index("stopping etcd")
        assert hyper.processes() == []
        assert not (hyper.home / "cluster.json").exists()

        hyper.run("up", "--workers", "1", "--slots", "2")
        second = hyper.status()
        assert_marks(second)
        assert credentials(second) == credentials(first)
        gate.touch()
        kill_and_wait(pid_of(second, "scheduler"))
        hyper.run("restart", "scheduler")
        hyper.run("ps", name, "--watch")
        assert "succeeded" in hyper.run("ps", name).stdout
    finally:
        hyper.run("down")
    assert hyper.processes() == []
