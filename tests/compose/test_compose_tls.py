"""docker-compose.tls.yml for real: everything as before, and nobody in without a certificate."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

import hyper
from tests.support import compose
from tests.support.compose import OWN, Stack, docker, wait_for

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(
        os.environ.get("HYPER_TEST_COMPOSE") != "1",
        reason="the stack of containers is opt-in: `make compose-test`, with a Docker daemon",
    ),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    compose.build()
    made = compose.new_tls_stack(tmp_path_factory.mktemp("compose"))
    try:
        made.compose("up", "-d")
        for service in OWN:
            wait_for(lambda s=service: made.healthy(s, 2 if s == "scheduler" else 1), service)
        yield made
    finally:
        made.compose("down", "-v", "-t", "20")


def test_a_new_users_first_commands(stack: Stack) -> None:
    ran = stack.hyper("submit", "examples/hello/recipe.yaml", "--watch")
    assert ran.returncode == 0, ran.stderr
    assert "11 of 11 tasks done" in ran.stderr + ran.stdout


def test_nobody_gets_in_without_a_certificate(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = stack.environment
    monkeypatch.setenv("HYPER_TOKEN", known["HYPER_TOKEN"])
    for trusted in ({}, {"HYPER_TLS_CA": known["HYPER_TLS_CA"]}):
        for name in ("HYPER_TLS_CA", "HYPER_TLS_CERT", "HYPER_TLS_KEY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in trusted.items():
            monkeypatch.setenv(name, value)
        stranger = hyper.connect(known["HYPER_ENDPOINT"], patience_s=1)
        with stranger, pytest.raises(hyper.errors.UnavailableError):
            list(stranger.workflows())


def test_etcd_takes_services_alone(stack: Stack) -> None:
    """A worker's certificate is of the same authority, and is refused."""
    (etcd,) = stack.containers("etcd")
    assert stack.certs is not None
    docker("cp", str(stack.certs / "worker"), f"{etcd}:/tmp/other")
    ask = ("exec", etcd, "etcdctl", "--command-timeout=3s")
    assert "/hyper" in docker(*ask, "get", "--prefix", "--keys-only", "/hyper")
    with pytest.raises(subprocess.CalledProcessError):
        docker(
            "exec", "-e", "ETCDCTL_CERT=/tmp/other/worker.pem",
            "-e", "ETCDCTL_KEY=/tmp/other/worker.key", *ask[1:], "get", "/hyper",
        )  # fmt: skip


def test_everything_is_scraped(stack: Stack) -> None:
    prometheus = stack.port("prometheus", 9090)

    def down() -> list[Any]:
        with urllib.request.urlopen(f"http://{prometheus}/api/v1/targets") as answer:
            targets = json.load(answer)["data"]["activeTargets"]
        assert {each["labels"]["job"] for each in targets} >= {*OWN, "etcd", "prometheus"}
        return [each["scrapeUrl"] for each in targets if each["health"] != "up"]

    wait_for(lambda: not down(), "every target is up")
