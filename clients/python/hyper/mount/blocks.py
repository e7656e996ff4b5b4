"""Bytes of immutable objects, cached: in memory by blocks, on disk by objects.

A read that misses fetches whole blocks; one that goes on where the last one ended fetches ahead,
each time twice as far, up to 16 MB. Nobody fetches what another is fetching. Blocks are written to
a sparse file for each object; the objects unused for longest go when the files outgrow their cap.
A full or slow disk costs the cache on it, not the read: then bytes come from S3 again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import google_crc32c

from hyper.errors import DataLossError
from hyper.mount.checksums import combined

BLOCK = 2**20
AHEAD_MAX = 16  # blocks
_RUN = 4  # blocks that one request fetches at most
_THREADS = 8
_SLOTS = 64
_PATIENCE_S = 0.2  # of one who has fetched, with a disk that is behind
_PART, _WHOLE = ".part", ".whole"

Fetch = Callable[[str, int, int], bytes | None]
Notice = Callable[[str], None]


class _Object:
    """What is known of one object."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.lock = threading.Lock()  # of its file
        self.fd = -1
        self.path: Path | None = (
            None  # its own: an object that is dropped and comes again has another
        )
        self.dropped = False
        self.stored: set[int] = set()  # blocks in the file
        self.end: int | None = None  # its size, once a block came short
        self.whole = False
        self.checked = False
        self.sums: dict[int, tuple[int, int, int]] = {}  # first block: (stop, crc32c, bytes)
        self.disk_bytes = 0
        self.next = 0  # block after the last read
        self.window = 1


