"""Child processes that outlive their parent: start, recognise again, stop.

A process is known by its pid and its start time, so that a pid the kernel gave to somebody else
since is never signalled. Each child leads its own session; stopping it also stops whatever it
left in its process group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

POLL_S = 0.02
LOG_TAIL_LINES = 12
_KILL_TIMEOUT_S = 10.0
_LOG_TAIL_BYTES = 16_384
_LOG_LINE_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process of one boot of this machine.

    Args:
        pid: the kernel's number.
        started: boot id and start time in clock ticks since that boot.
    """

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The identity of a living process; None if there is none (a zombie is none)."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return None
        fields = stat[stat.rindex(b")") + 2 :].split()
        if fields[0] in (b"Z", b"X"):
            return None
        return cls(pid, f"{_boot_id()}:{int(fields[19])}")

    @property
    def alive(self) -> bool:
        """Whether exactly this process still runs."""
        _reap(self.pid)
        return ProcessId.of(self.pid) == self

    def signal(self, number: int) -> bool:
        """Send a signal to this process, or to nobody if it is gone."""
        if not self.alive:
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def kill_group(self) -> None:
        """SIGKILL to what is left of the process group that this process led.

        A group's number is not given to a new process while the group has members, so with the
        leader gone and its number free, the group is still ours or empty.
        """
        if not self.started.startswith(_boot_id()) or ProcessId.of(self.pid) not in (None, self):
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _reap(pid: int) -> None:
    """Collect a dead child of ours, so that it does not stay a zombie."""
    with contextlib.suppress(ChildProcessError, OSError):
        os.waitpid(pid, os.WNOHANG)


def spawn(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str], folder: Path
) -> ProcessId:
    """Start a program in its own session; its output goes to the end of `log`.

    Raises:
        OSError: it cannot be started.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=dict(environment),
            start_new_session=True,
        )
    identity = ProcessId.of(child.pid)
    child.returncode = 0  # its life is watched by `ProcessId`; no ResourceWarning for the handle
    return identity or ProcessId(child.pid, f"{_boot_id()}:gone at once")


def stop(identity: ProcessId, *, grace_s: float) -> None:
    """SIGTERM, `grace_s` to end, then SIGKILL; also for what is left in its process group."""
    stop_all({identity: grace_s})


def stop_all(graces_s: Mapping[ProcessId, float]) -> None:
    """Stop several at the same time, each with its own grace; returns once none of them runs."""
    begun = time.monotonic()
    for identity in graces_s:
        identity.signal(signal.SIGTERM)
    waiting = dict(graces_s)
    while waiting:
        took = time.monotonic() - begun
        for identity, grace_s in list(waiting.items()):
            if not identity.alive or took > grace_s + _KILL_TIMEOUT_S:
                del waiting[identity]
            elif took >= grace_s:
                identity.signal(signal.SIGKILL)
        if waiting:
            time.sleep(POLL_S)
    for identity in graces_s:
        identity.kill_group()


def kill(identity: ProcessId) -> None:
    """SIGKILL to the process, then to what is left in its group; waits for its end."""
    identity.signal(signal.SIGKILL)
    wait_until(lambda: not identity.alive, _KILL_TIMEOUT_S)
    identity.kill_group()


def marked(name: str, value: str) -> Iterator[ProcessId]:
    """Processes of this user whose environment holds `name=value`, but not this one."""
    needle = f"{name}={value}".encode()
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for pid in psutil.pids():
        if pid in ours:
            continue
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # gone, or another user's
            continue
        if needle in environment.split(b"\0"):
            identity = ProcessId.of(pid)
            if identity is not None:
                yield identity


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for a condition; False if it did not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def log_tail(log: Path, lines: int = LOG_TAIL_LINES, *, since: int = 0) -> str:
    """The last lines of a log, none from before byte `since`; empty if there is none."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, since, size - _LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(line[:_LOG_LINE_CHARACTERS] for line in text.splitlines()[-lines:])
