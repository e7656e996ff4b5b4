"""Shell commands: one process group an attempt."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

from hyper_worker.core.model import Exit, Job
from hyper_worker.runner.base import Output
from hyper_worker.runner.environment import command_environment
from hyper_worker.runner.guard import Guard
from hyper_worker.runner.launch import Process, launch
from hyper_worker.runner.pipe import OutputPipe
from hyper_worker.runner.template import render
from hyper_worker.runner.usage import Usage


class ProcessRunner:
    """Runs the command of a job with /bin/sh.

    Args:
        guard: ends the processes if the agent dies.
        endpoint: of the scheduler, for `HYPER_ENDPOINT`.
    """

    def __init__(self, guard: Guard, endpoint: str) -> None:
        self._guard, self._endpoint = guard, endpoint
        self._live: set[_Command] = set()

    async def start(self, job: Job, folder: Path, output: Output) -> _Command:
        """Start the command in `folder`; see `Runner.start`."""
        command, variables = render(job.command, json.loads(job.parameters_json or "{}"))
        pipe = OutputPipe()
        pipe.output = output
        try:
            process, _ = launch(
                ["/bin/sh", "-c", command],
                guard=self._guard,
                env={**command_environment(self._endpoint, job, folder), **variables},
                cwd=folder,
                output=pipe.write_end,
            )
        except BaseException:
            pipe.started()
            pipe.close()
            raise
        pipe.started()
        execution = _Command(process, pipe, self._live)
        self._live.add(execution)
        return execution

    async def close(self) -> None:
        """Kill what still runs."""
        for execution in list(self._live):
            execution.kill()
            await execution.wait()


class _Command:
    """A command that runs."""

    def __init__(self, process: Process, pipe: OutputPipe, live: set[_Command]) -> None:
        self._process, self._pipe, self._live = process, pipe, live
        self._start = time.monotonic()
        self._exit: Exit | None = None

    @property
    def pid(self) -> int:
        """The shell's, which leads the group."""
        return self._process.pid

    async def wait(self) -> Exit:
        """Wait for the shell's end; what it left running in its group is killed."""
        usage = Usage(self.pid)
        async with asyncio.TaskGroup() as group:
            group.create_task(usage.watch())
            exit_code = await self._process.wait()
            usage.stop()
        if self._exit is None:
            self._pipe.close()
            self._live.discard(self)
            self._exit = Exit(
                exit_code=exit_code,
                wall_s=time.monotonic() - self._start,
                cpu_s=max(self._process.cpu_s, usage.cpu_s),
                peak_rss_bytes=usage.peak_rss_bytes,
            )
        return self._exit

    def terminate(self) -> None:
        """SIGTERM to the group."""
        self._process.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the group and to descendants that have left it."""
        self._process.signal(signal.SIGKILL)