class BlockCache:
    """Reads ranges of objects.

    Args:
        fetch: (key, start, stop) to bytes, fewer at the object's end; None: no such object.
        folder: of the files; several caches may share it, each in a place of its own.
        disk_bytes: cap of the files; 0: none.
        memory_bytes: cap of blocks in memory, those on their way included.
        notice: is told when the disk cannot be used.
    """

    def __init__(
        self, fetch: Fetch, folder: Path, *, disk_bytes: int, memory_bytes: int, notice: Notice
    ) -> None:
        self._fetch = fetch
        self._notice = notice
        self._disk_cap = disk_bytes
        self._memory_cap = max(memory_bytes, 2 * BLOCK)
        self._lock = threading.Lock()
        self._objects: OrderedDict[str, _Object] = OrderedDict()
        self._memory: OrderedDict[tuple[str, int], memoryview] = OrderedDict()
        self._coming: dict[tuple[str, int], Future[memoryview]] = {}
        self._disk_used = 0
        self._left: dict[str, tuple[Path, int]] = {}  # objects of earlier mounts not asked for yet
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="hyper-blocks")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="hyper-blocks-disk")
        self._unwritten = 0  # bytes
        self._written = threading.Condition(self._lock)
        self._folder, self._slot = _take_slot(folder) if disk_bytes else (folder, -1)
        if disk_bytes:
            self._remember()

    def close(self) -> None:
        """Finish what is on its way; whole objects stay on disk for the next mount."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True)
        for known in self._objects.values():
            if known.fd >= 0:
                os.close(known.fd)
                known.fd = -1
            if known.path is not None and not known.whole:
                known.path.unlink(missing_ok=True)
        if self._slot >= 0:
            os.close(self._slot)
            self._slot = -1

    def read(self, key: str, start: int, stop: int) -> bytes | memoryview:
        """Bytes `start:stop` of an object, fewer at its end.

        Raises:
            DataLossError: there is no such object.
            HyperError: S3 and the gateway cannot be reached.
        """
        if stop <= start:
            return b""
        first, last = start // BLOCK, (stop - 1) // BLOCK
        known, wanted = self._claim(key, first, last)
        parts: list[bytes | memoryview] = []
        for block in range(first, last + 1):
            low = max(start - block * BLOCK, 0)
            high = min(stop - block * BLOCK, BLOCK)
            found = wanted.get(block)
            if found is None:
                data: bytes | memoryview = self._from_disk(known, block, low, high)
            else:
                view = found.result() if isinstance(found, Future) else found
                data = view[low:high]
            parts.append(data)
            if len(data) < high - low:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def forget(self, key: str) -> None:
        """Drop an object: its bytes were damaged on their way."""
        with self._lock:
            for where in [where for where in self._memory if where[0] == key]:
                del self._memory[where]
            known = self._objects.get(key)
            if known is not None:
                self._drop(known)
        if known is not None:
            self._discard(known)

    def holds(self, key: str) -> bool:
        """Whether the disk has all of an object."""
        known = self._objects.get(key)
        return known is not None and known.whole

    def crc32c(self, key: str, size: int) -> int | None:
        """Of the first `size` bytes of an object, as they were fetched; None if not all were."""
        known = self._objects.get(key)
        value, block, summed = 0, 0, 0
        while known is not None and summed < size and block in known.sums:
            block, crc32c, length = known.sums[block]
            value, summed = combined(value, crc32c, length), summed + length
        return value if summed == size else None

    def checked(self, key: str) -> bool:
        """Whether `mark_checked` was called since the object was fetched."""
        known = self._objects.get(key)
        return known is not None and known.checked

    def mark_checked(self, key: str) -> None:
        """Remember that an object was compared with its checksum."""
        known = self._objects.get(key)
        if known is not None:
            known.checked = True

    def _claim(
        self, key: str, first: int, last: int
    ) -> tuple[_Object, dict[int, memoryview | Future[memoryview]]]:
        """Where blocks `first..last` come from (absent: the file); starts what must be fetched."""
        wanted: dict[int, memoryview | Future[memoryview]] = {}
        with self._lock:
            known = self._objects.get(key)
            if known is None:
                known = self._objects[key] = self._adopt(key)
            self._objects.move_to_end(key)
            if first in (known.next, known.next - 1):
                grows = last >= known.next
                known.window = min(known.window * 2, AHEAD_MAX) if grows else known.window
            else:
                known.window = 1
            known.next = last + 1
            need = list(range(first, last + 1))
            ahead = self._ahead(known, first, last)
            missing = [b for b in (*need, *ahead) if not self._at_hand(known, b)]
            for run in _runs(missing):
                self._start(known, run)
            for block in need:
                where = (key, block)
                if where in self._memory:
                    self._memory.move_to_end(where)
                    wanted[block] = self._memory[where]
                elif where in self._coming:
                    wanted[block] = self._coming[where]
        return known, wanted

    def _ahead(self, known: _Object, first: int, last: int) -> range:
        """Blocks behind `last` to fetch now; of a wide window in whole requests, not one by one."""
        if (len(self._coming) + known.window) * BLOCK > self._memory_cap:
            return range(0)
        stop = first + known.window
        return range(last + 1, stop - stop % _RUN if known.window > 2 * _RUN else stop)

    def _at_hand(self, known: _Object, block: int) -> bool:
        where = (known.key, block)
        behind = known.end is not None and block * BLOCK >= known.end and block > 0
        return behind or where in self._memory or where in self._coming or block in known.stored

    def _start(self, known: _Object, run: range) -> None:
        futures = {block: Future[memoryview]() for block in run}
        for block, future in futures.items():
            self._coming[known.key, block] = future
        self._threads.submit(self._bring, known, run, futures)

    def _bring(self, known: _Object, run: range, futures: dict[int, Future[memoryview]]) -> None:
        """Fetch a run of blocks, hand them out, keep them."""
        try:
            data = self._fetch(known.key, run.start * BLOCK, run.stop * BLOCK)
            if data is None:
                raise DataLossError(f"object {known.key} is gone from the bucket")
            known.sums[run.start] = run.stop, google_crc32c.value(data), len(data)
        except BaseException as error:  # noqa: BLE001  (it is raised where the block is read)
            with self._lock:
                for block in run:
                    self._coming.pop((known.key, block), None)
            for future in futures.values():
                future.set_exception(error)
            return
        view = memoryview(data)
        with self._lock:
            if len(data) < len(run) * BLOCK:
                end = run.start * BLOCK + len(data)  # or behind the end, if nothing came
                known.end = end if known.end is None else min(known.end, end)
            for number, block in enumerate(run):
                self._coming.pop((known.key, block), None)
                self._memory[known.key, block] = view[number * BLOCK : (number + 1) * BLOCK]
            while len(self._memory) > 1 and self._over_memory():
                self._memory.popitem(last=False)
        for number, block in enumerate(run):
            futures[block].set_result(view[number * BLOCK : (number + 1) * BLOCK])
        if self._disk_cap:
            self._store_later(known, run, view)

    def _over_memory(self) -> bool:
        return (len(self._memory) + len(self._coming)) * BLOCK > self._memory_cap

    # On disk

    def _store_later(self, known: _Object, run: range, view: memoryview) -> None:
        """Readers do not wait for the disk: what it is too slow for is fetched again one day."""
        with self._lock:
            room = self._memory_cap - min(len(view), self._memory_cap)
            if not self._written.wait_for(lambda: self._unwritten <= room, _PATIENCE_S):
                return
            self._unwritten += len(view)

        def write() -> None:
            try:
                self._store(known, run, view)
            finally:
                with self._lock:
                    self._unwritten -= len(view)
                    self._written.notify_all()

        self._writer.submit(write)

    def _store(self, known: _Object, run: range, view: memoryview) -> None:
        try:
            with known.lock:
                if known.dropped:
                    return
                if known.path is None:
                    name = f"{_name(known.key)}-{secrets.token_hex(4)}{_PART}"
                    known.path = self._folder / name
                    known.fd = os.open(known.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                done = 0
                while done < len(view):
                    done += os.pwrite(known.fd, view[done:], run.start * BLOCK + done)
                known.stored.update(run)
                complete = known.end is not None and known.stored.issuperset(
                    range(-(-known.end // BLOCK))
                )
                if complete and not known.whole:
                    known.path = known.path.rename(known.path.with_suffix(_WHOLE))
                    known.whole = True
        except OSError as error:
            self._no_disk(known, error)
            return
        with self._lock:
            if self._objects.get(known.key) is known:  # or its file is gone already
                known.disk_bytes += len(view)
                self._disk_used += len(view)
        self._evict(keep=known)

    def _no_disk(self, known: _Object, error: OSError) -> None:
        """Free what this cache holds; if that is nothing, go on without the disk."""
        with self._lock:
            if self._objects.get(known.key) is known:
                self._drop(known)
            held, told = self._disk_used, not self._disk_cap
            if error.errno != errno.ENOSPC or not held:
                self._disk_cap = 0
        self._discard(known)
        if self._disk_cap:
            self._evict(keep=None, cap=held // 2)
        elif not told:
            self._notice(
                f"the cache in {self._folder} cannot be used ({error}): reading from S3 alone"
            )

    def _evict(self, *, keep: _Object | None, cap: int | None = None) -> None:
        """Drop the objects unused for longest until the files fit."""
        while True:
            with self._lock:
                if self._disk_used <= (self._disk_cap if cap is None else cap):
                    return
                if self._left:
                    path, size = self._left.pop(next(iter(self._left)))
                    path.unlink(missing_ok=True)
                    self._disk_used -= size
                    continue
                victim = next(
                    (o for o in self._objects.values() if o.disk_bytes and o is not keep), None
                )
                if victim is None:
                    return
                self._drop(victim)
            self._discard(victim)

    def _drop(self, known: _Object) -> None:
        """No longer an object of the cache (under the lock); `_discard` removes its file."""
        del self._objects[known.key]
        self._disk_used -= known.disk_bytes
        known.disk_bytes = 0

    def _discard(self, known: _Object) -> None:
        with known.lock:
            if known.fd >= 0:
                os.close(known.fd)
                known.fd = -1
            known.stored = set()
            known.dropped = True
            if known.path is not None:
                known.path.unlink(missing_ok=True)

    def _from_disk(self, known: _Object, block: int, low: int, high: int) -> bytes | memoryview:
        if known.end is not None and block * BLOCK >= known.end:
            return b""
        with known.lock:
            if block in known.stored:
                if known.fd < 0 and known.path is not None:
                    known.fd = os.open(known.path, os.O_RDONLY)
                return os.pread(known.fd, high - low, block * BLOCK + low)
        # The object was dropped after it was claimed: fetch the block for this read alone.
        data = self._fetch(known.key, block * BLOCK + low, block * BLOCK + high)
        if data is None:
            raise DataLossError(f"object {known.key} is gone from the bucket")
        return data

    def _remember(self) -> None:
        """Note whole objects that an earlier mount has left; the rest is removed."""
        for path in sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime):
            if path.suffix == _PART:
                path.unlink(missing_ok=True)
            elif path.suffix == _WHOLE:
                size = path.stat().st_size
                self._left[path.stem.partition("-")[0]] = (path, size)
                self._disk_used += size
        self._evict(keep=None)

    def _adopt(self, key: str) -> _Object:
        """A new object, with the file that an earlier mount has left of it."""
        known = _Object(key)
        left = self._left.pop(_name(key), None)
        if left is not None:
            known.path, size = left
            known.end, known.disk_bytes, known.whole = size, size, True
            known.stored = set(range(-(-size // BLOCK)))
        return known


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:40]


def _runs(blocks: list[int]) -> Iterator[range]:
    """Neighbours together, at most `_RUN` of them."""
    start = 0
    for at in range(1, len(blocks) + 1):
        ends = at == len(blocks) or blocks[at] != blocks[at - 1] + 1 or at - start == _RUN
        if ends:
            yield range(blocks[start], blocks[at - 1] + 1)
            start = at


def _take_slot(folder: Path) -> tuple[Path, int]:
    """A subfolder that no other cache uses, and the lock on it."""
    for number in range(_SLOTS):
        place = folder / f"{number:02d}"
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return place, lock
        os.close(lock)
    raise OSError(errno.EBUSY, f"{_SLOTS} mounts use the cache in {folder}")
