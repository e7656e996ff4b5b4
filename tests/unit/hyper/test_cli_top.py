"""`hyper top`: what it shows, and when it is live."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hyper.cli import main as cli
from hyper.cli import top
from hyper.placement import WorkflowCost
from hyper.status import RunState, TaskCounts, WorkflowStatus
from hyperapi.scheduler.v1 import workflow_pb2
from tests.unit.hyper.test_notebooks import STATUS

NAME = "tenants/t/workflows/w"


def status(done: int, **changes: Any) -> WorkflowStatus:
    counts = TaskCounts(
        total=100, pending=0, running=3, succeeded=done, failed=0, cancelled=0, lost=0
    )
    begun = datetime.now(UTC) - timedelta(seconds=100)
    made = replace(STATUS, name=NAME, display_name="hpo", tasks=counts, create_time=begun)
    return replace(made, **changes)


def worker() -> workflow_pb2.Worker:
    made = workflow_pb2.Worker(name="workers/a", running=1, slots=2)
    made.usage.cpus_total = 4
    made.usage.tasks.add(task=f"{NAME}/experiments/e/tasks/7", cpus=0.5, seconds=61)
    return made


def sample(at_s: float, done: int, *, cost: bool = True) -> top.Sample:
    spent = WorkflowCost(NAME, 1.5, 4.5, 0.0, 0.0, None, "", ())
    return top.Sample(at_s, [worker()], [status(done)], {NAME: spent} if cost else None)


def test_machines_workflows_and_tasks_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPER_TENANT", "t")
    text = top.render(sample(10, 50), sample(8, 40))
    assert re.search(r"^a +1/2 +0.0/4 ", text, re.MULTILINE)
    assert re.search(r"^w +hpo +running +3 +50/100 +5 .* 1\.5$", text, re.MULTILINE)
    assert re.search(r"^w/e/7 +a +0\.50", text, re.MULTILINE)
    assert "USD" not in top.render(sample(10, 50, cost=False))
    assert "WORKFLOW" not in top.render(replace(sample(10, 50), workflows=[]))
    monkeypatch.setenv("HYPER_TENANT", "other")  # then its full name is what commands take
    assert re.search(rf"^{NAME} +hpo", top.render(sample(10, 50)), re.MULTILINE)


def test_a_rate_is_since_the_last_look_or_the_start() -> None:
    now = sample(10, 50)
    assert top.rate(now.workflows[0], now, sample(8, 40)) == 5
    assert top.rate(now.workflows[0], now, sample(8, 60)) == 0  # it was retried
    assert top.rate(now.workflows[0], now, None) == pytest.approx(0.5, rel=0.2)
    assert top.rate(status(50, create_time=None), now, None) == 0
    (found,) = top.facts(now, sample(8, 40))["workflows"]
    assert (found["tasks_per_s"], found["usd"], found["state"]) == (5, 1.5, str(RunState.RUNNING))


@pytest.mark.parametrize(
    ("terminal", "once", "term", "live"),
    [
        (True, False, "xterm", True), (True, True, "xterm", False), (False, False, "xterm", False),
        (True, False, "dumb", False), (True, False, None, True),
    ],
)  # fmt: skip
def test_it_is_live_on_a_terminal(terminal: bool, once: bool, term: str | None, live: bool) -> None:
    assert top.is_live(terminal, once=once, term=term) is live


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> None:
    def three(*_: Any) -> Iterator[top.Sample]:
        yield from (sample(10 + n, 50 + n) for n in range(3))
        raise KeyboardInterrupt

    monkeypatch.setattr(top, "_samples", three)
    monkeypatch.setenv("HYPER_ENDPOINT", "127.0.0.1:1")
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.usefixtures("samples")
def test_into_a_pipe_it_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["top"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and text.count("50/100") == 1 and "51/100" not in text
    assert cli.run(["top", "--follow"]) == 130
    text = capsys.readouterr().out
    assert "\x1b" not in text and "50/100" in text and "52/100" in text
    assert cli.run(["top", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["workflows"][0]["id"] == "w"
    assert cli.run(["top", "--once", "--follow"]) == 2


@pytest.mark.usefixtures("samples")
def test_on_a_terminal_it_is_live_and_gives_the_screen_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINES", "4")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert cli.run(["top"]) == 0  # Ctrl-C is how it ends
    text = capsys.readouterr().out
    assert text.startswith("\x1b[?1049h") and text.endswith("\x1b[?1049l")
    frames = text.split("\x1b[H")[1:]
    assert len(frames) == 3
    assert all(frame.count("\n") <= 3 for frame in frames)
    assert cli.run(["top", "--once"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_workflows_that_run_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYPER_TENANT", raising=False)

    class Cluster:
        def workflows(self, *, every_tenant: bool) -> Iterator[WorkflowStatus]:
            assert every_tenant
            yield status(1)
            yield status(2, state=RunState.SUCCEEDED)

    monkeypatch.setattr(top, "_workers", lambda client: [worker()])
    monkeypatch.setattr(top, "_costs", lambda client: None)
    paused: list[float] = []
    found = list(itertools.islice(top._samples(Cluster(), paused.append), 2))  # type: ignore[arg-type]
    assert [len(each.workflows) for each in found] == [1, 1] and len(paused) == 1
