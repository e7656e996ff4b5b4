"""Decoded chunks of a committed array, kept in memory: for patches read again and again."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hyper._s3 import decoders
from hyper.errors import InvalidArgumentError

if TYPE_CHECKING:
    from hyper.arrays import Array

_Index = tuple[int, ...]


class CachedArray:
    """An array whose chunks, once read, come from memory; safe for threads.

    Args:
        array: of a committed version, which never changes.
        size_bytes: cap of what is kept; the chunks unused for longest go.
    """

    def __init__(self, array: Array, size_bytes: int) -> None:
        if not array.url:
            raise InvalidArgumentError(f"{array.name} is not committed: it may still change")
        self.array = array
        self._cap = size_bytes
        self._lock = threading.Lock()
        self._chunks: OrderedDict[_Index, np.ndarray] = OrderedDict()
        self._held = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""
        return self.array.dtype

    def __getitem__(self, key: Any) -> Any:
        from hyper.arrays import Selection

        selection = Selection.of(key, self.array.shape)
        if selection.empty or any(r.step != 1 for r in selection.ranges):
            return self.array[key]
        touched = [
            range(r.start // c, (r.stop - 1) // c + 1)
            for r, c in zip(selection.ranges, self.array.chunks, strict=True)
        ]
        indexes = list(itertools.product(*touched))
        chunks = self._get(indexes)
        result = np.empty(selection.lengths, self.array.dtype)
        for index, chunk in zip(indexes, chunks, strict=True):
            to, of = [], []
            for i, r, c in zip(index, selection.ranges, self.array.chunks, strict=True):
                low, high = max(r.start, i * c), min(r.stop, (i + 1) * c)
                to.append(slice(low - r.start, high - r.start))
                of.append(slice(low - i * c, high - i * c))
            result[tuple(to)] = chunk[tuple(of)]
        return selection.finish(result)

    def _get(self, indexes: Sequence[_Index]) -> list[np.ndarray]:
        with self._lock:
            known = {index: self._chunks[index] for index in indexes if index in self._chunks}
            for index in known:
                self._chunks.move_to_end(index)
        missing = [index for index in indexes if index not in known]
        if missing:
            for index, chunk in zip(missing, decoders().map(self._read, missing), strict=True):
                known[index] = chunk
                self._keep(index, chunk)
        return [known[index] for index in indexes]

    def _read(self, index: _Index) -> np.ndarray:
        box = tuple(
            slice(i * c, min((i + 1) * c, n))
            for i, c, n in zip(index, self.array.chunks, self.array.shape, strict=True)
        )
        chunk: np.ndarray = self.array[box]
        return chunk

    def _keep(self, index: _Index, chunk: np.ndarray) -> None:
        with self._lock:
            if index not in self._chunks:
                self._chunks[index] = chunk
                self._held += chunk.nbytes
            while self._held > self._cap and self._chunks:
                _, dropped = self._chunks.popitem(last=False)
                self._held -= dropped.nbytes
