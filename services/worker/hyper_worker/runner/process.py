"""Shell commands: one process group an attempt."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Sequence

from hyper_worker.core.model import Exit, Job, Key
from hyper_worker.runner.base import Ran, Sink
from hyper_worker.runner.beside import run_beside
from hyper_worker.runner.environment import command_environment
from hyper_worker.runner.guard import Guard
from hyper_worker.runner.isolation import Isolation
from hyper_worker.runner.launch import Process, launch
from hyper_worker.runner.pipe import OutputPipe
from hyper_worker.runner.place import Place
from hyper_worker.runner.template import render
from hyper_worker.runner.usage import Usage, kernel_kills


class ProcessRunner:
    """Runs the command of a job with /bin/sh.

    Args:
        guard: ends the processes if the agent dies.
        endpoint: of the scheduler, for `HYPER_ENDPOINT`.
        isolation: how the processes are kept apart.
    """

    def __init__(self, guard: Guard, endpoint: str, isolation: Isolation) -> None:
        self._guard, self._endpoint, self._isolation = guard, endpoint, isolation
        self._live: set[_Command] = set()

    async def start(self, jobs: Sequence[Job], place: Place, sink: Sink) -> _Command:
        """Start the command of the only job in its place; see `Runner.start`."""
        (job,) = jobs
        command, variables = render(job.command, json.loads(job.parameters_json or "{}"))
        active = self._isolation.active
        environment = command_environment(self._endpoint, job, place, isolated=active)
        identity = self._isolation.take(place)
        pipe = OutputPipe()
        pipe.output = _LazyOutput(job.key, sink)
        try:
            process, _ = launch(
                self._isolation.command(["/bin/sh", "-c", command], place, identity),
                guard=self._guard,
                env={**environment, **variables},
                cwd=place.cwd,
                output=pipe.write_end,
            )
        except BaseException:
            self._isolation.give_back(identity)
            pipe.started()
            pipe.close()
            raise
        pipe.started()
        usage = Usage(process.pid, job.around.needs.memory_bytes)
        execution = _Command(job.key, sink, process, pipe, usage, self._live, self._guard)
        execution.on_end = lambda: self._isolation.give_back(identity)
        self._live.add(execution)
        return execution

    async def close(self) -> None:
        """Kill what still runs."""
        for execution in list(self._live):
            execution.kill(execution.key)
            await execution.wait()


class _LazyOutput:
    """Asks for the attempt's log when there is something to put into it."""

    def __init__(self, key: Key, sink: Sink) -> None:
        self._key, self._sink = key, sink

    def write(self, data: bytes) -> None:
        """See `Output`."""
        self._sink.output(self._key).write(data)


class _Command:
    """A command that runs."""

    def __init__(
        self,
        key: Key,
        sink: Sink,
        process: Process,
        pipe: OutputPipe,
        usage: Usage,
        live: set[_Command],
        guard: Guard,
    ) -> None:
        self.key, self._sink = key, sink
        self._process, self._pipe, self._usage, self._live = process, pipe, usage, live
        self._start = time.monotonic()
        self._ended = False
        self._told: int = 0  # the last signal that was sent on request
        self._kernel_kills = kernel_kills()
        self._guard = guard
        self.on_end: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int:
        """Of the shell."""
        return self._process.pid

    async def exec(self, arguments: Sequence[str], timeout_s: float) -> Ran:
        """See `Execution`."""
        return await run_beside(self._guard, self.pid, arguments, timeout_s)

    async def wait(self) -> None:
        """Wait for the shell's end; what it left running in its group is killed."""
        usage = self._usage
        async with asyncio.TaskGroup() as group:
            group.create_task(usage.watch(self._over_memory))
            exit_code = await self._process.wait()
            usage.stop()
        if self._ended:
            return
        self._ended = True
        self.on_end()
        self._pipe.close()
        self._live.discard(self)
        exit_ = Exit(
            exit_code=exit_code,
            message=self._why(exit_code),
            wall_s=time.monotonic() - self._start,
            cpu_s=max(self._process.cpu_s, usage.cpu_s),
            peak_rss_bytes=usage.peak_rss_bytes,
        )
        self._sink.ended([(self.key, exit_)])

    def terminate(self, key: Key) -> None:
        """SIGTERM to the group."""
        self._told = signal.SIGTERM
        self._process.signal(signal.SIGTERM)

    def kill(self, key: Key) -> None:
        """SIGKILL to the group and to descendants that have left it."""
        self._told = signal.SIGKILL
        self._process.signal(signal.SIGKILL)

    def _over_memory(self) -> None:
        """It uses more than it asked for: others on this machine shall not suffer."""
        self._process.signal(signal.SIGKILL)

    def _why(self, exit_code: int) -> str:
        """A sentence on an end that the program did not choose."""
        if self._usage.over_bytes:
            return (
                f"out of memory: it used {self._usage.over_bytes >> 20} MiB of the "
                f"{self._usage.limit_bytes >> 20} MiB that `hardware: memory` promises"
            )
        killed = exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        if killed and self._told != signal.SIGKILL:
            if kernel_kills() > self._kernel_kills:
                return "out of memory: the kernel killed it (SIGKILL)"
            return "killed by SIGKILL, not by Hyper"
        return ""
