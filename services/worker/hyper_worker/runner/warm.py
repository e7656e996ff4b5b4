"""One warm process, seen from the agent: its socket of calls, its answers, its output."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hyper_servicekit import tracing
from hyper_worker.core.model import Exit, Job
from hyper_worker.runner.child import (
    ANSWER,
    FILE,
    OK,
    OUTPUT_BYTES_MAX,
    PACKET_BYTES_MAX,
    PERMANENT,
    RESULT_BYTES_MAX,
    STOPPED,
    pack_request,
    packet_number,
)
from hyper_worker.runner.guard import Guard
from hyper_worker.runner.launch import Process, launch
from hyper_worker.runner.usage import Usage

STUCK_S = 0.1  # a call that takes longer lets those behind it go elsewhere
_PAUSE_S = 0.002  # between readings: many answers then cost one wake-up
_PAUSE_MAX_S = 0.1  # for longer calls, while others follow
_SAMPLE_MAX_S = 0.5
_READ_BYTES = 1 << 16
_TEXT_BYTES_MAX = RESULT_BYTES_MAX + 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call has come to.

    Args:
        number: which call.
        exit: its end.
        stopped: it took a SIGTERM, and the process is fit for more calls.
    """

    number: int
    exit: Exit
    stopped: bool


def _ignore(_: object) -> None:
    return None


