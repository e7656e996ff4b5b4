"""An array's voxels from and to its objects: which chunks a selection touches, fetched, decoded.

An object is a shard of chunks behind an index, or one chunk. Chunks that lie side by side come in
one request; a small shard that is wanted whole comes with its index. Objects that never change
leave their indexes and, of small selections, their decoded chunks in memory.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hyper import _chunk_cache
from hyper._chunk_cache import ChunkCache
from hyper._s3 import Remote, threads
from hyper.codecs import MISSING, Buffer, CodecError, Layout

_REQUEST_BYTES = 8 * 2**20  # chunks side by side are fetched together up to here
_GAP_BYTES = 64 * 2**10  # what lies between them may be fetched too
_REQUESTS_AHEAD = 24
_SHARDS_AT_ONCE = 256
_SIGN_AHEAD = 4096
_UPLOADS_AT_ONCE = 3
_INDEX_BYTES = 32 * 2**20  # of indexes in memory, of one array
_CACHED_FRACTION = 4  # selections above this part of the cache pass it by

Index = tuple[int, ...]


class Piece(NamedTuple):
    """Along one axis: a chunk, and what of it the selection wants.

    `inside` are positions in the chunk, `outside` in the selection.
    """

    chunk: int
    inside: slice
    outside: slice


class Part(NamedTuple):
    """One chunk of a selection."""

    chunk: Index
    inside: tuple[slice, ...]
    outside: tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One request: chunks of one object, side by side."""

    key: str
    start: int
    stop: int
    chunks: tuple[tuple[Part, int, int], ...]


