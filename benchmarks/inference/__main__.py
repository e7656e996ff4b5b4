"""`python -m benchmarks.inference`: this engine and its peers on the same nets, in turn.

Every engine is a process of its own that loads the net once; then rounds, in each of which every
engine computes once. Reported are medians, and `speedup`: the median over rounds of a peer's
seconds to this engine's. `max_rel_error` is the largest difference to torch in float64 relative
to the largest value. `--json` ends with one object, {net: {engine: {...} | null}}; why an engine
is null stands under "reasons".
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inference.engines import LOADERS, PEERS
from benchmarks.inference.nets import CASES, Case
from benchmarks.inference.peers import ROOT, ensure_peers

PAUSE_S = 0.2
"""Between engines: threads of the one before stop spinning."""
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


class Worker:
    """A process with an engine."""

    def __init__(
        self, python: Path, engine: str, net: str, folder: Path, threads: int, isa: str
    ) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        if isa == "avx2":
            environment |= AVX2
        self._log = (folder / f"{engine}.log").open("w+")
        command = [str(python), "-m", "benchmarks.inference.worker", engine, net, str(folder)]
        command += ["--threads", str(threads), *(["--isa", isa] if isa else [])]
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
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End it."""
        self._process.communicate()
        self._log.close()


def measure(
    case: Case, shape: Sequence[int], engines: Sequence[str], rounds: int, threads: int, isa: str
) -> dict[str, Any]:
    """All engines on one net."""
    python, missing = ensure_peers()
    rows: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "input.npy", np.random.default_rng(0).random(shape, np.float32))
        first = Worker(Path(sys.executable), "prepare", case.net, folder, threads, "")
        ready = first.read()
        first.close()
        if "reason" in ready:
            raise SystemExit(f"{case.net}: {ready['reason']}")
        workers: dict[str, Worker] = {}
        for engine in engines:
            peer = engine.startswith("openvino")
            if peer and missing:
                reasons[engine] = missing
                continue
            interpreter = python if peer else Path(sys.executable)
            worker = Worker(interpreter, engine, case.net, folder, threads, isa)
            loaded = worker.read()
            if "reason" in loaded:
                reasons[engine] = loaded["reason"]
                worker.close()
                continue
            workers[engine], rows[engine] = worker, loaded
        taken: dict[str, list[dict[str, Any]]] = {engine: [] for engine in workers}
        for _ in range(rounds):
            for engine, worker in workers.items():
                time.sleep(PAUSE_S)
                taken[engine].append(worker.compute())
        for worker in workers.values():
            worker.close()
    return _summary(engines, rows, taken, reasons)


def _summary(
    engines: Sequence[str],
    rows: dict[str, Any],
    taken: dict[str, list[dict[str, Any]]],
    reasons: dict[str, str],
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for engine in engines:
        if engine not in rows:
            result[engine] = None
            continue
        rounds = taken[engine]
        died = [facts["reason"] for facts in rounds if "reason" in facts]
        if died:
            result[engine], reasons[engine] = None, died[0]
            continue
        speedup, ours = None, taken.get("hyper", [])
        if ours and not any("reason" in facts for facts in ours):
            speedup = statistics.median(
                peer["seconds"] / mine["seconds"] for peer, mine in zip(rounds, ours, strict=True)
            )
        result[engine] = {
            "median_s": statistics.median(facts["seconds"] for facts in rounds),
            "cpu_s": statistics.median(facts["cpu_s"] for facts in rounds),
            "speedup": speedup,
            "max_rel_error": rows[engine]["max_rel_error"],
            "peak_rss_mb": rounds[-1]["peak_rss_mb"],
            "compile_s": rows[engine]["compile_s"],
        }
    return {**result, "reasons": reasons}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", action="append", help=f"module:function, or {', '.join(CASES)}")
    parser.add_argument("--shape", help="as 1x1x20x256x256; needed with module:function")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--modes", nargs="*", default=["exact"], choices=["exact", "faster"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--isa", choices=["avx2"], default="", help="hold every engine to it")
    parser.add_argument("--quick", action="store_true", help="small inputs, few rounds")
    parser.add_argument("--json", action="store_true", help="one object at the end")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    shape = tuple(int(n) for n in arguments.shape.split("x")) if arguments.shape else None
    engines = ["hyper", *(f"hyper_{mode}" for mode in arguments.modes), *arguments.peers]
    assert all(engine in LOADERS for engine in engines)
    results: dict[str, Any] = {}
    for name in arguments.net or list(CASES):
        case = CASES.get(name) or Case(name, shape or (), shape or ())
        size = shape or (case.small if arguments.quick else case.shape)
        if not size:
            raise SystemExit(f"give --shape for {name}")
        results[name] = measure(case, size, engines, rounds, arguments.threads, arguments.isa)
        _print(name, size, results[name])
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine()}
        print(json.dumps({"inference": results, "threads": arguments.threads, **machine}))


def _print(name: str, shape: Sequence[int], rows: dict[str, Any]) -> None:
    print(f"\n{name} {'x'.join(map(str, shape))}", file=sys.stderr)
    for engine, row in rows.items():
        if engine == "reasons":
            continue
        if row is None:
            print(f"  {engine:<21}null: {rows['reasons'].get(engine, '')}", file=sys.stderr)
            continue
        speedup = f"{row['speedup']:>6.2f}x" if row["speedup"] else " " * 7
        print(
            f"  {engine:<21}{row['median_s']:>8.3f} s  cpu {row['cpu_s']:>8.3f} s {speedup}"
            f"  error {row['max_rel_error']:.1e}  {row['peak_rss_mb']:>7.0f} MB"
            f"  first {row['compile_s']:.1f} s",
            file=sys.stderr, flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
