"""A whole cluster under mTLS with tokens, over an etcd and an S3 server behind TLS.

Every part calls every other, tasks and people too.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import urllib3

from hyper import _s3
from hyper.cli.main import run
from hyper.client import Client
from hyper.errors import HyperError, InvalidArgumentError
from hyper.status import RunState
from hyper_servicekit.tokens import ANY_TENANT, Role, Signer
from tests.compiler.nets import small_unet_model
from tests.integration.test_worker_isolation import REASON
from tests.support.servers import S3Server, run_etcd
from tests.support.services import Services, run_services
from tests.support.tls_front import tls_front

pytestmark = pytest.mark.timeout(300)
KEY = secrets.token_hex(32)
SIGNER = Signer("k1", KEY)

# Reads what the test has written, writes what the test reads, both through the gateway's S3.
TASK = """\
import hyper, os
client = hyper.connect()
text = client.open("lab/in").read("text.txt")
with client.session("lab/out-" + os.environ["MODE"]) as session:
    session.write("text.txt", text.upper())
print(sorted(name for name in os.environ if name.startswith("HYPER_TLS")))
"""


def token(tenant: str, role: Role | None = None) -> str:
    return SIGNER.sign(tenant, subject="test", expires_s=time.time() + 3600, role=role)


def trust(patch: pytest.MonkeyPatch, certs: Path, name: str) -> None:
    patch.setenv("HYPER_TLS_CA", str(certs / "ca.pem"))
    patch.setenv("HYPER_TLS_CERT", str(certs / f"{name}.pem"))
    patch.setenv("HYPER_TLS_KEY", str(certs / f"{name}.key"))
    patch.setenv("HYPER_S3_CA", str(certs / "ca.pem"))


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    assert run(["certs", str(folder)]) == 0
    assert run(["certs", str(folder), "--client", "worker", "--client", "ada"]) == 0
    return folder


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server, certs: Path
) -> Iterator[Services]:
    name = f"test-{secrets.token_hex(8)}"
    files = {kind: str(certs / f"service.{end}") for kind, end in (("CERT", "pem"), ("KEY", "key"))}
    ca = certs / "ca.pem"
    tls = {
        **{f"TLS__{kind}": file for kind, file in files.items()}, "TLS__CLIENT_CA": str(ca),
        **{f"ETCD_TLS__{kind}": file for kind, file in files.items()}, "ETCD_TLS__CA": str(ca),
    }  # fmt: skip
    host, _, port = s3_server.endpoint.removeprefix("http://").rpartition(":")
    with (
        pytest.MonkeyPatch.context() as patch,
        run_etcd(tmp_path_factory.mktemp("etcd"), certs=certs) as etcd,
        tls_front(host, int(port), Path(files["CERT"]), Path(files["KEY"])) as s3_address,
    ):
        tls["ETCD_ENDPOINTS"] = json.dumps([etcd.secure])
        s3 = s3_server.settings(name).model_copy(
            update={"endpoint": f"https://{s3_address}", "ca": ca}
        )
        trust(patch, certs, "service")
        patch.setenv("HYPER_TOKEN", token(ANY_TENANT, Role.ADMIN))
        with run_services(
            tmp_path_factory.mktemp("services"), etcd, s3, f"/{name}",
            workers=0, compute=True, common_settings={"AUTH_KEYS__K1": KEY, **tls},
        ) as running:  # fmt: skip
            yield running


@pytest.fixture
def ada(cluster: Services, certs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    trust(monkeypatch, certs, "ada")
    monkeypatch.setenv("HYPER_TOKEN", token("lab"))
    with Client(cluster.scheduler.address, tenant="lab", patience_s=20) as client:
        yield client


@pytest.mark.parametrize(
    "isolation",
    ["none", pytest.param("user", marks=pytest.mark.skipif(bool(REASON), reason=REASON or "-"))],
)
def test_a_task_reads_and_writes(
    cluster: Services, certs: Path, ada: Client, isolation: str
) -> None:
    with ada.session("lab/in") as session:
        session.write("text.txt", b"of ada")
    with pytest.MonkeyPatch.context() as patch:
        trust(patch, certs, "worker")
        patch.setenv("HYPER_TOKEN", token(ANY_TENANT, Role.WORKER))
        patch.setitem(cluster.worker_settings, "ISOLATION", isolation)
        worker = cluster.add_worker(f"worker-{isolation}")
    try:
        recipe = {"version": 1, "name": "t", "experiments": {"t": {
            "command": "python -c {{p}}", "parameters": {"p": TASK}, "env": {"MODE": isolation},
        }}}  # fmt: skip
        workflow = ada.submit(recipe)
        state = workflow.wait(timeout_s=60).state
        lines = workflow.log_tail(workflow.task("t", 0))
        assert state is RunState.SUCCEEDED, lines
        assert lines == ["['HYPER_TLS_CA', 'HYPER_TLS_CERT', 'HYPER_TLS_KEY']"]
    finally:
        worker.stop()
    assert ada.open(f"lab/out-{isolation}").read("text.txt") == b"OF ADA"


def test_bytes_come_straight_from_s3(
    cluster: Services, ada: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not through the gateway, as they would from a server that is not trusted."""
    url = cluster.storage.settings["S3__ENDPOINT"]
    assert _s3._Process().http.request("GET", url).status == 403  # it asks for a signature
    monkeypatch.delenv("HYPER_S3_CA")
    with pytest.raises(urllib3.exceptions.SSLError):
        _s3._Process().http.request("GET", url)
    monkeypatch.setenv("HYPER_S3_CA", "/nowhere.pem")
    with pytest.raises(InvalidArgumentError, match=r"HYPER_S3_CA: /nowhere\.pem"):
        _s3._Process()


def test_a_prediction(ada: Client) -> None:
    with ada.session("lab/net") as session:
        session.write("net.onnx", small_unet_model())
    found = ada.predict("lab/net/net.onnx", np.zeros((1, 1, 4, 32, 32), np.float32))
    assert found.shape[-1] == 32


def test_commands(cluster: Services, ada: Client) -> None:
    """`hyper` has all it needs in its environment, and says what is missing where it has not."""

    def hyper(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HYPER_PATIENCE_S": "2", **changes}
        return subprocess.run(
            [sys.executable, "-m", "hyper.cli.main", "--endpoint", cluster.scheduler.address,
             *arguments],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert hyper("ls", "lab").returncode == 0
    plain = hyper("ls", "lab", HYPER_TLS_CA="")
    assert plain.returncode == 3 and "Traceback" not in plain.stderr
    nobody = hyper("ls", "lab", HYPER_TLS_CERT="", HYPER_TLS_KEY="")
    assert nobody.returncode == 3 and "Traceback" not in nobody.stderr


def test_nobody_gets_in_without_a_certificate(
    cluster: Services, ada: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(ada.workflows()) is not None
    monkeypatch.delenv("HYPER_TLS_CERT")
    monkeypatch.delenv("HYPER_TLS_KEY")
    for process in (cluster.scheduler, cluster.storage, *cluster.compute.values()):
        stranger = Client(process.address, tenant="lab", patience_s=0.5)
        with stranger, pytest.raises(HyperError):
            list(stranger.workflows())
