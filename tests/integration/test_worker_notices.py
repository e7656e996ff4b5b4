"""A cloud's notice of preemption: the worker leaves, its tasks go on elsewhere.

The metadata servers are fakes of ours, which answer as the clouds document it: no cloud is here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hyper.errors import NotFoundError
from hyper.workflows import Workflow
from hyper_worker.notices import ec2_notice, gcp_notice
from tests.support.http_server import http_server
from tests.support.imds import Metadata, answer_of
from tests.support.servers import EtcdServer, S3Server
from tests.support.services import run_services
from tests.support.waiting import until


@contextmanager
def metadata() -> Iterator[Metadata]:
    state = Metadata()
    with http_server(answer_of(state), "text/plain") as url:
        state.url = url
        yield state


def test_what_clouds_say() -> None:
    with metadata() as cloud:
        assert (ec2_notice(cloud.url), gcp_notice(cloud.url)) == ("", "")
        cloud.preempted = True
        assert ec2_notice(cloud.url) == "terminate at 2026-11-27T09:00:00Z"
        assert gcp_notice(cloud.url) == "preempted"
    with pytest.raises(OSError, match="refused"):
        ec2_notice(cloud.url)


def log_of(workflow: Workflow) -> str:
    try:
        return b"".join(workflow.logs("t/0")).decode()
    except NotFoundError:
        return ""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_worker_leaves_in_time(
    tmp_path: Path, etcd_server: EtcdServer, s3_server: S3Server, cloud: str
) -> None:
    """Its task gets SIGTERM, saves what it has, and goes on elsewhere from there, no failure."""
    flag = tmp_path / "flag"
    program = (
        "import os, pathlib, signal, sys, time\n"
        "ckpt = pathlib.Path('ckpt'); saved = ckpt / 'n'\n"
        "def save(*_): saved.write_text('saved on SIGTERM'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print(saved.read_text() if saved.exists() else 'nothing saved', flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.05)\n"
    )
    with (
        metadata() as here,
        run_services(
            tmp_path, etcd_server, s3_server.settings(f"test-{secrets.token_hex(8)}"),
            f"/test-{secrets.token_hex(8)}", workers=1,
            scheduler_settings={"HEARTBEAT_S": "0.3", "LEASE_S": "30", "LEADER_TTL_S": "2"},
            worker_settings={
                "CLOUD": cloud, "METADATA_URL": here.url, "NOTICE_EVERY_S": "0.2",
            },
        ) as running,
        running.client() as client,
    ):  # fmt: skip
        (tmp_path / "main.py").write_text(program)
        workflow = client.submit({"version": 1, "name": "t", "experiments": {"t": {
            "command": f"exec python {tmp_path}/main.py {flag}", "retries": 0,
            "checkpoint": {"path": "ckpt", "every": "60s"},
        }}})  # fmt: skip
        until(lambda: "nothing saved" in log_of(workflow), "the program runs")
        assert here.asked, "the worker asks"
        running.worker_settings["CLOUD"] = ""
        second = running.add_worker("second")
        try:
            here.preempted = True
            child = running.workers[0].child
            assert child is not None and child.wait(30) == 0
            flag.touch()
            workflow.wait(60, check=True)
            task = workflow.task("t", 0)
            assert (task.failures, task.losses) == (0, 1)
            assert task.worker.removeprefix("workers/").startswith("second")
            assert log_of(workflow).splitlines()[-1] == "saved on SIGTERM"
        finally:
            second.destroy()
