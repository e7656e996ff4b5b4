"""Channels of a process that was forked from one that had used gRPC.

gRPC does not survive a fork: a child that calls it fails, crashes or hangs now and then. Such a
child therefore leaves gRPC alone, and a fresh interpreter makes its calls: `hyper._relay`. See ADR
0190.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import grpc

from hyper import _frames, _transport
from hyper._frames import WINDOW, Kind
from hyper._relay_process import RelayedError, current_relay, late, left_s, tell_relay
from hyper.errors import InvalidArgumentError

_GRACE_S = 1.0  # the relay's own words about a deadline say more than ours


class _Call:
    """One call under way: an iterator of its responses."""

    def __init__(
        self, facts: dict[str, Any], request: bytes, until: float | None, deserialize: Any
    ) -> None:
        self._until, self._deserialize = until, deserialize
        self._received = 0
        self._over = False
        self._relay = current_relay()
        self._number, self._inbox = self._relay.begin(facts, request, until)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._over:
            raise StopIteration
        try:
            frame = self._inbox.get(
                timeout=None if self._until is None else left_s(self._until) + _GRACE_S
            )
        except queue.Empty:
            self.cancel()
            raise late() from None
        if frame.kind is Kind.RESPONSE:
            self._received += 1
            if self._received % (WINDOW // 2) == 0:
                self._relay.tell(Kind.MORE, self._number, count=WINDOW // 2)
            return self._deserialize(frame.body)
        self._over = True
        self._relay.forget(self._number)
        code = grpc.StatusCode[frame.facts["code"]]
        if code is grpc.StatusCode.OK:
            raise StopIteration
        trailing = _frames.metadata_from_json(frame.facts["trailing"])
        raise RelayedError(code, frame.facts["details"], trailing)

    def cancel(self) -> None:
        """Let it be, if it is not over yet."""
        if not self._over:
            self._over = True
            self._relay.forget(self._number)
            self._relay.tell(Kind.CANCEL, self._number)


_channel_numbers = itertools.count(1)


class RelayChannel(grpc.Channel):
    """A channel whose calls the relay makes. Requests that are streams are refused.

    Args:
        target: of gRPC (`_transport.target`).
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._number = next(_channel_numbers)
        self._closed = False

    def __enter__(self) -> RelayChannel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End its calls; there can be no others."""
        if not self._closed:
            self._closed = True
            tell_relay(Kind.CLOSE, self._number)

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """A function that makes a unary call, with the token of this process."""
        begin = self.unary_stream(method, request_serializer, response_deserializer)

        def call(request: Any, timeout: float | None = None, metadata: Any = None) -> Any:
            responses = begin(request, timeout, metadata)
            try:
                (response,) = responses
            finally:
                responses.cancel()
            return response

        return call

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """A function that makes a call with a stream of responses."""
        serialize, deserialize = request_serializer or bytes, response_deserializer or bytes

        def call(request: Any, timeout: float | None = None, metadata: Any = None) -> _Call:
            if self._closed:
                raise ValueError("this channel is closed")
            shown: Iterable[Any] = (*(metadata or ()), *_transport.call_metadata())
            facts = {
                "channel": self._number, "target": self._target, "method": method,
                "metadata": _frames.metadata_to_json(shown),
            }  # fmt: skip
            until = None if timeout is None else time.monotonic() + timeout
            return _Call(facts, serialize(request), until, deserialize)

        return call

    def stream_unary(self, method: str, *_: Any, **__: Any) -> Any:
        """A function that refuses."""
        return _refusal(method)

    def stream_stream(self, method: str, *_: Any, **__: Any) -> Any:
        """A function that refuses."""
        return _refusal(method)

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> NoReturn:
        """Refused: the relay's connections are its own."""
        raise InvalidArgumentError("a process made by fork() has no connections to watch")

    unsubscribe: Any = subscribe


def _refusal(method: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise InvalidArgumentError(
            f"{method} takes a stream of requests, which a process made by fork() cannot send: "
            'start it with multiprocessing.get_context("spawn"), or call from the process that '
            "forked it"
        )

    return refuse
