"""TLS and mTLS of a real service process, with certificates of `hyper certs`."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
import urllib3
from google.protobuf.wrappers_pb2 import StringValue

from hyper import _transport, certificates
from hyper.cli.main import run
from hyper.errors import InvalidArgumentError
from hyper_servicekit import healthcheck
from tests.integration.test_server import Child, Start, start, until_ready
from tests.support.echo_service import caller

__all__ = ["start"]


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    assert run(["certs", str(folder), "--host", "gateway.example.org"]) == 0
    assert run(["certs", str(folder), "--client", "ada"]) == 0
    return folder


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HYPER_TLS_CA", "HYPER_TLS_CERT", "HYPER_TLS_KEY", "HYPER_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def settings(certs: Path, *, mutual: bool) -> dict[str, str]:
    found = {"tls__cert": str(certs / "service.pem"), "tls__key": str(certs / "service.key")}
    return found | ({"tls__client_ca": str(certs / "ca.pem")} if mutual else {})


@pytest.fixture(params=[False, True], ids=["tls", "mtls"])
def mutual(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def service(start: Start, certs: Path, mutual: bool) -> Iterator[Child]:
    yield until_ready(start(**settings(certs, mutual=mutual)))


def says(child: Child) -> str:
    with child.channel() as channel:
        return str(caller(channel, "Unary")(StringValue(value="echo a"), timeout=5).value)


def trust(monkeypatch: pytest.MonkeyPatch, certs: Path, name: str | None) -> None:
    monkeypatch.setenv("HYPER_TLS_CA", str(certs / "ca.pem"))
    if name is not None:
        monkeypatch.setenv("HYPER_TLS_CERT", str(certs / f"{name}.pem"))
        monkeypatch.setenv("HYPER_TLS_KEY", str(certs / f"{name}.key"))


def test_who_trusts_and_is_trusted_gets_in(
    service: Child, certs: Path, mutual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(grpc.RpcError):  # plain
        says(service)
    trust(monkeypatch, certs, None)
    if mutual:
        with pytest.raises(grpc.RpcError):
            says(service)
    else:
        assert says(service) == "echo a"
    trust(monkeypatch, certs, "ada")
    assert says(service) == "echo a"


async def test_agents_speak_it_too(
    service: Child, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(monkeypatch, certs, "ada")
    async with _transport.aio_channel([service.facts["address"]]) as channel:
        answer = await caller(channel, "Unary")(StringValue(value="echo b"), timeout=5)  # type: ignore[arg-type]
    assert answer.value == "echo b"


def test_another_authority_is_not_trusted(
    service: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates.make_authority(tmp_path)
    certificates.make_client(tmp_path, "eve", 1)
    trust(monkeypatch, tmp_path, "eve")
    with pytest.raises(grpc.RpcError):
        says(service)


def test_a_callers_certificate_is_no_services(
    start: Start, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may call cannot pose as a service."""
    files = {"tls__cert": str(certs / "ada.pem"), "tls__key": str(certs / "ada.key")}
    impostor = until_ready(start(**files))
    trust(monkeypatch, certs, "ada")
    with pytest.raises(grpc.RpcError):
        says(impostor)


def test_metrics_and_health_are_behind_it_too(service: Child, certs: Path) -> None:
    address = service.facts["metrics_address"]
    with urllib3.PoolManager(ca_certs=str(certs / "ca.pem"), retries=False) as http:
        assert http.request("GET", f"https://{address}/healthz").data == b"ok\n"
        with pytest.raises(urllib3.exceptions.HTTPError):
            http.request("GET", f"http://{address}/metrics")
    assert healthcheck.healthy(int(address.rpartition(":")[2]))
    context = ssl.create_default_context()  # the machine's authorities do not know ours
    stranger = urllib3.PoolManager(ssl_context=context, retries=False)
    with stranger, pytest.raises(urllib3.exceptions.SSLError):
        stranger.request("GET", f"https://{address}/healthz")


def test_files_that_are_not_there_are_named(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"tls__cert": str(tmp_path / "no.pem"), "tls__key": str(tmp_path / "no.key")}
    status, text = start(**missing).ended()
    assert status == 2 and "no.pem" in text and "Traceback" not in text
    monkeypatch.setenv("HYPER_TLS_CA", str(tmp_path / "no.pem"))
    with pytest.raises(InvalidArgumentError, match=r"HYPER_TLS_CA.*no\.pem"):
        _transport.channel(["127.0.0.1:1"])


def test_certificates_are_their_owners(certs: Path) -> None:
    for key in certs.glob("*.key"):
        assert key.stat().st_mode & 0o777 == 0o600
    assert run(["certs", str(certs), "--client", "ca"]) == 2
    assert run(["certs", str(certs), "--client", "../x"]) == 2


def test_openssl_likes_them(certs: Path) -> None:
    for name, purpose in (("service", "sslserver"), ("ada", "sslclient")):
        command = ["openssl", "verify", "-CAfile", certs / "ca.pem", "-purpose", purpose]
        try:
            done = subprocess.run([*command, certs / f"{name}.pem"], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("openssl is not installed")
        assert done.returncode == 0, done.stderr
