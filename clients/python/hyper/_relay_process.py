"""The relay of this process: started at the first call, anew if it dies, gone with its process.

A fork of a process that has a relay gets one of its own. What the relay does: `hyper._relay`; who
needs it: `hyper._forked`.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import grpc

from hyper import _frames
from hyper._frames import Frame, Kind

_STUCK_S = 10.0  # for a small frame
_END_S = 2.0  # a relay that has closed its socket is ending

# `sys.path` is handed over as it is: what a program has added to it cannot be read elsewhere.
_PROGRAM = (
    "import sys; descriptor, *sys.path = sys.argv[1:]; "
    "from hyper import _relay; _relay.main(int(descriptor))"
)

Inbox = queue.SimpleQueue[Frame]


class RelayedError(grpc.RpcError):
    """The status of a call that failed; it answers like the error of a plain call."""

    def __init__(
        self, code: grpc.StatusCode, details: str, trailing: _frames.Metadata = ()
    ) -> None:
        super().__init__(f"{code.name}: {details}")
        self._code, self._details, self._trailing = code, details, trailing

    def code(self) -> grpc.StatusCode:
        """The status code."""
        return self._code

    def details(self) -> str:
        """The message."""
        return self._details

    def trailing_metadata(self) -> tuple[Any, ...]:
        """The metadata that came with the status."""
        return self._trailing


class Relay:
    """The relay of this process; may be shared by threads.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        descriptor = theirs.fileno()
        try:
            # A session of its own keeps the terminal's signals away from it; what its packages
            # print goes nowhere near the frames.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(descriptor), *(p or "." for p in sys.path)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(descriptor,),
                start_new_session=True,
            )  # fmt: skip
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._numbers = itertools.count(1)
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._inboxes: dict[int, Inbox] = {}
        self._end: Frame | None = None
        self._reader = threading.Thread(target=self._read, name="hyper-relay", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The relay's process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is gone; calls that it had not answered have failed with UNAVAILABLE."""
        return self._end is not None

    def begin(
        self, facts: dict[str, Any], request: bytes, until: float | None
    ) -> tuple[int, Inbox]:
        """Hand a call over: its number, and where its frames will come.

        Raises:
            RelayedError: the relay did not take it before `until` (of the monotonic clock).
            UnicodeEncodeError: the metadata are not Unicode.
        """
        inbox: Inbox = queue.SimpleQueue()
        number = next(self._numbers)
        data = _frames.pack(Frame(Kind.CALL, number, {**facts, "until": until}, request))
        with self._lock:
            if self._end is not None:
                inbox.put(self._end)
                return number, inbox
            self._inboxes[number] = inbox
        try:
            self._send(data, until)
        except TimeoutError:
            self.forget(number)
            raise late() from None
        return number, inbox

    def forget(self, number: int) -> None:
        """Nobody waits for this call any more."""
        with self._lock:
            self._inboxes.pop(number, None)

    def tell(self, kind: Kind, number: int, **facts: int) -> None:
        """Send a frame without a body; a relay that does not take it is ended."""
        try:
            self._send(_frames.pack(Frame(kind, number, facts)), time.monotonic() + _STUCK_S)
        except TimeoutError:
            self._process.kill()

    def close(self) -> None:
        """End it, and wait until it is gone."""
        with contextlib.suppress(OSError):  # it is gone already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()

    def abandon(self) -> None:
        """After a fork it is the parent's, and must see the parent's end of its socket close."""
        self._socket.close()
        self._process.returncode = self._process.returncode or 0  # not ours to wait for

    def _send(self, data: bytes, until: float | None) -> None:
        """Send all of a frame; does nothing if the relay is gone, which `_read` tells everyone.

        Raises:
            TimeoutError: not before `until`.
        """
        view = memoryview(data)
        if not self._sending.acquire(timeout=-1 if until is None else left_s(until)):
            raise TimeoutError
        try:
            while view:
                try:
                    sent = self._socket.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                    view = view[sent:]
                except BlockingIOError:
                    self._wait_for_room(until)
        except TimeoutError:
            self._process.kill()  # it may have got half a frame
            raise
        except OSError:
            return
        finally:
            self._sending.release()

    def _wait_for_room(self, until: float | None) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        if not poll.poll(None if until is None else left_s(until) * 1000):
            raise TimeoutError

    def _read(self) -> None:
        try:
            for frame in _frames.read(self._socket):
                with self._lock:
                    inbox = self._inboxes.get(frame.number)
                if inbox is not None:
                    inbox.put(frame)
        finally:
            exit_code = self._reap()
            with self._sending:
                self._socket.close()
            end = Frame(
                Kind.STATUS, 0,
                {
                    "code": grpc.StatusCode.UNAVAILABLE.name, "trailing": (),
                    "details": f"the relay of this forked process ended (exit code {exit_code})",
                },
            )  # fmt: skip
            with self._lock:
                self._end, inboxes, self._inboxes = end, self._inboxes, {}
            for inbox in inboxes.values():
                inbox.put(end)

    def _reap(self) -> int:
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


_lock = threading.RLock()
_current: Relay | None = None


def current_relay() -> Relay:
    """The relay of this process, started if there is none.

    Raises:
        RelayedError: UNAVAILABLE; it cannot be started.
    """
    global _current
    with _lock:
        if _current is None or _current.ended:
            try:
                _current = Relay()
            except OSError as error:
                text = f"the relay of this forked process cannot be started: {error}"
                raise RelayedError(grpc.StatusCode.UNAVAILABLE, text) from error
        return _current


def close_relay() -> None:
    """End the relay, if there is one; the next call starts another."""
    if _current is not None:
        _current.close()


def tell_relay(kind: Kind, number: int) -> None:
    """Send a frame to the relay, if there is one."""
    if _current is not None:
        _current.tell(kind, number)


def _after_fork() -> None:
    global _current, _lock
    if _current is not None:
        _current.abandon()
    _current, _lock = None, threading.RLock()


# While a relay starts there are descriptors of it that `_after_fork` would not know of.
os.register_at_fork(
    before=lambda: _lock.acquire(),
    after_in_parent=lambda: _lock.release(),
    after_in_child=_after_fork,
)
atexit.register(close_relay)


def left_s(until: float) -> float:
    """Seconds until a time of the monotonic clock; 0 if it has passed."""
    return max(0.0, until - time.monotonic())


def late() -> RelayedError:
    """What gRPC says of a call that took too long."""
    return RelayedError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
