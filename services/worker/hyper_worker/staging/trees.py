"""Files of datasets into folders, and files of folders that strangers wrote into datasets."""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hyper.datasets import Dataset, FileInfo
from hyper.errors import InvalidArgumentError
from hyper.names import check_path
from hyper.sessions import LARGE_BYTES
from hyper_worker.staging.cache import HaltedError

_LARGE_BYTES = 16 << 20
_BATCH = 256
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_STREAMED = 8  # kept open; a session uploads two at a time


def fetch(dataset: Dataset, folder: Path, halt: threading.Event, *, skip: str = "") -> None:
    """Write the files of a version into an empty folder, except `skip`.

    Raises:
        HaltedError: `halt` was set; some files are there.
        HyperError: the store cannot be reached, or is damaged.
        OSError: no space.
    """
    made: set[Path] = {folder}

    def target_of(info: FileInfo) -> Path:
        target = folder / check_path(info.path)
        if target.parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.add(target.parent)
        return target

    wanted = (info for info in dataset.files() if info.path != skip)
    for batch in _batches(wanted, _BATCH):
        small = [info for info in batch if info.size_bytes < _LARGE_BYTES]
        for info, data in dataset.read_many(small):
            _check(halt)
            target_of(info).write_bytes(data)
        for info in batch:
            if info.size_bytes >= _LARGE_BYTES:
                _check(halt)
                dataset.download_file(info, target_of(info))


def _batches(files: Iterator[FileInfo], size: int) -> Iterator[list[FileInfo]]:
    batch: list[FileInfo] = []
    for info in files:
        batch.append(info)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _check(halt: threading.Event) -> None:
    if halt.is_set():
        raise HaltedError


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells whether a file has changed."""

    size_bytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Below:
    """A folder below one that a stranger cannot replace; the rest of the way he may have changed.

    Args:
        base: ours.
        path: relative, normalised.
    """

    base: Path
    path: str = "."

    @property
    def folder(self) -> Path:
        """Where it was made."""
        return self.base / self.path

    def open(self) -> int:
        """A descriptor of the folder, reached without following any link.

        Raises:
            OSError: it is gone, or something else is there.
        """
        descriptor = os.open(self.base, _FOLDER)
        for part in Path(self.path).parts:
            try:
                inner = os.open(part, _FOLDER, dir_fd=descriptor)
            except OSError as error:
                raise OSError(error.errno, f"folder {self.path!r}: {error.strerror}") from None
            finally:
                os.close(descriptor)
            descriptor = inner
        return descriptor


class Snapshot:
    """The regular files of a folder that a stranger's program writes or has written.

    Links are never followed and nothing but regular files is opened, so that no file from
    elsewhere can be smuggled out, however fast the program exchanges one for the other.

    Args:
        place: the folder.
        halt: stops the walk.
        files_max: more are refused.
    """

    def __init__(self, place: Below, halt: threading.Event, files_max: int) -> None:
        self._place, self._halt, self._files_max = place, halt, files_max
        self.stamps: dict[str, Stamp] = {}
        self._streamed: deque[BinaryIO] = deque()

    def close(self) -> None:
        """Once what `files` has yielded has been read."""
        while self._streamed:
            self._streamed.popleft().close()

    def files(
        self, unchanged: Callable[[str, Stamp], bool] = lambda path, stamp: False
    ) -> Iterator[tuple[str, bytes | Path]]:
        """(path, content) of every file; not of those that are `unchanged`.

        Raises:
            InvalidArgumentError: a name cannot be a path in a dataset, or there are too many.
            HaltedError: `halt` was set.
        """
        for path, name, directory in self._walk():
            try:
                descriptor = os.open(
                    name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory
                )
            except FileNotFoundError:
                continue  # removed meanwhile
            file = os.fdopen(descriptor, "rb")
            stamp = _stamp(os.fstat(descriptor))
            if stamp is not None:
                self.stamps[path] = stamp
            if stamp is None or unchanged(path, stamp):
                file.close()
            elif stamp.size_bytes < LARGE_BYTES:
                with file:
                    yield path, file.read()
            else:  # streamed, some at a time; the descriptor stays what was looked at
                self._streamed.append(file)
                yield path, Path(f"/proc/self/fd/{descriptor}")
                if len(self._streamed) > _STREAMED:
                    self._streamed.popleft().close()

    def same(self) -> bool:
        """Whether the folder still holds what `files` has seen."""
        now: dict[str, Stamp] = {}
        for path, name, directory in self._walk():
            try:
                stamp = _stamp(os.stat(name, dir_fd=directory, follow_symlinks=False))
            except FileNotFoundError:
                return False
            if stamp is not None:
                now[path] = stamp
        return now == self.stamps

    def _walk(self) -> Iterator[tuple[str, str, int]]:
        """(path, name, descriptor of its folder) of every regular file."""
        count = 0
        top = self._place.open()
        try:
            for root, folders, names, directory in os.fwalk(".", dir_fd=top, follow_symlinks=False):
                folders.sort()
                for name in sorted(names):
                    _check(self._halt)
                    if not _is_file(name, directory):
                        continue
                    count += 1
                    if count > self._files_max:
                        raise InvalidArgumentError(
                            f"more than {self._files_max} files: pack them, or write an array"
                        )
                    yield check_path(f"{root}/{name}"[2:]), name, directory
        finally:
            os.close(top)


def _is_file(name: str, directory: int) -> bool:
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:  # removed meanwhile
        return False
    return stat.S_ISREG(mode)


def _stamp(status: os.stat_result) -> Stamp | None:
    if not stat.S_ISREG(status.st_mode):
        return None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino)
