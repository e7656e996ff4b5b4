"""Objects in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import BinaryIO

from hyper.names import check_path
from hyper_servicekit.objects.base import ObjectInfo, byte_range, checked_method, not_found


class MemoryStore:
    """Objects in a dict, for tests and simulations; its signed URLs lead nowhere."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, datetime]] = {}

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `ObjectStore`."""
        first, last = byte_range(start, stop)
        found = self._objects.get(check_path(key))
        if found is None:
            raise not_found(key)
        return found[0][first:last]

    async def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore`."""
        self._objects[check_path(key)] = (bytes(data), datetime.now(UTC))

    async def put_file(self, key: str, file: BinaryIO, length: int) -> None:
        """See `ObjectStore`."""
        await self.put(key, file.read(length))

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
        return f"memory:///{check_path(key)}?method={checked_method(method)}&expires_s={expires_s}"
