"""Python functions in warm processes: imports are paid once, a call costs tens of microseconds.

Each running attempt has a process for itself; between attempts it stays, for jobs with the same
environment and work folder. One that crashed or was told to end is replaced.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyper_worker.core.model import Exit, Job
from hyper_worker.runner.base import Output
from hyper_worker.runner.environment import base_environment
from hyper_worker.runner.guard import Guard
from hyper_worker.runner.launch import Process, launch
from hyper_worker.runner.pipe import OutputPipe
from hyper_worker.runner.usage import Usage

_LENGTH = struct.Struct(">I")
_FRAME_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class _Kind:
    """Jobs of one kind can share a process."""

    env: tuple[tuple[str, str], ...]
    workdir: str


class _Warm:
    """One warm process and its three pipes."""

    def __init__(
        self,
        kind: _Kind,
        process: Process,
        requests: asyncio.WriteTransport,
        responses: asyncio.StreamReader,
        response_transport: asyncio.ReadTransport,
        pipe: OutputPipe,
    ) -> None:
        self.kind, self.process, self.pipe = kind, process, pipe
        self._requests, self._responses = requests, responses
        self._response_transport = response_transport

    def send(self, items: list[dict[str, Any]]) -> None:
        """Hand requests over; they are answered in order."""
        data = json.dumps(items).encode()
        self._requests.write(_LENGTH.pack(len(data)) + data)

    async def receive(self) -> list[dict[str, Any]]:
        """The next answers.

        Raises:
            EOFError: the process has ended.
        """
        try:
            (size,) = _LENGTH.unpack(await self._responses.readexactly(_LENGTH.size))
            if size > _FRAME_BYTES_MAX:
                raise EOFError("the warm process sent a malformed answer")
            items: list[dict[str, Any]] = json.loads(await self._responses.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise EOFError("the warm process has ended") from error
        return items

    async def close(self) -> None:
        """Kill it and free its pipes."""
        self.process.signal(signal.SIGKILL)
        await self.process.wait()
        self.pipe.close()
        if not self._requests.is_closing():
            self._requests.abort()
        self._response_transport.close()


class FunctionRunner:
    """Runs the function of a job in a warm process.

    Args:
        guard: ends the processes if the agent dies.
        endpoint: of the scheduler, for `HYPER_ENDPOINT`.
        processes_max: how many are kept, running or idle.
    """

    def __init__(self, guard: Guard, endpoint: str, processes_max: int) -> None:
        self._guard, self._endpoint = guard, endpoint
        self._processes_max = processes_max
        self._idle: list[_Warm] = []
        self._busy: set[_Warm] = set()

    async def start(self, job: Job, folder: Path, output: Output) -> _Call:
        """Hand the call to a warm process; see `Runner.start`."""
        kind = _Kind(job.env, job.workdir)
        warm = await self._take(kind, folder)
        self._busy.add(warm)
        warm.pipe.output = output
        warm.send(
            [
                {
                    "task": job.key.task,
                    "attempt": [job.key.epoch, job.key.number],
                    "function": job.function,
                    "parameters": job.parameters_json or "{}",
                    "folder": str(folder),
                }
            ]
        )
        return _Call(self, warm)

    async def close(self) -> None:
        """End every process."""
        for warm in [*self._idle, *self._busy]:
            await warm.close()
        self._idle.clear()
        self._busy.clear()

    async def give_back(self, warm: _Warm, *, reusable: bool) -> None:
        """A call is over: keep its process warm, or end it."""
        self._busy.discard(warm)
        warm.pipe.output = None
        if reusable and not warm.process.ended:
            self._idle.append(warm)
        else:
            await warm.close()

    async def _take(self, kind: _Kind, folder: Path) -> _Warm:
        for warm in [warm for warm in self._idle if warm.process.ended]:
            self._idle.remove(warm)
            await warm.close()
        for warm in reversed(self._idle):
            if warm.kind == kind:
                self._idle.remove(warm)
                return warm
        while self._idle and len(self._idle) + len(self._busy) >= self._processes_max:
            await self._idle.pop(0).close()
        return await self._spawn(kind, folder)

    async def _spawn(self, kind: _Kind, folder: Path) -> _Warm:
        loop = asyncio.get_running_loop()
        response_read, response_write = os.pipe()
        pipe = OutputPipe()
        try:
            process, request_write = launch(
                [
                    *(sys.executable, "-P", "-m", "hyper_worker.runner.child"),
                    *(str(response_write), str(folder) if kind.workdir else ""),
                ],
                guard=self._guard,
                env=base_environment(self._endpoint, dict(kind.env)),
                cwd=folder,
                output=pipe.write_end,
                requests=True,
                pass_fds=(response_write,),
            )
        except BaseException:
            os.close(response_read)
            pipe.close()
            raise
        finally:
            os.close(response_write)
            pipe.started()
        responses = asyncio.StreamReader()
        response_transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(responses), os.fdopen(response_read, "rb", 0)
        )
        requests, _ = await loop.connect_write_pipe(
            asyncio.BaseProtocol, os.fdopen(request_write, "wb", 0)
        )
        return _Warm(kind, process, requests, responses, response_transport, pipe)


class _Call:
    """A function that runs."""

    def __init__(self, runner: FunctionRunner, warm: _Warm) -> None:
        self._runner, self._warm = runner, warm
        self._start = time.monotonic()
        self._signalled = False

    @property
    def pid(self) -> int:
        """The warm process, which leads its group."""
        return self._warm.process.pid

    async def wait(self) -> Exit:
        """Wait for the answer, or for the end of the process."""
        usage = Usage(self.pid)
        answer: dict[str, Any] | None = None
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(usage.watch())
            receiving = group.create_task(self._answer())
            ending = group.create_task(self._warm.process.wait())
            await asyncio.wait({receiving, ending}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                answer = receiving.result()
            if answer is None:
                await ending
            for task in (watching, receiving, ending):
                task.cancel()
        self._warm.pipe.drain()
        exit_code = self._warm.process.exit_code
        reusable = answer is not None and not self._signalled
        await self._runner.give_back(self._warm, reusable=reusable)
        wall_s = time.monotonic() - self._start
        if answer is None:
            return Exit(
                exit_code=exit_code or 1,
                message=_crash(exit_code),
                wall_s=wall_s,
                cpu_s=usage.cpu_s,
                peak_rss_bytes=usage.peak_rss_bytes,
            )
        return Exit(
            exit_code=0 if answer["ok"] else 1,
            message=answer.get("message", ""),
            result_json=answer.get("result", ""),
            returned=answer["ok"],
            wall_s=wall_s,
            cpu_s=answer["cpu_s"],
            peak_rss_bytes=max(answer["peak_rss_bytes"], usage.peak_rss_bytes),
        )

    def terminate(self) -> None:
        """Raise `TaskStopped` in the function (SIGTERM to its group)."""
        self._signalled = True
        self._warm.process.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the group."""
        self._signalled = True
        self._warm.process.signal(signal.SIGKILL)

    async def _answer(self) -> dict[str, Any] | None:
        try:
            return (await self._warm.receive())[0]
        except EOFError:
            return None


def _crash(exit_code: int) -> str:
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"the function's process was killed by {name}"
    return f"the function ended its process with status {exit_code}"
