"""Failpoints: nothing unless armed, and then exactly what was asked."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest

from hyper.errors import UnavailableError
from hyper_servicekit import failpoints
from hyper_servicekit.failpoints import ENVIRONMENT, Failpoint


@pytest.fixture(autouse=True)
def _no_points(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(failpoints, "_declared", {})
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    yield


async def test_unarmed_it_does_nothing() -> None:
    point = failpoints.declare("a.b")
    point.hit()
    await point.reach()
    assert point.hits == 0


async def test_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "a.b=error, c=sleep:0.5")
    point = failpoints.declare("a.b")
    with pytest.raises(UnavailableError, match=r"a\.b"):
        point.hit()
    with pytest.raises(UnavailableError):
        await point.reach()
    point.arm(None)
    point.hit()


async def test_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setenv(ENVIRONMENT, "c=sleep:0.5")
    point = failpoints.declare("c")
    point.hit()
    await point.reach()
    assert slept == [0.5, 0.5]


def test_crash_at_the_third_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    monkeypatch.setenv(ENVIRONMENT, "c=3*crash")
    point = failpoints.declare("c")
    point.hit()
    point.hit()
    assert killed == []
    point.hit()
    assert killed == [(os.getpid(), 9)]


def test_the_list_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    failpoints.declare("known")
    with pytest.raises(ValueError, match="twice"):
        failpoints.declare("known")
    monkeypatch.setenv(ENVIRONMENT, "known=error")
    failpoints.check_armed()
    monkeypatch.setenv(ENVIRONMENT, "unknown=error")
    with pytest.raises(ValueError, match="no failpoint unknown; there are known"):
        failpoints.check_armed()


@pytest.mark.parametrize("text", ["a", "=error", "a,b=crash"])
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="is not name=action"):
        failpoints.parse({ENVIRONMENT: text})


@pytest.mark.parametrize("spec", ["", "explode", "sleep", "sleep:x", "sleep:-1", "*crash"])
def test_what_is_no_action(spec: str) -> None:
    with pytest.raises(ValueError, match="is not crash, error or sleep"):
        Failpoint("a").arm(spec)
