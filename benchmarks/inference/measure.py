"""Engines on one net, in turn: every engine a process of its own, then rounds.

At most `GROUP` engines are loaded at once beside this one, which is in every group, so that memory
is bounded and every peer has rounds of ours next to its own.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inference.engines import PACKAGES
from benchmarks.inference.peers import ROOT, ZOO, ensure, ensure_python

PAUSE_S = 0.2
"""Between engines: threads of the one before stop spinning."""
GROUP = 3
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"}


@dataclass(frozen=True, slots=True)
class Setting:
    """How to measure.

    Args:
        shape: (n, c, [z,] y, x).
        rounds: how often every engine computes.
        threads: how many each may use.
        isa: "avx2" holds every engine to it.
        keep: folder that keeps the exported net and its float64 output, or None.
    """

    shape: tuple[int, ...]
    rounds: int
    threads: int
    isa: str = ""
    keep: Path | None = None


class Worker:
    """A process with an engine."""

    def __init__(self, engine: str, net: str, folder: Path, setting: Setting) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(setting.threads)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        if setting.isa == "avx2":
            environment |= AVX2
        self._log = (folder / f"{engine}.log").open("w+")
        command = [str(ensure_python()), "-m", "benchmarks.inference.worker", engine, net]
        command += [str(folder), "--threads", str(setting.threads)]
        command += ["--isa", setting.isa] if setting.isa else []
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=environment, cwd=ROOT,
        )  # fmt: skip

    def read(self) -> dict[str, Any]:
        """Its next answer; a reason if it died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return {"reason": f"status {self._process.wait()}: {lines[-1][:300] if lines else ''}"}

    def compute(self) -> dict[str, Any]:
        """One round's measurements."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return self.read()
        return self.read()

    def close(self) -> None:
        """End it."""
        self._process.communicate()
        self._log.close()


def measure(net: str, engines: Sequence[str], setting: Setting) -> dict[str, Any]:
    """{engine: figures or None, ..., "reasons": {engine: why it is None}} of all `engines`."""
    reasons: dict[str, str] = {}
    rows: dict[str, Any] = {}
    with prepared(net, setting) as folder:
        others = []
        for engine in engines:
            missing = ensure([PACKAGES[engine]]) if engine in PACKAGES else ""
            if missing:
                rows[engine], reasons[engine] = None, missing
            elif engine != "hyper":
                others.append(engine)
        cold: dict[str, dict[str, Any]] = {}
        groups = [others[n : n + GROUP] for n in range(0, len(others), GROUP)] or [[]]
        for group in groups:
            found, why = _group(net, ["hyper", *group], folder, setting, cold)
            rows |= found
            reasons |= why
    return {**{engine: rows[engine] for engine in ("hyper", *engines)}, "reasons": reasons}


@contextmanager
def prepared(net: str, setting: Setting, *, reference: bool = True) -> Iterator[Path]:
    """A folder with the input, the exported net and (if asked for) its output in float64."""
    if ":" in net and net.startswith("benchmarks.inference.zoo"):
        missing = ensure([ZOO])
        if missing:
            raise SystemExit(f"{net}: {missing}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if setting.keep is not None:
            size = "x".join(map(str, setting.shape))
            folder = setting.keep / f"{net.replace(':', '.')}-{size}"
            folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ("reference.npy" if reference else "net.onnx")).exists():
            generator = np.random.default_rng(0)
            np.save(folder / "input.npy", generator.random(setting.shape, np.float32))
            first = Worker("prepare" if reference else "export", net, folder, setting)
            ready = first.read()
            first.close()
            if "reason" in ready:
                raise SystemExit(f"{net}: {ready['reason']}")
        yield folder


def _group(
    net: str,
    engines: Sequence[str],
    folder: Path,
    setting: Setting,
    cold: dict[str, dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, str]]:
    workers: dict[str, Worker] = {}
    loaded: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    for engine in engines:
        if engine.startswith("hyper") and engine not in cold:
            cold[engine] = _compile(engine, net, folder, setting)
        worker = Worker(engine, net, folder, setting)
        loaded[engine] = worker.read()
        if "reason" in loaded[engine]:
            reasons[engine] = loaded[engine]["reason"]
            worker.close()
            continue
        workers[engine] = worker
    taken: dict[str, list[dict[str, Any]]] = {engine: [] for engine in workers}
    for _ in range(setting.rounds):
        for engine, worker in workers.items():
            time.sleep(PAUSE_S)
            taken[engine].append(worker.compute())
    for worker in workers.values():
        worker.close()
    for engine, rounds in taken.items():
        died = [facts["reason"] for facts in rounds if "reason" in facts]
        if died:
            reasons[engine] = died[0]
    rows = {}
    for engine in engines:
        rows[engine] = None
        if engine not in reasons:
            ours = None if "hyper" in reasons else taken["hyper"]
            rows[engine] = _row(taken[engine], ours, loaded[engine], cold.get(engine))
            rows[engine]["max_rel_error"] = _error(folder, engine)
    return rows, reasons


def _compile(engine: str, net: str, folder: Path, setting: Setting) -> dict[str, Any]:
    """Figures of a process that finds no compiled code; it leaves the code to the next."""
    shutil.rmtree(folder / f"code-{engine}{setting.isa}", ignore_errors=True)
    worker = Worker(engine, net, folder, setting)
    facts = worker.read()
    if "reason" not in facts:
        facts |= worker.compute()
    worker.close()
    return facts


def _row(
    rounds: list[dict[str, Any]],
    ours: list[dict[str, Any]] | None,
    loaded: dict[str, Any],
    cold: dict[str, Any] | None,
) -> dict[str, Any]:
    """One engine's figures."""
    median = statistics.median(facts["seconds"] for facts in rounds)
    speedup = ours and statistics.median(
        peer["seconds"] / mine["seconds"] for peer, mine in zip(rounds, ours, strict=True)
    )
    row = {
        "median_s": median,
        "cpu_s": statistics.median(facts["cpu_s"] for facts in rounds),
        "speedup": speedup,
        "max_rel_error": None,
        "peak_rss_mb": rounds[-1]["peak_rss_mb"],
        "compile_s": loaded["load_s"] + max(0.0, loaded["first_s"] - median),
    }
    if cold is not None and "reason" not in cold:
        row["cached_compile_s"] = row["compile_s"]
        row["compile_s"] = cold["load_s"] + max(0.0, cold["first_s"] - median)
        row["peak_rss_mb"] = max(row["peak_rss_mb"], cold["peak_rss_mb"])
    return row


def _error(folder: Path, engine: str) -> float:
    expected = np.load(folder / "reference.npy")
    actual = np.load(folder / f"{engine}.npy")
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
