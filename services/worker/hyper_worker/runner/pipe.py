"""Reading a process's output as it comes, and all of it that was written before a moment."""

from __future__ import annotations

import asyncio
import os

from hyper_worker.runner.base import Output

_READ_BYTES = 1 << 16
_PIPE_READS = 17  # a pipe holds at most 1 MiB, /proc/sys/fs/pipe-max-size by default
_READS_MAX = 16  # per wake-up, so that a shouting task does not take the loop for itself


class OutputPipe:
    """The agent's end of a pipe into which a process writes stdout and stderr."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self.output: Output | None = None
        self._loop = asyncio.get_running_loop()
        self._closed = asyncio.Event()
        self._loop.add_reader(self._read_end, self._readable)

    def started(self) -> None:
        """The process has its copy of the write end: close ours."""
        os.close(self.write_end)

    def drain(self) -> None:
        """Pass on all that was written before this call."""
        for _ in range(_PIPE_READS):
            if self._closed.is_set() or not self._read_once():
                return

    def close(self) -> None:
        """Stop reading, whoever still holds the other end."""
        if not self._closed.is_set():
            self.drain()
        if not self._closed.is_set():
            self._end()

    def _readable(self) -> None:
        for _ in range(_READS_MAX):
            if self._closed.is_set() or not self._read_once():
                return

    def _read_once(self) -> bool:
        try:
            data = os.read(self._read_end, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._end()
            return False
        if self.output is not None:
            self.output.write(data)
        return True

    def _end(self) -> None:
        self._closed.set()
        self._loop.remove_reader(self._read_end)
        os.close(self._read_end)
