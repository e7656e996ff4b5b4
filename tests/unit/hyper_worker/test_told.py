"""Certificates that come in the environment of a machine's agent."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hyper import _tls
from hyper_scheduler.providers.base import Order, agent_environment, boot_script
from hyper_worker.told import NAMES, write_certificates


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.setenv(f"{name}_PEM", "")  # so that both are put back


def test_they_become_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = {name: f"-----BEGIN {name}-----\nit's\n-----END-----\n" for name in NAMES}
    environment = agent_environment(
        machine="m", endpoint="here:1", slots=1, labels={}, token="", certificates=pem
    )
    for name, value in environment.items():
        if name.endswith("_PEM"):
            monkeypatch.setenv(name, value)
    for _ in range(2):  # an agent that is started again
        write_certificates(tmp_path / "tls")
    for name in NAMES:
        file = Path(os.environ[name])
        assert file.read_text() == pem[name]
        assert file.stat().st_mode & 0o077 == 0
        assert f"{name}_PEM" not in os.environ
    assert _tls.credentials() is not None


def test_what_is_named_already_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPER_TLS_CA", "/etc/ca.pem")
    monkeypatch.setenv("HYPER_TLS_CA_PEM", "another")
    write_certificates(tmp_path)
    assert os.environ["HYPER_TLS_CA"] == "/etc/ca.pem"
    assert list(tmp_path.iterdir()) == []


def test_a_boot_script_carries_them_whole() -> None:
    pem = "-----BEGIN-----\nit's\n-----END-----\n"
    order = Order("m", "o", "t", "r", "z", False, "n", {"HYPER_TLS_CA_PEM": pem})
    script = boot_script(order, "aws").replace("python3 -m hyper_worker", "env").replace(
        "shutdown", "echo"
    )  # fmt: skip
    done = subprocess.run(
        ["/bin/sh", "-c", script + "\nprintf %s \"$HYPER_TLS_CA_PEM\" >&2"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == pem
