"""The values the core speaks: attempts, what happened to them, what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Key:
    """One attempt of one task; within a task a greater (epoch, number) is newer."""

    task: str
    epoch: int
    number: int

    @property
    def experiment(self) -> str:
        """Whose task it is."""
        return self.task.rpartition("/tasks/")[0]

    @property
    def attempt(self) -> str:
        """Which of its task's attempts it is: "epoch.number"."""
        return f"{self.epoch}.{self.number}"

    def newer_than(self, other: Key) -> bool:
        """Whether this attempt of the same task supersedes `other`."""
        return self.task == other.task and (self.epoch, self.number) > (other.epoch, other.number)


@dataclass(frozen=True, slots=True)
class Needs:
    """What one task may use; zero: no bound."""

    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Around:
    """What a task finds around it.

    Args:
        needs: what it may use.
        setup: shell commands, once a node and content, in the work folder.
        inputs: (folder, address); `{{parameter}}` may stand in the address.
        outputs: the same; committed once, when the task has ended well.
        checkpoint_path: folder that is kept for the next attempt; "": none.
        checkpoint_every_s: how often.
        secrets: (environment variable, name of the secret).
        registry: name of the secret that fetches the image.
        network: whether a container has one.
    """

    needs: Needs = Needs()
    setup: str = ""
    inputs: tuple[tuple[str, str], ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()
    checkpoint_path: str = ""
    checkpoint_every_s: float = 0.0
    secrets: tuple[tuple[str, str], ...] = ()
    registry: str = ""
    network: bool = False


_NOTHING = Around()


@dataclass(frozen=True, slots=True)
class Job:
    """An attempt to carry out, with all that running it needs."""

    key: Key
    command: str = ""
    function: str = ""
    image: str = ""
    parameters_json: str = "{}"
    env: tuple[tuple[str, str], ...] = ()
    workdir: str = ""
    timeout_s: float | None = None
    grace_s: float = 10.0
    rank: int = -1  # in a gang; its place is in `env`
    port: int = 0  # on this machine, that the first of the gang listens on
    around: Around = _NOTHING
    token: str = field(default="", repr=False)  # for the task's own calls, of its tenant alone

    @property
    def tenant(self) -> str:
        """Whose task it is."""
        return "".join(self.key.task.split("/", 2)[1:2])


class Source(StrEnum):
    """Who wrote a log."""

    PROGRAM = "PROGRAM"
    OS = "OS"
    USAGE = "USAGE"


class Outcome(StrEnum):
    """How an attempt stands, as reported."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    PREEMPTED = "PREEMPTED"
    RETURNED = "RETURNED"


@dataclass(frozen=True, slots=True)
class Exit:
    """What the runner saw of an attempt's end.

    Args:
        exit_code: of the process, negative for a signal; 0 for a function that returned.
        message: one sentence on a failure, empty otherwise.
        result_json: what a function returned.
        returned: a function came to its own end with a result; no signal can have cut it short.
        wall_s: from start to end.
        cpu_s: user and system time, children included.
        peak_rss_bytes: of all its processes together, as sampled.
        permanent: it failed in a way that another attempt cannot change.
    """

    exit_code: int = 0
    message: str = ""
    result_json: str = ""
    returned: bool = False
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0
    permanent: bool = False  # another attempt would fail in the same way


def describe_exit(exit_code: int) -> str:
    """One sentence for an exit status."""
    if exit_code < 0:
        return f"killed by signal {-exit_code}"
    return f"exited with status {exit_code}"


@dataclass(frozen=True, slots=True)
class Status:
    """One report on one attempt."""

    key: Key
    outcome: Outcome
    exit: Exit = Exit()


# Events


@dataclass(frozen=True, slots=True)
class Assigned:
    """The scheduler gave these attempts out."""

    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The scheduler does not want these attempts any more."""

    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The runner saw an attempt end."""

    key: Key
    exit: Exit


@dataclass(frozen=True, slots=True)
class EndedAll:
    """The runner saw these attempts end."""

    ends: tuple[tuple[Key, Exit], ...]


@dataclass(frozen=True, slots=True)
class Returned:
    """The runner has not started these attempts of a bundle: others shall have them."""

    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """The machine goes away: everything must end within `grace_s`."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Reports up to and with this sequence number are durable."""

    sequence: int


Event = Assigned | StopAsked | Ended | EndedAll | Returned | Ticked | Leaving | Acknowledged


# Commands


@dataclass(frozen=True, slots=True)
class Launch:
    """Run these one after the other in one slot; answer with the end of each.

    Several are functions that can share a process. Those that have not been started when one
    before them turns out long are `Returned`.
    """

    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM to all of its processes."""

    key: Key


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to all of its processes."""

    key: Key


Command = Launch | Terminate | Kill
