"""A registry of container images that asks for a password; it serves one image, by Docker's API v2.

None of the usual ones can be had here. Docker speaks plain HTTP to registries on 127.0.0.1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass
class Registry:
    """What it serves, and what it was asked.

    Args:
        image: "127.0.0.1:PORT/tool:1".
        asked: (path, whether with the right password).
    """

    image: str
    asked: list[tuple[str, bool]] = field(default_factory=list)


@contextmanager
def registry(folder: Path, source: str, login: str) -> Iterator[Registry]:
    """Serve the local image `source` under another name to who shows `login` ("user:password").

    An empty `login` lets everybody in.
    """
    archive = folder / "image.tar"
    subprocess.run(["docker", "save", "-o", str(archive), source], check=True)
    subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)
    archive.unlink()
    (saved,) = json.loads((folder / "manifest.json").read_text())
    config, layers = folder / saved["Config"], [folder / name for name in saved["Layers"]]
    blobs = {_digest(file): file for file in (config, *layers)}
    names = {file: digest for digest, file in blobs.items()}

    def part(file: Path, kind: str) -> dict[str, object]:
        media = f"application/vnd.docker.{kind}"
        return {"mediaType": media, "size": file.stat().st_size, "digest": names[file]}

    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": part(config, "container.image.v1+json"),
        "layers": [part(layer, "image.rootfs.diff.tar.gzip") for layer in layers],
    }).encode()  # fmt: skip
    expected = "Basic " + base64.b64encode(login.encode()).decode()
    state = Registry("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            allowed = not login or self.headers.get("Authorization") == expected
            state.asked.append((self.path, allowed))
            last = self.path.rpartition("/")[2]
            if not allowed:
                body = b'{"errors": [{"code": "UNAUTHORIZED", "message": "who are you?"}]}'
                self._send(401, body, {"WWW-Authenticate": 'Basic realm="test"'})
            elif self.path == "/v2/":
                self._send(200, b"{}", {})
            elif "/manifests/" in self.path:
                digest = "sha256:" + hashlib.sha256(manifest).hexdigest()
                self._send(
                    200, manifest, {"Content-Type": MANIFEST, "Docker-Content-Digest": digest}
                )
            elif last in blobs:
                self._send(200, blobs[last].read_bytes(), {"Docker-Content-Digest": last})
            else:
                self._send(404, b"{}", {})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.image = f"127.0.0.1:{server.server_port}/tool:1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return "sha256:" + hashlib.file_digest(opened, "sha256").hexdigest()
