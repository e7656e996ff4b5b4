"""Child processes and ports: recognised, stopped, held."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from hyper.cluster.ports import GRPC_OFFSET, HeldPorts, is_free
from hyper.cluster.processes import ProcessId, kill, log_tail, marked, spawn, stop, wait_until


def sleeper(tmp_path: Path, code: str = "signal.pause()", **environment: str) -> ProcessId:
    """A process that waits; `code` runs with os, signal, sys, subprocess imported."""
    done = tmp_path / "ready"
    done.unlink(missing_ok=True)
    script = (
        "import os, pathlib, signal, subprocess, sys\n"
        f"ready = pathlib.Path({str(done)!r}).touch\n"
        f"{code if 'ready()' in code else 'ready(); ' + code}\n"
    )
    process = spawn(
        [sys.executable, "-c", script],
        log=tmp_path / "log",
        environment={**os.environ, **environment},
        folder=tmp_path,
    )
    assert wait_until(done.exists, 30), log_tail(tmp_path / "log")
    return process


def test_a_process_is_known_by_its_start_time(tmp_path: Path) -> None:
    process = sleeper(tmp_path)
    try:
        assert process.alive
        stranger = ProcessId(process.pid, process.started + "0")
        assert not stranger.alive
        assert not stranger.signal(signal.SIGKILL)
        kill(stranger)
        assert process.alive
    finally:
        kill(process)
    assert not process.alive


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process = sleeper(
        tmp_path,
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready()\nwhile True: signal.pause()",
    )
    stop(process, grace_s=0.1)
    assert not process.alive


def test_what_a_process_leaves_in_its_group_is_killed(tmp_path: Path) -> None:
    process = sleeper(
        tmp_path,
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "pathlib.Path('child').write_text(str(child.pid)); ready(); signal.pause()",
    )
    child = ProcessId.of(int((tmp_path / "child").read_text()))
    assert child is not None
    stop(process, grace_s=5.0)
    assert wait_until(lambda: not child.alive, 5.0)


def test_marked_processes_are_found(tmp_path: Path) -> None:
    process = sleeper(tmp_path, HYPER_TEST_MARK=str(tmp_path))
    try:
        assert list(marked("HYPER_TEST_MARK", str(tmp_path))) == [process]
        assert list(marked("HYPER_TEST_MARK", str(tmp_path)[:-1])) == []
    finally:
        kill(process)


def test_a_program_that_does_not_exist_cannot_be_spawned(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spawn(["/does/not/exist"], log=tmp_path / "log", environment={}, folder=tmp_path)


def test_a_dead_child_is_not_alive(tmp_path: Path) -> None:
    process = spawn(
        [shutil.which("true") or "/bin/true"],
        log=tmp_path / "log",
        environment={},
        folder=tmp_path,
    )
    assert wait_until(lambda: not process.alive, 5.0)
    assert not process.signal(signal.SIGTERM)
    with pytest.raises(ChildProcessError):  # reaped: no zombie is left
        os.waitpid(process.pid, os.WNOHANG)


def test_port_pairs_are_free_and_below_the_limit() -> None:
    with HeldPorts() as held:
        ports = [held.pair() for _ in range(8)]
        assert len({*ports, *(p + GRPC_OFFSET for p in ports)}) == 16
        assert all(p + GRPC_OFFSET < 65536 for p in ports)
        assert not is_free(ports[0])
    assert is_free(ports[0])
