"""Objects in S3."""

from __future__ import annotations

import asyncio
import io
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, BinaryIO, Self, TypeVar
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
from hyper_servicekit.logs import get_logger
from hyper_servicekit.objects.base import ObjectInfo, byte_range, checked_method, not_found
from hyper_servicekit.objects.presign import Presigner
from hyper_servicekit.owned import owned
from hyper_servicekit.tls import client_context

log = get_logger(__name__)
T = TypeVar("T")

_PAGE = 1000
_SILENCE_S = 15  # of a server that has the request
_LARGEST_PUT_BYTES = 256 << 20  # of one request, which is in memory; more goes in parts
_PART_BYTES = 32 << 20  # three of them at once
_MISSING = ("NoSuchKey", "NoSuchObject", "NotFound")
_MADE_BY_OTHERS = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")
_LOOK_UP_S = 3.0
_FULL = ("XMinioStorageFull", "InsufficientStorage", "QuotaExceeded")


class _Retry(urllib3.Retry):
    """Tries again what failed at once, but not a server that has been silent for long."""

    def increment(self, *args: Any, **kwargs: Any) -> Self:
        """The retries left after a failure."""
        error = kwargs.get("error")
        if isinstance(error, urllib3.exceptions.ReadTimeoutError):
            raise error
        return super().increment(*args, **kwargs)


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
            timeout=urllib3.Timeout(connect=3, read=_SILENCE_S),
            ssl_context=client_context(settings.ca),
            retries=_Retry(
                total=3,
                backoff_factor=0.1,
                status_forcelist=(500, 502, 503, 504),
                raise_on_status=False,
            ),
        )
        self._client = _minio(settings, self._http)
        self._stack = AsyncExitStack()
        self._public = settings.public_endpoint or settings.endpoint
        self._signed_for = self._public
        self._signer = self._signer_of(self._public)

    async def __aenter__(self) -> Self:
        if self.settings.public_by_address:
            await self._look_up()
            await self._stack.enter_async_context(owned(self._keep_looking(), "s3-address"))
        if self.settings.create_bucket:
            await self.ensure_bucket()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        self.close()

    def _signer_of(self, endpoint: str) -> Presigner:
        settings = self.settings
        return Presigner(
            endpoint,
            settings.bucket,
            settings.region,
            settings.access_key,
            settings.secret_key.get_secret_value(),
        )

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_UP_S)
            await self._look_up()

    async def _look_up(self) -> None:
        """Sign for the address that the server's name stands for now; the last one if for none."""
        parts = urlsplit(self._public)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                parts.hostname, port, family=socket.AF_INET, type=socket.SOCK_STREAM
            )
        except OSError as error:
            log.warning("S3 has no address", endpoint=self._public, detail=str(error))
            return
        address = f"{parts.scheme}://{found[0][4][0]}:{port}"
        if self._signed_for != address:
            self._signed_for, self._signer = address, self._signer_of(address)

    def close(self) -> None:
        """End the threads and connections; calls in flight are finished first."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._http.clear()

    async def ensure_bucket(self) -> None:
        """Create the bucket unless it is there."""

        def make() -> None:
            if self._client.bucket_exists(bucket_name=self._bucket):
                return
            try:
                self._client.make_bucket(bucket_name=self._bucket)
            except S3Error as error:  # another replica was faster
                if error.code not in _MADE_BY_OTHERS:
                    raise

        await self._run("", make)

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `ObjectStore`."""
        first, last = byte_range(start, stop)
        name = self._name(key)
        if last is not None and last <= first:
            if await self.head(key) is None:
                raise not_found(key)
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
                data = response.read()
            finally:
                response.close()
                response.release_conn()
            # A server that ignores ranges sends everything.
            return data if response.status == HTTPStatus.PARTIAL_CONTENT else data[first:last]

        return await self._run(key, read)

    async def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore`."""
        await self.put_file(key, io.BytesIO(data), len(data))

    async def put_file(self, key: str, file: BinaryIO, length: int) -> None:
        """See `ObjectStore`."""
        name = self._name(key)

        def write() -> None:
            self._client.put_object(
                bucket_name=self._bucket,
                object_name=name,
                data=file,
                length=length,
                # In parts or in one request: it is there when all of it is.
                part_size=_PART_BYTES if length > _LARGEST_PUT_BYTES else _LARGEST_PUT_BYTES,
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
        return self._signer.sign(
            checked_method(method), self._name(key), expires_s, datetime.now(UTC)
        )

    def _name(self, key: str) -> str:
        return self._base + check_path(key)

    async def _run(self, key: str, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, work)
        except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _translate(error, key, self.settings) from error


def _minio(settings: S3Settings, http: urllib3.PoolManager) -> Minio:
    parts = urlsplit(settings.endpoint)
    return Minio(
        endpoint=parts.netloc,
        access_key=settings.access_key,
        secret_key=settings.secret_key.get_secret_value(),
        secure=parts.scheme == "https",
        region=settings.region,
        http_client=http,
    )


def _translate(error: Exception, key: str, settings: S3Settings) -> HyperError:
    """What a failed S3 call means here."""
    where = {"endpoint": settings.endpoint, "bucket": settings.bucket}
    code = error.code if isinstance(error, S3Error) else None
    if code in _MISSING:
        return not_found(key)
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
    elif isinstance(error, S3Error) and _http_status(error) < 500:
        return InternalError(f"S3 at {settings.endpoint} refused a call: {code}: {error.message}")
    elif isinstance(error, S3Error):
        text = (
            f"S3 at {settings.endpoint} failed ({code}: {error.message}); its log says why, "
            "a full disk for one"
        )
    else:
        text = (
            f"S3 at {settings.endpoint} cannot be reached ({_cause(error)}); "
            "check that it runs and that the setting `s3.endpoint` names it"
        )
    return UnavailableError(text, reason="S3_UNREACHABLE", metadata=where)


def _http_status(error: S3Error) -> int:
    status: int = error.response.status
    return status


def _cause(error: Exception) -> str:
    """The innermost reason, without urllib3's wrapping."""
    reason = getattr(error, "reason", None)
    return type(reason if isinstance(reason, Exception) else error).__name__
