"""Images of a registry that asks for a password. Opt-in: HYPER_TEST_DOCKER=1, and a daemon."""

from __future__ import annotations

import base64
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hyper import running
from hyper.status import RunState
from tests.support.containers import IMAGE, NEEDS_DOCKER
from tests.support.registry import registry
from tests.support.servers import EtcdServer, S3Server
from tests.support.services import run_services

LOGIN = "ada:in the clear nowhere"
pytestmark = [*NEEDS_DOCKER, pytest.mark.timeout(240)]


def test_a_registry_gets_the_secret_that_the_recipe_names(
    tmp_path: Path, etcd_server: EtcdServer, s3_server: S3Server
) -> None:
    name = f"test-{secrets.token_hex(8)}"
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    folders = [tmp_path / each for each in ("services", "image")]
    for folder in folders:
        folder.mkdir()
    with (
        registry(folders[1], IMAGE, LOGIN) as served,
        run_services(
            folders[0], etcd_server, s3_server.settings(name), f"/{name}",
            scheduler_settings={"SECRETS_KEY": key},
        ) as cluster,
        cluster.client() as client,
    ):  # fmt: skip
        running.put_secret(client, "right", LOGIN)
        running.put_secret(client, "wrong", "ada:guess")

        def run(**more: Any) -> tuple[RunState, str]:
            work = {"image": served.image, "command": "echo here", "retries": 0, **more}
            workflow = client.submit({"version": 1, "name": "w", "experiments": {"e": work}})
            return workflow.wait(timeout_s=120).state, workflow.task("e", 0).message

        try:
            for asked in ({}, {"registry": "wrong"}):
                state, message = run(**asked)
                assert (state, "cannot be fetched" in message) == (RunState.FAILED, True)
            assert not any(allowed for _, allowed in served.asked)
            assert run(registry="right") == (RunState.SUCCEEDED, "")
            assert any("/manifests/" in path and allowed for path, allowed in served.asked)
            for asked in ({}, {"registry": "wrong"}):  # it is on the machine now
                state, message = run(**asked)
                assert (state, "cannot be fetched" in message) == (RunState.FAILED, True)
        finally:
            subprocess.run(["docker", "rmi", served.image], check=False, capture_output=True)
        for process in (cluster.scheduler, *cluster.workers):
            assert LOGIN.partition(":")[2] not in process.log.read_text(errors="replace")
