"""What `hyper` says when what it stands on is broken: S3, etcd, the disk, ports."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.local_cluster import LocalCluster

pytestmark = pytest.mark.timeout(420)


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


def hasty(cluster: LocalCluster) -> LocalCluster:
    """The same cluster, for a user who waits for nothing."""
    return replace(cluster, patience_s=3)


def kill(cluster: LocalCluster, name: str) -> None:
    (member,) = [one for one in cluster.processes(name) if one["name"] == name]
    os.kill(member["pid"], signal.SIGKILL)


def test_s3_not_reachable(local_cluster: LocalCluster, small_stack: Path) -> None:
    kill(local_cluster, "s3")
    try:
        line = error_line(hasty(local_cluster).run("align", str(small_stack), "lab/no-s3"))
        assert "S3" in line
    finally:
        restarted = local_cluster.run("restart", "s3")
    assert restarted.returncode == 0, restarted.stderr
    assert local_cluster.run("ls", "lab/no-s3").returncode == 2, "nothing half-written"


def test_etcd_not_reachable(local_cluster: LocalCluster, small_stack: Path) -> None:
    kill(local_cluster, "etcd")
    try:
        line = error_line(hasty(local_cluster).run("align", str(small_stack), "lab/no-etcd"))
        assert "etcd" in line
    finally:
        restarted = local_cluster.run("restart", "etcd")
    assert restarted.returncode == 0, restarted.stderr
    done = local_cluster.run("align", str(small_stack), "lab/after-etcd")
    assert done.returncode == 0, f"{done.stderr}\n{local_cluster.logs()}"


def test_a_second_up(local_cluster: LocalCluster) -> None:
    line = error_line(local_cluster.run("up"))
    assert "running" in line and "hyper down" in line


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cluster = LocalCluster(tmp_path / "home")
        line = error_line(cluster.run("up", "--port", str(port)))
    assert str(port) in line and "in use" in line
    assert not (cluster.home / "cluster.json").exists(), "nothing half-started"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 MB of its own."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", folder],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"this machine does not let root mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk(small_disk: Path, small_stack: Path) -> None:
    cluster = LocalCluster(small_disk / "home")
    assert cluster.run("up", "--workers", "1").returncode == 0
    filler = small_disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:  # to the last byte
                file.write(b"x" * 65536)
        line = error_line(hasty(cluster).run("align", str(small_stack), "lab/full"))
        assert "disk" in line and "full" in line
        filler.unlink()
        assert cluster.run("ls", "lab/full").returncode == 2, "nothing half-written"
    finally:
        filler.unlink(missing_ok=True)
        assert cluster.run("down").returncode == 0


def test_too_full_to_start(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * 300_000_000)
    line = error_line(LocalCluster(small_disk / "home").run("up"))
    assert "free" in line
