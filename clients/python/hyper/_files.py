"""Reading the files and arrays of a version or session: what `Dataset` and `Session` share."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c

from hyper._s3 import Remote, service_call, threads
from hyper.arrays import Array, get_array
from hyper.errors import DataLossError, NotFoundError
from hyper.names import check_path
from hyperapi.storage.v1 import dataset_pb2
from hyperapi.storage.v1 import dataset_service_pb2 as api

if TYPE_CHECKING:
    from hyper.client import Client
    from hyper.training import Loader

_PAGE = 4096
_CHECKED_WHOLE_BYTES = 2**20  # a range of a file up to this size is cut from the checked whole
_READ_BATCH = 1024
_BATCH_BYTES = 16 * 2**20
_AHEAD_BYTES = 64 * 2**20  # of files whose fetching has begun, beyond those of one batch
_TOGETHER_BYTES = 4 * 2**20  # that one request fetches for several files
_GAP_BYTES = 256 * 2**10  # between files, cheaper to fetch than another request
_DOWNLOAD_BYTES = 16 * 2**20
_PARTS_AT_ONCE = 4  # of a large file


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file.

    Args:
        path: relative, '/'-separated.
        size_bytes: its size.
        modified: when it was added.
        sha256: of its bytes, in hex.
        crc32c: of its bytes.
        object: key of the object that holds it.
        offset: where in the object it begins.
    """

    path: str
    size_bytes: int
    modified: datetime
    sha256: str
    crc32c: int
    object: str
    offset: int


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far a transfer is; every number only grows.

    Args:
        files: that are through.
        bytes: of them; of a single file, as far as it is through.
        total_bytes: of all, where that is known before.
    """

    files: int
    bytes: int
    total_bytes: int | None = None


OnProgress = Callable[[TransferProgress], None]


class Tree:
    """Files and arrays under one resource name."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self._remote = Remote(client, name)

    @property
    def name(self) -> str:
        """The resource name."""
        return self._name

    def arrays(self) -> list[str]:
        """Names of the arrays."""
        response = service_call(
            self._client, "ListArrays", api.ListArraysRequest(parent=self._name)
        )
        return [array.name.partition("/arrays/")[2] for array in response.arrays]

    def __getitem__(self, array: str) -> Array:
        return get_array(self._client, f"{self._name}/arrays/{array}", self._remote)

    def files(self, prefix: str = "") -> Iterator[FileInfo]:
        """Every file whose path starts with `prefix`, in order of path."""
        request = api.ListFilesRequest(parent=self._name, prefix=prefix, page_size=_PAGE)
        while True:
            response = service_call(self._client, "ListFiles", request)
            yield from map(_info, response.files)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def list_folder(self, prefix: str) -> tuple[list[FileInfo], list[str]]:
        """The files directly under `prefix` ("" or a path with '/' at its end), and the folders.

        What lies deeper is neither read nor sent, however much it is.
        """
        request = api.ListFilesRequest(
            parent=self._name, prefix=prefix, page_size=_PAGE, shallow=True
        )
        files: list[FileInfo] = []
        folders: list[str] = []
        while True:
            response = service_call(self._client, "ListFiles", request)
            files += map(_info, response.files)
            folders += response.folders
            if not response.next_page_token:
                return files, folders
            request.page_token = response.next_page_token

    def fetch(self, key: str, start: int, stop: int) -> bytes | None:
        """Bytes `start:stop` of an object of this version or session, fewer at its end; None if
        there is no such object. They are not checked.
        """
        return self._remote.get(key, start, stop)

    def file(self, path: str) -> FileInfo:
        """What is known of one file.

        Raises:
            NotFoundError: there is no such file.
        """
        found = self._find([check_path(path)])
        if path not in found:
            raise NotFoundError(f"{self._name} has no file {path!r}", metadata={"path": path})
        return found[path]

    def _find(self, paths: Sequence[str]) -> dict[str, FileInfo]:
        """Those of `paths` (at most 4,096) that exist; their URLs are then at hand."""
        asked_at = time.monotonic()
        request = api.GetFilesRequest(parent=self._name, paths=paths, sign=True)
        response = service_call(self._client, "GetFiles", request)
        keys = [file.object for file in response.files]
        lifetime_s = response.lifetime.ToNanoseconds() / 1e9
        self._remote.keep(keys, "GET", response.urls, asked_at=asked_at, lifetime_s=lifetime_s)
        return {file.path: _info(file) for file in response.files}

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        try:
            self.file(path)
        except NotFoundError:
            return False
        return True

    def read(self, path: str) -> bytes:
        """A file's bytes, checked.

        Raises:
            NotFoundError: there is no such file.
            DataLossError: the stored bytes do not match their checksum.
        """
        info = self.file(path)
        if info.size_bytes <= _DOWNLOAD_BYTES:
            return self.read_file(info)
        for _ in range(2):
            data = b"".join(self.read_parts(info))
            if len(data) == info.size_bytes and google_crc32c.value(data) == info.crc32c:
                return data
        raise _damaged(self._name, info)

    def read_file(self, info: FileInfo) -> bytes:
        """The bytes of a file that `files` has listed; checked, fetched again if they differ."""
        if info.size_bytes == 0:
            return b""
        for _ in range(2):
            data = self._fetch(info, 0, info.size_bytes)
            if len(data) == info.size_bytes and google_crc32c.value(data) == info.crc32c:
                return data
        raise _damaged(self._name, info)

    def read_many(self, files: Iterable[FileInfo | str]) -> Iterator[tuple[FileInfo, bytes]]:
        """The bytes of files, by what `files` has listed or by path.

        They come checked, in order; several are fetched at a time, and small ones that lie near
        each other in a pack with one request.

        Raises:
            NotFoundError: there is no file of such a path.
            DataLossError: stored bytes do not match their checksum.
        """
        batches = self._batches(files)
        coming: deque[tuple[list[FileInfo], list[Future[list[tuple[int, bytes]]]]]] = deque()
        ahead_bytes = 0
        while True:
            while ahead_bytes < _AHEAD_BYTES and (batch := next(batches, None)) is not None:
                # signed with its window (`_batches`); once more where that is too long ago
                self._remote.sign({info.object: None for info in batch if info.size_bytes}, "GET")
                jobs = [
                    threads().submit(self._read_together, batch, group) for group in _groups(batch)
                ]
                coming.append((batch, jobs))
                ahead_bytes += _size(batch)
            if not coming:
                return
            batch, jobs = coming.popleft()
            found = dict(pair for job in jobs for pair in job.result())
            for at, info in enumerate(batch):
                yield info, found.pop(at)
            ahead_bytes -= _size(batch)

    def _batches(self, files: Iterable[FileInfo | str]) -> Iterator[list[FileInfo]]:
        """Files in order, so many at a time that they fit into memory."""
        rest = iter(files)
        while asked := list(islice(rest, _READ_BATCH)):
            batch: list[FileInfo] = []
            length = 0
            known = self._known(asked)
            self._remote.sign({info.object: None for info in known if info.size_bytes}, "GET")
            for info in known:
                batch.append(info)
                length += info.size_bytes
                if length >= _BATCH_BYTES:
                    yield batch
                    batch, length = [], 0
            if batch:
                yield batch

    def _read_together(
        self, batch: Sequence[FileInfo], group: Sequence[int]
    ) -> list[tuple[int, bytes]]:
        """Files of `batch` that lie near each other in one object, each checked."""
        if len(group) == 1:
            return [(group[0], self.read_file(batch[group[0]]))]
        infos = [batch[at] for at in group]
        first = infos[0].offset
        stop = max(info.offset + info.size_bytes for info in infos)
        data = self._remote.get(infos[0].object, first, stop) or b""
        found: list[tuple[int, bytes]] = []
        for at, info in zip(group, infos, strict=True):
            part = data[info.offset - first : info.offset - first + info.size_bytes]
            good = len(part) == info.size_bytes and google_crc32c.value(part) == info.crc32c
            found.append((at, part if good else self.read_file(info)))
        return found

    def _known(self, asked: Sequence[FileInfo | str]) -> list[FileInfo]:
        paths = [check_path(item) for item in asked if isinstance(item, str)]
        found = self._find(paths) if paths else {}
        missing = [path for path in paths if path not in found]
        if missing:
            raise NotFoundError(
                f"{self._name} has no file {missing[0]!r}", metadata={"path": missing[0]}
            )
        return [found[item] if isinstance(item, str) else item for item in asked]

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Bytes `start:stop` of a file, cut at its end.

        Small files are checked as a whole; of a large one the range is not checked.
        """
        if start < 0 or stop < start:
            raise ValueError(f"not a range: {start}:{stop}")
        info = self.file(path)
        if info.size_bytes <= _CHECKED_WHOLE_BYTES:
            return self.read_file(info)[start:stop]
        return self._fetch(info, start, min(stop, info.size_bytes))

    def download(self, path: str, to: str | Path, *, on_progress: OnProgress | None = None) -> Path:
        """Write a file to `to` (or into it, if it is a folder), complete or not at all.

        `on_progress` is called after each part, in this thread.
        """
        target = Path(to)
        if target.is_dir():
            target = target / path.rpartition("/")[2]
        return self.download_file(self.file(path), target, on_progress=on_progress)

    def download_file(
        self, info: FileInfo, target: Path, *, on_progress: OnProgress | None = None
    ) -> Path:
        """Write a file that `files` has listed to `target`, complete or not at all."""
        partial = target.with_name(f".{target.name[:200]}.partial")
        digest = hashlib.sha256()
        try:
            with partial.open("wb") as file:
                for data in self.read_parts(info):
                    digest.update(data)
                    file.write(data)
                    if on_progress is not None:
                        on_progress(TransferProgress(0, file.tell(), info.size_bytes))
            if digest.hexdigest() != info.sha256:
                raise _damaged(self._name, info)
            partial.replace(target)
            if on_progress is not None:
                on_progress(TransferProgress(1, info.size_bytes, info.size_bytes))
        finally:
            partial.unlink(missing_ok=True)
        return target

    def read_parts(self, info: FileInfo) -> Iterator[bytes]:
        """A file's bytes in parts of bounded size, some fetched ahead.

        A small file's are checked against crc32c; the caller checks a large one's.
        """
        if info.size_bytes <= _DOWNLOAD_BYTES:
            yield self.read_file(info)
            return
        self._remote.sign([info.object], "GET")
        coming: deque[Future[bytes]] = deque()
        for start in range(0, info.size_bytes, _DOWNLOAD_BYTES):
            stop = min(start + _DOWNLOAD_BYTES, info.size_bytes)
            coming.append(threads().submit(self._fetch, info, start, stop))
            if len(coming) >= _PARTS_AT_ONCE:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

    def torch(
        self,
        prefix: str = "",
        *,
        batch_size: int = 1,
        decode: Callable[[str, bytes], Any] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
        drop_last: bool = False,
        resume: Mapping[str, Any] | None = None,
        cache: str | Path | None = None,
        cache_bytes: int = 10 * 2**30,
        **options: Any,
    ) -> Loader:
        """Batches of the files under `prefix`, for training.

        Args:
            prefix: of paths.
            batch_size: samples a batch.
            decode: (path, bytes) to a sample; by default images and .npy become arrays.
            shuffle: a new permutation every epoch.
            seed: of the permutations.
            rank: of this process; by default as torch's launcher says.
            world: processes that train together.
            drop_last: leave out a last batch that is smaller.
            resume: a `Loader.state()` to go on from.
            cache: a folder for packs: files of a pack, and later epochs, cost no more requests.
            cache_bytes: its cap for each worker.
            options: of `torch.utils.data.DataLoader`: num_workers, pin_memory, collate_fn, ...
        """
        from hyper import training

        packs = training.PackCache(str(cache), cache_bytes) if cache is not None else None
        source = training.FileSource(self, self._client, prefix, decode or training.decode, packs)
        return training.make_loader(
            source, self._name, batch_size=batch_size, shuffle=shuffle, seed=seed, rank=rank,
            world=world, drop_last=drop_last, resume=resume, options=options,
        )  # fmt: skip

    def _fetch(self, info: FileInfo, start: int, stop: int) -> bytes:
        if stop <= start:
            return b""
        data = self._remote.get(info.object, info.offset + start, info.offset + stop)
        if data is None:
            raise DataLossError(
                f"{self._name}: object {info.object}, which holds {info.path!r}, is gone from the "
                "bucket",
                metadata={"path": info.path},
            )
        return data


def _groups(files: Sequence[FileInfo]) -> list[list[int]]:
    """The places in `files` by what one request can fetch."""
    groups: list[list[int]] = []
    key, begin, end = "", 0, 0
    for at in sorted(range(len(files)), key=lambda at: (files[at].object, files[at].offset)):
        info = files[at]
        stop = info.offset + info.size_bytes
        near = info.object == key and info.offset - end <= _GAP_BYTES
        if near and info.size_bytes and stop - begin <= _TOGETHER_BYTES:
            groups[-1].append(at)
            end = max(end, stop)
        else:
            groups.append([at])
            key, begin, end = info.object, info.offset, stop
    return groups


def _size(files: Sequence[FileInfo]) -> int:
    return sum(info.size_bytes for info in files)


def _info(file: dataset_pb2.File) -> FileInfo:
    return FileInfo(
        path=file.path,
        size_bytes=file.size_bytes,
        modified=file.modify_time.ToDatetime(tzinfo=UTC),
        sha256=file.sha256.hex(),
        crc32c=file.crc32c,
        object=file.object,
        offset=file.offset,
    )


def _damaged(name: str, info: FileInfo) -> DataLossError:
    return DataLossError(
        f"{name}: {info.path!r} does not match its checksum, fetched twice: its stored bytes are "
        "damaged; read an older version, or write the file again",
        metadata={"path": info.path},
    )
