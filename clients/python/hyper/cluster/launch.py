"""Starting processes in the order that they need one another, and waiting until they serve."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyper.cluster import plan
from hyper.cluster.home import Home, disk_full
from hyper.cluster.plan import Spec
from hyper.cluster.processes import POLL_S, ProcessId, log_tail, spawn, stop_all
from hyper.cluster.state import Member
from hyper.errors import FailedPreconditionError, HyperError, WorkFailedError
from hyper.installed import install_command

Say = Callable[[str], None]
ABORT_GRACE_S = 3.0


@dataclass(frozen=True, slots=True)
class _Starting:
    spec: Spec
    process: ProcessId
    since: float
    log_offset: int


class Launcher:
    """Starts processes; `members` are those that are ready, in the order of their start.

    Args:
        home: the data folder.
        say: is told each step.
        members: processes that run already.
    """

    def __init__(self, home: Home, say: Say, members: Mapping[str, Member] | None = None) -> None:
        self._home = home
        self._say = say
        self._starting: dict[str, _Starting] = {}
        self._own: list[str] = []
        self.members: dict[str, Member] = dict(members or {})

    def run(self, specs: Sequence[Spec]) -> None:
        """Start every process once those it needs are ready; return when all are.

        Raises:
            HyperError: one died or did not get ready; the message ends with its log's last lines.
        """
        waiting = list(specs)
        while waiting or self._starting:
            unready = {spec.role for spec in waiting}
            unready |= {started.spec.role for started in self._starting.values()}
            for spec in [s for s in waiting if not unready.intersection(s.after)]:
                waiting.remove(spec)
                self._start(spec)
            for started in list(self._starting.values()):
                try:
                    self._look_at(started)
                except HyperError as error:
                    if not started.spec.optional:
                        raise
                    del self._starting[started.spec.name]
                    stop_all({started.process: ABORT_GRACE_S})
                    self._say(f"warning: the cluster goes on without {error}")
            self._check_members()
            time.sleep(POLL_S)

    def stop_all(self) -> None:
        """Stop what this launcher started: the services first, then what they rest on."""
        begun = {name: started.process for name, started in self._starting.items()}
        begun.update({name: self.members[name].process for name in self._own})
        servers = {begun.pop(name): plan.grace_s(name) for name in plan.SERVERS if name in begun}
        stop_all(dict.fromkeys(begun.values(), ABORT_GRACE_S))
        stop_all(servers)

    def _start(self, spec: Spec) -> None:
        self._say(f"starting {spec.title}")
        self._home.ready_file(spec.name).unlink(missing_ok=True)
        log, offset = self._home.begin_log(spec.name)
        command, environment = spec.command(self.members), spec.environment(self.members)
        if spec.held is not None:
            spec.held.release()
        try:
            process = spawn(command, log=log, environment=environment, folder=self._home.root)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise disk_full(self._home.root) from error
            raise FailedPreconditionError(
                f"{spec.title} cannot be started ({error.strerror}: {command[0]})"
            ) from error
        self._starting[spec.name] = _Starting(spec, process, time.monotonic(), offset)

    def _look_at(self, started: _Starting) -> None:
        """Move a process that got ready to the members; raise if it cannot get ready."""
        spec = started.spec
        addresses = spec.ready(started.process.pid)
        took = time.monotonic() - started.since
        if not started.process.alive:
            raise self._failure(spec, "stopped while starting", started.log_offset)
        if addresses is None:
            if took > spec.timeout_s:
                raise self._failure(
                    spec, f"did not get ready in {spec.timeout_s:.0f} s", started.log_offset
                )
            return
        del self._starting[spec.name]
        self.members[spec.name] = Member(spec.name, spec.role, started.process, *addresses)
        self._own.append(spec.name)
        where = f" on {addresses[0]}" if addresses[0] else ""
        self._say(f"{spec.title} is ready after {took:.1f} s{where}")

    def _check_members(self) -> None:
        """Notice the death of one that was ready while others still start."""
        for name in self._own:
            if not self.members[name].process.alive:
                raise start_failure(self._home, self.members[name].role, name, "stopped", 0)

    def _failure(self, spec: Spec, what: str, offset: int) -> HyperError:
        return start_failure(self._home, spec.role, spec.title, what, offset, spec.name)


def start_failure(
    home: Home, role: str, title: str, what: str, offset: int, name: str | None = None
) -> HyperError:
    """What to tell when a process did not start: one line, then its log's last lines."""
    log = home.log(name or title)
    tail = log_tail(log, since=offset)
    if "no space left on device" in tail.lower():
        return disk_full(home.root)
    kind = FailedPreconditionError if role in plan.SERVERS else WorkFailedError
    advice = _advice(tail, log)
    text = f"{title} {what}: {advice}"
    return kind(f"{text}\n{tail}" if tail else text)


def _advice(tail: str, log: Path) -> str:
    lowered = tail.lower()
    if "address already in use" in lowered or "port is in use" in lowered:
        return f"another program took its port; run `hyper up` again (log: {log})"
    if "permission denied" in lowered:
        return f"it may not use its files; set HYPER_HOME to a folder of yours (log: {log})"
    if "no module named" in lowered:
        return f"it is not installed; `{install_command('local')}` (log: {log})"
    return f"see its log {log}, which ends:" if tail else f"its log {log} is empty"
