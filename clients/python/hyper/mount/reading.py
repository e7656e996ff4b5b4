"""A version as a file system that nobody can change."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c

from hyper._files import Tree
from hyper.errors import DataLossError, HyperError, UnavailableError
from hyper.mount.blocks import BlockCache
from hyper.mount.names import Folder, Local, Names, Node, Stored

T = TypeVar("T")
log = logging.getLogger("hyper.mount")

CHECKED_BYTES = 2**20  # files up to this size are read, and checked, as a whole
_BLOCK_BYTES = 4096
_NAME_MAX = 255
_DAMAGED_KEPT = 1000


class VersionFiles:
    """The operations that the kernel asks for, by paths that begin with a slash.

    Args:
        tree: the version.
        created_ns: when it was made.
        cache: reads its objects.
    """

    use_ns = True
    writable = False

    def __init__(self, tree: Tree, created_ns: int, cache: BlockCache) -> None:
        self.tree = tree
        self._cache = cache
        self._names = Names(tree.list_folder, created_ns)
        self._owner = (os.geteuid(), os.getegid())
        self._damaged: set[Stored] = set()
        self._checking = threading.Lock()

    def node(self, path: str | None) -> Node:
        """What is at a path."""
        found = self._names.find((path or "")[1:])
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return found

    def attributes(self, node: Node) -> dict[str, Any]:
        """What `stat` says."""
        match node:
            case Folder():
                mode, size, time_ns, links = stat.S_IFDIR | 0o755, 0, node.modified_ns, 2
            case Local():
                found = node.staged.stat()
                mode, size = stat.S_IFREG | 0o644, found.st_size
                time_ns, links = node.modified_ns, 1 if node.path else 0
            case Stored():
                mode, size, time_ns, links = stat.S_IFREG | 0o644, node.size_bytes, node[5], 1
        return {
            "st_mode": mode if self.writable else mode & ~0o222, "st_nlink": links,
            "st_size": size, "st_blocks": -(-size // 512), "st_blksize": _BLOCK_BYTES,
            "st_uid": self._owner[0], "st_gid": self._owner[1],
            "st_mtime": time_ns, "st_ctime": time_ns, "st_atime": time_ns,
        }  # fmt: skip

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, Any]:
        """`stat`."""
        return answered(lambda: self.attributes(self.node(path)))

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, Any] | None, int]]:
        """What is in a folder, with what `stat` says of it."""
        node = self.node(path)
        if not isinstance(node, Folder):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        children = answered(lambda: self._names.children(node))
        yield ".", None, 0
        yield "..", None, 0
        for name, child in list(children.items()):
            yield name, self.attributes(child), 0

    def open(self, path: str, flags: int) -> int:
        """Told to the kernel as not needed: it opens and closes files by itself from then on."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes | memoryview:
        """Bytes of a file."""
        node = self.node(path)
        if not isinstance(node, Stored):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return answered(lambda: self.read_stored(node, offset, size))

    def read_stored(self, node: Stored, offset: int, size: int) -> bytes | memoryview:
        """Bytes of a file in the bucket; a small one is checked against its crc32c."""
        stop = min(offset + size, node.size_bytes)
        if offset >= stop:
            return b""
        if node.size_bytes > CHECKED_BYTES:
            return self._read_large(node, offset, stop)
        for _ in range(2):
            whole = self._cache.read(node.object, node.offset, node.offset + node.size_bytes)
            if len(whole) == node.size_bytes and google_crc32c.value(bytes(whole)) == node.crc32c:
                return whole[offset:stop]
            self._cache.forget(node.object)
        raise self._lost(node)

    def _read_large(self, node: Stored, offset: int, stop: int) -> bytes | memoryview:
        if node in self._damaged:
            raise self._lost(node)
        data = self._cache.read(node.object, node.offset + offset, node.offset + stop)
        if len(data) < stop - offset:
            raise self._lost(node)
        if stop == node.size_bytes and offset:
            self._check_whole(node)
        return data

    def _check_whole(self, node: Stored) -> None:
        """At the end of a large file: is what was fetched, or the disk holds, what was stored?"""
        with self._checking:
            if self._cache.checked(node.object):
                return
            value = self._cache.crc32c(node.object, node.size_bytes) if not node.offset else None
            if value is None:
                if not self._cache.holds(node.object):
                    return
                value = self._crc32c_of(node)
            self._cache.mark_checked(node.object)
            if value != node.crc32c:
                self._cache.forget(node.object)
                if len(self._damaged) < _DAMAGED_KEPT:
                    self._damaged.add(node)
                raise self._lost(node)

    def _crc32c_of(self, node: Stored) -> int:
        """Of a file as the disk holds it."""
        value, at, stop = 0, node.offset, node.offset + node.size_bytes
        while at < stop:
            part = self._cache.read(node.object, at, min(at + CHECKED_BYTES, stop))
            value, at = google_crc32c.extend(value, bytes(part)), at + max(len(part), 1)
        return value

    def _lost(self, node: Stored) -> DataLossError:
        return DataLossError(
            f"a file of {self.tree.name} in {node.object} at {node.offset} does not match its "
            "checksum: its stored bytes are damaged; `hyper scrub` names it"
        )

    def statfs(self, path: str) -> dict[str, int]:
        """Room without end, as far as anyone knows."""
        blocks = 2**40 // _BLOCK_BYTES
        return {
            "f_bsize": _BLOCK_BYTES, "f_frsize": _BLOCK_BYTES, "f_blocks": blocks,
            "f_bfree": blocks if self.writable else 0, "f_bavail": blocks if self.writable else 0,
            "f_files": 2**31, "f_ffree": 2**31 if self.writable else 0, "f_namemax": _NAME_MAX,
        }  # fmt: skip


def answered(work: Callable[[], T]) -> T:
    """What `work` gives, or the errno that stands for its failure."""
    try:
        return work()
    except DataLossError as error:
        log.error("%s", error)
        raise OSError(errno.EIO, str(error)) from error
    except UnavailableError as error:
        log.error("%s", error)
        raise OSError(errno.EAGAIN, str(error)) from error
    except HyperError as error:
        log.error("%s", error)
        raise OSError(errno.EIO, str(error)) from error


def options(*, writable: bool) -> Mapping[str, Any]:
    """How long the kernel may believe what it was told: what never changes, for ever."""
    kept_s = 1.0 if writable else 3600.0
    return {
        "entry_timeout": kept_s,
        "attr_timeout": kept_s,
        "negative_timeout": 0.0 if writable else kept_s,
        "kernel_cache": 0 if writable else 1,
    }


def default_cache() -> Path:
    """Where objects are cached unless said otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hyper" / "mount"
