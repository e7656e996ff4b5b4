"""What the faults' tests run: tasks that leave a trace of every execution."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from hyper.context import TaskContext
from tests.integration.feature_functions import Ring


def trace(context: TaskContext, *, journal: str, i: int, seconds: float) -> dict[str, str]:
    """Write down begin and end, each in one append that the kernel keeps whole."""
    place = Path(journal)
    _note(place, f"begin {i} {context.attempt}")
    time.sleep(seconds)
    _note(place, f"end {i} {context.attempt}")
    return {"attempt": str(context.attempt)}


def rank(context: TaskContext, *, folder: str, steps: int, pause_s: float) -> str:
    """One rank of a gang that goes on from its last checkpoint: a digest over all steps."""
    me, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    checkpoint = Path(folder) / f"rank-{me}.json"
    step, digest = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, 1)
    with Ring(me, size) as ring:
        first = ring.least(step)  # a rank may be a step ahead: it does that one again
        if step != first:
            digest = json.loads((Path(folder) / f"rank-{me}-{first}.json").read_text())[1]
        for number in range(first, steps):
            (Path(folder) / f"rank-{me}-{number}.json").write_text(json.dumps([number, digest]))
            digest = (31 * digest + ring.sum(number * (me + 1) % 97)) % 1_000_003
            partial = checkpoint.with_suffix(".new")
            partial.write_text(json.dumps([number + 1, digest]))
            partial.replace(checkpoint)
            time.sleep(pause_s)
    return f"{me}:{digest}"


def _note(journal: Path, line: str) -> None:
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