def pieces(chosen: range, edge: int) -> list[Piece]:
    """How a selection along one axis falls on chunks of `edge`."""
    found = []
    first = 0
    while first < len(chosen):
        chunk = chosen[first] // edge
        if chosen.step == 1:
            last = min(len(chosen), (chunk + 1) * edge - chosen.start)
        else:
            last = min(len(chosen), -(-((chunk + 1) * edge - chosen.start) // chosen.step))
        base = chunk * edge
        inside = slice(chosen[first] - base, chosen[last - 1] - base + 1, chosen.step)
        found.append(Piece(chunk, inside, slice(first, last)))
        first = last
    return found


class Blocks:
    """Reads and writes boxes of one array.

    Args:
        remote: the version or session.
        prefix: of the array's keys.
        base_prefix: where an object is that `prefix` does not have; "" for nowhere.
        layout: of its objects.
        mutable: objects under `prefix` change: nothing of them is remembered.
        cache: for decoded chunks; by default the one of this process.
    """

    def __init__(
        self,
        remote: Remote,
        prefix: str,
        base_prefix: str,
        layout: Layout,
        *,
        mutable: bool,
        cache: ChunkCache | None = None,
    ) -> None:
        self.layout = layout
        self._own_cache = cache
        self._remote = remote
        self._prefix = prefix
        self._base_prefix = base_prefix
        self._mutable = mutable
        self._indexes: dict[str, np.ndarray | None] = {}  # no lock, which a fork might find held

    @property
    def _cache(self) -> ChunkCache:
        return self._own_cache or _chunk_cache.shared()

    def forget(self) -> None:
        """What was read may be damaged: fetch it again."""
        self._indexes = {}
        self._cache.clear()

    # Reading

    def read(self, ranges: Sequence[range]) -> np.ndarray:
        """The selected elements, one axis a range (of positive step).

        Raises:
            CodecError: stored bytes are damaged.
        """
        layout = self.layout
        out = np.empty([len(r) for r in ranges], layout.codec.dtype)
        if out.size == 0:
            return out
        cache = self._cache
        small = not self._mutable and out.nbytes * _CACHED_FRACTION <= cache.limit_bytes
        axes = [pieces(r, c) for r, c in zip(ranges, layout.chunks, strict=True)]
        missing: list[Part] = []
        for combination in itertools.product(*axes):
            part = Part(*(tuple(column) for column in zip(*combination, strict=True)))
            if small:
                known, chunk = cache.get((self._prefix, part.chunk))
                if known:
                    self._place(out, part, chunk)
                    continue
            missing.append(part)
            if len(missing) >= 65_536:
                self._fetch_all(out, missing, keep=small)
                missing = []
        if missing:
            self._fetch_all(out, missing, keep=small)
        return out

    def _place(self, out: np.ndarray, part: Part, chunk: np.ndarray | None) -> None:
        if chunk is None:
            out[part.outside] = self.layout.fill
            return
        wanted = chunk[part.inside]
        try:
            out[part.outside] = wanted
        except ValueError as error:
            raise CodecError(f"chunk {part.chunk} holds {chunk.shape} only") from error

    def _fetch_all(self, out: np.ndarray, parts: Sequence[Part], *, keep: bool) -> None:
        by_shard: dict[Index, list[Part]] = {}
        grid = self.layout.grid
        for part in parts:
            shard = tuple(c // n for c, n in zip(part.chunk, grid, strict=True))
            by_shard.setdefault(shard, []).append(part)
        shards = iter(by_shard.items())
        while batch := list(itertools.islice(shards, _SHARDS_AT_ONCE)):
            self._remote.sign((self.key(shard) for shard, _ in batch), "GET")
            _run(self._jobs(out, batch, keep=keep))

    def _jobs(
        self, out: np.ndarray, batch: Sequence[tuple[Index, list[Part]]], *, keep: bool
    ) -> Iterator[Callable[[], None]]:
        """What is to be fetched and decoded, a request at a time."""
        if self.layout.index is None:
            for shard, parts in batch:
                yield partial(self._whole, out, shard, parts[0], keep=keep)
            return
        found: deque[tuple[list[Part], str, np.ndarray | None]] = deque()
        in_part = []
        for shard, parts in batch:
            if self._all_at_once(shard, parts):
                yield partial(self._entire, out, shard, parts, keep=keep)
            else:
                in_part.append((shard, parts))

        def look_up(shard: Index, parts: list[Part]) -> None:
            found.append((parts, *self._index(shard)))

        _run(partial(look_up, shard, parts) for shard, parts in in_part)
        for parts, key, index in found:
            for fetch in self._requests(out, parts, key, index, keep=keep):
                yield partial(self._fetched, out, fetch, keep=keep)

    def _all_at_once(self, shard: Index, parts: Sequence[Part]) -> bool:
        """Whether a shard is better fetched as a whole than by its index."""
        layout = self.layout
        room = math.prod(
            -(-min(n - i * s, s) // c)
            for i, n, s, c in zip(shard, layout.shape, layout.shards, layout.chunks, strict=True)
        )
        if len(parts) < room or room * layout.codec.stored_max > _REQUEST_BYTES:
            return False
        return self.key(shard) not in self._indexes

    def _entire(self, out: np.ndarray, shard: Index, parts: Sequence[Part], *, keep: bool) -> None:
        data = self._object(shard)
        index = None if data is None else self._index_in(data)
        if not self._mutable:
            self._remember(self.key(shard), None if index is None else index.copy())
        for fetch in self._requests(out, parts, self.key(shard), index, keep=keep):
            self._decode(out, fetch, data or b"", 0, keep=keep)

    def _requests(
        self,
        out: np.ndarray,
        parts: Sequence[Part],
        key: str,
        index: np.ndarray | None,
        *,
        keep: bool,
    ) -> Iterator[_Fetch]:
        grid = self.layout.grid
        there: list[tuple[int, int, Part]] = []
        for part in parts:
            place = tuple(c % n for c, n in zip(part.chunk, grid, strict=True))
            offset, length = (MISSING, 0) if index is None else map(int, index[place])
            if offset == MISSING:
                self._place(out, part, None)
                if keep:
                    self._cache.put((self._prefix, part.chunk), None)
            elif length > self.layout.codec.stored_max:
                raise CodecError(f"{key}: its index says that a chunk has {length} bytes")
            else:
                there.append((offset, length, part))
        there.sort(key=lambda item: item[0])
        group: list[tuple[int, int, Part]] = []
        for item in there:
            if group:
                end = group[-1][0] + group[-1][1]
                far = not 0 <= item[0] - end <= _GAP_BYTES
                if far or item[0] + item[1] - group[0][0] > _REQUEST_BYTES:
                    yield _joined(key, group)
                    group = []
            group.append(item)
        if group:
            yield _joined(key, group)

    def _fetched(self, out: np.ndarray, fetch: _Fetch, *, keep: bool) -> None:
        data = self._remote.borrow(fetch.key, fetch.start, fetch.stop)
        self._decode(out, fetch, data or b"", fetch.start, keep=keep)

    def _decode(
        self, out: np.ndarray, fetch: _Fetch, data: Buffer, begin: int, *, keep: bool
    ) -> None:
        """Place what was asked for, given the object's bytes from `begin` on."""
        if len(data) < fetch.stop - begin:
            raise CodecError(f"{fetch.key} is shorter than its index says")
        view = memoryview(data)
        for part, offset, length in fetch.chunks:
            at = offset - begin
            self._finish(out, part, view[at : at + length], keep=keep)

    def _whole(self, out: np.ndarray, shard: Index, part: Part, *, keep: bool) -> None:
        data = self._object(shard)
        if data is None:
            self._place(out, part, None)
        else:
            self._finish(out, part, data, keep=keep)

    def _finish(self, out: np.ndarray, part: Part, data: Buffer, *, keep: bool) -> None:
        codec = self.layout.codec
        if keep:
            chunk = codec.decode(data, self._clipped(part.chunk))
            if not codec.copies:
                chunk = chunk.copy()  # else the whole response would stay in memory
            self._cache.put((self._prefix, part.chunk), chunk)
        else:
            chunk = codec.decode(data, self._clipped(part.chunk), _scratch(codec.nbytes))
        self._place(out, part, chunk)

    def _clipped(self, chunk: Index) -> tuple[int, ...] | None:
        layout = self.layout
        if not layout.clipped:
            return None
        return tuple(
            min(edge, n - i * edge)
            for i, edge, n in zip(chunk, layout.chunks, layout.shape, strict=True)
        )

    def key(self, shard: Index, prefix: str | None = None) -> str:
        """Of a shard's object."""
        return f"{prefix or self._prefix}/c/" + "/".join(map(str, shard))

    def _object(self, shard: Index) -> Buffer | None:
        """A shard's bytes, in memory that this thread's next request overwrites."""
        limit = self.layout.codec.stored_max * math.prod(self.layout.grid)
        if self.layout.index is not None:
            limit += self.layout.index.nbytes
        data = self._remote.borrow(self.key(shard), 0, limit)
        if data is None and self._base_prefix:
            data = self._remote.borrow(self.key(shard, self._base_prefix), 0, limit)
        return data

    def _index(self, shard: Index) -> tuple[str, np.ndarray | None]:
        """(key, index) of a shard; the index is None where there is no such object."""
        key = self.key(shard)
        if not self._mutable:
            return key, self._index_at(key, remember=True)
        own = self._index_at(key, remember=False)
        if own is not None or not self._base_prefix:
            return key, own
        base = self.key(shard, self._base_prefix)
        return base, self._index_at(base, remember=True)

    def _index_at(self, key: str, *, remember: bool) -> np.ndarray | None:
        if remember and key in self._indexes:
            return self._indexes[key]
        shape = self.layout.index
        assert shape is not None, "objects without an index have none to read"
        if shape.at_end:
            data = self._remote.get(key, last=shape.nbytes)
        else:
            data = self._remote.get(key, 0, shape.nbytes)
        index = None if data is None else shape.decode(data)
        if remember:
            self._remember(key, index)
        return index

    def _remember(self, key: str, index: np.ndarray | None) -> None:
        shape = self.layout.index
        assert shape is not None, "objects without an index have none to remember"
        if len(self._indexes) * shape.nbytes > _INDEX_BYTES:
            self._indexes = {}
        self._indexes[key] = index

    # Writing

    def write(
        self,
        ranges: Sequence[range],
        data: np.ndarray,
        may_put: Callable[[], None] | None = None,
    ) -> None:
        """Write the selected elements; durable on return.

        Args:
            ranges: one axis a range, of positive step.
            data: of the selection's shape.
            may_put: raises where it is too late to write.
        """
        layout = self.layout
        axes = [pieces(r, s) for r, s in zip(ranges, layout.shards, strict=True)]
        shards = itertools.product(*axes)
        uploads: deque[Future[None]] = deque()
        try:
            while batch := list(itertools.islice(shards, _SIGN_AHEAD)):
                keys = [self.key(tuple(p.chunk for p in shard)) for shard in batch]
                self._remote.sign(keys, "PUT")
                for key, shard in zip(keys, batch, strict=True):
                    part = Part(*(tuple(column) for column in zip(*shard, strict=True)))
                    body = self._encoded(part, data[part.outside])
                    while len(uploads) >= _UPLOADS_AT_ONCE:
                        uploads.popleft().result()
                    if may_put is not None:
                        may_put()
                    uploads.append(threads().submit(self._remote.put, key, body))
            while uploads:
                uploads.popleft().result()
        finally:
            _end(uploads)

    def _encoded(self, part: Part, data: np.ndarray) -> list[Buffer]:
        """The new contents of a shard's object, in pieces."""
        layout, index = self.layout, self.layout.index
        if index is None:
            raise CodecError("arrays without shards are not written")
        origin = tuple(i * s for i, s in zip(part.chunk, layout.shards, strict=True))
        end = tuple(
            min(n - o, s) for n, o, s in zip(layout.shape, origin, layout.shards, strict=True)
        )
        whole = _covers(part.inside, end)
        old, old_index = (None, None) if whole else self._present(part.chunk)
        axes = [
            pieces(range(s.start, s.stop, s.step or 1), c)
            for s, c in zip(part.inside, layout.chunks, strict=True)
        ]
        new: dict[Index, list[Buffer] | None] = {}

        def encode(chosen: tuple[Piece, ...]) -> None:
            inner = Part(*(tuple(column) for column in zip(*chosen, strict=True)))
            room = tuple(
                min(c, n - i * c) for i, c, n in zip(inner.chunk, layout.chunks, end, strict=True)
            )
            new[inner.chunk] = self._encoded_chunk(inner, room, data[inner.outside], old, old_index)

        _run(partial(encode, chosen) for chosen in itertools.product(*axes))
        return _assembled(layout, new, old, old_index)

    def _present(self, shard: Index) -> tuple[bytes | None, np.ndarray | None]:
        """The object of a shard that is changed in part, and its index."""
        borrowed = self._object(shard)
        if borrowed is None:
            return None, None
        data = bytes(borrowed)  # parts of it are written again
        return data, self._index_in(data)

    def _index_in(self, data: Buffer) -> np.ndarray:
        index = self.layout.index
        assert index is not None, "only sharded arrays have an index"
        n, view = index.nbytes, memoryview(data)
        return index.decode(view[-n:] if index.at_end else view[:n])

    def _encoded_chunk(
        self,
        part: Part,
        room: tuple[int, ...],
        values: np.ndarray,
        old: bytes | None,
        old_index: np.ndarray | None,
    ) -> list[Buffer] | None:
        """A chunk's stored form; None if it is all fill value."""
        layout = self.layout
        codec = layout.codec
        if values.shape == codec.shape:
            chunk = values
        else:
            chunk = np.empty(codec.shape, codec.dtype)
            stored = None
            if old is not None and old_index is not None and not _covers(part.inside, room):
                offset, length = map(int, old_index[part.chunk])
                if offset != MISSING:
                    stored = codec.decode(memoryview(old)[offset : offset + length])
            chunk[...] = layout.fill if stored is None else stored
            chunk[part.inside] = values
        return None if is_fill(chunk, layout.fill) else codec.encode(chunk)


def _joined(key: str, group: Sequence[tuple[int, int, Part]]) -> _Fetch:
    stop = max(offset + length for offset, length, _ in group)
    chunks = tuple((part, offset, length) for offset, length, part in group)
    return _Fetch(key, group[0][0], stop, chunks)


def _covers(inside: Sequence[slice], room: Sequence[int]) -> bool:
    """Whether slices select everything up to `room`."""
    return all(
        s.start == 0 and s.stop >= n and (s.step in (None, 1) or n == 1)
        for s, n in zip(inside, room, strict=True)
    )


def _assembled(
    layout: Layout,
    new: dict[Index, list[Buffer] | None],
    old: bytes | None,
    old_index: np.ndarray | None,
) -> list[Buffer]:
    """A shard of its new chunks and the old ones that were not touched, in pieces."""
    index = layout.index
    assert index is not None, "only sharded arrays are written"
    table = np.full((*index.grid, 2), MISSING, np.uint64)
    bodies: list[Buffer] = []
    at = 0 if index.at_end else index.nbytes
    for place in itertools.product(*map(range, index.grid)) if old is not None else sorted(new):
        body: list[Buffer] | None = None
        if place in new:
            body = new[place]
        elif old is not None and old_index is not None:
            offset, length = map(int, old_index[place])
            body = None if offset == MISSING else [memoryview(old)[offset : offset + length]]
        if body is not None:
            size = sum(map(len, body))
            table[place] = at, size
            bodies += body
            at += size
    packed = index.encode(table)
    return [*bodies, packed] if index.at_end else [packed, *bodies]


def is_fill(chunk: np.ndarray, fill: np.ndarray) -> bool:
    """Whether a chunk is nothing but the fill value, bit by bit."""
    ends = chunk[(0,) * chunk.ndim], chunk[(-1,) * chunk.ndim]
    if any(end.tobytes() != fill.tobytes() for end in ends):  # most chunks are known by these
        return False
    word = np.dtype(f"u{min(chunk.dtype.itemsize, 8)}")
    values = np.ascontiguousarray(chunk).reshape(-1).view(word)
    wanted = fill.reshape(1).view(word)
    return bool((values.reshape(-1, len(wanted)) == wanted).all())


_local = threading.local()


def _scratch(size: int) -> np.ndarray:
    """Bytes that this thread uses again and again."""
    known: np.ndarray | None = getattr(_local, "scratch", None)
    if known is None or known.nbytes != size:
        known = _local.scratch = np.empty(size, np.uint8)
    return known


def _run(jobs: Iterable[Callable[[], Any]]) -> None:
    """Do all jobs, a bounded number of them at once; the first error is raised at the end.

    A single job is done here and now: a thread would only cost time.
    """
    iterator = iter(jobs)
    first = list(itertools.islice(iterator, 2))
    if len(first) == 1:
        first[0]()
        return
    running: deque[Future[Any]] = deque()
    try:
        for job in itertools.chain(first, iterator):
            if len(running) >= _REQUESTS_AHEAD:
                running.popleft().result()
            running.append(threads().submit(job))
        while running:
            running.popleft().result()
    finally:
        _end(running)


def _end(futures: Iterable[Future[Any]]) -> None:
    """Leave no job behind that goes on after an error: what has begun is waited for."""
    begun = [future for future in futures if not future.cancel()]
    for future in begun:
        future.exception()
