"""Our own services as real processes over real etcd and S3: start, kill, start again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from hyper.client import Client
from hyper_servicekit.config import S3Settings
from tests.support.servers import EtcdServer

REPOSITORY = Path(__file__).parents[2]
SERVICE_FOLDERS = [
    f"services/{name}"
    for name in ("common", "scheduler", "storage-gateway", "worker", "inference", "matcher")
]
START_TIMEOUT_S = 40.0
POLL_S = 0.02


@dataclass
class ServiceProcess:
    """One service; after a kill it starts again on the same address."""

    name: str
    module: str
    prefix: str
    folder: Path
    settings: dict[str, str]
    listen: str = "127.0.0.1:0"
    source: Path | None = None  # the tree whose code it runs, in place of this one
    group: int | None = None  # of the process: what a firewall knows it by
    child: subprocess.Popen[bytes] | None = None
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def address(self) -> str:
        return self.facts["address"]

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    def start(self) -> None:
        ready = self.folder / f"{self.name}.ready"
        ready.unlink(missing_ok=True)
        settings = {**self.settings, "READY_FILE": str(ready), "LISTEN": self.listen}
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, self._code())),
            **{f"HYPER_{self.prefix}__{key}": value for key, value in settings.items()},
        }
        self.child = self._spawn(environment)
        end = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            ended, late = self.child.poll() is not None, time.monotonic() > end
            if ended and not late and "cannot listen on" in self.log.read_text()[-500:]:
                time.sleep(POLL_S)  # somebody's connection has got the port meanwhile: it passes
                self.child = self._spawn(environment)
            elif ended or late:
                self.stop(signal.SIGKILL)
                pytest.fail(f"{self.name} does not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(POLL_S)
        self.facts = json.loads(ready.read_text())
        self.listen = self.facts["address"] or self.listen

    def _code(self) -> list[Path]:
        if self.source is None:
            return [REPOSITORY]
        roots = ["clients/python", "protos/gen", *SERVICE_FOLDERS]
        return [self.source / root for root in roots]

    def _spawn(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", self.module], env=environment, stdout=log, stderr=log,
                group=self.group,
            )  # fmt: skip

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for its end; returns its exit status."""
        assert self.child is not None
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            return self.child.wait(15)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            pytest.fail(f"{self.name} does not end:\n{self.log.read_text()[-3000:]}")

    def destroy(self) -> None:
        """SIGKILL, whatever state it is in, a stopped one too."""
        if self.child is not None and self.child.poll() is None:
            self.child.kill()
            self.child.wait()


def started(
    stack: ExitStack,
    folder: Path,
    name: str,
    module: str,
    prefix: str,
    settings: dict[str, str],
    group: int | None = None,
) -> ServiceProcess:
    """A service that runs until the stack ends; arguments: `ServiceProcess`."""
    process = ServiceProcess(name, module, prefix, folder, settings, group=group)
    process.start()
    stack.callback(process.destroy)
    return process


@dataclass
class Services:
    """A cluster without `hyper up`."""

    scheduler: ServiceProcess
    storage: ServiceProcess
    workers: list[ServiceProcess]
    compute: dict[str, ServiceProcess] = field(default_factory=dict)  # inference and matcher
    worker_settings: dict[str, str] = field(default_factory=dict)

    def process(self, service: str) -> ServiceProcess:
        """Of a service: scheduler, storage, inference or matcher."""
        return {"scheduler": self.scheduler, "storage": self.storage, **self.compute}[service]

    def add_worker(self, name: str) -> ServiceProcess:
        """One more worker, in the environment of now; whoever asks for it ends it."""
        settings = {**self.worker_settings, "INSTANCE": name}
        folder = self.scheduler.folder
        process = ServiceProcess(name, "hyper_worker", "WORKER", folder, settings)
        process.start()
        return process

    def client(self, patience_s: float = 20.0) -> Client:
        return Client(self.scheduler.address, tenant="test", patience_s=patience_s)


def s3_environment(settings: S3Settings) -> dict[str, str]:
    """Settings of a service's S3, as its environment names them."""
    return {
        "S3__ENDPOINT": settings.endpoint,
        "S3__BUCKET": settings.bucket,
        "S3__PREFIX": settings.prefix,
        "S3__REGION": settings.region,
        "S3__ACCESS_KEY": settings.access_key,
        "S3__SECRET_KEY": settings.secret_key.get_secret_value(),
        **({} if settings.ca is None else {"S3__CA": str(settings.ca)}),
    }


@contextmanager
def run_services(
    folder: Path,
    etcd: EtcdServer,
    s3: S3Settings,
    prefix: str,
    *,
    workers: int = 2,
    slots: int = 2,
    compute: bool = False,
    scheduler_settings: Mapping[str, str] | None = None,
    common_settings: Mapping[str, str] | None = None,
    worker_settings: Mapping[str, str] | None = None,
    compute_token: str = "",
) -> Iterator[Services]:
    """Scheduler, storage gateway and workers; SIGKILL at the end for what is left.

    `compute` adds inference and matcher, which show `compute_token` if there is one;
    `common_settings` are of all but the workers.
    """
    common = {
        "ETCD_ENDPOINTS": json.dumps([etcd.endpoint]),
        "ETCD_PREFIX": prefix,
        "LOG_FORMAT": "console",
        **(common_settings or {}),
    }
    with ExitStack() as stack:
        start = partial(started, stack, folder)
        scheduler = start(
            "scheduler",
            "hyper_scheduler",
            "SCHEDULER",
            {**common, **s3_environment(s3), **(scheduler_settings or {})},
        )
        storage = start("storage", "hyper_storage", "STORAGE", {**common, **s3_environment(s3)})
        settings_of_workers = {
            "SCHEDULER_ENDPOINT": scheduler.address,
            "SLOTS": str(slots),
            "WORKDIR": str(folder / "work"),
            "LOG_FORMAT": "console",
            **(worker_settings or {}),
        }
        agents = [
            start(
                f"worker-{i}",
                "hyper_worker",
                "WORKER",
                {**settings_of_workers, "INSTANCE": f"worker-{i}"},
            )
            for i in range(workers)
        ]
        beside = {}
        with pytest.MonkeyPatch.context() as patch:
            if compute_token:
                patch.setenv("HYPER_TOKEN", compute_token)
            for name in ("inference", "matcher") if compute else ():
                settings = {**common, "SCHEDULER_ENDPOINT": scheduler.address}
                beside[name] = start(name, f"hyper_{name}", name.upper(), settings)
        yield Services(scheduler, storage, agents, beside, settings_of_workers)
