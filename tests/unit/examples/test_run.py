"""Which cluster an example runs on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from examples import run


class Commands:
    """What `hyper` is told, with the status it ends with."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.given: list[str] = []
        self.home = ""

    def __call__(self, *arguments: str) -> int:
        self.given.append(arguments[0])
        self.home = os.environ["HYPER_HOME"]
        return self.status if arguments[0] == "status" else 0


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HYPER_HOME", str(tmp_path))
    monkeypatch.setenv("HYPER_ENDPOINT", "10.0.0.1:50051")
    return tmp_path


def told(monkeypatch: pytest.MonkeyPatch, status: int) -> Commands:
    commands = Commands(status)
    monkeypatch.setattr(run, "_hyper", commands)
    return commands


def test_an_endpoint_is_used_and_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = told(monkeypatch, 3)
    with run.cluster(None, 2, keep=False) as client:
        assert client.addresses("scheduler") == ("10.0.0.1:50051",)
    assert commands.given == []


@pytest.mark.parametrize("status", [0, 1])
def test_a_cluster_that_runs_is_used_and_left_running(
    home: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.delenv("HYPER_ENDPOINT")
    commands = told(monkeypatch, status)
    with run.cluster(None, 2, keep=False):
        pass
    assert commands.given == ["status"] and commands.home == str(home)


@pytest.mark.parametrize("keep", [False, True])
def test_one_that_was_started_is_stopped_unless_it_is_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch, keep: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HYPER_ENDPOINT")
    commands = told(monkeypatch, 3)
    with run.cluster(None, 2, keep=keep):
        pass
    assert commands.given == (["status", "up"] if keep else ["status", "up", "down"])
    assert ("`hyper down`" if keep else "`hyper up`") in capsys.readouterr().out


def test_another_home_beats_the_endpoint(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = told(monkeypatch, 0)
    with run.cluster(home / "other", 2, keep=False):
        assert "HYPER_ENDPOINT" not in os.environ
    assert commands.given == ["status"] and commands.home == str(home / "other")
