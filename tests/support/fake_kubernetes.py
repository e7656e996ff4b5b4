"""The part of Kubernetes' API that the provider uses, played by a server of ours.

No cluster can be installed here. Pods and Secrets are kept as they are sent, pods run at once, and
a pod for the zone "full" exceeds a quota, in the words of the real API.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.http_server import http_server

_PATH = re.compile(
    r"/api/v1/namespaces/(?P<namespace>[^/]+)/(?P<kind>pods|secrets)(/(?P<name>.+))?\Z"
)
NAMESPACE = "lab"


@dataclass
class FakeKubernetes:
    """What is there, by kind and name."""

    objects: dict[str, dict[str, dict[str, Any]]] = field(
        default_factory=lambda: {"pods": {}, "secrets": {}}
    )
    asked: set[tuple[str, str]] = field(default_factory=set)  # what a Role must allow
    lock: threading.Lock = field(default_factory=threading.Lock)

    def evict(self, name: str) -> None:
        """The pod's node is about to go."""
        with self.lock:
            self.objects["pods"][name]["status"]["conditions"] = [
                {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
            ]

    def end(self, name: str) -> None:
        """The pod's program has ended."""
        with self.lock:
            self.objects["pods"][name]["status"]["phase"] = "Succeeded"

    def answer(
        self, method: str, url: str, body: dict[str, Any] | None
    ) -> tuple[int, dict[str, Any]]:
        """What the API answers."""
        parts = urlsplit(url)
        found = _PATH.match(parts.path)
        if found is None or found["namespace"] != NAMESPACE:
            return _status(404, "NotFound", f"{parts.path} not found")
        kind, name = found["kind"], found["name"]
        verb = {"POST": "create", "DELETE": "delete"}.get(method, "get" if name else "list")
        self.asked.add((kind, verb))
        with self.lock:
            objects = self.objects[kind]
            if method == "POST" and body is not None:
                name = body["metadata"]["name"]
                if name in objects:
                    return _status(409, "AlreadyExists", f'{kind} "{name}" already exists')
                zone = body.get("spec", {}).get("nodeSelector", {}).get(
                    "topology.kubernetes.io/zone"
                )  # fmt: skip
                if zone == "full":
                    message = (
                        f'pods "{name}" is forbidden: exceeded quota: workers, requested: cpu=2'
                    )
                    return _status(403, "Forbidden", message)
                objects[name] = body | {"status": {"phase": "Running"}}
                return 201, objects[name]
            if method == "GET" and name is None:
                wanted = parse_qs(parts.query).get("labelSelector", [""])[0].partition("=")
                items = [
                    each for each in objects.values()
                    if each["metadata"].get("labels", {}).get(wanted[0]) == wanted[2]
                ]  # fmt: skip
                return 200, {"kind": "List", "metadata": {}, "items": items}
            if method == "DELETE" and name in objects:
                return 200, objects.pop(name)
        return _status(404, "NotFound", f'{kind} "{name}" not found')


def _status(code: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "status": "Failure", "reason": reason, "message": message,
                  "code": code}  # fmt: skip


@contextmanager
def fake_kubernetes(folder: Path) -> Iterator[tuple[FakeKubernetes, Path]]:
    """The server's state, and a kubeconfig that leads to it."""
    state, token = FakeKubernetes(), secrets.token_hex(16)

    def answer(method: str, url: str, headers: Message, body: bytes) -> tuple[int, str]:
        if headers.get("Authorization") != f"Bearer {token}":
            code, told = _status(401, "Unauthorized", "Unauthorized")
        else:
            code, told = state.answer(method, url, json.loads(body) if body else None)
        return code, json.dumps(told)

    with http_server(answer) as url:
        config = folder / "kubeconfig"
        config.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {
                "server": url}}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "fake", "context": {
                "cluster": "fake", "user": "me", "namespace": NAMESPACE}}],
        }))  # fmt: skip
        yield state, config
