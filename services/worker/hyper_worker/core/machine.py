"""A task's life on this worker.

    assigned -> queued -> running -> ended
                   |         |
                   |         +- stop asked, timeout, leaving: SIGTERM -> grace -> SIGKILL -> ended
                   +- stop asked, leaving: reported without having run

A queued attempt waits for a slot. Short functions take a slot in bundles, so that handing them
over costs little; what waits behind long ones goes to another slot, or back to the scheduler.

Being out of touch with the scheduler changes nothing here: attempts go on, reports wait. After a
reconnect the scheduler stops what it has given to others.
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
    EndedAll,
    Event,
    Exit,
    Job,
    Key,
    Kill,
    Launch,
    Leaving,
    Outcome,
    Returned,
    Status,
    StopAsked,
    Terminate,
    Ticked,
    describe_exit,
)
from hyper_worker.core.reports import Reports

BUNDLE_S = 0.25  # of work
BUNDLE_MAX = 128
RETURN_S = 3.0  # functions that wait for so long while nothing ends are given back
REMEMBERED = 10_000  # ended attempts; a repeated assignment of one of them is ignored


class Cause(StrEnum):
    """Why an attempt has been asked to end."""

    STOP = "stop"
    TIMEOUT = "timeout"
    LEAVE = "leave"


@dataclass(slots=True)
class _Bundle:
    """Attempts that share a slot."""

    left: int


@dataclass(slots=True)
class _Run:
    """A running attempt."""

    job: Job
    bundle: _Bundle
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
        self._busy = 0  # slots
        self._mean_s: dict[str, float] = {}  # what a call of a function takes
        self._moved_at = 0.0  # when an attempt started or ended

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
    def busy(self) -> int:
        """Slots that are taken."""
        return self._busy

    @property
    def waiting(self) -> int:
        """Attempts that wait for a slot."""
        return len(self._queue)

    def runs(self, key: Key) -> bool:
        """Whether an attempt has a slot."""
        return key in self._runs

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
                self._moved_at = now
            case EndedAll(ends):
                for key, exit_ in ends:
                    self._end(key, exit_)
                self._moved_at = now
            case Returned(keys):
                self._take_back(keys)
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
        if self._queue and now - self._moved_at > RETURN_S:
            self._give_back()
        return commands

    def next_deadline(self) -> float | None:
        """When the next `Ticked` is due at the latest, or None."""
        times = [
            time
            for run in self._runs.values()
            for time in ((run.timeout_at if run.cause is None else run.kill_at),)
            if time is not None and not run.killed
        ]
        if self._queue and _bundles(next(reversed(self._queue.values()))):
            times.append(self._moved_at + RETURN_S + 0.01)
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
        while self._queue and self._busy < self.slots:
            jobs = self._next_jobs()
            bundle = _Bundle(len(jobs))
            self._busy += 1
            self._moved_at = now
            for job in jobs:
                timeout_at = now + job.timeout_s if job.timeout_s is not None else None
                self._runs[job.key] = _Run(job, bundle, timeout_at)
                self.reports.add(Status(job.key, Outcome.RUNNING))
            commands.append(Launch(tuple(jobs)))

    def _next_jobs(self) -> list[Job]:
        """The next of the queue, with those behind it that can share its slot."""
        _, first = self._queue.popitem(last=False)
        jobs = [first]
        mean_s = self._mean_s.get(first.function)
        if mean_s is None or not _bundles(first):
            return jobs
        share = -(-(len(self._queue) + 1) // (self.slots - self._busy))
        most = min(BUNDLE_MAX, share, int(BUNDLE_S / max(mean_s, 1e-6)))
        while self._queue and len(jobs) < most:
            key, job = next(iter(self._queue.items()))
            if not _bundles(job) or _kind(job) != _kind(first):
                break
            del self._queue[key]
            jobs.append(job)
        return jobs

    def _take_back(self, keys: tuple[Key, ...]) -> None:
        """Attempts of a bundle that were not started: to the front of the queue."""
        for key in reversed(keys):
            run = self._runs.pop(key, None)
            if run is None:
                continue
            self._leave_bundle(run)
            if run.cause is not None:
                late = run.cause is Cause.LEAVE
                outcome = Outcome.PREEMPTED if late else Outcome.STOPPED
                self._finish(key, outcome, Exit(message="stopped before it started"))
                continue
            self._queue[key] = run.job
            self._queue.move_to_end(key, last=False)

    def _give_back(self) -> None:
        """Nothing here ends: let other workers have the functions that wait."""
        for key in [key for key, job in self._queue.items() if _bundles(job)]:
            del self._queue[key]
            self._finish(key, Outcome.RETURNED, Exit(message="waited behind long tasks"))

    def _leave_bundle(self, run: _Run) -> None:
        run.bundle.left -= 1
        self._busy -= run.bundle.left == 0

    def _end(self, key: Key, exit_: Exit) -> None:
        run = self._runs.pop(key, None)
        if run is None:
            return
        self._leave_bundle(run)
        if exit_.returned:
            name = run.job.function
            mean_s = self._mean_s.get(name, exit_.wall_s)
            new = 0.5 if exit_.wall_s < mean_s else 0.3  # the first call may have paid for imports
            self._mean_s[name] = mean_s + new * (exit_.wall_s - mean_s)
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
        if outcome is Outcome.SUCCEEDED and not message:
            self._finish(key, outcome, exit_)
            return
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


def _bundles(job: Job) -> bool:
    """Whether it may share a slot: what has a timeout or a GPU must know when it starts, and ranks
    of a gang wait for each other.
    """
    alone = job.timeout_s is not None or job.rank >= 0 or job.around.needs.gpus
    return bool(job.function) and not alone


def _kind(job: Job) -> tuple[str, tuple[tuple[str, str], ...], str, str, str]:
    return job.function, job.env, job.workdir, job.around.setup, job.tenant
