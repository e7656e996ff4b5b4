"""`hyper up` and its kin where nothing needs to be started: refusals, files, programs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyper.cli import main as cli
from hyper.cluster import home as home_module
from hyper.cluster import programs
from hyper.cluster.home import (
    Home,
    load_made_by,
    load_or_make_credentials,
    record_made_by,
)
from hyper.cluster.ports import HeldPorts
from hyper.cluster.processes import ProcessId, log_tail
from hyper.cluster.programs import (
    EtcdPorts,
    Program,
    S3Credentials,
    WeedPorts,
    etcd_command,
    find_etcd,
    find_etcds,
    weed_command,
    weed_config,
)
from hyper.cluster.state import Cluster, Layout, Member, load
from hyper.errors import FailedPreconditionError, InternalError

GIGABYTE = 10**9


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HYPER_HOME", str(tmp_path / "home"))
    return Home.default()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command line is refused with status 2."""
    assert cli.run(arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


# Refusals


def test_up_refuses_a_full_disk(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage("/")
    nearly_full = type(usage)(usage.total, usage.total - 150_000_000, 150_000_000)
    monkeypatch.setattr(home_module.shutil, "disk_usage", lambda folder: nearly_full)
    text = refused(["up"], capsys)
    assert "full (150 MB free" in text
    assert "HYPER_HOME" in text
    assert not home.cluster_file.exists()


def test_up_refuses_a_home_that_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HYPER_HOME", str(tmp_path / "file" / "home"))
    assert "cannot be written" in refused(["up"], capsys)


def test_up_refuses_a_home_that_cannot_be_written(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def deny(self: Path, data: bytes) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", deny)
    assert "cannot be written (Permission denied): set HYPER_HOME" in refused(["up"], capsys)


def test_up_refuses_a_port_in_use(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with HeldPorts() as held:
        port = held.one()
        text = refused(["up", "--port", str(port)], capsys)
    assert f"port {port} is in use: choose another with --port" in text


def test_two_commands_at_once_are_refused(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.make()
    with home.locked():
        assert home.busy()
        for command in (["up"], ["down"]):
            assert f"(pid {os.getpid()}) is changing the cluster" in refused(command, capsys)
    assert not home.busy()
    with home.locked():
        pass


def test_up_refuses_when_there_is_no_etcd(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(programs, "find_etcds", lambda also=None: [])
    assert "apt-get install etcd-server" in refused(["up"], capsys)


def test_up_refuses_when_the_etcd_of_the_data_is_gone(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.make()
    home.etcd_data.mkdir()
    record_made_by(home, Program(Path("/gone/etcd"), "3.3.27", "system"), "m")
    text = refused(["up"], capsys)
    assert "made by etcd 3.3 (system), which is not on this machine" in text


def test_up_refuses_etcd_data_that_nobody_signed(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.make()
    home.etcd_data.mkdir()
    assert "does not say which etcd made" in refused(["up"], capsys)


def test_restart_without_a_cluster_is_3(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["restart", "scheduler"]) == 3
    assert "start one with `hyper up`" in capsys.readouterr().err


def test_down_without_a_cluster_is_fine(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["down", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["stopped"] == []
    assert facts["strays"] == 0


def test_down_works_on_a_full_disk(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.make()

    def no_room(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(home_module.os, "pwrite", no_room)
    assert cli.run(["down"]) == 0


def test_status_without_a_cluster_is_3(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["state"] == "stopped"
    assert cli.run(["status", "--quiet"]) == 3
    assert capsys.readouterr().out == ""


def test_a_damaged_cluster_file_is_said_and_down_removes_it(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.make()
    home.cluster_file.write_text("{")
    assert "run `hyper down`, then `hyper up`" in refused(["status"], capsys)
    assert cli.run(["down"]) == 0
    assert not home.cluster_file.exists()


def test_doctor_knows_what_is_missing(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {"python", "etcd", "s3", "disk", "fuse", "docker"} <= set(findings)
    assert {"gpu", "node", "chromium"} <= set(findings)
    monkeypatch.setattr("hyper.cluster.doctor.find_etcds", list)
    assert cli.run(["doctor"]) == 1
    assert "apt-get install etcd-server" in capsys.readouterr().out


def found(capsys: pytest.CaptureFixture[str], name: str) -> dict[str, str]:
    cli.run(["doctor", "--json"])
    finding: dict[str, str] = json.loads(capsys.readouterr().out)["findings"][name]
    return finding


def test_doctor_tries_the_docker_that_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place}")
    assert found(capsys, "docker")["state"] == "optional"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        refused = found(capsys, "docker")
        assert refused["state"] == "optional" and "does not answer" in refused["found"]
        listening.listen()
        assert found(capsys, "docker")["state"] == "ok"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
        assert found(capsys, "docker")["state"] == "ok"
    assert "does not answer" in found(capsys, "docker")["found"]


def test_doctor_looks_for_all_that_mounting_needs(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        assert found(capsys, "fuse")["state"] == "optional"
        return
    monkeypatch.setattr("hyper.cluster.doctor.libfuse.find", lambda: None)
    assert found(capsys, "fuse")["found"] == "no libfuse 3"
    monkeypatch.setattr("hyper.cluster.doctor.libfuse.find", lambda: "libfuse3.so.3")
    monkeypatch.setitem(sys.modules, "mfusepy", None)
    assert "[mount]" in found(capsys, "fuse")["advice"]


# Files


def test_credentials_are_made_once_and_private(home: Home) -> None:
    home.make()
    made = load_or_make_credentials(home)
    assert load_or_make_credentials(home) == made
    assert stat.S_IMODE(home.credentials.stat().st_mode) == 0o600
    assert f"aws_access_key_id = {made.access_key}" in home.credentials.read_text()


def test_damaged_credentials_are_not_replaced(home: Home) -> None:
    home.make()
    home.credentials.write_text("[default]\n")
    with pytest.raises(InternalError, match="damaged"):
        load_or_make_credentials(home)


def test_who_made_the_data_is_kept(home: Home) -> None:
    home.make()
    assert load_made_by(home) is None
    record_made_by(home, Program(Path("/usr/bin/etcd"), "3.4.23", "system"), "name")
    home.etcd_data.mkdir()
    made_by = load_made_by(home)
    assert made_by is not None
    assert (made_by.series, made_by.source, made_by.name) == ("3.4", "system", "name")


def test_the_cluster_file_comes_back_as_it_was(home: Home) -> None:
    home.make()
    layout = Layout(
        home, "3.4.23", "system", Path("/usr/bin/etcd"), "n", EtcdPorts(1, 2),
        WeedPorts(3, 4, 5, 6), home.run, 2, 1, 7, 8,
    )  # fmt: skip
    member = Member("scheduler", "scheduler", ProcessId(1, "boot:1"), "127.0.0.1:7", "127.0.0.1:9")
    cluster = Cluster(layout, {"scheduler": member})
    cluster.save()
    assert load(home) == cluster
    assert stat.S_IMODE(home.cluster_file.stat().st_mode) == 0o600
    facts = json.loads(home.cluster_file.read_text())
    assert facts["endpoint"] == "127.0.0.1:7"
    assert set(facts["s3"]) >= {"endpoint", "bucket", "region", "credentials_file"}
    assert facts["processes"][0]["pid"] == 1
    text = home.cluster_file.read_text()
    assert load_or_make_credentials(home).secret_key not in text


def test_a_long_log_is_put_aside(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.make()
    monkeypatch.setattr(home_module, "MAX_LOG_BYTES", 10)
    home.log("x").write_text("short")
    assert home.begin_log("x") == (home.log("x"), 5)
    home.log("x").write_text("longer than that")
    assert home.begin_log("x") == (home.log("x"), 0)
    assert home.log("x").with_suffix(".log.1").read_text() == "longer than that"


def test_log_tail(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert log_tail(log) == ""
    log.write_bytes(b"old\n" + b"\xff" + b"x" * 1000 + b"\nlast\n")
    assert log_tail(log, 1) == "last"
    assert len(log_tail(log, 2, since=4).splitlines()[0]) == 400
    assert "old" not in log_tail(log, since=4)


# Programs


@pytest.fixture
def etcds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on PATH for etcds that only know their version."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("HYPER_ETCD", raising=False)
    monkeypatch.setattr(programs, "_SYSTEM_FOLDERS", ())
    monkeypatch.setattr(programs, "_TOOLS_SUBFOLDERS", ())
    yield folder
    programs._known_versions.clear()


def fake_etcd(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\nprintf '{text}'\n")
    path.chmod(0o755)
    return path


WHEEL = "etcd Version: 3.5.1\\nGit SHA: e8732fb5f\\n"


def use_wheel(monkeypatch: pytest.MonkeyPatch, path: Path | None) -> None:
    def wheel() -> tuple[Path, str] | None:
        return None if path is None else (path, WHEEL.replace("\\n", "\n"))

    monkeypatch.setattr(programs, "_wheel_etcd", wheel)


def test_a_system_etcd_is_preferred_to_the_wheel(
    etcds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = fake_etcd(etcds / "etcd", "etcd Version: 3.4.23\\n")
    use_wheel(monkeypatch, Path("/wheel/etcd"))
    found = find_etcds()
    assert [(p.version, p.source) for p in found] == [("3.4.23", "system"), ("3.5.1", "wheel")]
    assert found[0].path == system
    assert find_etcd("3.5", "wheel").version == "3.5.1"


def test_the_wheels_etcd_on_path_is_not_a_system_one(
    etcds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_etcd(etcds / "etcd", WHEEL)
    use_wheel(monkeypatch, Path("/wheel/etcd"))
    (only,) = find_etcds()
    assert only.source == "wheel"
    assert only.may_lose_data


def test_something_else_called_etcd_is_passed_over(
    etcds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_etcd(etcds / "etcd", "hello\\n")
    use_wheel(monkeypatch, None)
    assert find_etcds() == []
    with pytest.raises(FailedPreconditionError, match="no etcd on this machine"):
        find_etcd()


def test_the_recorded_etcd_is_found_where_it_was(
    etcds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_wheel(monkeypatch, None)
    elsewhere = fake_etcd(tmp_path / "my-etcd", "etcd Version: 3.4.30\\n")
    assert find_etcd("3.4", "system", elsewhere).path == elsewhere
    with pytest.raises(FailedPreconditionError, match=r"found: 3.4.30 \(system\)"):
        find_etcd("3.5", "system", elsewhere)


def test_servers_listen_on_loopback_only_with_every_port_named() -> None:
    etcd = etcd_command(
        Program(Path("etcd"), "3.4.23", "system"),
        name="n",
        data=Path("d"),
        ports=EtcdPorts(1, 2),
    )
    assert not any("0.0.0.0" in word for word in etcd)
    assert "--auto-compaction-retention=10000" in etcd
    weed = weed_command(
        Program(Path("weed"), "4.48", "wheel"),
        data=Path("d"),
        config=Path("c"),
        sockets=Path("s"),
        ports=WeedPorts(21, 22, 23, 24),
    )
    ports = {word.split("=")[1] for word in weed if ".port" in word}
    assert {"21", "10021", "22", "10022", "23", "10023", "24", "10024"} <= ports
    assert {"-filer.disableHttp", "-ip.bind=127.0.0.1", "-master.telemetry=false"} <= set(weed)


def test_the_s3_server_knows_one_identity_and_nobody_anonymous() -> None:
    identities = json.loads(weed_config(S3Credentials("a", "s")))["identities"]
    assert [one["name"] for one in identities] == ["hyper"]


def test_versions_are_asked_only_of_programs_that_answer(tmp_path: Path) -> None:
    assert programs._run_for_text(["/does/not/exist"]) == ""
    assert programs._run_for_text([str(fake_etcd(tmp_path / "x", "out"))]) == "out"
    assert subprocess.run([tmp_path / "x"], check=True, capture_output=True).stdout == b"out"
