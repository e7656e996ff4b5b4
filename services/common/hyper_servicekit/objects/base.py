"""What every object store does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol

from hyper.errors import NotFoundError


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

    async def put_file(self, key: str, file: BinaryIO, length: int) -> None:
        """Store the next `length` bytes of a file as an object; durable on return."""

    async def delete(self, key: str) -> None:
        """Remove an object; fine if it is not there."""

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Objects whose keys start with `prefix` (any text); servers differ in the order."""

    async def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object, or None."""

    def sign(self, key: str, method: str, expires_s: int) -> str:
        """A URL that allows `method` (GET, PUT or HEAD) on this one object for a while."""


def byte_range(start: int | None, stop: int | None) -> tuple[int, int | None]:
    """A range as a slice's ends, refused if negative."""
    if (start or 0) < 0 or (stop or 0) < 0:
        raise ValueError("a range counts from the object's start")
    return start or 0, stop


def checked_method(method: str) -> str:
    """`method` if a URL can be signed for it."""
    if method not in ("GET", "PUT", "HEAD"):
        raise ValueError(f"{method!r} cannot be signed: GET, PUT or HEAD")
    return method


def not_found(key: str) -> NotFoundError:
    """What is raised for a key that is not there."""
    return NotFoundError(f"no object {key!r}", metadata={"key": key})
