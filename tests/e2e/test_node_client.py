"""The Node client, made from the protos alone, on a local cluster: a workflow, and a chunk;
and on two schedulers, of which one leads."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hyper.cli.main import run
from hyper.client import Client
from hyper_servicekit.tokens import ANY_TENANT, Signer
from tests.support.local_cluster import LocalCluster
from tests.support.servers import EtcdServer, S3Server
from tests.support.services import ServiceProcess, run_services

pytestmark = pytest.mark.timeout(300)
FOLDER = Path(__file__).resolve().parents[2] / "clients" / "node"
RECIPE = """\
version: 1
name: from-node
experiments:
  count:
    command: "test {{n}} -lt 3"
    parameters: {n: [0, 1, 2]}
"""

WAITS = """\
version: 1
name: waits
experiments:
  wait:
    command: "while [ ! -e {flag} ]; do sleep 0.1; done"
"""
RUN = """\
import { Client } from "./hyper.js";
const [endpoint, recipe] = process.argv.slice(1);
const client = new Client(endpoint);
const { name } = await client.submit(recipe);
for await (const { state } of client.watch(name)) console.log(state);
client.close();
"""


@pytest.fixture(scope="module")
def node() -> str:
    """The program, with the client's packages beside it."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        pytest.skip("there is no node: apt-get install nodejs npm")
    if not (FOLDER / "node_modules" / "fzstd").is_dir():
        done = subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund"], cwd=FOLDER, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            pytest.skip(f"the packages of npm cannot be had: {done.stderr.strip()[-200:]}")
    return program


def test_a_workflow_and_a_chunk(node: str, local_cluster: LocalCluster, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    values = np.random.default_rng(5).integers(0, 200, (3, 70, 90), np.uint8)
    with Client(local_cluster.endpoint) as client:
        with client.session("default/node") as session:
            made = session.create_array(
                "raw", values.shape, "uint8", chunks=(1, 32, 32), shards=(1, 64, 64)
            )
            made[...] = values
        name = client.open_array("default/node/raw").name
    done = subprocess.run(
        [node, "example.js", local_cluster.endpoint, str(recipe), name, "2,1,1"], cwd=FOLDER,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["state"] == "RUN_STATE_SUCCEEDED" and found["succeeded"] == 3
    assert found["shape"] == [3, 70, 90]
    assert found["bytes"] == 32 * 32
    assert found["sum"] == int(values[2, 32:64, 32:64].sum())


def test_an_error_is_one_line(node: str, local_cluster: LocalCluster, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nname: x\nexperiments: {a: {comand: x}}\n")
    done = subprocess.run(
        [node, "example.js", local_cluster.endpoint, str(recipe)], cwd=FOLDER,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "comand" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def schedulers(
    tmp_path: Path, etcd_server: EtcdServer, s3_server: S3Server
) -> Iterator[tuple[ServiceProcess, ServiceProcess]]:
    """Two with a worker: the one that leads, and the other."""
    prefix = f"test-{secrets.token_hex(8)}"
    timing = {"HEARTBEAT_S": "0.5", "LEASE_S": "3", "LEADER_TTL_S": "2"}
    s3 = s3_server.settings(prefix)
    with run_services(
        tmp_path, etcd_server, s3, f"/{prefix}", workers=0, scheduler_settings=timing
    ) as services:
        first = services.scheduler
        second = ServiceProcess("scheduler-2", first.module, first.prefix, tmp_path, first.settings)
        settings = {"SLOTS": "1", "WORKDIR": str(tmp_path / "work"), "LOG_FORMAT": "console"}
        worker = ServiceProcess("worker-0", "hyper_worker", "WORKER", tmp_path, settings)
        try:
            second.start()
            settings["SCHEDULER_ENDPOINT"] = f"{first.address},{second.address}"
            worker.start()
            leader = until_led(services.client())
            assert leader in (first.address, second.address)
            yield (first, second) if leader == first.address else (second, first)
        finally:
            worker.destroy()
            second.destroy()


def until_led(client: Client) -> str:
    """The leader's address, once there is one."""
    with client:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if leader := client.cluster().leader:
                return leader
            time.sleep(0.05)
    pytest.fail("no scheduler leads")


@pytest.mark.parametrize("given", ["leader", "other"])
def test_a_leader_is_found_and_may_die(
    node: str, schedulers: tuple[ServiceProcess, ServiceProcess], tmp_path: Path, given: str
) -> None:
    leader, other = schedulers
    endpoint = leader.address if given == "leader" else other.address
    flag = tmp_path / "flag"
    with subprocess.Popen(
        [node, "--input-type=module", "-e", RUN, endpoint, WAITS.format(flag=flag)], cwd=FOLDER,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        try:
            assert program.stdout is not None
            first = program.stdout.readline()  # it watches
            if first:
                leader.stop(signal.SIGKILL)
                flag.touch()
            rest, errors = program.communicate(timeout=120)
        finally:
            program.kill()
    assert first, errors
    assert program.returncode == 0, errors
    assert rest.split()[-1:] == ["RUN_STATE_SUCCEEDED"]


def test_through_mtls_with_a_token(
    node: str,
    tmp_path: Path,
    etcd_server: EtcdServer,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certs = tmp_path / "certs"
    assert run(["certs", str(certs)]) == 0 and run(["certs", str(certs), "--client", "ada"]) == 0
    key = secrets.token_hex(32)
    token = Signer("k1", key).sign(ANY_TENANT, subject="ada", expires_s=time.time() + 600)
    prefix = f"test-{secrets.token_hex(8)}"
    files = {"CERT": "service.pem", "KEY": "service.key", "CLIENT_CA": "ca.pem"}
    settings = {f"TLS__{name}": str(certs / file) for name, file in files.items()}
    trusted = {
        "HYPER_TLS_CA": str(certs / "ca.pem"), "HYPER_TLS_CERT": str(certs / "ada.pem"),
        "HYPER_TLS_KEY": str(certs / "ada.key"), "HYPER_TOKEN": token,
    }  # fmt: skip
    for name, value in trusted.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def submit(endpoint: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [node, "example.js", endpoint, str(tmp_path / "recipe.yaml")], cwd=FOLDER,
            env={**os.environ, **changes}, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    with run_services(
        tmp_path, etcd_server, s3_server.settings(prefix), f"/{prefix}", workers=1,
        common_settings={**settings, "AUTH_KEYS__K1": key},
    ) as services:  # fmt: skip
        endpoint = services.scheduler.address
        done = submit(endpoint)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["succeeded"] == 3
        assert submit(endpoint, HYPER_TOKEN="").returncode == 1
        assert "token" in submit(endpoint, HYPER_TOKEN="").stderr
        broken = submit(endpoint, HYPER_TLS_CA=str(certs / "none.pem"))
        assert broken.returncode == 1 and "none.pem" in broken.stderr
        assert len(broken.stderr.strip().splitlines()) == 1
