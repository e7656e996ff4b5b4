"""Machines in trouble: a full disk, a clock that jumps."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hyper.client import Client
from hyper.status import RunState
from tests.support.servers import EtcdServer, S3Server
from tests.support.services import Services, run_services

FAST = {"HEARTBEAT_S": "0.3", "LEASE_S": "1.5", "LEADER_TTL_S": "2"}
FAKETIME = [
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), Path("/usr/lib/faketime/none")
]  # fmt: skip


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size; skips where it cannot be mounted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def one_worker(
    folder: Path, etcd: EtcdServer, s3: S3Server, **worker: str
) -> Iterator[tuple[Services, Client]]:
    name = f"test-{secrets.token_hex(8)}"
    with (
        run_services(
            folder, etcd, s3.settings(name), f"/{name}", workers=1, scheduler_settings=FAST,
            worker_settings=worker,
        ) as running,
        running.client() as client,
    ):  # fmt: skip
        yield running, client


@pytest.mark.timeout(120)
def test_a_full_disk_is_said_and_over_when_it_is_over(
    tmp_path: Path, etcd_server: EtcdServer, s3_server: S3Server
) -> None:
    """A task that fills the disk fails and says why; its log arrives, and the next one has room."""
    with (
        small_disk(tmp_path / "disk", "64m") as disk,
        one_worker(tmp_path, etcd_server, s3_server, WORKDIR=str(disk)) as (_, client),
    ):
        work = {"version": 1, "name": "t", "experiments": {
            "fill": {"command": "echo begins; dd if=/dev/zero of=big bs=1M count=99", "retries": 0},
        }}  # fmt: skip
        workflow = client.submit(work)
        assert workflow.wait(60).state is RunState.FAILED
        task = workflow.task("fill", 0)
        assert "the worker's disk is full" in task.message, task
        assert task.failures == 1
        text = b"".join(workflow.logs("fill/0")).decode()
        assert text.startswith("begins\n") and "No space left" in text
        events = b"".join(workflow.logs("fill/0", source="os")).decode()
        assert "disk full" in events
        work["experiments"] = {"next": {"command": "dd if=/dev/zero of=x bs=1M count=20"}}
        client.submit(work).wait(60, check=True)
        assert shutil.disk_usage(disk).free > 50 << 20, "nothing of the tasks may stay"


@pytest.mark.timeout(120)
@pytest.mark.skipif(not FAKETIME[0].exists(), reason="needs libfaketime (Debian: faketime)")
@pytest.mark.parametrize("jump", ["+2d", "-2d"])
def test_a_clock_that_jumps(
    tmp_path: Path, etcd_server: EtcdServer, s3_server: S3Server, jump: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The worker's clock goes wrong by days while it works: nothing is lost, nothing fails."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    with run_services(
        tmp_path, etcd_server, s3_server.settings(f"test-{secrets.token_hex(8)}"),
        f"/test-{secrets.token_hex(8)}", workers=0, scheduler_settings=FAST, worker_settings={},
    ) as running:  # fmt: skip
        for name, value in {
            "LD_PRELOAD": str(FAKETIME[0]), "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        worker = running.add_worker("jumping")
        for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE"):
            monkeypatch.delenv(name)
        try:
            with running.client() as client:
                workflow = client.submit({"version": 1, "name": "t", "experiments": {
                    "t": {"command": "date +%s; sleep 0.5; date +%s", "timeout": "20s",
                          "parameters": {"i": {"range": [0, 12]}}, "retries": 0},
                }})  # fmt: skip
                for status in workflow.watch():
                    if status.tasks.succeeded >= 2:
                        break
                clock.write_text(jump)
                workflow.wait(60, check=True)
                times = [int(word) for index in range(12)
                         for word in b"".join(workflow.logs(f"t/{index}")).split()]  # fmt: skip
                assert max(times) - min(times) > 86_400, "the clock has jumped"
                for index in range(12):
                    task = workflow.task("t", index)
                    assert (task.failures, task.losses) == (0, 0), task
                    assert abs(task.end_time.timestamp() - time.time()) < 120, "the scheduler's"
        finally:
            worker.destroy()
            assert os.environ.get("LD_PRELOAD") is None
