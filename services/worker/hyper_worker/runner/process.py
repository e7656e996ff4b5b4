"""Shell commands: one process group an attempt."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from hyper_worker.core.model import Exit, Job, Key
from hyper_worker.runner.base import Sink
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

    async def start(self, jobs: Sequence[Job], folder: Path, sink: Sink) -> _Command:
        """Start the command of the only job in `folder`; see `Runner.start`."""
        (job,) = jobs
        command, variables = render(job.command, json.loads(job.parameters_json or "{}"))
        pipe = OutputPipe()
        pipe.output = _LazyOutput(job.key, sink)
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
        execution = _Command(job.key, sink, process, pipe, self._live)
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
        self, key: Key, sink: Sink, process: Process, pipe: OutputPipe, live: set[_Command]
    ) -> None:
        self.key, self._sink = key, sink
        self._process, self._pipe, self._live = process, pipe, live
        self._start = time.monotonic()
        self._ended = False

    async def wait(self) -> None:
        """Wait for the shell's end; what it left running in its group is killed."""
        usage = Usage(self._process.pid)
        async with asyncio.TaskGroup() as group:
            group.create_task(usage.watch())
            exit_code = await self._process.wait()
            usage.stop()
        if self._ended:
            return
        self._ended = True
        self._pipe.close()
        self._live.discard(self)
        exit_ = Exit(
            exit_code=exit_code,
            wall_s=time.monotonic() - self._start,
            cpu_s=max(self._process.cpu_s, usage.cpu_s),
            peak_rss_bytes=usage.peak_rss_bytes,
        )
        self._sink.ended([(self.key, exit_)])

    def terminate(self, key: Key) -> None:
        """SIGTERM to the group."""
        self._process.signal(signal.SIGTERM)

    def kill(self, key: Key) -> None:
        """SIGKILL to the group and to descendants that have left it."""
        self._process.signal(signal.SIGKILL)
