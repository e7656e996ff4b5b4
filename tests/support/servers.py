"""Real servers for tests: an etcd and an S3 server a session, on ports the kernel chose.

Each proves that the one who answers is the one that was started: etcd by its random member name,
S3 by credentials that nobody else knows. A child that dies fails the test with its log's end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyper.cluster import probes
from hyper.cluster.ports import HeldPorts
from hyper.cluster.processes import POLL_S, ProcessId, kill, log_tail, spawn, stop
from hyper.cluster.programs import (
    EtcdPorts,
    Program,
    S3Credentials,
    WeedPorts,
    etcd_command,
    find_etcd,
    find_weed,
    weed_command,
    weed_config,
)
from hyper.errors import FailedPreconditionError
from hyper_servicekit.config import S3Settings

START_TIMEOUT_S = 50.0
ETCD_GRACE_S = 3.0
PORT_TAKEN = "address already in use"


class ServerProcess:
    """A server that can be killed and started again on the same ports and data."""

    def __init__(self, name: str, command: list[str], folder: Path, log: Path) -> None:
        self._name = name
        self._command = command
        self._folder = folder
        self._log = log
        self._process: ProcessId | None = None

    @property
    def process(self) -> ProcessId:
        """The process that runs now."""
        assert self._process is not None, f"{self._name} is not running"
        return self._process

    def start(self, ready: Callable[[], bool]) -> None:
        """Start it and wait until `ready`; fails with the end of its log.

        While it was down, a connection of whoever else is on this machine may have got its port
        from the kernel: that passes.
        """
        self._process = self._spawn()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            alive = self._process.alive
            late = time.monotonic() > deadline
            if not alive and not late and PORT_TAKEN in log_tail(self._log, 3):
                time.sleep(POLL_S)
                self._process = self._spawn()
            elif not alive or late:
                self.kill()
                why = "did not get ready" if alive else "died"
                pytest.fail(f"{self._name} {why}; its log ends:\n{log_tail(self._log, 30)}")
            time.sleep(POLL_S)

    def _spawn(self) -> ProcessId:
        return spawn(self._command, log=self._log, environment=os.environ, folder=self._folder)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            kill(self._process)
            self._process = None

    def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL."""
        if self._process is not None:
            stop(self._process, grace_s=grace_s)
            self._process = None


@dataclass(frozen=True, slots=True)
class EtcdServer:
    """An etcd of the test's own; `endpoint` is host:port, `secure` the same behind mTLS."""

    endpoint: str
    name: str
    program: Program
    server: ServerProcess
    port: int
    secure: str = ""

    def start(self) -> None:
        """Start it, or start it again after `kill`."""
        self.server.start(lambda: probes.etcd_member(self.port) == self.name)

    def kill(self) -> None:
        """SIGKILL; the data stay."""
        self.server.kill()


@dataclass(frozen=True, slots=True)
class S3Server:
    """A SeaweedFS of the test's own; `endpoint` is a URL."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str
    region: str
    server: ServerProcess
    ports: WeedPorts

    def start(self) -> None:
        """Start it, or start it again after `kill`."""
        credentials = S3Credentials(self.access_key, self.secret_key)
        self.server.start(lambda: probes.make_bucket(self.ports, credentials, self.bucket) is None)

    def kill(self) -> None:
        """SIGKILL; acknowledged objects stay."""
        self.server.kill()

    def settings(self, prefix: str) -> S3Settings:
        """Settings that keep everything below `prefix`."""
        return S3Settings(
            endpoint=self.endpoint,
            bucket=self.bucket,
            prefix=prefix,
            region=self.region,
            access_key=self.access_key,
            secret_key=self.secret_key,  # type: ignore[arg-type]  # pydantic wraps it
        )


def _or_skip(find: Callable[[], Program]) -> Program:
    """A missing program skips locally and fails in CI."""
    try:
        return find()
    except FailedPreconditionError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@contextmanager
def run_etcd(
    folder: Path,
    program: Program | None = None,
    options: Sequence[str] = (),
    certs: Path | None = None,
) -> Iterator[EtcdServer]:
    """An etcd with its data in `folder`, gone at the end; any, unless `program` is given.

    With `certs`, a folder of `hyper certs`, it listens on one more port, behind mTLS.
    """
    program = program or _or_skip(find_etcd)
    name = f"test-{secrets.token_hex(8)}"
    with HeldPorts() as held:
        ports = EtcdPorts.hold(held)
        command = etcd_command(program, name=name, data=folder / "data", ports=ports)
        command += options
        secure = ""
        if certs is not None:
            secure = f"127.0.0.1:{held.one()}"
            command += [
                f"--listen-client-urls=http://{ports.endpoint},https://{secure}",
                f"--cert-file={certs / 'service.pem'}", f"--key-file={certs / 'service.key'}",
                f"--trusted-ca-file={certs / 'ca.pem'}", "--client-cert-auth",
            ]  # fmt: skip
        process = ServerProcess("etcd", command, folder, folder / "etcd.log")
    server = EtcdServer(ports.endpoint, name, program, process, ports.client, secure)
    try:
        server.start()
        yield server
    finally:
        process.stop(grace_s=ETCD_GRACE_S)


@contextmanager
def run_s3(folder: Path) -> Iterator[S3Server]:
    """A SeaweedFS with its data in `folder`, gone at the end."""
    program = _or_skip(find_weed)
    credentials = S3Credentials(secrets.token_hex(10), secrets.token_hex(20))
    config = folder / "s3.json"
    config.write_text(weed_config(credentials))
    (folder / "data").mkdir(exist_ok=True)
    sockets = Path(tempfile.mkdtemp(prefix="hyper-test-"))  # pytest's own folders are too deep
    with HeldPorts() as held:
        ports = WeedPorts.hold(held)
        command = weed_command(
            program, data=folder / "data", config=config, sockets=sockets, ports=ports
        )
        process = ServerProcess("weed", command, folder, folder / "weed.log")
    server = S3Server(
        ports.endpoint,
        "hyper",
        credentials.access_key,
        credentials.secret_key,
        "us-east-1",
        process,
        ports,
    )
    try:
        server.start()
        yield server
    finally:
        process.kill()
        shutil.rmtree(sockets, ignore_errors=True)


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One etcd for the whole session; tests use prefixes of their own."""
    with run_etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One SeaweedFS for the whole session."""
    with run_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_settings(s3_server: S3Server) -> S3Settings:
    """Settings with a prefix that no other test uses."""
    return s3_server.settings(f"test-{secrets.token_hex(8)}")


@pytest.fixture
def etcd_prefix() -> str:
    """A prefix in etcd that no other test uses."""
    return f"/test-{secrets.token_hex(8)}"
