"""A task's life on this worker.

    assigned -> queued -> running -> ended
                   |         |
                   |         +- stop asked, timeout, leaving: SIGTERM -> grace -> SIGKILL -> ended
                   +- stop asked, leaving: reported without having run

A queued attempt waits for a slot. Being out of touch with the scheduler changes nothing here:
attempts go on, reports wait. After a reconnect the scheduler stops what it has given to others.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from hyper_worker.core.model import (
    Acknowledged,
    Assigned,
    Command,
    Ended,
    Event,
    Exit,
    Job,
    Key,
    Kill,
    Launch,
    Leaving,
    Outcome,
    Status,
    StopAsked,
    Terminate,
    Ticked,
)
from hyper_worker.core.reports import Reports

REMEMBERED = 10_000  # ended attempts; a repeated assignment of one of them is ignored


class Cause(StrEnum):
    """Why an attempt has been asked to end."""

    STOP = "stop"
    TIMEOUT = "timeout"
    LEAVE = "leave"


@dataclass(slots=True)
class _Run:
    """A running attempt."""

    job: Job
    timeout_at: float | None
    cause: Cause | None = None
    kill_at: float | None = None
    killed: bool = False


class Machine:
    """All attempts of this worker.

    Args:
        slots: how many run at once.
    """

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"a worker needs at least one slot, not {slots}")
        self.slots = slots
        self.reports = Reports()
        self.finished: Counter[Outcome] = Counter()  # since the shell last looked
        self._queue: OrderedDict[Key, Job] = OrderedDict()
        self._runs: dict[Key, _Run] = {}
        self._newest: dict[str, Key] = {}  # of each task, among the live attempts
        self._ended: OrderedDict[Key, None] = OrderedDict()
        self._leave_at: float | None = None

    @property
    def live(self) -> tuple[Key, ...]:
        """Attempts that run or wait for a slot here."""
        return (*self._runs, *self._queue)

    @property
    def answered_for(self) -> tuple[Key, ...]:
        """Attempts that nobody else need start: live here, or ended and the report is coming."""
        return (*self.live, *self.reports.ended())

    @property
    def running(self) -> tuple[Key, ...]:
        """Attempts that run."""
        return tuple(self._runs)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits here."""
        return not self._runs and not self._queue

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event in; returns what is to be done, in order."""
        commands: list[Command] = []
        match event:
            case Assigned(jobs):
                for job in jobs:
                    self._assign(job, now, commands)
            case StopAsked(keys):
                for key in keys:
                    self._stop(key, now, commands)
            case Ended(key, exit_):
                self._end(key, exit_)
            case Leaving(grace_s):
                self._leave(now, grace_s, commands)
            case Acknowledged(sequence):
                self.reports.acknowledged(sequence)
            case Ticked():
                pass
            case _:
                assert_never(event)
        self._overdue(now, commands)
        self._fill(now, commands)
        return commands

    def next_deadline(self) -> float | None:
        """When the next `Ticked` is due at the latest, or None."""
        times = [
            time
            for run in self._runs.values()
            for time in ((run.timeout_at if run.cause is None else run.kill_at),)
            if time is not None and not run.killed
        ]
        return min(times, default=None)

    def _assign(self, job: Job, now: float, commands: list[Command]) -> None:
        key = job.key
        if key in self._runs or key in self._queue or key in self._ended:
            return  # the batch came twice
        newest = self._newest.get(key.task)
        if newest is not None:
            if newest.newer_than(key):
                return  # a late copy of what has been superseded
            self._stop(newest, now, commands)
        if self._leave_at is not None:
            self._finish(key, Outcome.PREEMPTED, Exit(message="the worker is leaving"))
            return
        self._newest[key.task] = key
        self._queue[key] = job

    def _stop(self, key: Key, now: float, commands: list[Command]) -> None:
        if key in self._queue:
            del self._queue[key]
            self._finish(key, Outcome.STOPPED, Exit(message="stopped before it started"))
        elif key in self._runs:
            self._ask_to_end(self._runs[key], Cause.STOP, now, commands)
        elif key not in self._ended:
            self._finish(key, Outcome.STOPPED, Exit(message="it does not run here"))

    def _leave(self, now: float, grace_s: float, commands: list[Command]) -> None:
        if self._leave_at is None:
            self._leave_at = now + grace_s
        for key in list(self._queue):
            del self._queue[key]
            self._finish(key, Outcome.PREEMPTED, Exit(message="preempted before it started"))
        for run in self._runs.values():
            self._ask_to_end(run, Cause.LEAVE, now, commands)

    def _ask_to_end(self, run: _Run, cause: Cause, now: float, commands: list[Command]) -> None:
        if run.cause is None:
            run.cause = cause
            run.kill_at = now + run.job.grace_s
            commands.append(Terminate(run.job.key))
        if self._leave_at is not None and run.kill_at is not None:
            run.kill_at = min(run.kill_at, self._leave_at)

    def _overdue(self, now: float, commands: list[Command]) -> None:
        for run in self._runs.values():
            if run.cause is None and run.timeout_at is not None and now >= run.timeout_at:
                self._ask_to_end(run, Cause.TIMEOUT, now, commands)
            if run.kill_at is not None and now >= run.kill_at and not run.killed:
                run.killed = True
                commands.append(Kill(run.job.key))

    def _fill(self, now: float, commands: list[Command]) -> None:
        while self._queue and len(self._runs) < self.slots:
            key, job = self._queue.popitem(last=False)
            timeout_at = now + job.timeout_s if job.timeout_s is not None else None
            self._runs[key] = _Run(job, timeout_at)
            self.reports.add(Status(key, Outcome.RUNNING))
            commands.append(Launch(job))

    def _end(self, key: Key, exit_: Exit) -> None:
        run = self._runs.pop(key, None)
        if run is None:
            return
        match run.cause:
            case Cause.STOP:
                outcome, message = Outcome.STOPPED, "stopped on request"
            case Cause.TIMEOUT:
                outcome = Outcome.FAILED
                message = f"ran into its timeout of {run.job.timeout_s:g} s"
            case Cause.LEAVE if not exit_.returned:
                outcome, message = Outcome.PREEMPTED, "the machine goes away"
            case _:
                failed = exit_.exit_code != 0 or bool(exit_.message)
                outcome = Outcome.FAILED if failed else Outcome.SUCCEEDED
                message = exit_.message
        if outcome is Outcome.FAILED and not message:
            message = describe_exit(exit_.exit_code)
        result = exit_.result_json if outcome is Outcome.SUCCEEDED else ""
        self._finish(key, outcome, replace(exit_, message=message, result_json=result))

    def _finish(self, key: Key, outcome: Outcome, exit_: Exit) -> None:
        self.reports.add(Status(key, outcome, exit_))
        self.finished[outcome] += 1
        if self._newest.get(key.task) == key:
            del self._newest[key.task]
        self._ended[key] = None
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)


def describe_exit(exit_code: int) -> str:
    """One sentence for an exit status."""
    if exit_code < 0:
        return f"killed by signal {-exit_code}"
    return f"exited with status {exit_code}"
