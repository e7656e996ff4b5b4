"""Training from datasets: files and arrays as batches for torch, in an order known beforehand.

The order of an epoch follows from (seed, epoch, length) alone. Ranks share it out evenly and the
workers of a `DataLoader` get whole batches of it in turn, so what is prefetched is exactly what
comes next, and a run that is stopped in the middle goes on with the very sample that follows.

torch is imported when a loader is iterated, never before.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import google_crc32c
import numpy as np

from hyper._files import FileInfo, Tree
from hyper.errors import InvalidArgumentError
from hyper.mount.blocks import BlockCache

if TYPE_CHECKING:
    from hyper.arrays import Array
    from hyper.client import Client

log = logging.getLogger("hyper.training")
Decode = Callable[[str, bytes], Any]
_IMAGES = (".png", ".tif", ".tiff")
_PACK_MEMORY_BYTES = 64 * 2**20
_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
_FEEDER_ENDS_S = 1.0


class Source(Protocol):
    """Samples by number; pickled, or inherited by a fork, for the workers of a `DataLoader`."""

    def __len__(self) -> int:
        """How many samples there are."""

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples of a batch."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which samples make which batch.

    Args:
        name: resource name of the version or array; a state fits this one alone.
        length: number of samples.
        batch_size: samples a batch, of each rank.
        shuffle: whether epochs are permuted.
        seed: of the permutations.
        rank: this process among `world`.
        world: processes that train together.
        drop_last: leave out a last batch that is smaller.
    """

    name: str
    length: int
    batch_size: int
    shuffle: bool
    seed: int
    rank: int
    world: int
    drop_last: bool

    def order(self, epoch: int) -> np.ndarray:
        """The samples of this rank, in order; all get equally many, by repeating some."""
        if self.shuffle:
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch])))
            order = rng.permutation(self.length)
        else:
            order = np.arange(self.length)
        each = -(-self.length // self.world)
        return np.resize(order, each * self.world)[self.rank :: self.world]

    def batches(self, epoch: int, start: int = 0) -> list[list[int]]:
        """The batches of this rank from number `start` on."""
        order = self.order(epoch)
        stop = len(order) // self.batch_size * self.batch_size if self.drop_last else len(order)
        return [
            order[at : min(at + self.batch_size, stop)].tolist()
            for at in range(start * self.batch_size, stop, self.batch_size)
        ]


class Loader:
    """Iterate it once an epoch. Left in the middle, it goes on there: `state` says where.

    ```python
    loader = dataset.torch(batch_size=32, shuffle=True, num_workers=4)
    for epoch in range(3):
        for batch in loader:
            step(batch)
            save(loader.state())          # dataset.torch(..., resume=state) goes on behind it
    ```
    """

    def __init__(self, source: Source, plan: Plan, options: Mapping[str, Any]) -> None:
        self._source = source
        self._plan = plan
        self._options = dict(options)
        self._epoch = 0
        self._batch = 0

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to."""
        return self._epoch

    @property
    def plan(self) -> Plan:
        """Which samples make which batch."""
        return self._plan

    def __len__(self) -> int:
        return len(self._plan.batches(self._epoch))

    def __iter__(self) -> Iterator[Any]:
        from torch.utils.data import DataLoader

        batches = self._plan.batches(self._epoch, self._batch)
        options = dict(self._options)
        if options.get("num_workers"):
            options["worker_init_fn"] = partial(_begin_worker, options.get("worker_init_fn"))
        for batch in DataLoader(self._source, batch_sampler=batches, **options):
            self._batch += 1
            yield batch
        self._epoch, self._batch = self._epoch + 1, 0

    def state(self) -> dict[str, Any]:
        """Where it is, as JSON: behind the last batch that was handed out."""
        return {"plan": asdict(self._plan), "epoch": self._epoch, "batch": self._batch}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on where a loader of the same plan was.

        Raises:
            InvalidArgumentError: the state belongs to another plan.
        """
        mine, other = asdict(self._plan), dict(state["plan"])
        differing = [key for key in mine if key != "rank" and mine[key] != other.get(key)]
        if differing:
            raise InvalidArgumentError(
                f"this state is of another run: {', '.join(differing)} differ; resume with the "
                "same version, batch size, seed and number of processes"
            )
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])


def _begin_worker(init: Callable[[int], object] | None, worker: int) -> None:
    """What a worker of a `DataLoader` does first; `init` is the caller's."""
    atexit.register(_let_feeders_end)
    if init is not None:
        init(worker)


def _let_feeders_end() -> None:
    """Wait for the threads that hand batches over, before the interpreter ends.

    A spawned worker whose loader is left in the middle ends while such a thread may be pickling
    tensors; torch aborts where the interpreter takes the GIL away from it. A thread that has
    nobody to hand to waits in a pipe, where it does no harm.
    """
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(_FEEDER_ENDS_S)


def decode(path: str, data: bytes) -> Any:
    """What a file stands for: images and .npy as arrays, anything else as its bytes."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122  (a path in a dataset)
    if suffix in _IMAGES:
        from hyper.images import read_section

        return read_section(data, label=path)
    if suffix == ".npy":
        return np.load(io.BytesIO(data), allow_pickle=False)
    return data


class _Connected:
    """A client of this process's own: one that was forked or pickled connects anew."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._pid = os.getpid()

    def client(self) -> Client:
        """The client."""
        if self._pid != os.getpid():
            rebuild, arguments = self._client.__reduce__()
            self._client, self._pid = rebuild(*arguments), os.getpid()
        return self._client


