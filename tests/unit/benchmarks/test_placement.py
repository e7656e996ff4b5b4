"""The placement benchmark at its smallest: what it prints, and what it says of its limits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.placement.limits import Limit, limits
from benchmarks.placement.replay import OMNISCIENT, OURS, POLICIES, Scenario
from hyper.spot_traces import Recording

pytestmark = pytest.mark.timeout(180)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.placement", "--quick", "--json", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def figures(ours: float, others: float, missed: float = 0.0) -> Any:
    return {
        name: {"cost_ratio": ours if name == OURS else others,
               "missed_deadlines": missed if name == OURS else 9.0}
        for name in [*POLICIES, OMNISCIENT]
    } | {OMNISCIENT: {"cost_ratio": 0.0, "missed_deadlines": 0.0}}  # fmt: skip


def scenario(name: str, zones: int, changeover_h: float) -> Scenario:
    rows = tuple((1,) for _ in range(zones))
    recording = Recording("r", 0.1, tuple(map(str, range(zones))), rows)
    return Scenario(name, recording, changeover_h, 0.9)


def test_a_quick_run_says_what_it_shows(tmp_path: Path) -> None:
    zone = tmp_path / "zone_v100.json"
    data = [1] * 300 + [0] * 30 + [1] * 300
    zone.write_text(json.dumps({"metadata": {"gap_seconds": 600}, "data": data}))
    done = run("--traces", str(zone))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    told = found.pop("limits")
    assert all(set(each) == {*POLICIES, OMNISCIENT} for each in found.values())
    assert [each["kept"] for each in told.values()].count(True) >= 1
    assert "missed deadlines" in told
    assert "kept" in done.stderr.lower()


@pytest.mark.parametrize(
    ("text", "says"),
    [('{"metadata": {"gap_seconds": Infinity}, "data": [1]}', "finite gap"), ("", "expected")],
)
def test_what_is_no_recording_is_said(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.json").write_text(text)
    done = run("--traces", str(tmp_path))
    assert done.returncode == 2
    assert says in done.stderr


def test_a_folder_without_recordings_is_said(tmp_path: Path) -> None:
    done = run("--traces", str(tmp_path))
    assert (done.returncode, "holds no recording" in done.stderr) == (2, True)


def test_limits_are_those_of_the_worst() -> None:
    jobs = [scenario("a", 3, 0.2), scenario("b", 9, 0.2), scenario("c", 9, 1.0)]
    found = {"a": figures(0.5, 0.6), "b": figures(0.37, 0.37), "c": figures(0.55, 0.5, 1.0),
             "mean": figures(0.47, 0.49)}  # fmt: skip
    behind, mean, missed, short, long = limits(found, jobs, 0.9, 1 / 3)
    assert ("most in c" in behind.name, behind.kept) == (True, False)
    assert behind.value == pytest.approx(0.1)
    assert (mean.kept, missed.kept, missed.value) == (True, False, 1.0)
    assert [(each.value, each.most, each.kept) for each in (short, long)] == [
        (0.37, 0.36, False), (0.55, 0.52, False),
    ]  # fmt: skip
    assert len(limits(found, jobs, 0.5, 1 / 3)) == 3  # of another job they say nothing
    assert Limit("x", 0.36, 0.36).kept
