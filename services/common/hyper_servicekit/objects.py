"""Object storage: immutable bytes under keys, in S3 or in memory.

Keys are relative to `S3Settings.prefix` and are safe relative paths (`hyper.names.check_path`).
"""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from hyper.errors import (
    HyperError,
    InternalError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from hyper.names import check_path
from hyper_servicekit.config import S3Settings

T = TypeVar("T")

_PAGE = 1000
_LARGEST_PUT_BYTES = 5 << 30  # of one request; S3's own bound
_MISSING = ("NoSuchKey", "NoSuchObject", "NotFound")
_FULL = ("XMinioStorageFull", "InsufficientStorage", "QuotaExceeded")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says about an object without its bytes."""

    key: str
    size: int
    modified: datetime


class ObjectStore(Protocol):
    """Bytes under keys. A put replaces the whole object or leaves it as it was."""

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Bytes `start:stop` (as a slice, not negative) of an object; NotFoundError."""

    async def put(self, key: str, data: bytes) -> None:
        """Store an object; durable on return."""

    async def delete(self, key: str) -> None:
        """Remove an object; fine if it is not there."""

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Objects whose keys start with `prefix` (any text); servers differ in the order."""

    async def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object, or None."""

    def sign(self, key: str, method: str, expires_s: int) -> str:
        """A URL that allows `method` (GET, PUT or HEAD) on this one object for a while."""


class MemoryStore:
    """Objects in a dict, for tests and simulations; its signed URLs lead nowhere."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, datetime]] = {}

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `ObjectStore`."""
        first, last = _range(start, stop)
        found = self._objects.get(check_path(key))
        if found is None:
            raise _not_found(key)
        return found[0][first:last]

    async def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore`."""
        self._objects[check_path(key)] = (bytes(data), datetime.now(UTC))

    async def delete(self, key: str) -> None:
        """See `ObjectStore`."""
        self._objects.pop(check_path(key), None)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """See `ObjectStore`."""
        for key in sorted(self._objects):
            if key.startswith(prefix) and key in self._objects:
                data, modified = self._objects[key]
                yield ObjectInfo(key, len(data), modified)

    async def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore`."""
        found = self._objects.get(check_path(key))
        return None if found is None else ObjectInfo(key, len(found[0]), found[1])

    def sign(self, key: str, method: str, expires_s: int) -> str:
        """See `ObjectStore`."""
        return f"memory:///{check_path(key)}?method={_method(method)}&expires_s={expires_s}"


class S3Store:
    """Objects in a bucket, by the `minio` client in a bounded pool of threads.

    An async context manager; leaving it ends the threads.

    Args:
        settings: endpoint, bucket, prefix, credentials.
        threads: calls at the same time; more wait.
    """

    def __init__(self, settings: S3Settings, *, threads: int = 16) -> None:
        self.settings = settings
        base = settings.prefix.strip("/")
        self._base = f"{check_path(base)}/" if base else ""
        self._bucket = settings.bucket
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="s3")
        self._http = urllib3.PoolManager(
            maxsize=threads,
            block=True,
            timeout=urllib3.Timeout(connect=3, read=60),
            retries=urllib3.Retry(
                total=3, backoff_factor=0.1, status_forcelist=(500, 502, 503, 504)
            ),
        )
        self._client = _minio(settings, settings.endpoint, self._http)
        self._signer = _minio(settings, settings.public_endpoint or settings.endpoint, self._http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and connections; calls in flight are finished first."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._http.clear()

    async def ensure_bucket(self) -> None:
        """Create the bucket unless it is there."""

        def make() -> None:
            if not self._client.bucket_exists(bucket_name=self._bucket):
                self._client.make_bucket(bucket_name=self._bucket)

        await self._run("", make)

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `ObjectStore`."""
        first, last = _range(start, stop)
        name = self._name(key)
        if last is not None and last <= first:
            if await self.head(key) is None:
                raise _not_found(key)
            return b""
        length = 0 if last is None else last - first

        def read() -> bytes:
            try:
                response = self._client.get_object(
                    bucket_name=self._bucket, object_name=name, offset=first, length=length
                )
            except S3Error as error:
                if error.code == "InvalidRange":  # begins behind the end
                    return b""
                raise
            try:
                return response.read()
            finally:
                response.close()
                response.release_conn()

        return await self._run(key, read)

    async def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore`."""
        name = self._name(key)

        def write() -> None:
            self._client.put_object(
                bucket_name=self._bucket,
                object_name=name,
                data=io.BytesIO(data),
                length=len(data),
                part_size=_LARGEST_PUT_BYTES,  # always one request: all or nothing
            )

        await self._run(key, write)

    async def delete(self, key: str) -> None:
        """See `ObjectStore`."""
        name = self._name(key)
        try:
            await self._run(
                key,
                lambda: self._client.remove_object(bucket_name=self._bucket, object_name=name),
            )
        except NotFoundError:
            return

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """See `ObjectStore`."""
        found: Iterator[Any] = await self._run(
            "",
            lambda: self._client.list_objects(
                bucket_name=self._bucket, prefix=self._base + prefix, recursive=True
            ),
        )
        while page := await self._run("", lambda: list(itertools.islice(found, _PAGE))):
            for item in page:
                key = str(item.object_name)[len(self._base) :]
                if not item.is_dir:
                    yield ObjectInfo(key, int(item.size or 0), item.last_modified)

    async def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore`."""
        name = self._name(key)
        try:
            found = await self._run(
                key, lambda: self._client.stat_object(bucket_name=self._bucket, object_name=name)
            )
        except NotFoundError:
            return None
        return ObjectInfo(key, int(found.size or 0), found.last_modified or datetime.now(UTC))

    def sign(self, key: str, method: str, expires_s: int) -> str:
        """See `ObjectStore`; no network, the URL names `public_endpoint`."""
        return self._signer.get_presigned_url(
            method=_method(method),
            bucket_name=self._bucket,
            object_name=self._name(key),
            expires=timedelta(seconds=expires_s),
        )

    def _name(self, key: str) -> str:
        return self._base + check_path(key)

    async def _run(self, key: str, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, work)
        except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _translate(error, key, self.settings) from error


def _minio(settings: S3Settings, endpoint: str, http: urllib3.PoolManager) -> Minio:
    parts = urlsplit(endpoint)
    return Minio(
        endpoint=parts.netloc,
        access_key=settings.access_key,
        secret_key=settings.secret_key.get_secret_value(),
        secure=parts.scheme == "https",
        region=settings.region,
        http_client=http,
    )


def _range(start: int | None, stop: int | None) -> tuple[int, int | None]:
    if (start or 0) < 0 or (stop or 0) < 0:
        raise ValueError("a range counts from the object's start")
    return start or 0, stop


def _method(method: str) -> str:
    if method not in ("GET", "PUT", "HEAD"):
        raise ValueError(f"{method!r} cannot be signed: GET, PUT or HEAD")
    return method


def _not_found(key: str) -> NotFoundError:
    return NotFoundError(f"no object {key!r}", metadata={"key": key})


def _translate(error: Exception, key: str, settings: S3Settings) -> HyperError:
    """What a failed S3 call means here."""
    where = {"endpoint": settings.endpoint, "bucket": settings.bucket}
    code = error.code if isinstance(error, S3Error) else None
    if code in _MISSING:
        return _not_found(key)
    if code in _FULL:
        return ResourceExhaustedError(
            f"S3 at {settings.endpoint} is full ({code}); free space or add disks",
            reason="DISK_FULL",
            metadata=where,
        )
    if code == "NoSuchBucket":
        text = f"S3 at {settings.endpoint} has no bucket {settings.bucket!r}; create it"
    elif code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        text = f"S3 at {settings.endpoint} refuses our credentials ({code}); check the access key"
    elif isinstance(error, S3Error) and code not in ("SlowDown", "ServiceUnavailable"):
        return InternalError(f"S3 at {settings.endpoint} refused a call: {code}: {error.message}")
    else:
        text = (
            f"S3 at {settings.endpoint} cannot be reached ({type(error).__name__}); "
            "check that it runs and that the setting `s3.endpoint` names it"
        )
    return UnavailableError(text, reason="S3_UNREACHABLE", metadata=where)
