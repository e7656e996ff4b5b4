"""Bytes between this process and the bucket, by presigned URLs.

URLs are signed by the gateway in batches and used until shortly before they expire. Bytes flow by
pooled urllib3, straight from and to S3. Where S3 cannot be reached from here, reads come through
the gateway instead (`ReadObject`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import grpc
import urllib3

from hyper import _tls
from hyper._wire_errors import from_rpc_error
from hyper.config import STORAGE
from hyper.errors import (
    DataLossError,
    HyperError,
    InternalError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from hyperapi.storage.v1 import dataset_service_pb2 as api
from hyperapi.storage.v1.array_service_pb2_grpc import ArrayServiceStub
from hyperapi.storage.v1.dataset_service_pb2_grpc import DatasetServiceStub

if TYPE_CHECKING:
    from hyper.client import Client

CONNECTIONS = 32
THREADS = 16
DECODERS = 16  # a batch of samples is one wait for S3, not one after the other
SIGN_BATCH = 1024
URLS_KEPT = 50_000
READ_ATTEMPTS = 4
_MARGIN_S = 60.0
_FIRST_PAUSE_S = 0.1
_CONNECT_S = 3.0
_PART = 2**20  # of a body
# Without a type, SeaweedFS guesses one, and gzips what looks like text: twice the time to write;
# a part of it is read by unzipping all.
_PLAIN = {"Content-Type": "application/octet-stream"}
_REUSED = 8 * 2**20  # of a body that a thread keeps the memory of
_WRITE_S = 600.0
_GET_SILENCE_S = 15.0  # of a server that has the request; no second try after it
_PUT_SILENCE_S = 30.0
_STREAM_SILENCE_S = 60.0  # of a large file: servers check it as a whole at its end

_GET_TIMEOUT = urllib3.Timeout(connect=_CONNECT_S, read=_GET_SILENCE_S)
_STREAM_TIMEOUT = urllib3.Timeout(connect=_CONNECT_S, read=_STREAM_SILENCE_S)
_METHODS = {"GET": api.METHOD_GET, "PUT": api.METHOD_PUT}
_FULL = (b"InsufficientStorage", b"XMinioStorageFull", b"QuotaExceeded", b"No space left")

Buffer = bytes | bytearray | memoryview
Body = Buffer | Sequence[Buffer] | Path


class _Process:
    """What belongs to this process: neither sockets nor threads survive a fork."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.http = urllib3.PoolManager(
            num_pools=8,
            maxsize=CONNECTIONS,
            block=True,
            retries=False,
            blocksize=_PART,
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=_PUT_SILENCE_S),
            ssl_context=_tls.s3_context(),
        )
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="hyper-s3")
        # Those who wait for `threads` need threads of their own.
        self.decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="hyper-decode")


_reused = threading.local()  # `room`: see `_body`
_process: _Process | None = None
_process_lock = threading.Lock()


def _here() -> _Process:
    global _process
    known = _process
    if known is None or known.pid != os.getpid():
        with _process_lock:
            if _process is None or _process.pid != os.getpid():
                _process = _Process()
            known = _process
    return known


def threads() -> ThreadPoolExecutor:
    """The bounded pool that transfers run in."""
    return _here().threads


def decoders() -> ThreadPoolExecutor:
    """The pool of those who wait for transfers and decode what they bring."""
    return _here().decoders


