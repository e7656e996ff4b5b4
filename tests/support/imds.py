"""The metadata servers of EC2 and of Google as they document them: fakes, no cloud is here."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from email.message import Message

from tests.support.http_server import Answer


@dataclass
class Metadata:
    """What the fake says, and what it was asked."""

    url: str = ""
    preempted: bool = False
    asked: list[str] = field(default_factory=list)


def answer_of(state: Metadata) -> Answer:
    """For `http_server`."""
    token = secrets.token_hex(8)

    def answer(method: str, path: str, headers: Message, body: bytes) -> tuple[int, str]:
        if method == "PUT":
            good = path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in headers
            return (200, token) if good else (403, "")
        state.asked.append(path)
        if path == "/latest/meta-data/spot/instance-action":
            if headers.get("X-aws-ec2-metadata-token") != token:
                return 401, ""
            facts = {"action": "terminate", "time": "2026-11-27T09:00:00Z"}
            return (200, json.dumps(facts)) if state.preempted else (404, "")
        if path == "/computeMetadata/v1/instance/preempted":
            known = headers.get("Metadata-Flavor") == "Google"
            return 200 if known else 403, "TRUE" if state.preempted else "FALSE"
        return 404, ""

    return answer
