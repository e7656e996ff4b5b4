"""A core with a hand on the clock, for tests that compare exact commands."""

from __future__ import annotations

from dataclasses import dataclass, field

from hyper_scheduler.core import commands as c
from hyper_scheduler.core import events as e
from hyper_scheduler.core.invariants import check_invariants
from hyper_scheduler.core.model import Attempt, Experiment, Hardware, Recipe, Steps, TaskId
from hyper_scheduler.core.state import Capacity, Limits, State
from hyper_scheduler.core.step import step

W = "tenants/t/workflows/w"


def experiment(
    name: str,
    tasks: int,
    *depends_on: str,
    workers: int = 0,
    retries: int = 1,
    hardware: Hardware | None = None,
    labels: dict[str, str] | None = None,
    function: str = "",
) -> Experiment:
    return Experiment(
        name,
        command="" if function else "true",
        function=function,
        depends_on=depends_on,
        parameters={"i": Steps(0, 1, tasks)},
        workers=workers,
        retries=retries,
        hardware=hardware or Hardware(),
        labels=labels or {},
    )


def recipe(*experiments: Experiment, priority: int = 0, deadline_s: float | None = None) -> Recipe:
    return Recipe("r", experiments, priority=priority, deadline_s=deadline_s)


def task(index: int, of: str = "a", workflow: str = W) -> TaskId:
    return TaskId(workflow, of, index)


@dataclass
class Core:
    """Commits succeed at once unless `hold_commits`; metrics and watchers are left out."""

    state: State = field(
        default_factory=lambda: State(9, Limits(lease_s=6.0, gather_s=0.0), checked_at=1000.0)
    )
    now: float = 1000.0
    hold_commits: bool = False
    commits: list[c.Commit] = field(default_factory=list)
    sessions: dict[str, int] = field(default_factory=dict)

    def feed(self, event: e.Event) -> list[c.Command]:
        """Commands of an event and of the commits that it leads to, commits left out."""
        commands: list[c.Command] = []
        waiting: list[e.Event] = [event]
        while waiting:
            for command in step(self.state, waiting.pop(0)):
                if isinstance(command, c.Commit):
                    self.commits.append(command)
                    if not self.hold_commits:
                        waiting.append(e.Committed(self.now, command.number))
                elif not isinstance(command, c.Changed | c.Moved | c.Worked):
                    commands.append(command)
            check_invariants(self.state)
        return commands

    def submit(self, what: Recipe, name: str = W, request_id: str = "r1") -> list[c.Command]:
        return self.feed(e.Submit(self.now, request_id, name, what, "yaml"))

    def hello(
        self,
        worker: str,
        slots: int = 1,
        running: tuple[tuple[TaskId, Attempt], ...] = (),
        labels: dict[str, str] | None = None,
        gpus: int = 0,
    ) -> list[c.Command]:
        session = self.sessions[worker] = self.sessions.get(worker, 0) + 1
        capacity = Capacity(
            slots, cpus=4, memory_bytes=8 << 30, gpus=gpus, labels=tuple((labels or {}).items())
        )
        return self.feed(e.Hello(self.now, worker, session, capacity, running))

    def report(
        self,
        worker: str,
        of: TaskId,
        number: int,
        outcome: e.Outcome = e.Outcome.SUCCEEDED,
        *,
        epoch: int = 9,
        sequence: int = 1,
        message: str = "",
        wall_s: float = 0.0,
    ) -> list[c.Command]:
        one = e.Report(
            of, Attempt(epoch, number), outcome, message=message, result_json="1", wall_s=wall_s
        )  # fmt: skip
        session = self.sessions[worker]
        return self.feed(e.Reports(self.now, worker, session, sequence, (one,)))

    def beat(self, *workers: str) -> None:
        for worker in workers:
            self.feed(e.Heartbeat(self.now, worker, self.sessions[worker]))

    def later(self, seconds: float) -> list[c.Command]:
        """Ticks as they come, up to `seconds` from now."""
        commands: list[c.Command] = []
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.25)
            commands += self.feed(e.Tick(self.now))
        return commands

    def start(self, worker: str, *tasks: tuple[TaskId, int]) -> c.Start:
        """The command that starts attempts of this epoch."""
        given = tuple((which, Attempt(9, number)) for which, number in tasks)
        return c.Start(worker, self.sessions[worker], given)

    def stop(self, worker: str, *tasks: tuple[TaskId, int]) -> c.Stop:
        given = tuple((which, Attempt(9, number)) for which, number in tasks)
        return c.Stop(worker, self.sessions[worker], given)

    def welcome(self, worker: str) -> c.Welcome:
        return c.Welcome(worker, self.sessions[worker])

    def ack(self, worker: str, sequence: int = 1) -> c.Ack:
        return c.Ack(worker, self.sessions[worker], sequence)
