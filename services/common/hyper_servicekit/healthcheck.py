"""`python -I -S healthcheck.py PORT`: status 0 if this machine's /healthz says ok.

For images: they have no curl. It runs every few seconds in every container and imports little.
"""

from __future__ import annotations

import socket
import sys

_TIMEOUT_S = 3.0
_REQUEST = b"GET /healthz HTTP/1.0\r\n\r\n"


def healthy(port: int) -> bool:
    """Whether the service whose metrics are on `port` of this machine serves."""
    answer = _ask(port, tls=False)
    if not answer.startswith(b"HTTP/"):  # it speaks TLS, or does not answer at all
        answer = _ask(port, tls=True)
    return b" 200 " in answer.partition(b"\r\n")[0]


def _ask(port: int, *, tls: bool) -> bytes:
    """The first bytes of the answer; none if there is none."""
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        if tls:
            import ssl

            # our own port, and nothing is told to it
            connection = ssl._create_unverified_context().wrap_socket(connection)
        with connection:
            connection.sendall(_REQUEST)
            return connection.recv(64)
    except OSError:
        return b""


if __name__ == "__main__":
    sys.exit(0 if healthy(int(sys.argv[1])) else 1)
