"""Services of the last release beside those of this tree, replaced one by one while work goes on.

The release is HYPER_TEST_RELEASE (any commit), else the newest tag v*, else the commit that
protos/BASELINE names; it is skipped where none of them is in the repository's history.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyper.client import Client
from hyper.status import RunState
from tests.support.servers import EtcdServer, S3Server
from tests.support.services import REPOSITORY, ServiceProcess, Services, run_services

FAST = {"HEARTBEAT_S": "0.3", "LEASE_S": "2", "LEADER_TTL_S": "2"}


def git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def release() -> str:
    newest = git("tag", "--merged", "HEAD", "--list", "v*", "--sort=-v:refname")
    baseline = (REPOSITORY / "protos/BASELINE").read_text().strip()
    known = git("rev-parse", "--verify", "--quiet", f"{baseline}^{{commit}}")
    named = os.environ.get("HYPER_TEST_RELEASE", "")
    return named or next(iter(newest.splitlines()), "") or known


pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not release(), reason="no release in this history: no tag v*, no commit of protos/BASELINE"
    ),
]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release's tree."""
    folder = tmp_path_factory.mktemp("release")
    archive = folder / "tree.tar"
    with archive.open("wb") as file:
        subprocess.run(["git", "archive", release()], cwd=REPOSITORY, stdout=file, check=True)
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    return folder


@pytest.fixture
def services(etcd_server: EtcdServer, s3_server: S3Server, tmp_path: Path) -> Iterator[Services]:
    name = f"test-{secrets.token_hex(8)}"
    with run_services(
        tmp_path, etcd_server, s3_server.settings(name), f"/{name}", workers=2,
        scheduler_settings=FAST,
    ) as running:  # fmt: skip
        yield running


def replace(process: ServiceProcess, source: Path | None) -> None:
    process.stop()
    process.source = source
    process.start()


def recipe(count: int, command: str) -> dict[str, object]:
    return {"version": 1, "name": "t", "experiments": {"t": {
        "command": command, "parameters": {"i": {"range": [0, count]}}}}}  # fmt: skip


def use(client: Client, name: str) -> None:
    with client.session(f"lab/{name}") as session:
        session.write("a", name.encode())
    assert client.open_dataset(f"lab/{name}").read("a") == name.encode()
    assert client.submit(recipe(4, "echo {{i}}")).wait().state is RunState.SUCCEEDED


def test_a_rolling_upgrade_with_work_going_on(services: Services, old: Path) -> None:
    """From the release to this tree and half-way back; nothing fails at any step."""
    everyone = [services.storage, *services.workers, services.scheduler]
    for process in everyone:
        replace(process, old)
    with services.client(patience_s=60) as client:
        use(client, "old")
        going = client.submit(recipe(60, "sleep 1"))
        for process in everyone:
            replace(process, None)
            use(client, f"upgraded-{process.name}")
        assert going.wait().state is RunState.SUCCEEDED
        tasks = going.refresh().tasks
        assert (tasks.succeeded, tasks.failed) == (60, 0)
        assert client.open_dataset("lab/old").read("a") == b"old"


@pytest.mark.parametrize("stays", ["scheduler", "workers", "storage"])
def test_one_part_of_the_release_beside_this_tree(
    services: Services, old: Path, stays: str
) -> None:
    parts = {
        "scheduler": [services.scheduler], "workers": services.workers,
        "storage": [services.storage],
    }  # fmt: skip
    for process in parts[stays]:
        replace(process, old)
    with services.client(patience_s=60) as client:
        use(client, f"with-old-{stays}")
