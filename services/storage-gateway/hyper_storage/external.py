"""Stores of others: buckets that tenants have named, read with the credentials that they gave.

Credentials are kept in etcd, encrypted with a key that only gateways have, and leave the gateway as
signatures of URLs alone. Every object is read by a URL, signed or public, never through redirects.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import json
import secrets
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import urllib3
from Crypto.Cipher import AES

from hyper.errors import InvalidArgumentError, NotFoundError, UnavailableError
from hyper.foreign import MAX_METADATA_BYTES, object_name
from hyper_servicekit.objects.presign import Presigner
from hyper_storage.catalog import Catalog
from hyper_storage.config import Settings

_REMEMBERED_S = 10.0
_SIGN_S = 300
_THREADS = 8
_TIMEOUT = urllib3.Timeout(connect=3, read=15)
_NONCE_BYTES = 12
_TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """A store in etcd; `secret` is sealed."""

    endpoint: str
    bucket: str
    region: str
    access_key: str
    secret: str
    updated_ns: int

    def encode(self) -> bytes:
        """The value in etcd."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()


def decode_store(value: bytes) -> StoreRecord:
    """A store from etcd."""
    return StoreRecord(**json.loads(value))


class Sealer:
    """Encrypts small secrets (AES-256-GCM), bound to what they are for.

    Args:
        passphrase: shared by all gateways of a cluster.
        older: what may have sealed before it; these open, too.
    """

    def __init__(self, passphrase: str, *older: str) -> None:
        salt = b"hyper external credentials\0"
        self._keys = [
            hashlib.sha256(salt + each.encode()).digest() for each in (passphrase, *older)
        ]

    def seal(self, secret: str, purpose: str) -> str:
        """The encrypted form; `purpose` must be given again to open it."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        cipher = AES.new(self._keys[0], AES.MODE_GCM, nonce=nonce, mac_len=_TAG_BYTES)
        cipher.update(purpose.encode())
        body, tag = cipher.encrypt_and_digest(secret.encode())
        return base64.b64encode(nonce + tag + body).decode()

    def open(self, sealed: str, purpose: str) -> str:
        """The secret.

        Raises:
            ValueError: it was sealed with another key, or for another purpose.
        """
        data = base64.b64decode(sealed)
        nonce, rest = data[:_NONCE_BYTES], data[_NONCE_BYTES:]
        for key in self._keys:
            cipher = AES.new(key, AES.MODE_GCM, nonce=nonce, mac_len=_TAG_BYTES)
            cipher.update(purpose.encode())
            try:
                return cipher.decrypt_and_verify(rest[_TAG_BYTES:], rest[:_TAG_BYTES]).decode()
            except ValueError:
                continue
        raise ValueError("sealed with another key, or for another purpose")


@dataclass(frozen=True, slots=True)
class External:
    """A store that can be read: signs, or names, the URLs of its objects."""

    http: urllib3.PoolManager
    threads: ThreadPoolExecutor
    base_url: str
    signer: Presigner | None

    def sign(self, key: str, method: str, expires_s: int) -> str:
        """A URL of one object."""
        if self.signer is not None:
            return self.signer.sign(method, key, expires_s, datetime.now(UTC))
        return f"{self.base_url}/{quote(key, safe='/')}"

    async def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes | None:
        """Bytes of an object, or None if there is none.

        Raises:
            UnavailableError: the store does not answer, or refuses.
        """
        end = "" if stop is None else str(stop - 1)
        limit = None if stop is None else stop - start

        def read() -> tuple[int, bytes]:
            response = self.http.request(
                "GET",
                self.sign(key, "GET", _SIGN_S),
                headers={"Range": f"bytes={start}-{end}"},
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                data = response.read(limit, decode_content=False)
                return response.status, data
            finally:
                response.close()

        try:
            status, data = await asyncio.get_running_loop().run_in_executor(self.threads, read)
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError(
                f"the store at {self.base_url} cannot be reached ({type(error).__name__})",
                reason="S3_UNREACHABLE",
            ) from error
        match status:
            case 206:
                return data
            case 200:
                return data[start:stop] if start else data
            case 404:
                return None
            case 416:
                return b""
            case 401 | 403:
                raise InvalidArgumentError(
                    f"the store at {self.base_url} refuses to show {key[:200]!r} (HTTP {status}); "
                    "check its credentials and the path",
                    field="store",
                )
            case _:
                raise UnavailableError(
                    f"the store at {self.base_url} answered HTTP {status}", reason="S3_UNREACHABLE"
                )


@dataclass(frozen=True, slots=True)
class ObjectAt:
    """One object of a store of somebody."""

    store: External
    key: str

    def sign(self, method: str, expires_s: int) -> str:
        """A URL to read it."""
        return self.store.sign(self.key, method, expires_s)

    async def get(self, start: int, stop: int) -> bytes:
        """A range of it; NotFoundError."""
        data = await self.store.get(self.key, start, stop)
        if data is None:
            raise NotFoundError(f"no object {self.key!r}", metadata={"key": self.key})
        return data


class Externals:
    """The stores of all tenants.

    Args:
        catalog: where they are.
        settings: of the gateway.
    """

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        keys = [settings.credentials_key, settings.s3.secret_key]
        self._sealer = Sealer(*(key.get_secret_value() for key in keys if key is not None))
        self._private = settings.external_private
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="external")
        self._http = urllib3.PoolManager(
            maxsize=_THREADS, block=True, timeout=_TIMEOUT, retries=False
        )
        self._known: dict[tuple[str, str], tuple[float, External]] = {}

    def close(self) -> None:
        """End the threads and connections."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._http.clear()

    def seal(self, tenant: str, name: str, secret: str) -> str:
        """A secret as it may be stored."""
        return self._sealer.seal(secret, f"{tenant}/{name}") if secret else ""

    async def open(self, tenant: str, name: str) -> External:
        """A tenant's store.

        Raises:
            NotFoundError: it was deleted, or never named.
        """
        now = asyncio.get_running_loop().time()
        known = self._known.get((tenant, name))
        if known is not None and now - known[0] < _REMEMBERED_S:
            return known[1]
        record = await self._catalog.store(tenant, name)
        if record is None:
            self._known.pop((tenant, name), None)
            raise NotFoundError(
                f"tenant {tenant} has no store {name!r}; name it: "
                f"hyper store set {name} ENDPOINT BUCKET --tenant {tenant}",
                metadata={"store": name},
            )
        found = await self._make(tenant, name, decode_store(record))
        if len(self._known) > 1000:
            self._known.clear()
        self._known[tenant, name] = (now, found)
        return found

    async def _make(self, tenant: str, name: str, record: StoreRecord) -> External:
        await self.check_endpoint(record.endpoint)
        signer = None
        if record.access_key:
            try:
                secret = self._sealer.open(record.secret, f"{tenant}/{name}")
            except ValueError as error:
                raise InvalidArgumentError(
                    f"the credentials of store {name!r} were sealed with another key; name it anew",
                    field="store",
                ) from error
            signer = Presigner(
                record.endpoint, record.bucket, record.region, record.access_key, secret
            )
        base_url = f"{record.endpoint.rstrip('/')}/{record.bucket}"
        return External(self._http, self._threads, base_url, signer)

    async def check_endpoint(self, endpoint: str) -> None:
        """Raise if an endpoint is none, or leads into this cluster's own network.

        Link-local addresses, where clouds keep the credentials of machines, are refused always;
        private ones unless `external_private` is set.
        """
        host = urlsplit(endpoint).hostname or ""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise InvalidArgumentError(f"nobody knows host {host[:80]!r}", field="store") from error
        for *_, address in found:
            number = ipaddress.ip_address(str(address[0]).partition("%")[0])
            mapped = getattr(number, "ipv4_mapped", None)
            number = mapped or number
            hidden = number.is_link_local or number.is_multicast or number.is_unspecified
            if hidden or (not number.is_global and not self._private):
                raise InvalidArgumentError(
                    f"{host} is an address inside this cluster's network ({number}); stores must "
                    "be public, or the gateway's `external_private` set",
                    field="store",
                )

    async def read(self, store: External, path: str, name: str) -> bytes | None:
        """A metadata file of an array, or None."""
        data = await store.get(f"{path}/{name}" if path else name, 0, MAX_METADATA_BYTES + 1)
        if data is not None and len(data) > MAX_METADATA_BYTES:
            raise InvalidArgumentError(f"{path}/{name} is larger than 1 MiB", field="path")
        return data

    async def locate(self, tenant: str, external: Mapping[str, Any], shard: str) -> ObjectAt:
        """The object of a registered array that holds this chunk."""
        store = await self.open(tenant, external["store"])
        index = [int(part) for part in shard.split("/")]
        return ObjectAt(store, _join(external["path"], object_name(external["naming"], index)))


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
