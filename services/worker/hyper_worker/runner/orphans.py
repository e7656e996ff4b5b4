"""Descendants of a task that left its process group and lost their parent: daemons.

The agent makes itself the one that orphans are given to (Linux: child subreaper), so that a
daemon becomes its child. Which process it came from is told by a variable that every process
inherits; when that one has ended, `end_orphans` ends the daemon too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path

MARK = "HYPER_LAUNCH"
_PR_SET_CHILD_SUBREAPER = 36
_SWEEPS = 20  # one that is ended may leave children, and these theirs


def adopt_orphans() -> None:
    """From now on the orphans among our descendants become our children.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def end_orphans(mark: str, launched: frozenset[int]) -> int:
    """Kill our children that carry `mark`, and theirs; reap dead ones. Returns how many.

    Args:
        mark: value of HYPER_LAUNCH.
        launched: children that are somebody else's to wait for.
    """
    wanted = f"{MARK}={mark}".encode()
    ended: set[int] = set()
    for _ in range(_SWEEPS):
        others = [pid for pid in _children() if pid not in launched]
        found = [pid for pid in others if pid not in ended and _carries(pid, wanted)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in others:  # those that have ended, of earlier calls too
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if not found:
            break
        ended.update(found)
    return len(ended)


def _children() -> Iterator[int]:
    for task in Path("/proc/self/task").iterdir():
        try:
            text = (task / "children").read_text()
        except OSError:  # a thread that has just ended, or a kernel without such lists
            continue
        yield from map(int, text.split())


def _carries(pid: int, wanted: bytes) -> bool:
    try:
        return wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return False
