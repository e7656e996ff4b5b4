"""What the faults' tests run: tasks that leave a trace of every execution."""

from __future__ import annotations

import os
import time
from pathlib import Path

from hyper.context import TaskContext


def trace(context: TaskContext, *, journal: str, i: int, seconds: float) -> dict[str, str]:
    """Write down begin and end, each in one append that the kernel keeps whole."""
    place = Path(journal)
    _note(place, f"begin {i} {context.attempt}")
    time.sleep(seconds)
    _note(place, f"end {i} {context.attempt}")
    return {"attempt": str(context.attempt)}


def _note(journal: Path, line: str) -> None:
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
