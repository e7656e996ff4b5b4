"""What a task does, ours and the peers'; imports nothing but the clock."""

from __future__ import annotations

import time

RESULT = "r" * 98  # with its quotes 100 bytes of JSON


def work(seconds: float) -> None:
    """Keep the processor busy."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def task(context: object, *, i: int, group: str, milliseconds: int) -> str:
    """One task of ours."""
    if milliseconds:
        work(milliseconds / 1000.0)
    return RESULT
