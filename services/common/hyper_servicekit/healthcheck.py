"""`python -m hyper_servicekit.healthcheck PORT`: status 0 if this machine's /healthz says ok.

For images: they have no curl, and need none.
"""

from __future__ import annotations

import http.client
import sys

_TIMEOUT_S = 3.0


def healthy(port: int) -> bool:
    """Whether the service whose metrics are on `port` of this machine serves."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if healthy(int(sys.argv[1])) else 1)
