"""An inference service of the test's own, beside a gateway, without a scheduler."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyper.client import Client
from tests.support.servers import ServerProcess


@contextmanager
def run_inference(folder: Path, gateway: str, **extra: str) -> Iterator[dict[str, str]]:
    """The service's ready file, as a mapping; gone at the end. Arguments: `inference_process`."""
    with inference_process(folder, gateway, **extra) as (facts, _):
        yield facts


@contextmanager
def inference_process(
    folder: Path, gateway: str, **extra: str
) -> Iterator[tuple[dict[str, str], ServerProcess]]:
    """The service's ready file, and its process to kill; gone at the end.

    Args:
        folder: for its log.
        gateway: host:port of storage.
        extra: more settings, e.g. QUEUE="1".
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / "ready.json"
    settings = {
        "HYPER_STORAGE_ENDPOINT": gateway,
        "HYPER_INFERENCE__LISTEN": "127.0.0.1:0",
        "HYPER_INFERENCE__READY_FILE": str(ready),
        "HYPER_INFERENCE__SCHEDULER_ENDPOINT": "127.0.0.1:1",
        **{f"HYPER_INFERENCE__{name}": value for name, value in extra.items()},
    }
    assignments = [f"{name}={value}" for name, value in settings.items()]
    command = ["env", *assignments, sys.executable, "-m", "hyper_inference"]
    process = ServerProcess("inference", command, folder, folder / "inference.log")
    try:
        process.start(ready.exists)
        facts: dict[str, str] = json.loads(ready.read_text())
        yield facts, process
    finally:
        process.stop(grace_s=5.0)


@contextmanager
def inference_client(gateway: str, inference: str) -> Iterator[Client]:
    """A client that knows where both services are."""
    names = {"HYPER_STORAGE_ENDPOINT": gateway, "HYPER_INFERENCE_ENDPOINT": inference}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        with Client("127.0.0.1:1", patience_s=10.0) as client:
            yield client
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
