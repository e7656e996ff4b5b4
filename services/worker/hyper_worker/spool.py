"""Bytes on their way out: a little in memory, the rest in a file without a name, all bounded."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class Budget:
    """How much all spools of a worker may hold together."""

    limit_bytes: int
    used_bytes: int = 0


class Spool:
    """A queue of bytes: append at the end, look at and drop from the front.

    Args:
        folder: where the file goes once memory is full; it is unlinked at once.
        memory_bytes: kept in memory.
        budget: shared with other spools.
    """

    def __init__(self, folder: Path, memory_bytes: int, budget: Budget) -> None:
        self._folder, self._memory_bytes, self._budget = folder, memory_bytes, budget
        self._memory = bytearray()  # the front of the queue
        self._file: int | None = None  # what comes after
        self._read_at = self._write_at = 0

    def __len__(self) -> int:
        return len(self._memory) + self._write_at - self._read_at

    @property
    def room_bytes(self) -> int:
        """How much more fits."""
        if self._write_at > 2 * self._budget.limit_bytes:
            return 0  # the file only shrinks when all of it has been read
        return max(self._budget.limit_bytes - self._budget.used_bytes, 0)

    def append(self, data: bytes, *, force: bool = False) -> int:
        """Take in as much of `data` as fits, or, with `force`, all; returns how many bytes."""
        if not force:
            data = data[: self.room_bytes]
        in_memory = self._file is None and len(self._memory) + len(data) <= self._memory_bytes
        if in_memory:
            self._memory += data
            taken = len(data)
        else:
            taken = self._to_file(data)
        self._budget.used_bytes += taken
        return taken

    def peek(self, size: int) -> bytes:
        """The first `size` bytes, or fewer if there are not so many."""
        if len(self._memory) < size and self._file is not None:
            wanted = min(size - len(self._memory), self._write_at - self._read_at)
            self._memory += os.pread(self._file, wanted, self._read_at)
            self._read_at += wanted
            if self._read_at == self._write_at:
                self._close_file()
        return bytes(self._memory[:size])

    def drop(self, size: int) -> None:
        """Forget the first `size` bytes, which `peek` has returned."""
        del self._memory[:size]
        self._budget.used_bytes -= size

    def close(self) -> None:
        """Forget all."""
        self._budget.used_bytes -= len(self)
        self._memory.clear()
        self._close_file()

    def _to_file(self, data: bytes) -> int:
        """Append to the file; a full disk takes what it can."""
        taken = 0
        try:
            if self._file is None:
                descriptor, name = tempfile.mkstemp(prefix="log-", dir=self._folder)
                Path(name).unlink()
                self._file = descriptor
            while taken < len(data):
                taken += os.pwrite(self._file, data[taken:], self._write_at + taken)
        except OSError:  # what was not taken counts as dropped, which the log will say
            pass
        self._write_at += taken
        return taken

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None
        self._read_at = self._write_at = 0
