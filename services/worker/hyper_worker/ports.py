"""Ports that gangs meet on: chosen by the kernel and kept from others until they are needed."""

from __future__ import annotations

import contextlib
import socket


class Ports:
    """A few ports, each held by a bound socket that listens to nobody.

    The first rank of a gang listens on one of them. It is let go when that rank starts, and held
    again when it has ended. Both sides set SO_REUSEADDR, as every rendezvous store does, so that
    what lingers of closed connections is in nobody's way.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._held: dict[int, socket.socket] = {}
        self._lent: set[int] = set()
        for _ in range(count):
            self._hold(0)

    @property
    def free(self) -> list[int]:
        """Those that nobody uses."""
        return sorted(self._held)

    def lend(self, port: int) -> None:
        """A rank is about to listen on it."""
        held = self._held.pop(port, None)
        if held is not None:
            held.close()
            self._lent.add(port)

    def take_back(self, port: int) -> None:
        """The rank has ended; a port that somebody else uses by now is replaced by another."""
        if port in self._lent:
            self._lent.discard(port)
            if not self._hold(port):
                self._hold(0)

    @staticmethod
    def another() -> int:
        """One that nobody uses, for a rank that nobody else has to find."""
        with socket.create_server(("", 0)) as server:
            return int(server.getsockname()[1])

    def close(self) -> None:
        """Let all go."""
        for held in self._held.values():
            held.close()
        self._held.clear()

    def _hold(self, port: int) -> bool:
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("", port))
        except OSError:
            held.close()
            return False
        self._held[held.getsockname()[1]] = held
        return True


def own_address(peers: tuple[str, ...]) -> str:
    """The address of this machine as a peer ("host:port") sees it; "" if none can be reached."""
    for peer in peers:
        host, _, port = peer.rpartition(":")
        with contextlib.suppress(OSError, ValueError):
            family = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
            with socket.socket(family[0][0], socket.SOCK_DGRAM) as probe:
                probe.connect(family[0][4])  # sends nothing
                return str(probe.getsockname()[0])
    return ""
