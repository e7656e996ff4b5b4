"""The part of Compute Engine's API that the provider uses, played by a server of ours.

No cloud can be reached here. Instances, networks and firewalls are kept as they are sent, every
operation is done after one more question, and the zone "full-1-a" has no room, in Google's words.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.http_server import http_server

PROJECT = "lab"
_PATH = re.compile(
    rf"/compute/v1/projects/{PROJECT}/(?P<scope>aggregated|global|zones/(?P<zone>[^/]+))/"
    r"(?P<kind>instances|networks|firewalls|operations)(/(?P<name>[^/]+))?(?P<wait>/wait)?\Z"
)


@dataclass
class FakeGcp:
    """What is there, by kind and name."""

    objects: dict[str, dict[str, dict[str, Any]]] = field(
        default_factory=lambda: {"instances": {}, "networks": {}, "firewalls": {}}
    )
    operations: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def end(self, name: str) -> None:
        """The instance has turned itself off: it is kept, with its disk."""
        with self.lock:
            self.objects["instances"][name]["status"] = "TERMINATED"

    def answer(
        self, method: str, url: str, body: dict[str, Any] | None
    ) -> tuple[int, dict[str, Any]]:
        """What the API answers."""
        parts = urlsplit(url)
        found = _PATH.match(parts.path)
        if found is None:
            return _error(404, "notFound", f"{parts.path} was not found")
        kind, name, zone = found["kind"], found["name"], found["zone"] or ""
        with self.lock:
            if kind == "operations":
                return 200, self.operations[name]
            objects = self.objects[kind]
            if method == "POST" and body is not None:
                if body["name"] in objects:
                    return _error(409, "alreadyExists", f"{body['name']} already exists")
                if zone == "full-1-a":
                    return 200, self._operation("ZONE_RESOURCE_POOL_EXHAUSTED")
                if kind == "instances":
                    network = body["networkInterfaces"][0]["network"].rpartition("/")[2]
                    if network not in self.objects["networks"]:
                        return _error(400, "invalid", f"network {network} was not found")
                    body |= {"status": "RUNNING", "zone": zone}
                objects[body["name"]] = body
                return 200, self._operation()
            if method == "GET" and found["scope"] == "aggregated":
                wanted = parse_qs(parts.query)["filter"][0].removeprefix("labels.").partition("=")
                items: dict[str, Any] = {}
                for each in objects.values():
                    if each["labels"].get(wanted[0]) == wanted[2]:
                        part = items.setdefault(f"zones/{each['zone']}", {"instances": []})
                        part["instances"].append(each)
                return 200, {"items": items}
            if method == "GET" and name is None:
                return 200, {"items": list(objects.values())}
            if method == "DELETE" and name in objects:
                used = {i["networkInterfaces"][0]["network"].rpartition("/")[2]
                        for i in self.objects["instances"].values()}  # fmt: skip
                if kind == "networks" and name in used:
                    return _error(400, "resourceInUseByAnotherResource", f"{name} is in use")
                del objects[name]
                return 200, self._operation()
        return _error(404, "notFound", f"{kind}/{name} was not found")

    def _operation(self, failure: str = "") -> dict[str, Any]:
        name = f"operation-{next(self._numbers)}"
        done: dict[str, Any] = {"name": name, "status": "DONE"}
        if failure:
            done["error"] = {"errors": [{"code": failure, "message": "try another zone"}]}
        self.operations[name] = done
        return {"name": name, "status": "RUNNING"}


def _error(code: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"error": {"code": code, "message": message,
                            "errors": [{"reason": reason, "message": message}]}}  # fmt: skip


@contextmanager
def fake_gcp() -> Iterator[tuple[FakeGcp, str]]:
    """The server's state and its URL."""
    state = FakeGcp()

    def answer(method: str, url: str, headers: Message, body: bytes) -> tuple[int, str]:
        code, told = state.answer(method, url, json.loads(body) if body else None)
        return code, json.dumps(told)

    with http_server(answer) as url:
        yield state, url
