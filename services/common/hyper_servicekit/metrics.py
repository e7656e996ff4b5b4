"""Prometheus metrics on a port of their own: /metrics, and /healthz for probes without gRPC.

Every service gets the RPC metrics below; its own are declared beside the code they measure.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from hyper_servicekit.config import split_address

RPC_SECONDS = Histogram(
    "hyper_rpc_duration_seconds",
    "Time from the arrival of a call to its end.",
    ("service", "method", "kind"),
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
RPC_TOTAL = Counter("hyper_rpc_total", "Calls that ended.", ("service", "method", "code"))
RPC_REDIRECTED = Counter(
    "hyper_rpc_redirected_total",
    "Calls that ended UNAVAILABLE because another replica is to take them: no failures.",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """To one GET."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


Pages = Callable[[str, Mapping[str, str]], Answer | None]
"""(path with query, headers) -> what a service serves there beside its metrics; None: nothing."""


class MetricsServer:
    """Serves /metrics and /healthz from a thread; `healthy` decides between 200 and 503.

    With `tls` it speaks HTTPS; each handshake is its connection's thread's business. `pages`, once
    set, is asked for everything else.
    """

    pages: Pages | None = None

    def __init__(
        self, listen: str, healthy: Callable[[], bool], tls: ssl.SSLContext | None = None
    ) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # a silent peer must not hold a thread

            def do_GET(self) -> None:
                if self.path.split("?")[0] == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY))
                elif self.path == "/healthz":
                    ok = healthy()
                    self._answer(200 if ok else 503, "text/plain", b"ok\n" if ok else b"draining\n")
                elif outer.pages is not None and (
                    found := outer.pages(self.path, cast("Mapping[str, str]", self.headers))
                ):
                    self._answer(found.status, found.content_type, found.body, found.headers)
                else:
                    self._answer(404, "text/plain", b"only /metrics and /healthz are here\n")

            def _answer(
                self,
                status: int,
                content_type: str,
                body: bytes,
                headers: Mapping[str, str] | None = None,
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (base's name)
                """Probes and scrapes are not news."""

        try:
            self._server = ThreadingHTTPServer(split_address(listen), Handler)
        except OSError as error:
            raise OSError(
                f"cannot listen on {listen} for metrics ({error.strerror}); choose another "
                "`metrics_listen` (port 0 takes any free one)"
            ) from error
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", kwargs={"poll_interval": 0.2}
        )

    @property
    def address(self) -> str:
        """host:port it is bound to."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop and free the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
