"""Arrays: slices in, slices out, bytes straight from and to S3.

An array of a committed version is read-only. One made in a session is written by any number of
processes that hold the session's name, each its own shards: a write of whole shards needs no read,
any other reserves the shard, reads it, changes it and writes it back; a second one that wants a
part of it meanwhile waits, and is refused (`ConflictError`) when it has waited for too long.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hyper._blocks import Blocks
from hyper._chunk_cache import ChunkCache
from hyper._s3 import Remote, service_call
from hyper.codecs import CodecError, Layout
from hyper.errors import ConflictError, DataLossError, HyperError, InvalidArgumentError
from hyperapi.storage.v1 import dataset_pb2
from hyperapi.storage.v1 import dataset_service_pb2 as api

if TYPE_CHECKING:
    from hyper.client import Client
    from hyper.training import Loader

_LEASE_BATCH = 100
_LEASE_PAUSE_S = 0.1
_LEASE_SAFE = 0.5  # of a lease's life: later than that no write begins
_LOCKS = [threading.Lock() for _ in range(64)]  # of partial writes, by array


class Array:
    """An array; use it like numpy's, slice by slice.

    `a[3]`, `a[0:4, ..., 10:20]` and negative steps read; `a[3] = section` writes, in a session.
    """

    def __init__(
        self,
        client: Client,
        message: dataset_pb2.Array,
        remote: Remote | None = None,
        *,
        cache: ChunkCache | None = None,
    ) -> None:
        self._client = client
        self._cache = cache
        self._message = message
        parent = message.name.partition("/arrays/")[0]
        self._remote = remote if remote is not None else Remote(client, parent)
        self._writable = message.writable
        self._blocks = self._make_blocks()

    @property
    def name(self) -> str:
        """The resource name."""
        return self._message.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return tuple(self._message.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._message.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self._message.shape, dtype=object))

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, uncompressed."""
        return self.size * self.dtype.itemsize

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""
        return np.dtype(self._message.dtype)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Inner chunks: the unit of reading."""
        return tuple(self._message.chunk_shape)

    @property
    def shards(self) -> tuple[int, ...]:
        """Shards: one object each, the unit of writing."""
        return tuple(self._message.shard_shape)

    @property
    def metadata(self) -> dict[str, Any]:
        """Its Zarr v3 metadata; of a registered array what they would be."""
        document: dict[str, Any] = json.loads(self._message.zarr_json)
        return document

    @property
    def sharded(self) -> bool:
        """Whether an object holds many chunks behind an index; always, but for registered ones."""
        return self._blocks.layout.index is not None

    @property
    def registered(self) -> bool:
        """Whether it lies in a store of somebody (`session.register_array`)."""
        return self._message.registered

    @property
    def fill_value(self) -> Any:
        """What is read where nobody has written."""
        return self._blocks.layout.fill[()]

    @property
    def prefix(self) -> str:
        """Of the keys of its objects."""
        return self._message.prefix

    @property
    def remote(self) -> Remote:
        """Reaches its objects."""
        return self._remote

    @property
    def client(self) -> Client:
        """Reaches the gateway."""
        return self._client

    def box_of(self, shard: Sequence[int]) -> tuple[slice, ...]:
        """What a shard holds of the array."""
        return tuple(
            slice(i * s, min((i + 1) * s, n))
            for i, s, n in zip(shard, self.shards, self.shape, strict=True)
        )

    def stored_like(self, other: Array) -> bool:
        """Whether an object of one array may stand in the other as it is."""
        keys = ("data_type", "chunk_grid", "codecs", "fill_value")
        mine, theirs = self.metadata, other.metadata
        return all(mine[key] == theirs[key] for key in keys)

    @property
    def voxel_size_nm(self) -> tuple[float, float, float] | None:
        """(z, y, x), or None if unknown."""
        if not self._message.HasField("voxel_size"):
            return None
        size = self._message.voxel_size
        return size.z_nm, size.y_nm, size.x_nm

    @property
    def attributes(self) -> dict[str, Any]:
        """What its maker said about it; a copy."""
        attributes: dict[str, Any] = json.loads(self._message.attributes_json or "{}")
        return attributes

    @property
    def url(self) -> str:
        """Where any Zarr v3 reader opens it, `s3://...`; "" for one that is not plain there.

        That is one not committed yet, edited (`hyper publish` makes it plain) or registered.
        """
        return self._message.url

    def __len__(self) -> int:
        return int(self._message.shape[0])

    def __repr__(self) -> str:
        return f"<Array {self.name} {self.shape} {self.dtype}>"

    def _repr_html_(self) -> str:
        from hyper import notebooks

        return notebooks.array(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole: np.ndarray = self[...]
        return whole if dtype is None else whole.astype(dtype)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        selection = Selection.of(key, self.shape)
        try:
            data = self._blocks.read(selection.ranges)
        except (CodecError, DataLossError) as error:
            self._blocks.forget()  # damaged on its way, perhaps: fetch once more
            try:
                data = self._blocks.read(selection.ranges)
            except CodecError as again:
                raise DataLossError(
                    f"{self.name}[{selection}] cannot be decoded, twice ({again}): its stored "
                    "bytes are damaged"
                ) from error
        return selection.finish(data)

    def __setitem__(self, key: Any, value: Any) -> None:
        if not self._writable:
            raise InvalidArgumentError(
                f"{self.name} is committed and never changes; edit it in a session "
                "(`edit_array`), or make it anew there (`delete_array` first)"
            )
        selection = Selection.of(key, self.shape)
        if selection.empty:
            return
        data = self._fitting(selection, value)
        if selection.whole(self.shards, self.shape):
            self._blocks.write(selection.ranges, data)
            return
        with _LOCKS[hash(self.name) % len(_LOCKS)], self._leased(selection) as lease:
            self._blocks.write(selection.ranges, data, lease.check)

    def cached(self, limit_bytes: int) -> Array:
        """The same array with a cache of its own for decoded chunks, of at most `limit_bytes`.

        Without it arrays share the cache of their process, `HYPER_CHUNK_CACHE_MB` (256 MiB).
        Selections above a quarter of a cache pass it by. What a session writes is never cached.
        """
        return Array(self._client, self._message, self._remote, cache=ChunkCache(limit_bytes))

    def resize(self, shape: Sequence[int]) -> None:
        """Let the array grow, in a session; what is new holds the fill value.

        Raises:
            ConflictError: someone else has resized it meanwhile.
            InvalidArgumentError: an axis would shrink.
        """
        wanted = tuple(int(n) for n in shape)
        self._update(api.UpdateArrayRequest(expected_shape=self.shape, shape=wanted))

    def append(self, data: Any, axis: int = 0) -> None:
        """Grow along `axis` by `data` and write it there, in a session.

        Of two processes that append at once one gets ConflictError before it has written.
        """
        block = np.asarray(data)
        if block.ndim != self.ndim:
            raise InvalidArgumentError(
                f"{self.name}: appended data has {block.ndim} axes, not {self.ndim}",
                reason="SHAPE_MISMATCH",
            )
        axis %= self.ndim
        before = self.shape
        self.resize([n + block.shape[axis] * (a == axis) for a, n in enumerate(before)])
        self[(*(slice(None),) * axis, slice(before[axis], None))] = block

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Replace the attributes, in a session; the voxel size stays."""
        text = json.dumps(dict(attributes))
        self._update(api.UpdateArrayRequest(attributes_json=text))

    def torch(
        self,
        patch: Sequence[int],
        *,
        stride: Sequence[int] | None = None,
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
        drop_last: bool = False,
        resume: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Loader:
        """Batches of patches, for training; one begins every `stride` (by default `patch`).

        The rest is as for files: `Dataset.torch`.
        """
        from hyper import training

        source = training.PatchSource(self, self._client, patch, stride or patch)
        return training.make_loader(
            source, self.name, batch_size=batch_size, shuffle=shuffle, seed=seed, rank=rank,
            world=world, drop_last=drop_last, resume=resume, options=options,
        )  # fmt: skip

    def _update(self, request: api.UpdateArrayRequest) -> None:
        request.name, request.request_id = self.name, str(uuid.uuid4())
        self._message = service_call(self._client, "UpdateArray", request).array
        self._blocks = self._make_blocks()

    def _leased(self, selection: Selection) -> ShardLease:
        """The shards of which `selection` is a part, reserved while it is written."""
        covers = selection.covers(self.shards, self.shape)
        keys = (
            "c/" + "/".join(map(str, i)) for i in itertools.product(*selection.shards(self.shards))
        )
        partial = [f"{self._message.prefix}/{key}" for key in keys if not covers(key)]
        return ShardLease(self._client, self._remote.parent, partial)

    def _fitting(self, selection: Selection, value: Any) -> np.ndarray:
        """The value as the selection wants it, as numpy would broadcast and cast it."""
        data = np.asarray(value)
        try:
            data = np.broadcast_to(data, selection.shape)
        except ValueError as error:
            raise InvalidArgumentError(
                f"{self.name}: a value of shape {data.shape} does not fit the selection's "
                f"{selection.shape}",
                reason="SHAPE_MISMATCH",
            ) from error
        return selection.begin(data.astype(self.dtype, copy=False))

    def _make_blocks(self) -> Blocks:
        try:
            layout = Layout.of(json.loads(self._message.zarr_json))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgumentError(f"{self.name} cannot be read here: {error}") from error
        prefixes = self._message.prefix, self._message.base_prefix
        return Blocks(self._remote, *prefixes, layout, mutable=self._writable, cache=self._cache)


class ShardLease:
    """Shards reserved for one writer, as a context manager; others wait for it or are refused.

    Args:
        client: reaches the gateway; its patience is how long we wait for another writer.
        session: resource name.
        shards: keys.
    """

    def __init__(self, client: Client, session: str, shards: Sequence[str]) -> None:
        self._client = client
        self._session = session
        self._shards = sorted(shards)
        self._owner = str(uuid.uuid4())
        self._held: list[list[str]] = []
        self._until = 0.0

    def __enter__(self) -> Self:
        self._until = math.inf
        give_up_at = time.monotonic() + self._client.patience_s
        try:
            for at in range(0, len(self._shards), _LEASE_BATCH):
                self._take(self._shards[at : at + _LEASE_BATCH], give_up_at)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def check(self) -> None:
        """Raise where it is too late to write: the reservation may end before the bytes arrive."""
        if time.monotonic() > self._until:
            raise ConflictError(
                f"{self._session}: a part of a shard took too long to write; write it again"
            )

    def _take(self, shards: list[str], give_up_at: float) -> None:
        request = api.LeaseShardsRequest(session=self._session, objects=shards, owner=self._owner)
        while True:
            asked_at = time.monotonic()
            try:
                response = service_call(self._client, "LeaseShards", request)
            except ConflictError:
                if time.monotonic() >= give_up_at:
                    raise
                time.sleep(_LEASE_PAUSE_S * (0.5 + random.random()))
                continue
            lifetime_s = response.lifetime.ToNanoseconds() / 1e9
            self._until = min(self._until, asked_at + lifetime_s * _LEASE_SAFE)
            self._held.append(shards)
            return

    def _release(self) -> None:
        held, self._held = self._held, []
        for shards in held:
            request = api.ReleaseShardsRequest(
                session=self._session, objects=shards, owner=self._owner
            )
            try:
                service_call(self._client, "ReleaseShards", request)
            except HyperError as error:
                self._client.notify(f"shards stay reserved until their time is over ({error})")


_NONE: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Selection:
    """A basic selection, taken apart.

    Args:
        ranges: of each axis, with positive steps.
        dropped: axes that an integer selected, which the result lacks.
        flipped: axes with a negative step.
    """

    ranges: tuple[range, ...]
    dropped: frozenset[int]
    flipped: frozenset[int]

    @classmethod
    def of(cls, key: Any, shape: tuple[int, ...]) -> Selection:
        """Read what stands in the brackets; errors are numpy's."""
        parts = key if isinstance(key, tuple) else (key,)
        if len(parts) == len(shape) and all(
            type(part) is slice and part.step is None for part in parts
        ):  # small patches are read by the million
            plain = (range(*part.indices(n)) for part, n in zip(parts, shape, strict=True))
            return cls(tuple(plain), _NONE, _NONE)
        dots = sum(part is Ellipsis for part in parts)
        if dots > 1:
            raise IndexError("an index can only have a single ellipsis ('...')")
        given = len(parts) - dots
        if given > len(shape):
            raise IndexError(f"too many indices: {given} for an array of {len(shape)} axes")
        at = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
        fill = (slice(None),) * (len(shape) - given)
        full = (*parts[:at], *fill, *parts[at + 1 :])
        ranges: list[range] = []
        dropped, flipped = set(), set()
        for axis, (part, length) in enumerate(zip(full, shape, strict=True)):
            if isinstance(part, slice):
                chosen = range(*part.indices(length))
                if chosen.step < 0:
                    flipped.add(axis)
                    chosen = chosen[::-1]
            else:
                chosen = _integer(part, axis, length)
                dropped.add(axis)
            ranges.append(chosen)
        return cls(tuple(ranges), frozenset(dropped), frozenset(flipped))

    @property
    def forward(self) -> tuple[slice, ...]:
        """For zarr: slices only."""
        return tuple(slice(r.start, r.stop, r.step) for r in self.ranges)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Elements along each axis, dropped ones included."""
        return tuple(map(len, self.ranges))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(len(r) for axis, r in enumerate(self.ranges) if axis not in self.dropped)

    @property
    def empty(self) -> bool:
        """Whether nothing is selected."""
        return 0 in self.lengths

    def finish(self, data: np.ndarray) -> Any:
        """What the caller sees of what zarr read."""
        if not self.dropped and not self.flipped:
            return data
        flips = tuple(slice(None, None, -1 if a in self.flipped else 1) for a in range(data.ndim))
        result = data[flips].reshape(self.shape)
        return result if self.shape or not self.dropped else result[()]

    def begin(self, data: np.ndarray) -> np.ndarray:
        """What zarr is to write of what the caller gave."""
        full = data.reshape(self.lengths)
        return full[
            tuple(slice(None, None, -1 if a in self.flipped else 1) for a in range(full.ndim))
        ]

    def shards(self, lengths: tuple[int, ...]) -> tuple[Iterable[int], ...]:
        """Indexes of the touched shards, along each axis."""
        return tuple(
            range(r[0] // n, r[-1] // n + 1) if len(r) else range(0)
            for r, n in zip(self.ranges, lengths, strict=True)
        )

    def _covered(self, lengths: tuple[int, ...], shape: tuple[int, ...]) -> list[range]:
        """Indexes of the shards that are selected as a whole, along each axis."""
        covered: list[range] = []
        for r, n, total in zip(self.ranges, lengths, shape, strict=True):
            if len(r) > 1 and r.step != 1:
                covered.append(range(0))
                continue
            end = r[-1] + 1
            last = -(-end // n) if end == total else end // n
            covered.append(range(-(-r[0] // n), last))
        return covered

    def whole(self, lengths: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Whether every touched shard is selected as a whole."""
        covered = self._covered(lengths, shape)
        return all(a == b for a, b in zip(covered, self.shards(lengths), strict=True))

    def covers(self, lengths: tuple[int, ...], shape: tuple[int, ...]) -> Callable[[str], bool]:
        """Says of a shard's key whether the shard is selected as a whole."""
        covered = self._covered(lengths, shape)

        def covers(key: str) -> bool:
            index = key.split("/")[1:]
            return all(int(i) in r for i, r in zip(index, covered, strict=True))

        return covers

    def __str__(self) -> str:
        return ", ".join(f"{r.start}:{r.stop}" for r in self.ranges)


def _integer(part: Any, axis: int, length: int) -> range:
    try:
        index = part.__index__()
    except AttributeError:
        raise IndexError(
            f"axis {axis}: only integers, slices and '...' select, not {type(part).__name__}"
        ) from None
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of bounds for axis {axis} with size {length}")
    start = index % length
    return range(start, start + 1)


def get_array(client: Client, name: str, remote: Remote | None = None) -> Array:
    """The array of this resource name."""
    response = service_call(client, "GetArray", api.GetArrayRequest(name=name))
    return Array(client, response.array, remote)
