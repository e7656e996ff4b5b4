"""Free loopback ports, chosen by the kernel and held until the server that uses them starts.

The kernel gives `bind(0)` and `connect()` ports of different parity, so a port found here is
seldom taken by somebody's outgoing connection before, or after, its server listens on it.
"""

from __future__ import annotations

import socket
from types import TracebackType

LOOPBACK = "127.0.0.1"
GRPC_OFFSET = 10_000
_ATTEMPTS = 200


class HeldPorts:
    """Ports that nobody else can bind until `release`; use as a context manager."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> HeldPorts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def one(self) -> int:
        """A free port."""
        port = self._hold(0)
        assert port is not None  # the kernel answers or raises
        return port

    def pair(self) -> int:
        """A free port `p` whose gRPC companion `p + 10000` is free too and below 65536."""
        for _ in range(_ATTEMPTS):
            upper = self.one()
            lower = upper - GRPC_OFFSET
            if lower >= 1024 and self._hold(lower) is not None:
                return lower
        raise OSError("no two free loopback ports 10000 apart: too many servers on this machine")

    def release(self) -> None:
        """Let the ports go; call it right before the server starts."""
        for held in self._sockets:
            held.close()
        self._sockets.clear()

    def _hold(self, port: int) -> int | None:
        """Bind `port` (0: any); None if it is taken."""
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            held.bind((LOOPBACK, port))
        except OSError:
            held.close()
            if port == 0:
                raise
            return None
        self._sockets.append(held)
        return int(held.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
