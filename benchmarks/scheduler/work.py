"""What a task does, ours and the peers'; imports nothing but the clock."""

from __future__ import annotations

import time

RESULT = "r" * 98  # with its quotes 100 bytes of JSON


def work(seconds: float) -> None:
    """Use so much CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def task(context: object, *, i: int, group: str, milliseconds: int) -> str:
    """One task of ours."""
    if milliseconds:
        work(milliseconds / 1000.0)
    return RESULT


def loud(context: object, *, i: int, group: str, milliseconds: int) -> str:
    """One that prints a line."""
    print(f"task {i} of {group}")
    return task(context, i=i, group=group, milliseconds=milliseconds)


def now(context: object, *, i: int) -> float:
    """When it began."""
    return time.time()
