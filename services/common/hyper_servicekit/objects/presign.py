"""Presigned URLs: AWS Signature Version 4 in the query string, path-style.

A gateway signs one URL for every object that a client touches, so this is a hot path: the day's
signing key is kept, and a signature costs two hashes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

_ALGORITHM = "AWS4-HMAC-SHA256"
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Presigner:
    """Signs URLs of one bucket with one pair of keys.

    Args:
        endpoint: http(s)://host[:port] as the URL's users reach it.
        bucket: which bucket.
        region: part of what is signed.
        access_key: names the signer in the URL.
        secret_key: never leaves this process.
    """

    def __init__(
        self, endpoint: str, bucket: str, region: str, access_key: str, secret_key: str
    ) -> None:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
        if ":" in host:
            host = f"[{host}]"
        if parts.port is not None and parts.port != _DEFAULT_PORTS[parts.scheme]:
            host = f"{host}:{parts.port}"
        self._origin, self._host = f"{parts.scheme}://{host}", host
        self._bucket, self._region = bucket, region
        self._access_key, self._secret_key = access_key, secret_key
        self._day_key = ("", b"")  # one value, so that threads see both parts of one day

    def sign(
        self,
        method: str,
        name: str,
        expires_s: int,
        now: datetime,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """A URL that allows `method` on the object `name` from `now` for `expires_s`.

        `headers` (names in lower case) are those that the request must have, with these values.
        """
        now = now.astimezone(UTC)
        day = f"{now:%Y%m%d}"
        known_day, key = self._day_key
        if day != known_day:
            key = self._key_of(day)
            self._day_key = (day, key)
        time, scope = f"{now:%Y%m%dT%H%M%SZ}", f"{day}/{self._region}/s3/aws4_request"
        path = quote(f"/{self._bucket}/{name}", safe="/")
        query = (
            f"X-Amz-Algorithm={_ALGORITHM}"
            f"&X-Amz-Credential={quote(f'{self._access_key}/{scope}', safe='')}"
            f"&X-Amz-Date={time}&X-Amz-Expires={expires_s}"
        )
        lines, names = f"host:{self._host}\n", "host"
        if headers:
            signed = sorted({"host": self._host, **headers}.items())
            lines = "".join(f"{key}:{value}\n" for key, value in signed)
            names = ";".join(key for key, _ in signed)
        query += f"&X-Amz-SignedHeaders={quote(names, safe='')}"
        request = f"{method}\n{path}\n{query}\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"{_ALGORITHM}\n{time}\n{scope}\n{digest}"
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        return f"{self._origin}{path}?{query}&X-Amz-Signature={signature}"

    def _key_of(self, day: str) -> bytes:
        key = f"AWS4{self._secret_key}".encode()
        for part in (day, self._region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return key
