"""Ours and the peers in turn, round by round: seconds, CPU seconds, ratios."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.scheduler import cpu

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VENV = ROOT / ".venv-bench"
PINS = ("obstore==0.12.*", "tensorstore==0.1.86", "zarr>=3.1.3,<4")
_INSTALL_S = 900
_ANSWER_S = 150


class PeerMissingError(Exception):
    """A peer cannot run here; the text says why."""


class Peers:
    """One process of .venv-bench that does what it is asked, one request a line."""

    def __init__(self, credentials: Mapping[str, str]) -> None:
        self._credentials = dict(credentials)
        self._process: subprocess.Popen[str] | None = None

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """What the peer answers; at least `s` and `cpu_s`."""
        if self._process is None:
            self._process = subprocess.Popen(
                [str(bench_python()), str(HERE / "peers" / "agent.py")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "BENCH_S3": json.dumps(self._credentials)},
            )  # fmt: skip
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise PeerMissingError(f"the peers' process ended at {do}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerMissingError(answer["error"])
        return answer

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def bench_python() -> Path:
    """The interpreter of .venv-bench with every peer that can be had."""
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, timeout=120)
    probe = "import obstore, tensorstore, zarr"
    if subprocess.run([str(python), "-c", probe], capture_output=True, check=False).returncode:
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        for pin in PINS:  # one by one: a peer that cannot be had does not take the others along
            subprocess.run([*pip, pin], check=False, timeout=_INSTALL_S, stderr=subprocess.DEVNULL)
    return python


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds and CPU seconds (of this process) of `work`."""
    begin, used = time.perf_counter(), time.process_time()
    work()
    return {"s": time.perf_counter() - begin, "cpu_s": time.process_time() - used}


def in_turn(
    contestants: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int
) -> dict[str, list[Mapping[str, float]] | str]:
    """Figures of each, round by round after one that is not counted; or why there are none."""
    found: dict[str, list[Mapping[str, float]] | str] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            so_far = found[name]
            if isinstance(so_far, str):
                continue
            try:
                figures = run()
            except PeerMissingError as error:
                found[name] = str(error)
                continue
            if number:
                so_far.append(figures)
    return found


def row(
    found: Mapping[str, list[Mapping[str, float]] | str], *, base: str, megabytes: float
) -> dict[str, Any]:
    """A row of the table: our ratio to `base` (1 is as fast, more is faster), and each one's."""
    result: dict[str, Any] = {"value": None}
    reference = found[base]
    for name, figures in found.items():
        if isinstance(figures, str):
            result[name] = None
            result[f"{name}_reason"] = figures
            continue
        seconds = statistics.median(each["s"] for each in figures)
        result[name] = {
            "s": seconds,
            "mb_s": megabytes / seconds,
            "cpu_ms_mb": statistics.median(each["cpu_s"] for each in figures) / megabytes * 1e3,
        }
        if name != base and not isinstance(reference, str):
            pairs = zip(reference, figures, strict=True)
            result[name]["ratio"] = statistics.median(r["s"] / f["s"] for r, f in pairs)
    if result.get("hyper"):
        result["value"] = result["hyper"].get("ratio")
    return result


def cpu_of(pids: list[int]) -> float:
    """CPU seconds that these processes have used."""
    return sum(map(cpu.cpu_s, pids))