@dataclass(frozen=True, slots=True)
class PackCache:
    """Packs on disk, for epochs after the first; each process has a part of its own.

    Args:
        folder: where.
        size_bytes: cap for each process.
    """

    folder: str
    size_bytes: int


class FileSource:
    """The files of a version as samples."""

    def __init__(
        self, tree: Tree, client: Client, prefix: str, decode: Decode, cache: PackCache | None
    ) -> None:
        self._connected = _Connected(client)
        self._cache = cache
        self._packs: tuple[int, BlockCache] | None = None
        self._name = tree.name
        self._decode = decode
        self._tree: tuple[int, Tree] | None = (os.getpid(), tree)
        infos = list(tree.files(prefix))
        self.paths = [info.path for info in infos]
        self._objects = sorted({info.object for info in infos})
        numbers = {key: number for number, key in enumerate(self._objects)}
        self._places = np.array(
            [(numbers[i.object], i.offset, i.size_bytes, i.crc32c) for i in infos], np.int64
        ).reshape(-1, 4)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tree": None, "_packs": None}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        infos = [self._info(index) for index in indices]
        if self._cache is not None:
            return [self._decode(info.path, self._read_cached(info)) for info in infos]
        return [self._decode(info.path, data) for info, data in self._open().read_many(infos)]

    def _read_cached(self, info: FileInfo) -> bytes:
        """A file from this process's pack cache, checked; from S3 if the cache's copy is bad."""
        if self._packs is None or self._packs[0] != os.getpid():
            assert self._cache is not None
            tree = self._open()
            cache = BlockCache(
                tree.fetch, Path(self._cache.folder), disk_bytes=self._cache.size_bytes,
                memory_bytes=_PACK_MEMORY_BYTES, notice=log.warning,
            )  # fmt: skip
            self._packs = os.getpid(), cache
        data = bytes(self._packs[1].read(info.object, info.offset, info.offset + info.size_bytes))
        if len(data) == info.size_bytes and google_crc32c.value(data) == info.crc32c:
            return data
        self._packs[1].forget(info.object)
        return self._open().read_file(info)

    def _open(self) -> Tree:
        if self._tree is None or self._tree[0] != os.getpid():
            self._tree = os.getpid(), Tree(self._connected.client(), self._name)
        return self._tree[1]

    def _info(self, index: int) -> FileInfo:
        number, offset, size, crc32c = self._places[index].tolist()
        path = self.paths[index]
        return FileInfo(path, size, _EPOCH_START, "", crc32c, self._objects[number], offset)


class PatchSource:
    """The patches of an array as samples, in C order of their corners."""

    def __init__(
        self, array: Array, client: Client, patch: Sequence[int], stride: Sequence[int]
    ) -> None:
        self._connected = _Connected(client)
        self._name = array.name
        self._array: tuple[int, Array] | None = (os.getpid(), array)
        self._patch = tuple(patch)
        self._stride = tuple(stride)
        fits = len(self._patch) == len(self._stride) == array.ndim and all(
            0 < p <= n and s > 0
            for p, s, n in zip(self._patch, self._stride, array.shape, strict=False)
        )
        if not fits:
            raise InvalidArgumentError(
                f"{array.name} has shape {array.shape}: patches of {self._patch} every "
                f"{self._stride} do not fit",
                reason="SHAPE_MISMATCH",
            )
        self._grid = tuple(
            (n - p) // s + 1 for n, p, s in zip(array.shape, self._patch, self._stride, strict=True)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}

    def __len__(self) -> int:
        return int(np.prod(self._grid))

    def corner(self, index: int) -> tuple[int, ...]:
        """Where a patch begins."""
        places = np.unravel_index(index, self._grid)
        return tuple(int(i) * s for i, s in zip(places, self._stride, strict=True))

    def __getitem__(self, index: int) -> np.ndarray:
        box = tuple(
            slice(at, at + p) for at, p in zip(self.corner(index), self._patch, strict=True)
        )
        patch: np.ndarray = self._open()[box]
        return patch

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        from hyper._s3 import decoders

        self._open()
        return list(decoders().map(self.__getitem__, indices))

    def _open(self) -> Array:
        if self._array is None or self._array[0] != os.getpid():
            from hyper.arrays import get_array

            self._array = os.getpid(), get_array(self._connected.client(), self._name)
        return self._array[1]


def make_loader(
    source: Source,
    name: str,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    rank: int | None,
    world: int | None,
    drop_last: bool,
    resume: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Loader:
    """A loader over `source`; rank and world are those of torch.distributed where it runs."""
    if batch_size < 1:
        raise InvalidArgumentError("batch_size must be 1 or more")
    if len(source) == 0:
        raise InvalidArgumentError(f"{name} has no samples here")
    rank, world = _processes(rank, world)
    plan = Plan(name, len(source), batch_size, shuffle, seed, rank, world, drop_last)
    loader = Loader(source, plan, options)
    if resume is not None:
        loader.resume(resume)
    return loader


def _processes(rank: int | None, world: int | None) -> tuple[int, int]:
    """(rank, world) as given, as torch's launcher says, or (0, 1)."""
    if (rank is None) != (world is None):
        raise InvalidArgumentError("give both rank and world, or neither")
    if rank is None or world is None:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world:
        raise InvalidArgumentError(f"rank {rank} is not one of {world} processes")
    return rank, world
