"""Functions that the worker's tests run in warm processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from hyper.context import TaskContext, TaskStopped

LOADED_BY = os.getpid()
CALLS = 0


def add(context: TaskContext, *, a: int, b: int) -> int:
    context.log(f"{context.index}: {a} + {b}")
    return a + b


def count_files(context: TaskContext, *, dataset: str) -> int:
    return len(list(context.client.open_dataset(dataset).files()))


def count(context: TaskContext) -> dict[str, int]:
    global CALLS
    CALLS += 1
    return {"pid": os.getpid(), "calls": CALLS}


def facts(context: TaskContext) -> dict[str, Any]:
    context.report(auc=0.5)
    print("to stderr", file=sys.stderr)
    os.write(1, b"straight to the descriptor\n")
    return {
        "task": context.task,
        "attempt": str(context.attempt),
        "endpoint": os.environ["HYPER_ENDPOINT"],
        "numpy": np.arange(3),
        "empty": os.listdir("."),  # noqa: PTH208
    }


def talk(context: TaskContext) -> None:
    """Prints its index: never, first, last, by a child, or more than a pipe holds."""
    match context.index % 5:
        case 1:
            print(context.index)
            time.sleep(0.003)
        case 2:
            time.sleep(0.003)
            print(context.index)
        case 3:
            subprocess.run(["echo", str(context.index)], check=True)
        case 4:
            print(f"{context.index} " * 20_000)


def fail(context: TaskContext) -> None:
    print("before the end")
    raise ValueError("the volume is upside down\nsecond line")


def large(context: TaskContext, *, size: int) -> str:
    return "x" * size


def unserialisable(context: TaskContext) -> object:
    return object()


def leave(context: TaskContext) -> None:
    print("leaving", flush=True)
    os._exit(3)


def crash(context: TaskContext) -> None:
    print("crashing", flush=True)
    os.abort()


def sleep(context: TaskContext, *, marker: str = "", busy: str = "alone") -> None:
    if busy == "child":
        subprocess.Popen(["sleep", "600"])
    print("asleep", flush=True)
    try:
        if busy == "thread":
            threading.Event().wait(600)
        while busy == "reporting":
            context.report(loss=1.0)
        time.sleep(600)
    except TaskStopped:
        if marker:
            Path(marker).write_text("cleaned up")
        raise


def stubborn(context: TaskContext) -> None:
    child = subprocess.Popen(["sleep", "600"])
    print(f"child {child.pid}", flush=True)
    while True:
        try:
            time.sleep(600)
        except TaskStopped:
            print("not yet", flush=True)


def crash_at_seven(context: TaskContext) -> int:
    if context.index == 7:
        os.abort()
    return context.index


def long_at_three(context: TaskContext) -> int:
    print(f"this is {context.index}", flush=True)
    if context.index == 3:
        time.sleep(1.0)
    return context.index
