"""A service that only starts, answers /healthz and ends: for tests of `hyper up` itself.

`install` makes packages with the names of the real services; with that folder in PYTHONPATH they
are found first. What one does beyond that is told by environment variables:

    FAKE_CRASH=matcher        that one prints three lines and exits with 7
    FAKE_HANG=matcher         that one never gets ready
    FAKE_STRAY=worker-0       that one leaves a child behind, in a session of its own
    FAKE_STUBBORN=scheduler   that one ignores SIGTERM
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

PACKAGES = {
    "hyper_scheduler": "SCHEDULER",
    "hyper_storage": "STORAGE",
    "hyper_inference": "INFERENCE",
    "hyper_matcher": "MATCHER",
    "hyper_worker": "WORKER",
}


def install(folder: Path) -> Path:
    """Write the packages; returns the folder for PYTHONPATH."""
    source = Path(__file__).read_text()
    for package, variable in PACKAGES.items():
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").touch()
        main = f'{source}\n\nif __name__ == "__main__":\n    serve("{variable}")\n'
        (folder / package / "__main__.py").write_text(main)
    return folder


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (base's name)
        pass


def serve(variable: str) -> None:
    """Run until SIGTERM."""

    def setting(name: str, default: str = "") -> str:
        return os.environ.get(f"HYPER_{variable}__{name}", default)

    ready_file = Path(setting("READY_FILE"))
    name = ready_file.stem
    if os.environ.get("FAKE_CRASH") == name:
        print("one\ntwo\nthe reason why", file=sys.stderr)
        sys.exit(7)
    if os.environ.get("FAKE_STRAY") == name:
        code = "import signal; signal.pause()"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        stubborn = os.environ.get("FAKE_STUBBORN") == name
        signal.signal(number, signal.SIG_IGN if stubborn else lambda *_: stop.set())

    def listen(text: str) -> HTTPServer:
        host, _, port = text.rpartition(":")
        server = HTTPServer((host, int(port)), _Healthy)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def address(server: HTTPServer) -> str:
        return f"127.0.0.1:{server.server_address[1]}"

    grpc, metrics = listen(setting("LISTEN")), listen(setting("METRICS_LISTEN"))
    print("settings", {k: v for k, v in os.environ.items() if k.startswith("HYPER_")}, flush=True)
    if os.environ.get("FAKE_HANG") != name:
        facts = {
            "service": name,
            "instance": name,
            "pid": os.getpid(),
            "address": address(grpc),
            "metrics_address": address(metrics),
        }
        ready_file.with_suffix(".partial").write_text(json.dumps(facts))
        ready_file.with_suffix(".partial").replace(ready_file)
    stop.wait()