class Warm:
    """One warm process and what connects it; `begin` and `end` enclose a bundle of calls."""

    def __init__(
        self,
        process: Process,
        sockets: tuple[socket.socket, socket.socket],
        answers: int,
        output: int,
        lock: int,
        scratch: Path,
    ) -> None:
        self.process = process
        self.usage = Usage(process.pid)
        self.on_answers: Callable[[list[Answer]], None] = _ignore
        self.on_output: Callable[[bytes], None] = _ignore
        self.on_stuck: Callable[[], None] = lambda: None
        self._to, self._back = sockets
        self._answers, self._out, self._lock = answers, output, lock
        self._scratch = scratch
        self._loop = asyncio.get_running_loop()
        self._rest = bytearray()
        self._pause_s = _PAUSE_S
        self._number = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = self._out_closed = False
        self._moved_at = 0.0
        self._sample_s = STUCK_S
        self.answered = 0  # calls since it was started
        self._on_close: Callable[[], None] = lambda: None

    @classmethod
    async def spawn(
        cls,
        guard: Guard,
        environment: Mapping[str, str],
        scratch: Path,
        workdir: str,
        *,
        wrap: Callable[[list[str]], list[str]] = lambda command: command,
        on_close: Callable[[], None] = lambda: None,
    ) -> Warm:
        """Start a process that waits for calls.

        Args:
            guard: ends it with the agent.
            environment: of the process.
            scratch: its working folder, in a folder that is its alone.
            workdir: the recipe's work folder, or "".
            wrap: puts what isolates it around its command line.
            on_close: called when it has ended.
        """
        to, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        to.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        to.setblocking(False)
        answers, answers_end = os.pipe()
        output, output_end = os.pipe()
        lock = os.memfd_create("output")
        lock_end = os.open(f"/proc/self/fd/{lock}", os.O_RDWR)  # one that is locked for itself
        ends = (answers_end, output_end, lock_end)
        passed = (back.fileno(), answers_end, output, lock_end)
        try:
            process, _ = launch(
                wrap(
                    [
                        *(sys.executable, "-P", "-m", "hyper_worker.runner.child"),
                        *map(str, passed),
                        *(str(scratch), workdir),
                    ]
                ),
                guard=guard,
                env=environment,
                cwd=scratch,
                output=output_end,
                pass_fds=passed,
            )
        except BaseException:
            for descriptor in (answers, output, lock):
                os.close(descriptor)
            to.close()
            back.close()
            raise
        finally:
            for descriptor in ends:
                os.close(descriptor)
        os.set_blocking(answers, False)
        os.set_blocking(output, False)
        warm = cls(process, (to, back), answers, output, lock, scratch)
        warm._on_close = on_close
        return warm

    def begin(self, *, alone: bool) -> None:
        """Calls will be sent: listen; what was printed since the last bundle belongs to nobody."""
        self.drain_output()
        self.usage = Usage(self.process.pid)
        self._moved_at, self._sample_s = time.monotonic(), STUCK_S
        self._listen()
        self._listen_to_output()
        self._later("watch", 0.05 if alone else STUCK_S, self._watch)

    def end(self) -> None:
        """The bundle is over."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._loop.remove_reader(self._answers)
        self._loop.remove_reader(self._out)
        self.on_answers, self.on_output, self.on_stuck = _ignore, _ignore, lambda: None

    def send(self, job: Job) -> int | None:
        """Hand a call over; its number, or None while the socket is full."""
        parent = tracing.traceparent(job.key.task, job.key.attempt)
        packet = pack_request(self._number + 1, job, str(self._scratch), parent)
        try:
            self._to.send(packet)
        except BlockingIOError:
            if packet[:1] == FILE:
                Path(packet[5:].decode()).unlink(missing_ok=True)
            return None
        except OSError:  # it has ended: whoever waits for it will see
            pass
        self._number += 1
        return self._number

    def revoke(self) -> list[int]:
        """Take back every call that has not begun; their numbers, in order."""
        numbers: list[int] = []
        while True:
            try:
                packet = self._back.recv(PACKET_BYTES_MAX + 1024, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return numbers
            if packet[:1] == FILE:
                Path(packet[5:].decode()).unlink(missing_ok=True)
            numbers.append(packet_number(packet))

    def head_wall_s(self) -> float:
        """For how long the call under way has been running."""
        return time.monotonic() - self._moved_at

    def read_answers(self) -> None:
        """Take in all answers that are there."""
        while True:
            try:
                data = os.read(self._answers, _READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                self._loop.remove_reader(self._answers)
                break
            self._rest += data
            if len(data) < _READ_BYTES:
                break
        found = self._parse()
        if found:
            self.answered += len(found)
            self._moved_at, self._sample_s = time.monotonic(), STUCK_S
            self.usage.peak_rss_bytes = 0
            self.on_answers(found)

    def drain_output(self) -> None:
        """Pass on all output that is there."""
        while not self._out_closed and (count := self._waiting_output()):
            self._pass_on(count)

    async def close(self) -> None:
        """Kill it and free what connects it."""
        if self._closed:
            return
        self._closed = True
        self.end()
        self.process.signal(signal.SIGKILL)
        await self.process.wait()
        self._on_close()
        self.revoke()
        self._to.close()
        self._back.close()
        for descriptor in (self._answers, self._out, self._lock):
            os.close(descriptor)
        shutil.rmtree(self._scratch.parent, ignore_errors=True)

    def _parse(self) -> list[Answer]:
        found: list[Answer] = []
        data, position = self._rest, 0
        while len(data) - position >= ANSWER.size:
            head = ANSWER.unpack_from(data, position)
            size, output_size, number, flags, wall_s, cpu_s, peak_bytes = head
            if size > _TEXT_BYTES_MAX or output_size > OUTPUT_BYTES_MAX:
                self.process.signal(signal.SIGKILL)  # a function wrote where it must not
                break
            start = position + ANSWER.size
            position_after = start + size + output_size
            if len(data) < position_after:
                break
            position = position_after
            text = data[start : start + size].decode(errors="replace")
            if output_size:
                if found:  # these come first, so that it is taken for this call's
                    self.on_answers(found)
                    found = []
                self.on_output(bytes(data[start + size : position]))
            ok = bool(flags & OK)
            peak_bytes = max(peak_bytes, self.usage.peak_rss_bytes)
            message, result = ("", text) if ok else (text, "")
            permanent = bool(flags & PERMANENT)
            exit_ = Exit(int(not ok), message, result, ok, wall_s, cpu_s, peak_bytes, permanent)
            found.append(Answer(number, exit_, bool(flags & STOPPED)))
            left = self._number - number  # calls behind it: no longer than they are likely to take
            self._pause_s = min(_PAUSE_MAX_S, left * wall_s) + _PAUSE_S
        del data[:position]
        return found

    def _listen(self) -> None:
        self._timers.pop("listen", None)
        self._loop.add_reader(self._answers, self._readable)

    def _readable(self) -> None:
        self._loop.remove_reader(self._answers)
        self._later("listen", self._pause_s, self._listen)
        self.read_answers()

    def _waiting_output(self) -> int:
        raw = fcntl.ioctl(self._out, termios.FIONREAD, b"\0\0\0\0")
        return int.from_bytes(raw, sys.byteorder)

    def _listen_to_output(self) -> None:
        self._timers.pop("output", None)
        if not self._out_closed:
            self._loop.add_reader(self._out, self._read_output)

    def _read_output(self) -> None:
        """While a call runs: what is there after its predecessors' answers is its own."""
        self._loop.remove_reader(self._out)
        self._later("output", _PAUSE_S, self._listen_to_output)  # a call may end, and bring it
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # just now
            return
        try:
            self.read_answers()
            if not self._out_closed:
                self._pass_on(self._waiting_output() or 1)
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _pass_on(self, count: int) -> None:
        try:
            data = os.read(self._out, min(count, _READ_BYTES))
        except BlockingIOError:
            return
        if not data:
            self._out_closed = True
            self._loop.remove_reader(self._out)
            return
        self.on_output(data)

    def _watch(self) -> None:
        """A call takes long: look at what it uses, let those behind it go elsewhere."""
        self.read_answers()
        quiet_s = time.monotonic() - self._moved_at
        if quiet_s >= 0.04:
            self.usage.sample()
        if quiet_s >= STUCK_S:
            self.on_stuck()
            self._sample_s = min(2 * self._sample_s, _SAMPLE_MAX_S)
        self._later("watch", self._sample_s, self._watch)

    def _later(self, name: str, delay_s: float, action: Callable[[], None]) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
        self._timers[name] = self._loop.call_later(delay_s, action)
