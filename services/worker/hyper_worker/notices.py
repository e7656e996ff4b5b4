"""Whether the cloud is about to take this machine away, as it tells the machine itself.

EC2 says so two minutes before (`spot/instance-action`, by IMDSv2), Google thirty seconds before
(`instance/preempted`). Other machines are told by SIGTERM. Both clouds answer at an address that
only the machine reaches; it is asked every few seconds, and silence means nothing.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable

from hyper_servicekit.logs import get_logger
from hyper_worker.runner.isolation import METADATA_ADDRESS

log = get_logger(__name__)
METADATA_URL = f"http://{METADATA_ADDRESS}"
_TIMEOUT_S = 2.0
_TOKEN_S = 21_600
_MUCH = 64 << 10  # more than any answer


def ec2_notice(url: str) -> str:
    """What EC2 is about to do to this machine, such as "terminate at 2026-11-27T09:00:00Z"; ""."""
    token = _ask(
        f"{url}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
    )
    if token is None:
        return ""
    text = _ask(
        f"{url}/latest/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token}
    )
    if not text:
        return ""
    try:
        facts = json.loads(text)
        return f"{facts['action']} at {facts['time']}"
    except (ValueError, KeyError, TypeError):
        return f"interruption: {text[:200]!r}"


def gcp_notice(url: str) -> str:
    """Whether Google is about to take this machine; "" while not."""
    text = _ask(
        f"{url}/computeMetadata/v1/instance/preempted", "GET", {"Metadata-Flavor": "Google"}
    )
    return "preempted" if (text or "").strip().upper() == "TRUE" else ""


NOTICES: dict[str, Callable[[str], str]] = {"aws": ec2_notice, "gcp": gcp_notice}


async def wait_for_notice(cloud: str, url: str, every_s: float) -> str:
    """Ask again and again; returns what will happen, once the cloud says so.

    Args:
        cloud: "aws" or "gcp".
        url: of its metadata.
        every_s: between questions.
    """
    ask, silent = NOTICES[cloud], False
    while True:
        try:
            if notice := await asyncio.to_thread(ask, url):
                return notice
            silent = False
        except (OSError, http.client.HTTPException) as error:
            if not silent:
                log.warning("the cloud's metadata do not answer", cloud=cloud, error=str(error))
            silent = True
        await asyncio.sleep(every_s)


def _ask(url: str, method: str, headers: dict[str, str]) -> str | None:
    """The answer's text; None where there is none of that name.

    Raises:
        OSError, HTTPException: no answer, another status, or no HTTP.
    """
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with _DIRECT.open(request, timeout=_TIMEOUT_S) as answer:
            return str(answer.read(_MUCH).decode(errors="replace"))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches it
