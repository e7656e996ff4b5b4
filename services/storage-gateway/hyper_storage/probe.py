"""What this S3 does with conditions, checksums, ranges and ETags: asked once, at the start.

Servers differ, and nothing here depends on the answers: etcd is the arbiter of commits, every
object is written once under a key of its own, and what is read is checked against our own
checksums. The answers stand in the log and the metrics, for whoever wonders about a bucket.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import google_crc32c
import urllib3
from prometheus_client import Gauge

from hyper_servicekit.clock import Clock
from hyper_servicekit.config import S3Settings
from hyper_servicekit.logs import get_logger
from hyper_servicekit.objects.presign import Presigner
from hyper_servicekit.tls import client_context
from hyper_storage.access import session_prefix

log = get_logger(__name__)
HONOURS = Gauge(
    "hyper_storage_s3_honours", "1 if S3 does what the request's feature asks for.", ("feature",)
)
_AGAIN_S = 60.0
_SILENCE_S = 5.0
_BODY, _OTHER = b"hyper asks what this server does", b"hyper asks what that server does"
_CRC32C = "x-amz-checksum-crc32c"


class Answer(StrEnum):
    """What a server does with a part of a request."""

    HONOURED = "honoured"
    IGNORED = "ignored"
    REFUSED = "refused"


class ProbeError(Exception):
    """S3 does not do even what everything needs, at this moment."""


async def report(settings: S3Settings, clock: Clock) -> None:
    """Ask, log and count, once S3 answers."""
    while True:
        try:
            found = await asyncio.to_thread(probe, settings)
        except (ProbeError, urllib3.exceptions.HTTPError) as error:
            log.warning("s3 cannot be asked what it does; tries again later", error=str(error))
            await clock.sleep(_AGAIN_S)
            continue
        for feature, answer in found.items():
            HONOURS.labels(feature).set(answer is Answer.HONOURED)
        log.info("s3 asked what it does", endpoint=settings.endpoint, **found)
        return


def probe(settings: S3Settings) -> dict[str, Answer]:
    """Each feature's answer; takes a handful of requests and leaves nothing.

    Raises:
        ProbeError: an ordinary PUT or GET does not work.
        urllib3.exceptions.HTTPError: nobody answers.
    """
    context = client_context(settings.ca)
    with urllib3.PoolManager(retries=False, timeout=_SILENCE_S, ssl_context=context) as http:
        asked = _Asked(http, settings)
        first = asked.put(_BODY)
        if first.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
            raise ProbeError(f"PUT: HTTP {first.status}")
        etag = first.headers.get("ETag", "").strip('"')
        wrong = base64.b64encode(hashlib.md5(_OTHER, usedforsecurity=False).digest()).decode()
        crc = base64.b64encode(google_crc32c.value(_OTHER).to_bytes(4, "big")).decode()
        md5 = hashlib.md5(_BODY, usedforsecurity=False).hexdigest()
        try:
            part = asked.send("GET", headers={"Range": "bytes=6-9"})
            if part.data not in (_BODY, _BODY[6:10]):
                raise ProbeError(f"GET: HTTP {part.status}")
            return {
                "etag_is_md5": Answer.HONOURED if etag == md5 else Answer.IGNORED,
                "range": Answer.HONOURED if part.data == _BODY[6:10] else Answer.IGNORED,
                "if_none_match": _answer(
                    asked.put(_OTHER, {"If-None-Match": "*"}), HTTPStatus.PRECONDITION_FAILED
                ),
                "content_md5": _answer(
                    asked.put(_BODY, {"Content-MD5": wrong}), HTTPStatus.BAD_REQUEST
                ),
                "checksum_crc32c": _answer(
                    asked.put(_BODY, signed={_CRC32C: crc}), HTTPStatus.BAD_REQUEST
                ),
            }
        finally:
            asked.send("DELETE")


class _Asked:
    """Requests to one object of a bucket; garbage collection takes it if nobody else does."""

    def __init__(self, http: urllib3.PoolManager, settings: S3Settings) -> None:
        self._http = http
        base = settings.prefix.strip("/")
        self._name = f"{base}/" * bool(base) + f"{session_prefix(uuid.uuid4().hex)}probe"
        self._signer = Presigner(
            settings.endpoint, settings.bucket, settings.region, settings.access_key,
            settings.secret_key.get_secret_value(),
        )  # fmt: skip

    def put(
        self,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        signed: Mapping[str, str] | None = None,
    ) -> Any:
        return self.send("PUT", body, headers, signed)

    def send(
        self,
        method: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        signed: Mapping[str, str] | None = None,
    ) -> Any:
        url = self._signer.sign(method, self._name, 60, datetime.now(UTC), signed)
        return self._http.request(
            method, url, body=body, headers={**(headers or {}), **(signed or {})}
        )


def _answer(response: Any, honours: HTTPStatus) -> Answer:
    """What a PUT shows that a server which honours the feature must refuse with `honours`."""
    if response.status == honours:
        return Answer.HONOURED
    taken = response.status in (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT)
    return Answer.IGNORED if taken else Answer.REFUSED
