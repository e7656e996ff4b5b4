"""Installing the peers into .venv-bench and running them."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = {"ray": "ray==2.60.*", "dask": "dask[distributed]==2026.8.*"}
MODULES = {"ray": "ray", "dask": "distributed"}  # dask alone comes with other benchmarks' peers
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VENV = ROOT / ".venv-bench"
TIMEOUT_S = 600


def install(peer: str) -> str:
    """Install one peer; returns why it could not be, or an empty text."""
    python = VENV / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, timeout=TIMEOUT_S)
        probe = [str(python), "-c", f"import {MODULES[peer]}"]
        found = subprocess.run(probe, capture_output=True, timeout=120)
        if found.returncode:
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
            pip.append(PINS[peer])
            done = subprocess.run(pip, capture_output=True, text=True, timeout=TIMEOUT_S)
            if done.returncode:
                lines = done.stderr.strip().splitlines()
                return lines[-1] if lines else f"pip ended with status {done.returncode}"
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return ""


def run(peer: str, tasks: int, milliseconds: int, cores: int) -> dict[str, Any] | str:
    """One round of one peer: its figures, or why there are none."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "BENCH_MARK": secrets.token_hex(8),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    script = HERE / "peers" / f"{peer}_tasks.py"
    python = VENV / "bin" / "python"
    command = [str(python), str(script), str(tasks), str(milliseconds), str(cores)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        return said[-1] if said else f"ended with status {done.returncode}"
    figures: dict[str, Any] = json.loads(lines[-1])
    return figures
