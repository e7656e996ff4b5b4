"""docker-compose.yml as a stack of its own: a project, keys and volumes that nobody else uses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts import compose_certs, compose_env

ROOT = Path(__file__).resolve().parents[2]
NO_REGISTRY = Path(os.environ.get("HYPER_NO_REGISTRY", ROOT.parent / "shared/tools/no-registry"))
OWN = ("scheduler", "storage-gateway", "inference", "matcher", "worker")
_PULL_TIMEOUT_S = 30.0


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 180.0) -> None:
    """Poll until it is so."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.3)


def docker(*arguments: str) -> str:
    """Output of `docker ...`."""
    return subprocess.run(
        ["docker", *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@dataclass(frozen=True, slots=True)
class Stack:
    """A project of Compose.

    Args:
        project: its name.
        env: its .env.
        home: HYPER_HOME of commands.
        files: of Compose.
        certs: what `make compose-tls` makes.
    """

    project: str
    env: Path
    home: Path
    files: tuple[str, ...] = ("docker-compose.yml",)
    certs: Path | None = None  # of docker-compose.tls.yml

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Run Compose on this project; its stdout."""
        command = [
            *compose_env.compose_command(), "--env-file", str(self.env), "-p", self.project,
            *(part for file in self.files for part in ("-f", file)), *arguments,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: {done.stderr[-2000:]}")
        return done.stdout.strip()

    def port(self, service: str, port: int) -> str:
        """The address on this machine of a service's first replica."""
        return self.compose("port", service, str(port))

    @property
    def environment(self) -> dict[str, str]:
        """Of clients."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HYPER_")}
        trusted = {}
        if self.certs is not None:
            own = self.certs / "client"
            trusted = {
                "HYPER_TLS_CA": str(own / "ca.pem"),
                "HYPER_TLS_CERT": str(own / "client.pem"),
                "HYPER_TLS_KEY": str(own / "client.key"),
            }
        return {
            **kept,
            **trusted,
            "HYPER_HOME": str(self.home),
            "HYPER_TOKEN": compose_env.read(self.env)["HYPER_TOKEN"],
            "HYPER_ENDPOINT": self.port("scheduler", 50051),
        }

    def hyper(self, *arguments: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        """Run `hyper ...` as somebody outside would."""
        return subprocess.run(
            [sys.executable, "-m", "hyper.cli.main", *arguments],
            env=self.environment, capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers that run."""
        return docker(
            "ps", "-q", "--no-trunc",
            "--filter", f"label=com.docker.compose.project={self.project}",
            "--filter", f"label=com.docker.compose.service={service}",
        ).split()  # fmt: skip

    def inspect(self, container: str) -> dict[str, Any]:
        """What Docker knows of a container."""
        found: dict[str, Any] = json.loads(docker("inspect", container))[0]
        return found

    def healthy(self, service: str, replicas: int) -> bool:
        """Whether so many replicas run, and all say that they are well."""
        found = [self.inspect(each)["State"] for each in self.containers(service)]
        return len(found) == replicas and all(
            state["Health"]["Status"] == "healthy" for state in found
        )

    def address(self, container: str) -> str:
        """Its IP address on the network that services and workers share."""
        networks = self.inspect(container)["NetworkSettings"]["Networks"]
        return str(networks[f"{self.project}_default"]["IPAddress"])

    def metric(self, container: str, name: str, labels: str = "") -> float:
        """The sum of a metric's series of one replica whose labels hold the text `labels`."""
        url = f"http://{self.address(container)}:9100/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pattern = re.compile(rf"{name}(\{{(.*)\}})? (\S+)\Z")
        found = [match for line in lines if (match := pattern.match(line))]
        return sum(float(match[3]) for match in found if labels in (match[2] or ""))

    def crash(self, container: str) -> None:
        """Kill its first process as a crash would; Docker starts it again."""
        os.kill(int(self.inspect(container)["State"]["Pid"]), signal.SIGKILL)

    @contextmanager
    def cut_off(self, container: str, service: str) -> Iterator[None]:
        """Take a container off its networks for as long as the block runs."""
        networks = list(self.inspect(container)["NetworkSettings"]["Networks"])
        for network in networks:
            docker("network", "disconnect", network, container)
        try:
            yield
        finally:
            for network in networks:
                docker("network", "connect", "--alias", service, network, container)

    def leftovers(self) -> dict[str, str]:
        """What of the project there still is."""
        of = f"label=com.docker.compose.project={self.project}"
        return {
            "containers": docker("ps", "-aq", "--filter", of),
            "networks": docker("network", "ls", "-q", "--filter", of),
            "volumes": docker("volume", "ls", "-q", "--filter", of),
        }


def build() -> None:
    """Images of ours from this tree; of others' what is there, stand-ins where no registry is."""
    command = [*compose_env.compose_command(), "build", "-q"]
    environment = {**os.environ, **compose_env.complete({}, time.time())}
    if NO_REGISTRY.is_dir() and not _registry_answers():
        compose_file = str(ROOT / "docker-compose.yml")
        subprocess.run([NO_REGISTRY / "make-base-images.sh", "-f", compose_file], check=True)
        command = [str(NO_REGISTRY / "serve-local-indexes.sh"), *command]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def _registry_answers() -> bool:
    try:
        probe = subprocess.run(
            ["docker", "pull", "-q", "hello-world"],
            capture_output=True, timeout=_PULL_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


def new_stack(folder: Path) -> Stack:
    """A project that has not been started."""
    env = folder / "env"
    compose_env.write(env)
    home = folder / "home"
    home.mkdir()
    return Stack(f"hyper-test-{uuid.uuid4().hex[:8]}", env, home)


def new_tls_stack(folder: Path) -> Stack:
    """One with docker-compose.tls.yml."""
    plain = new_stack(folder)
    certs = folder / "certs"
    compose_certs.make(certs)
    with plain.env.open("a") as env:
        env.write(f"HYPER_CERTS={certs}\n")
    return replace(plain, files=tuple(compose_certs.FILES.split(":")), certs=certs)
