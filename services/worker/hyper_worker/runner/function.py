"""Python functions in warm processes: imports are paid once, a call costs tens of microseconds.

A bundle of calls takes one process. Each call is a packet on a socket whose reading end the agent
holds too: what the process has not begun, the agent can read back, and the kernel sees to it that
nobody else gets it. So calls behind a long one go elsewhere, a stop hits the call it is meant for,
and a crash is the fault of exactly one call.

Between bundles a process stays, for jobs with the same environment and work folder; also after a
call that ended on being told to. One that crashed, or did not heed SIGTERM, is replaced. So is that
of a gang's rank, before others hear that it has ended: a process group, and the store at
MASTER_PORT, live on in it after an error, and the next attempt would meet the ranks of this one.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hyper_worker.core.model import Exit, Job, Key
from hyper_worker.runner.base import Ran, Sink
from hyper_worker.runner.beside import run_beside
from hyper_worker.runner.environment import base_environment, gpu_environment
from hyper_worker.runner.guard import Guard
from hyper_worker.runner.isolation import Isolation
from hyper_worker.runner.place import Bind, Place
from hyper_worker.runner.warm import Answer, Warm


@dataclass(frozen=True, slots=True)
class _Kind:
    """Jobs of one kind can share a process."""

    tenant: str
    env: tuple[tuple[str, str], ...]
    workdir: str
    setup: str
    gpus: tuple[int, ...]
    token: str = field(repr=False)


class FunctionRunner:
    """Runs the functions of jobs in warm processes.

    Args:
        guard: ends the processes if the agent dies.
        endpoint: of the scheduler, for `HYPER_ENDPOINT`.
        processes_max: how many are kept, running or idle.
        isolation: how the processes are kept apart.
        scratch: where the processes' own folders are made.
    """

    def __init__(
        self,
        guard: Guard,
        endpoint: str,
        processes_max: int,
        isolation: Isolation,
        scratch: Path | None = None,
    ) -> None:
        self.guard, self._endpoint, self._isolation = guard, endpoint, isolation
        self._processes_max, self._scratch = processes_max, scratch
        self._idle: list[tuple[_Kind, Warm]] = []
        self._busy: set[Warm] = set()

    async def start(self, jobs: Sequence[Job], place: Place, sink: Sink) -> Bundle:
        """Hand calls to a warm process; see `Runner.start`."""
        job = jobs[0]
        kind = _Kind(job.tenant, job.env, job.workdir, job.around.setup, place.gpus, job.token)
        warm = await self._take(kind, place)
        self._busy.add(warm)
        return Bundle(self, kind, warm, jobs, sink)

    async def close(self) -> None:
        """End every process."""
        for warm in [*(warm for _, warm in self._idle), *self._busy]:
            await warm.close()
        self._idle.clear()
        self._busy.clear()

    def keep(self, kind: _Kind, warm: Warm) -> None:
        """A bundle is over: its process stays for the next."""
        self._busy.discard(warm)
        self._idle.append((kind, warm))

    async def discard(self, warm: Warm) -> None:
        """A bundle is over: end its process."""
        self._busy.discard(warm)
        await warm.close()

    async def _take(self, kind: _Kind, place: Place) -> Warm:
        for item in [item for item in self._idle if item[1].process.ended]:
            self._idle.remove(item)
            await item[1].close()
        for item in reversed(self._idle):
            if item[0] == kind:
                self._idle.remove(item)
                return item[1]
        while self._idle and len(self._idle) + len(self._busy) >= self._processes_max:
            await self._idle.pop(0)[1].close()
        root = Path(tempfile.mkdtemp(prefix="calls-", dir=self._scratch))
        scratch = root / "work"
        scratch.mkdir()
        active = self._isolation.active
        environment = base_environment(
            self._endpoint, dict(kind.env), token=kind.token, isolated=active, site=place.site
        )
        environment |= gpu_environment(place.gpus, len(place.gpus))
        workdir = str(place.cwd) if kind.workdir or kind.setup else ""
        binds = (Bind(place.cwd, workdir),) if active and workdir else ()
        own = Place(root, root, binds, place.site)
        identity = self._isolation.take(own)
        try:
            return await Warm.spawn(
                self.guard,
                environment,
                scratch,
                workdir,
                wrap=lambda command: self._isolation.command(command, own, identity),
                on_close=lambda: self._isolation.give_back(identity),
            )
        except BaseException:
            self._isolation.give_back(identity)
            shutil.rmtree(root, ignore_errors=True)
            raise


class Bundle:
    """Calls of one warm process, one after the other."""

    def __init__(
        self, runner: FunctionRunner, kind: _Kind, warm: Warm, jobs: Sequence[Job], sink: Sink
    ) -> None:
        self._runner, self._kind, self._warm, self._sink = runner, kind, warm, sink
        self._unsent = deque(jobs)
        self._calls: dict[int, Key] = {}  # sent and not answered, in order
        self._unheeded = 0  # signals that no answer has told of
        self._done = asyncio.Event()
        self._kept = False
        self._for_one = jobs[0].rank >= 0
        warm.begin(alone=len(jobs) == 1)
        warm.on_answers, warm.on_output, warm.on_stuck = self._answers, self._output, self._stuck
        self._send()

    @property
    def pid(self) -> int:
        """Of the warm process."""
        return self._warm.process.pid

    async def exec(self, arguments: Sequence[str], timeout_s: float) -> Ran:
        """See `Execution`."""
        return await run_beside(self._runner.guard, self.pid, arguments, timeout_s)

    async def wait(self) -> None:
        """Wait for the last answer, or for the end of the process."""
        ending = asyncio.create_task(self._warm.process.wait())
        done = asyncio.create_task(self._done.wait())
        try:
            await asyncio.wait({ending, done}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ending, done):
                task.cancel()
        if self._kept:
            return
        if not self._done.is_set():
            self._warm.read_answers()  # the last ones before it ended
            self._crashed()
        await self._runner.discard(self._warm)

    def terminate(self, key: Key) -> None:
        """Raise `TaskStopped` in the function (SIGTERM to its group), if it has begun."""
        self._signal(key, signal.SIGTERM)

    def kill(self, key: Key) -> None:
        """SIGKILL to the group, if the call has begun."""
        self._signal(key, signal.SIGKILL)

    def _signal(self, key: Key, number: signal.Signals) -> None:
        if self._done.is_set():
            return
        self._give_back()
        self._warm.read_answers()
        if key in self._calls.values():
            self._unheeded += 1
            self._warm.process.signal(number)

    def _send(self) -> None:
        while self._unsent:
            number = self._warm.send(self._unsent[0])
            if number is None:
                return  # the socket is full: more after the next answer
            self._calls[number] = self._unsent.popleft().key

    def _give_back(self) -> None:
        """Whatever has not begun goes back."""
        back = [self._calls.pop(number) for number in self._warm.revoke()]
        back += [job.key for job in self._unsent]
        self._unsent.clear()
        if back:
            self._sink.returned(back)
        self._check_done()

    def _check_done(self) -> None:
        if not self._calls and not self._unsent and not self._done.is_set():
            self._done.set()
            if self._for_one:
                self._warm.process.signal(signal.SIGKILL)
            elif not self._unheeded and not self._warm.process.ended:
                self._warm.end()
                self._kept = True
                self._runner.keep(self._kind, self._warm)

    def _answers(self, answers: list[Answer]) -> None:
        ends: list[tuple[Key, Exit]] = []
        for answer in answers:
            key = self._calls.pop(answer.number)
            self._unheeded -= answer.stopped
            ends.append((key, answer.exit))
        self._send()
        self._check_done()  # before others hear of it: the next bundle shall find the process
        self._sink.ended(ends)

    def _output(self, data: bytes) -> None:
        """Output of the call that is under way: the oldest without an answer."""
        key = next(iter(self._calls.values()), None)
        if key is not None:
            self._sink.output(key).write(data)

    def _stuck(self) -> None:
        """A call takes long: those behind it need not wait."""
        if len(self._calls) + len(self._unsent) > 1:
            self._give_back()

    def _crashed(self) -> None:
        """The process has ended: by the call that it had begun."""
        back = self._warm.revoke()
        if not self._warm.answered:
            back = [number for number in back if number != min(self._calls)]  # it cannot start
        returned = [self._calls.pop(number) for number in back]
        returned += [job.key for job in self._unsent]
        self._warm.drain_output()
        exit_code, usage = self._warm.process.exit_code, self._warm.usage
        ends = [
            (
                key,
                Exit(
                    exit_code=exit_code or 1,
                    message=_crash(exit_code),
                    wall_s=self._warm.head_wall_s(),
                    cpu_s=usage.cpu_s,
                    peak_rss_bytes=usage.peak_rss_bytes,
                ),
            )
            for key in self._calls.values()
        ]
        self._calls.clear()
        if ends:
            self._sink.ended(ends)
        self._unsent.clear()
        if returned:
            self._sink.returned(returned)


def _crash(exit_code: int) -> str:
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"the function's process was killed by {name}"
    return f"the function ended its process with status {exit_code}"
