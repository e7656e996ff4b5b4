"""Decoded chunks of arrays that never change, kept in this process up to a number of bytes."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np

DEFAULT_BYTES = 256 * 2**20
_ENTRY_BYTES = 200  # of a chunk that is not there


_cache: ChunkCache | None = None
_caches: weakref.WeakSet[ChunkCache] = weakref.WeakSet()


class ChunkCache:
    """The chunks that were used last; safe among threads.

    Args:
        limit_bytes: of all chunks together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._chunks: OrderedDict[Hashable, np.ndarray | None] = OrderedDict()
        self._lock = threading.Lock()
        _caches.add(self)

    def clear_after_fork(self) -> None:
        """Begin anew: another thread may have held the lock, in the middle of a change."""
        self._lock = threading.Lock()
        self._chunks = OrderedDict()
        self.used_bytes = 0

    def get(self, key: Hashable) -> tuple[bool, np.ndarray | None]:
        """(whether it is known, the chunk or None if the array has none there)."""
        with self._lock:
            if key not in self._chunks:
                return False, None
            self._chunks.move_to_end(key)
            return True, self._chunks[key]

    def put(self, key: Hashable, chunk: np.ndarray | None) -> None:
        """Keep a chunk, which nobody changes from now on; older ones go."""
        size = _size(chunk)
        if size > self.limit_bytes:
            return
        with self._lock:
            if key in self._chunks:
                self.used_bytes -= _size(self._chunks.pop(key))
            self._chunks[key] = chunk
            self.used_bytes += size
            while self.used_bytes > self.limit_bytes:
                _, dropped = self._chunks.popitem(last=False)
                self.used_bytes -= _size(dropped)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._chunks.clear()
            self.used_bytes = 0


def _size(chunk: np.ndarray | None) -> int:
    return _ENTRY_BYTES + (0 if chunk is None else chunk.nbytes)


def _limit_bytes() -> int:
    text = os.environ.get("HYPER_CHUNK_CACHE_MB", "")
    return int(float(text) * 2**20) if text else DEFAULT_BYTES


def shared() -> ChunkCache:
    """The cache of this process; `HYPER_CHUNK_CACHE_MB` (default 256) bounds it."""
    global _cache
    if _cache is None:
        _cache = ChunkCache(_limit_bytes())
    return _cache


def _after_fork() -> None:
    """A lock that another thread held when we were forked would never be free again."""
    for cache in list(_caches):
        cache.clear_after_fork()


os.register_at_fork(after_in_child=_after_fork)
