"""An S3 server that does the least: it ignores conditions, checksums, ranges and signatures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "careless"


@contextmanager
def careless_s3() -> Iterator[str]:
    """Its URL; it has the bucket `BUCKET`."""
    objects: dict[str, tuple[bytes, datetime]] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name)
            return

        @property
        def key(self) -> str:
            return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}").lstrip("/")

        def answer(self, status: int, body: bytes = b"", modified: datetime | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"no-digest-of-anything"')
            if modified is not None:
                self.send_header("Last-Modified", f"{modified:%a, %d %b %Y %H:%M:%S} GMT")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            if self.key:
                objects[self.key] = body, datetime.now(UTC)
            self.answer(200)

        def do_GET(self) -> None:
            if not self.key:
                self.answer(200, self.listing())
            elif self.key in objects:
                self.answer(200, *objects[self.key])
            else:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_DELETE(self) -> None:
            objects.pop(self.key, None)
            self.answer(204)

        def listing(self) -> bytes:
            query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
            if "location" in query:
                return b"<LocationConstraint></LocationConstraint>"
            prefix = query.get("prefix", [""])[0]
            found = "".join(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(body)}</Size>"
                f"<LastModified>{at:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
                for key, (body, at) in sorted(objects.items())
                if key.startswith(prefix)
            )
            return (
                '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                f"<Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
            ).encode()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
