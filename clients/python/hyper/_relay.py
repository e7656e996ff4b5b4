"""The relay: makes the gRPC calls of one process that must not make them itself.

    forked process --CALL, MORE, CANCEL, CLOSE--> relay --gRPC--> services
                   <--RESPONSE, STATUS--

`hyper._forked` starts it, as a fresh interpreter, with one end of a socket pair; when the other
end closes, by SIGKILL too, the relay ends at once. See ADR 0190.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import grpc

from hyper import _frames, _transport
from hyper._frames import WINDOW, Frame, Kind


@dataclass(frozen=True, slots=True)
class _Served:
    """A call that runs: its responses, and how many may still be sent."""

    responses: Any
    window: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(WINDOW))


class _Relay:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._channels: dict[int, grpc.Channel] = {}
        self._calls: dict[int, _Served] = {}

    def run(self) -> None:
        """Serve until the process is gone. Nothing here waits, so that no call delays another."""
        for frame in _frames.read(self._connection):
            match frame.kind:
                case Kind.CALL:
                    self._begin(frame)
                case Kind.MORE:
                    if (call := self._calls.get(frame.number)) is not None:
                        call.window.release(frame.facts["count"])
                case Kind.CANCEL:
                    if (call := self._calls.get(frame.number)) is not None:
                        call.responses.cancel()
                        call.window.release()
                case Kind.CLOSE:
                    if (channel := self._channels.pop(frame.number, None)) is not None:
                        channel.close()
                case _:
                    raise ValueError(f"not for a relay: {frame.kind}")

    def _begin(self, frame: Frame) -> None:
        facts = frame.facts
        channel = self._channels.get(facts["channel"])
        if channel is None:
            channel = _transport.plain_channel(facts["target"])
            self._channels[facts["channel"]] = channel
        until = facts["until"]
        # On the wire a unary call is a stream of one response; one way serves both.
        method: Any = channel.unary_stream(facts["method"])
        responses = method(
            frame.body,
            timeout=None if until is None else until - time.monotonic(),
            metadata=_frames.metadata_from_json(facts["metadata"]),
        )
        call = self._calls[frame.number] = _Served(responses)
        threading.Thread(target=self._serve, args=(frame.number, call), daemon=True).start()

    def _serve(self, number: int, call: _Served) -> None:
        with contextlib.suppress(grpc.RpcError):  # its status follows
            for response in self._allowed(call):
                self._send(Frame(Kind.RESPONSE, number, body=response))
        del self._calls[number]
        status = {
            "code": call.responses.code().name,
            "details": call.responses.details() or "",
            "trailing": _frames.metadata_to_json(call.responses.trailing_metadata() or ()),
        }
        self._send(Frame(Kind.STATUS, number, status))

    @staticmethod
    def _allowed(call: _Served) -> Any:
        for response in call.responses:
            call.window.acquire()
            yield response

    def _send(self, frame: Frame) -> None:
        try:
            with self._sending:
                self._connection.sendall(_frames.pack(frame))
        except OSError:  # whom we serve is gone
            os._exit(0)


def _fail(failure: Any) -> None:
    """A bug in one thread must not leave a call without an answer: the process learns our end."""
    sys.__excepthook__(failure.exc_type, failure.exc_value, failure.exc_traceback)
    os._exit(1)


def main(descriptor: int) -> None:
    """Serve the peer of the socket `descriptor`; does not return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the process that we serve
    threading.excepthook = _fail
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    _Relay(connection).run()
    os._exit(0)  # calls that still run are nobody's
