"""What really ran, checked against what the cluster says and against what it promises."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

from hyper.status import TaskInfo, TaskState

Execution = tuple[int, str]  # task, attempt


def read_journal(path: Path) -> tuple[Counter[Execution], Counter[Execution]]:
    """How often each attempt of each task has begun and has ended."""
    begun: Counter[Execution] = Counter()
    ended: Counter[Execution] = Counter()
    for line in path.read_text().splitlines():
        verb, index, attempt = line.split()
        (begun if verb == "begin" else ended)[int(index), attempt] += 1
    return begun, ended


def longest_stall_s(tasks: list[TaskInfo], fault_time: float) -> float:
    """The longest time after the fault in which no task came to its durable end.

    Args:
        tasks: all of them, after the end; their times are those that are stored.
        fault_time: when the fault began, in seconds since 1970.
    """
    ends = [task.end_time.timestamp() for task in tasks if task.end_time is not None]
    assert len(ends) == len(tasks), "a task that succeeded has no end"
    later = sorted(end for end in ends if end > fault_time)
    assert later, "everything had ended before the fault, which has shown nothing"
    return max(after - before for before, after in itertools.pairwise([fault_time, *later]))


def check(path: Path, tasks: list[TaskInfo]) -> None:
    """Raise an AssertionError that names the first broken promise.

    Args:
        path: the journal of all executions.
        tasks: all tasks as the scheduler tells of them after the end, with results.
    """
    begun, ended = read_journal(path)
    twice = [execution for execution, count in begun.items() if count > 1]
    assert not twice, f"attempts that ran more than once: {twice}"
    assert ended.keys() <= begun.keys(), "an execution ended that had not begun"
    for task in tasks:
        assert task.state is TaskState.SUCCEEDED, task
        assert task.failures == 0, f"a fault of the cluster counted as the task's: {task}"
        kept = task.result["attempt"]
        assert str(task.attempt) == kept, f"{task.id}: the result is of another attempt"
        assert ended[task.index, kept], f"{task.id}: the result is of an attempt that did not end"
