"""Watching from a terminal, without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import typer

from hyper.cli import watch
from hyper.cli.job import client_for
from hyper.status import (
    ExperimentStatus,
    RunState,
    TaskCounts,
    TaskInfo,
    TaskState,
    WorkflowStatus,
    to_json,
)

COUNTS = TaskCounts(total=4, pending=1, running=1, succeeded=1, failed=1, cancelled=0, lost=2)
EXPERIMENT = ExperimentStatus(
    name="tenants/t/workflows/w/experiments/e",
    state=RunState.RUNNING,
    depends_on=(),
    tasks=COUNTS,
    start_time=datetime(2026, 1, 1, tzinfo=UTC),
    end_time=None,
    message="",
)
STATUS = WorkflowStatus(
    name="tenants/t/workflows/w",
    display_name="test",
    state=RunState.RUNNING,
    experiments=(EXPERIMENT,),
    create_time=datetime(2026, 1, 1, tzinfo=UTC),
    end_time=datetime(2026, 1, 1, 0, 3, tzinfo=UTC),
    message="e failed",
    etag="1",
    tasks=COUNTS,
    recipe_yaml="",
)
TASK = TaskInfo(
    name="tenants/t/workflows/w/experiments/e/tasks/3",
    state=TaskState.FAILED,
    index=3,
    parameters={},
    attempt=None,
    worker="workers/a",
    failures=4,
    losses=0,
    result=None,
    message="ValueError: no",
    start_time=None,
    end_time=None,
)


class FakeWorkflow:
    """Ends as it is told, or is interrupted."""

    def __init__(self, end: RunState | None) -> None:
        self.end = end
        self.status = STATUS
        self.name = STATUS.name

    def wait(self, on_update: Callable[[WorkflowStatus], None]) -> WorkflowStatus:
        on_update(STATUS)
        if self.end is None:
            raise KeyboardInterrupt
        done = replace(STATUS, state=self.end, experiments=(replace(EXPERIMENT, state=self.end),))
        on_update(done)
        return done

    def first_failure(self) -> TaskInfo:
        return TASK

    def log_tail(self, task: TaskInfo, lines: int) -> list[str]:
        return ["Traceback", "ValueError: no"]


def run(end: RunState | None) -> Any:
    return watch.watch(FakeWorkflow(end))  # type: ignore[arg-type]  # a handle without a client


def test_ctrl_c_leaves_it_running_and_says_how_to_come_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as caught:
        run(None)
    assert caught.value.exit_code == 130
    err = capsys.readouterr().err
    name = STATUS.name  # of another tenant
    assert f"{name} goes on running" in err
    assert f"hyper ps {name} --watch" in err and f"hyper cancel {name}" in err


def test_a_failure_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPER_TENANT", "t")
    assert run(RunState.FAILED).state is RunState.FAILED
    assert capsys.readouterr().err.splitlines() == [
        "e running: 1 of 4 tasks done, 2 lost with their nodes",
        "e failed: 1 of 4 tasks done, 2 lost with their nodes",
        "w failed after 3m00s: 1 of 4 tasks done, 2 lost with their nodes",
        "error: task e/3 failed: ValueError: no",
        "  | Traceback",
        "  | ValueError: no",
        "all of it: `hyper logs w/e/3`",
    ]


def test_a_display_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch.output, "interactive", lambda: True)
    run(RunState.SUCCEEDED)
    err = capsys.readouterr().err
    assert "1 running, 1 failed, 2 lost" in err
    assert "w succeeded after 3m00s" in err


def test_status_as_json() -> None:
    plain = to_json(STATUS)
    assert plain["state"] == "RUNNING"
    assert plain["create_time"] == "2026-01-01T00:00:00+00:00"
    assert plain["experiments"][0]["tasks"]["lost"] == 2


def test_a_message_fits_into_its_row() -> None:
    from hyper.cli.workflows import _clipped

    assert _clipped("one line") == "one line"
    assert _clipped("two\n  lines") == "two lines"
    assert len(_clipped("at import " * 500)) == 120


def test_jobs_belong_to_the_tenant_they_write_for_where_tokens_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tasks have a token of their workflow's tenant, and write into no other."""
    for token, tenant in (("", "default"), ("hyp1.k1.e30.AAAA", "lab")):
        monkeypatch.setenv("HYPER_TOKEN", token)
        with client_for("lab/brain") as client:
            assert client.tenant == tenant
