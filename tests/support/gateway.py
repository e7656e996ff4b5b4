"""A storage gateway of the test's own, as a process that can be killed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hyper.client import Client
from hyper_servicekit.config import S3Settings
from tests.support.servers import ServerProcess


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway."""

    server: ServerProcess
    ready_file: Path

    @property
    def address(self) -> str:
        """host:port of gRPC."""
        facts: dict[str, str] = json.loads(self.ready_file.read_text())
        return facts["address"]

    def start(self) -> None:
        """Start it, or start it again after `kill`."""
        self.ready_file.unlink(missing_ok=True)
        self.server.start(self.ready_file.exists)

    def kill(self) -> None:
        """SIGKILL."""
        self.server.kill()


def gateway_environment(
    etcd: str, s3: S3Settings, etcd_prefix: str, ready_file: Path
) -> dict[str, str]:
    """The gateway's settings, as environment variables."""
    return {
        "HYPER_STORAGE__LISTEN": "127.0.0.1:0",
        "HYPER_STORAGE__READY_FILE": str(ready_file),
        "HYPER_STORAGE__ETCD_ENDPOINTS": json.dumps([etcd]),
        "HYPER_STORAGE__ETCD_PREFIX": etcd_prefix,
        "HYPER_STORAGE__ETCD_TIMEOUT_S": "2",
        "HYPER_STORAGE__S3__ENDPOINT": s3.endpoint,
        "HYPER_STORAGE__S3__BUCKET": s3.bucket,
        "HYPER_STORAGE__S3__PREFIX": s3.prefix,
        "HYPER_STORAGE__S3__ACCESS_KEY": s3.access_key,
        "HYPER_STORAGE__S3__SECRET_KEY": s3.secret_key.get_secret_value(),
        "HYPER_STORAGE__LOG_POLL_S": "0.05",
        "HYPER_STORAGE__LOG_FORMAT": "console",
    }


@contextmanager
def run_gateway(
    folder: Path,
    etcd: str,
    s3: S3Settings,
    etcd_prefix: str,
    extra: Mapping[str, str] | None = None,
) -> Iterator[Gateway]:
    """A gateway with its log in `folder`, gone at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    ready_file = folder / "ready.json"
    settings = {**gateway_environment(etcd, s3, etcd_prefix, ready_file), **(extra or {})}
    assignments = [f"{name}={value}" for name, value in settings.items()]
    command = ["env", *assignments, sys.executable, "-m", "hyper_storage"]
    process = ServerProcess("storage gateway", command, folder, folder / "gateway.log")
    gateway = Gateway(process, ready_file)
    try:
        gateway.start()
        yield gateway
    finally:
        process.stop(grace_s=5.0)


@contextmanager
def storage_client(address: str, *, patience_s: float = 10.0) -> Iterator[Client]:
    """A client that knows where the gateway is without a scheduler."""
    before = os.environ.get("HYPER_STORAGE_ENDPOINT")
    os.environ["HYPER_STORAGE_ENDPOINT"] = address
    try:
        with Client("127.0.0.1:1", patience_s=patience_s) as client:
            yield client
    finally:
        if before is None:
            del os.environ["HYPER_STORAGE_ENDPOINT"]
        else:
            os.environ["HYPER_STORAGE_ENDPOINT"] = before