def _after_fork() -> None:
    """A lock that another thread held when we were forked would never be free again."""
    global _process, _process_lock
    _process, _process_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a PUT did not work, and whether trying again may help."""

    error: HyperError
    may_pass: bool
    unreachable: bool = False


class Remote:
    """The objects of one version or session.

    Args:
        client: reaches the gateway.
        parent: resource name of the version or session.
    """

    def __init__(self, client: Client, parent: str) -> None:
        self.client = client
        self.parent = parent
        self._urls: dict[tuple[str, str], tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._told = False

    def sign(self, objects: Iterable[str], method: str) -> None:
        """Have URLs for all `objects` at hand, in as few calls as it takes."""
        now = time.monotonic()
        with self._lock:
            missing = [key for key in objects if self._urls.get((method, key), ("", 0.0))[1] <= now]
        for at in range(0, len(missing), SIGN_BATCH):
            self._sign(missing[at : at + SIGN_BATCH], method)

    def _sign(self, objects: Sequence[str], method: str) -> None:
        asked_at = time.monotonic()
        request = api.SignUrlsRequest(parent=self.parent, method=_METHODS[method], objects=objects)
        response = self.client.call(STORAGE, DatasetServiceStub, "SignUrls", request)
        lifetime_s = response.lifetime.ToNanoseconds() / 1e9
        self.keep(objects, method, response.urls, asked_at=asked_at, lifetime_s=lifetime_s)

    def keep(
        self,
        objects: Sequence[str],
        method: str,
        urls: Sequence[str],
        *,
        asked_at: float,
        lifetime_s: float,
    ) -> None:
        """Remember URLs, one an object, that the gateway signed when asked at `asked_at`."""
        until = asked_at + max(lifetime_s - _MARGIN_S, lifetime_s / 2)
        with self._lock:
            if len(self._urls) > URLS_KEPT:
                self._urls.clear()
            for key, url in zip(objects, urls, strict=True):
                self._urls[method, key] = (url, until)

    def _url(self, key: str, method: str) -> str:
        with self._lock:
            url, until = self._urls.get((method, key), ("", 0.0))
        if until > time.monotonic():
            return url
        self._sign([key], method)
        with self._lock:
            return self._urls[method, key][0]

    def _forget(self, key: str, method: str) -> None:
        with self._lock:
            self._urls.pop((method, key), None)

    def get(
        self,
        key: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        last: int | None = None,
    ) -> bytes | None:
        """Bytes `start:stop` of an object, or its `last` ones; None if there is no such object."""
        found = self._get(key, start, stop, last, reuse=False)
        return None if found is None else bytes(found)

    def borrow(self, key: str, start: int, stop: int) -> Buffer | None:
        """As `get`, in memory that this thread's next `borrow` overwrites."""
        return self._get(key, start, stop, None, reuse=True)

    def _get(
        self, key: str, start: int | None, stop: int | None, last: int | None, *, reuse: bool
    ) -> Buffer | None:
        if start is not None and stop is not None and stop <= start:
            return b""
        headers = {}
        if last is not None:
            headers["Range"] = f"bytes=-{last}"
        elif start or stop is not None:
            headers["Range"] = f"bytes={start or 0}-{'' if stop is None else stop - 1}"
        pause_s, why = _FIRST_PAUSE_S, ""
        give_up_at = time.monotonic() + _GET_SILENCE_S
        for attempt in range(READ_ATTEMPTS):
            try:
                url = self._url(key, "GET")
                response = _here().http.request(
                    "GET", url, headers=headers, timeout=_GET_TIMEOUT, decode_content=False,
                    preload_content=not reuse,
                )  # fmt: skip
                body = _body(response) if reuse else response.data
            except (urllib3.exceptions.HTTPError, HTTPException, OSError) as error:
                why = type(error).__name__
            else:
                why = f"HTTP {response.status}"
                match response.status:
                    case HTTPStatus.OK | HTTPStatus.PARTIAL_CONTENT:
                        return _cut(body, response.status, start, stop, last)
                    case HTTPStatus.NOT_FOUND if b"NoSuchBucket" not in bytes(body[:2000]):
                        return None
                    case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                        return b""
                    case HTTPStatus.FORBIDDEN:
                        self._forget(key, "GET")
            if time.monotonic() >= give_up_at:
                break
            if attempt + 1 < READ_ATTEMPTS:
                time.sleep(pause_s)
                pause_s *= 3
        self._tell_once(why)
        return self._through_gateway(key, start, stop, last)

    def _tell_once(self, why: str) -> None:
        with self._lock:
            told, self._told = self._told, True
        if not told:
            self.client.notify(
                f"S3 does not answer from here ({why}): going through the gateway, slowly"
            )

    def _through_gateway(
        self, key: str, start: int | None, stop: int | None, last: int | None
    ) -> bytes | None:
        """The same from the gateway, as S3 does not answer us."""
        first = 0 if last is not None else start or 0
        request = api.ReadObjectRequest(
            parent=self.parent,
            object=key,
            offset=first,
            size_bytes=0 if stop is None or last is not None else stop - first,
        )
        data = bytearray()
        try:
            for part in self.client.stream(STORAGE, DatasetServiceStub, "ReadObject", request):
                if google_crc32c.value(part.data) != part.crc32c or part.offset != first + len(
                    data
                ):
                    raise DataLossError(f"{key}: bytes were damaged on their way; try again")
                data += part.data
        except NotFoundError:
            return None
        return bytes(data[-last:]) if last else bytes(data)

    def put(self, key: str, body: Body) -> None:
        """Store an object; durable on return. Tries for as long as the client is patient.

        Raises:
            ResourceExhaustedError: DISK_FULL.
            UnavailableError: S3_UNREACHABLE.
        """
        deadline = time.monotonic() + self.client.patience_s
        pause_s = _FIRST_PAUSE_S
        while (refusal := self._try_put(key, body)) is not None:
            if refusal.unreachable and self._put_through_gateway(key, body):
                return
            if not refusal.may_pass or time.monotonic() >= deadline:
                raise refusal.error
            time.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
            pause_s = min(pause_s * 2, 2.0)

    def _put_through_gateway(self, key: str, body: Body) -> bool:
        """Have the gateway store it, as S3 does not answer us; whether it could."""
        self._tell_once("no connection")

        def messages() -> Iterator[api.WriteObjectRequest]:
            size, parts = _sized_parts(body)
            first: dict[str, Any] = {
                "session": self.parent, "object": key, "size_bytes": size,
            }  # fmt: skip
            for part in parts:
                data = bytes(part)
                yield api.WriteObjectRequest(
                    data=data, crc32c=int(google_crc32c.value(data)), **first
                )
                first = {}

        stub = self.client.stub(STORAGE, DatasetServiceStub)
        try:
            stub.WriteObject(messages(), timeout=_WRITE_S)
        except grpc.RpcError as error:
            failed = from_rpc_error(error, peer=STORAGE)
            if isinstance(failed, UnavailableError):  # it cannot reach S3 either
                self.client.forget(STORAGE)
                return False
            raise failed from error
        return True

    def _try_put(self, key: str, body: Body) -> _Refusal | None:
        url = self._url(key, "PUT")
        try:
            if isinstance(body, Path):
                with body.open("rb") as file:
                    headers = _PLAIN | {"Content-Length": str(os.fstat(file.fileno()).st_size)}
                    response = _here().http.request(
                        "PUT", url, body=file, headers=headers, timeout=_STREAM_TIMEOUT
                    )
            else:
                size, parts = _sized_parts(body)
                headers = _PLAIN | {"Content-Length": str(size)}
                response = _here().http.request("PUT", url, body=parts, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            return _Refusal(
                UnavailableError(
                    f"S3 cannot be reached to write ({type(error).__name__}); see `hyper status`",
                    reason="S3_UNREACHABLE",
                ),
                may_pass=True,
                unreachable=True,
            )
        if response.status in (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT):
            return None
        if response.status == HTTPStatus.FORBIDDEN:
            self._forget(key, "PUT")
        return _refusal(key, response)


def _sized_parts(body: Body) -> tuple[int, Iterator[Any]]:
    """The size of a body, and its bytes in pieces: what is sent at once must pass in time."""
    if isinstance(body, Path):
        return body.stat().st_size, _file_parts(body)
    whole = [body] if isinstance(body, bytes | bytearray | memoryview) else body
    views = [memoryview(part).cast("B") for part in whole]
    pieces = (view[at : at + _PART] for view in views for at in range(0, len(view), _PART))
    return sum(map(len, views)), pieces


def _file_parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(_PART):
            yield part


def _refusal(key: str, response: Any) -> _Refusal:
    """What a refused PUT means."""
    status, body = response.status, bytes(response.data[:2000])
    if status == HTTPStatus.INSUFFICIENT_STORAGE or any(mark in body for mark in _FULL):
        error = "S3 is full; free space or add disks, then try again"
        return _Refusal(ResourceExhaustedError(error, reason="DISK_FULL"), may_pass=False)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        # SeaweedFS says no more than this when its disk is full, and for a moment after a restart.
        error = "S3 is up but cannot store (HTTP 500): its disk is full, most likely; free space"
        return _Refusal(ResourceExhaustedError(error, reason="DISK_FULL"), may_pass=True)
    if status == HTTPStatus.FORBIDDEN or status > HTTPStatus.INTERNAL_SERVER_ERROR:
        error = f"S3 refuses to store {key} for now (HTTP {status}); see its log"
        return _Refusal(UnavailableError(error, reason="S3_UNREACHABLE"), may_pass=True)
    return _Refusal(InternalError(f"S3 refused to store {key}: HTTP {status}"), may_pass=False)


def _body(response: Any) -> Buffer:
    """What a response brings, in this thread's memory for that where it has room.

    A fresh buffer for each would cost its page faults: a quarter of the CPU time of reading arrays.
    """
    stream, size = response._fp, int(response.headers.get("Content-Length", -1))
    if not 0 <= size <= _REUSED or not isinstance(stream, HTTPResponse):
        return bytes(response.data)
    room: bytearray | None = getattr(_reused, "room", None)
    if room is None or len(room) < size:
        room = _reused.room = bytearray(size)
    view, at = memoryview(room)[:size], 0
    try:
        while at < size and (count := stream.readinto(view[at:])):
            at += count
        if at < size:
            raise IncompleteRead(b"", size - at)
    except BaseException:
        response.close()
        raise
    response.release_conn()
    return view


def _cut(
    data: Buffer, status: int, start: int | None, stop: int | None, last: int | None
) -> Buffer:
    """The wanted range, also from a server that ignores ranges."""
    if status == HTTPStatus.PARTIAL_CONTENT:
        return data
    if last is not None:
        return data[-last:]
    return data if start is None and stop is None else data[start:stop]


def service_call(
    client: Client, method: str, request: Any, *, timeout_s: float | None = None
) -> Any:
    """One call of the dataset service."""
    return client.call(STORAGE, DatasetServiceStub, method, request, timeout_s=timeout_s)


def array_call(client: Client, method: str, request: Any) -> Any:
    """One call of the array service."""
    return client.call(STORAGE, ArrayServiceStub, method, request)
