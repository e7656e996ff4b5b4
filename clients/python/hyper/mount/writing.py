"""A dataset as a file system that is written: changes lie in local files until they are committed.

Everything that changes something holds one lock, and so does a commit: what it uploads is the
state of all files at one moment. `fsync` uploads one file into the session, where it outlives this
process; a mount that comes after a kill commits what was synced (see `process.py`).
"""

from __future__ import annotations

import errno
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from hyper._files import FileInfo, Tree
from hyper.client import Client
from hyper.errors import HyperError
from hyper.mount.blocks import BLOCK, BlockCache
from hyper.mount.names import Folder, Local, Names, Node, Stored
from hyper.mount.reading import VersionFiles, answered
from hyper.names import check_path
from hyper.sessions import Session, Version

_DELETES_A_CALL = 2048
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class EmptyTree(Tree):
    """Stands for a dataset that has no version yet."""

    def list_folder(self, prefix: str) -> tuple[list[FileInfo], list[str]]:
        """Nothing."""
        return [], []


class SessionFiles(VersionFiles):
    """The operations of a mount that is written.

    Args:
        client: reaches the gateway.
        dataset: tenant/name.
        tree: its newest version, or `EmptyTree`.
        created_ns: when that was made.
        cache: reads objects.
        staging: a folder of this mount's own, for what is written.
        began: is told the name of every session that is begun.
    """

    writable = True
    flag_nullpath_ok = True
    flag_nopath = True

    def __init__(
        self,
        client: Client,
        dataset: str,
        tree: Tree,
        created_ns: int,
        cache: BlockCache,
        staging: Path,
        began: Callable[[str | None], None],
    ) -> None:
        super().__init__(tree, created_ns, cache)
        self._client = client
        self._dataset = dataset
        self._staging = staging
        self._began = began
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._changed: dict[str, Local | Stored] = {}  # what the session lacks
        self._removed: set[str] = set()  # files of the version that are gone
        self._sent = False  # whether the session holds something
        self._handles: dict[int, Stored | Local] = {}
        self._next = 1

    # Opening and closing

    def open(self, path: str, flags: int) -> int:
        """A handle; a file of the version that is opened for writing is copied first."""
        with self._lock:
            node = self.node(path)
            if isinstance(node, Folder):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if flags & os.O_ACCMODE != os.O_RDONLY:
                node = self._make_local(path[1:], node, copied=not flags & os.O_TRUNC)
                if flags & os.O_TRUNC:
                    self._cut(node, 0)
            return self._handle(node)

    def create(self, path: str, mode: int) -> int:
        """A new file."""
        with self._lock:
            name = _checked(path)
            parent, last = self._parent(name)
            node = self._stage(name)
            self._names.children(parent)[last] = node
            self._touch(node)
            return self._handle(node)

    def release(self, path: str | None, fh: int) -> int:
        """The last user closes the local file; a deleted one's bytes go then."""
        with self._lock:
            node = self._handles.pop(fh)
            if isinstance(node, Local):
                node.users -= 1
                self._let_go(node)
            return 0

    def _handle(self, node: Stored | Local) -> int:
        if isinstance(node, Local):
            if node.fd < 0:
                node.fd = os.open(node.staged, os.O_RDWR)
            node.users += 1
        number, self._next = self._next, self._next + 1
        self._handles[number] = node
        return number

    def _let_go(self, node: Local) -> None:
        if node.users:
            return
        if node.fd >= 0:
            os.close(node.fd)
            node.fd = -1
        if not node.path:
            node.staged.unlink(missing_ok=True)

    def _stage(self, name: str) -> Local:
        staged = self._staging / uuid.uuid4().hex
        staged.touch(mode=0o600, exist_ok=False)
        return Local(name, staged, time.time_ns())

    def _make_local(self, name: str, node: Stored | Local, *, copied: bool) -> Local:
        """A local file in the place of one of the version."""
        if isinstance(node, Local):
            return node
        made = self._stage(name)
        if copied:
            with made.staged.open("wb") as file:
                for at in range(0, node.size_bytes, BLOCK):
                    file.write(answered(partial(self.read_stored, node, at, BLOCK)))
        parent, last = self._parent(name)
        self._names.children(parent)[last] = made
        self._touch(made)
        return made

    # Bytes

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes | memoryview:
        """Bytes of an open file."""
        node = self._handles[fh]
        if isinstance(node, Local):
            return os.pread(node.fd, size, offset)
        current = self._names.find(path[1:]) if path else None
        if isinstance(current, Local):  # someone has written it since this handle was opened
            with self._lock:
                current.users += 1
                if current.fd < 0:
                    current.fd = os.open(current.staged, os.O_RDWR)
                self._handles[fh] = current
            return os.pread(current.fd, size, offset)
        return answered(lambda: self.read_stored(node, offset, size))

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        """Write to the local file."""
        node = self._handles[fh]
        if not isinstance(node, Local):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        with self._lock:
            done = os.pwrite(node.fd, data, offset)
            self._touch(node)
        return done

    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        """Cut or grow a file."""
        with self._lock:
            node = self._handles[fh] if fh is not None else self.node(path)
            if isinstance(node, Folder):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not isinstance(node, Local):
                if not path:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                node = self._make_local(path[1:], node, copied=length > 0)
            self._cut(node, length)
        return 0

    def _cut(self, node: Local, length: int) -> None:
        os.truncate(node.staged if node.fd < 0 else node.fd, length)
        self._touch(node)

    def _touch(self, node: Local) -> None:
        node.changes += 1
        node.modified_ns = time.time_ns()
        if node.path:
            self._changed[node.path] = node
            self._removed.discard(node.path)

    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        """Upload the file into the session; it is durable on return."""
        with self._lock:
            node = self._handles[fh]
            if isinstance(node, Local) and node.path and node.saved != node.changes:
                answered(lambda: self._send([(node.path, node)]))
        return 0

    def flush(self, path: str | None, fh: int) -> int:
        """Closing makes nothing durable: `fsync`, a commit or the unmount does."""
        return 0

    # Names

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, Any]:
        """`stat`, of an open file also after it was deleted."""
        if path is None and fh is not None:
            return self.attributes(self._handles[fh])
        return super().getattr(path, fh)

    def mkdir(self, path: str, mode: int) -> int:
        """A folder; one that is empty at a commit is not in the version."""
        with self._lock:
            name = _checked(path)
            if self._names.find(name) is not None:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            parent, last = self._parent(name)
            self._names.children(parent)[last] = Folder(name, {}, time.time_ns())
        return 0

    def rmdir(self, path: str) -> int:
        """Remove an empty folder."""
        with self._lock:
            node = self.node(path)
            if not isinstance(node, Folder):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if self._names.children(node):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
            parent, last = self._parent(node.path)
            del self._names.children(parent)[last]
        return 0

    def unlink(self, path: str) -> int:
        """Delete a file; who has it open keeps it."""
        with self._lock:
            node = self.node(path)
            if isinstance(node, Folder):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._drop(path[1:], node)
        return 0

    def _drop(self, name: str, node: Stored | Local) -> None:
        parent, last = self._parent(name)
        del self._names.children(parent)[last]
        self._forget_name(name)
        if isinstance(node, Local):
            node.path = ""
            self._let_go(node)

    def _forget_name(self, name: str) -> None:
        self._changed.pop(name, None)
        self._removed.add(name)

    def rename(self, old: str, new: str) -> int:
        """Move a file or a folder, over a file that has the name."""
        with self._lock:
            name, node, there = _checked(new), self.node(old), self._names.find(new[1:])
            if node is there:
                return 0
            if isinstance(there, Folder):
                if not isinstance(node, Folder):
                    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
                self.rmdir(new)
            elif there is not None:
                if isinstance(node, Folder):
                    raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                self._drop(name, there)
            target, target_last = self._parent(name)
            source, source_last = self._parent(old[1:])
            files = list(self._names.walk(node)) if isinstance(node, Folder) else []
            del self._names.children(source)[source_last]
            self._names.children(target)[target_last] = node
            if isinstance(node, Folder):
                for path, file in files:
                    self._moved(path, name + path[len(old) - 1 :], file)
                _repath(node, name)
            else:
                self._moved(old[1:], name, node)
        return 0

    def _moved(self, old: str, new: str, node: Stored | Local) -> None:
        self._forget_name(old)
        self._changed[new] = node
        self._removed.discard(new)
        if isinstance(node, Local):
            node.path = new
            node.changes += 1

    def _parent(self, name: str) -> tuple[Folder, str]:
        folder, _, last = name.rpartition("/")
        parent = self._names.find(folder)
        if parent is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if not isinstance(parent, Folder):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return parent, last

    def utimens(self, path: str | None, times: tuple[int, int] | None = None) -> int:
        """Times of files in a version are those of their writing: accepted, kept until then."""
        with self._lock:
            node = self._names.find((path or "/")[1:])
            if isinstance(node, Local) and times is not None:
                node.modified_ns = times[1]
        return 0

    def chmod(self, path: str | None, mode: int) -> int:
        """Accepted: versions keep no modes."""
        return 0

    def chown(self, path: str | None, uid: int, gid: int) -> int:
        """Accepted: versions keep no owners."""
        return 0

    # Into the session, and out of it

    def _open_session(self) -> Session:
        if self._session is None:
            self._session = self._client.session(self._dataset)
            self._began(self._session.name)
        return self._session

    def _send(self, files: list[tuple[str, Local | Stored]]) -> None:
        """Files, and what was removed, into the session; durable on return."""
        session = self._open_session()
        local = [(path, node) for path, node in files if isinstance(node, Local)]
        moved = [(path, node) for path, node in files if isinstance(node, Stored)]
        session.write_many((path, node.staged) for path, node in local)
        session.refer(
            FileInfo(path, n.size_bytes, _EPOCH, n.sha256.hex(), n.crc32c, n.object, n.offset)
            for path, n in moved
        )
        self._sent = True
        for path, node in files:
            if isinstance(node, Local):
                node.saved = node.changes
            if self._changed.get(path) is node:
                del self._changed[path]

    def _send_removed(self) -> None:
        gone = sorted(self._removed)
        for at in range(0, len(gone), _DELETES_A_CALL):
            known = self._open_session().existing(gone[at : at + _DELETES_A_CALL])
            if known:
                self._open_session().delete(*known)
                self._sent = True

    def commit(self, message: str = "") -> Version | None:
        """Make what has changed a version; None if nothing has.

        Raises:
            HyperError: nothing is lost; the changes stay, and the next commit takes them along.
        """
        with self._lock:
            if not (self._changed or self._removed or self._sent):
                return None
            self._send(list(self._changed.items()))
            if self._removed:
                self._send_removed()
            if not self._sent:  # what was removed had never been stored
                self._removed.clear()
                return None
            version = self._open_session().commit(message)
            self._session, self._sent = None, False
            self._removed.clear()
            self._began(None)
            self._go_on(version)
            return version

    def _go_on(self, version: Version) -> None:
        """Show the new version, with the files that someone has open in their places."""
        self.tree = self._client.open_dataset(self._dataset)
        before, folders = self._names, _empty_folders(self._names.root)
        used = {node.path: node for node in self._handles.values() if isinstance(node, Local)}
        for _, node in _loaded(before.root):
            if isinstance(node, Local) and node.path not in used:
                node.path = ""
                self._let_go(node)
        self._names = Names(self.tree.list_folder, time.time_ns())
        for folder in folders:
            parent, last = self._parent(folder)
            self._names.children(parent).setdefault(last, Folder(folder, {}, time.time_ns()))
        for path, node in used.items():
            if path:
                parent, last = self._parent(path)
                self._names.children(parent)[last] = node

    def status(self) -> Mapping[str, Any]:
        """What is not committed yet."""
        return {
            "changed": len(self._changed), "removed": len(self._removed),
            "session": self._session.name if self._session else None,
        }  # fmt: skip

    def end(self) -> None:
        """Close the local files; those that were not committed stay where they are."""
        with self._lock:
            for node in self._handles.values():
                if isinstance(node, Local) and node.fd >= 0:
                    os.close(node.fd)
                    node.fd = -1


def _checked(path: str) -> str:
    """The name in the dataset, if it can be one."""
    try:
        return check_path(path[1:])
    except HyperError as error:
        raise OSError(errno.EINVAL, str(error)) from error


def _repath(folder: Folder, path: str) -> None:
    folder.path = path
    for name, child in (folder.children or {}).items():
        if isinstance(child, Folder):
            _repath(child, f"{path}/{name}")


def _loaded(folder: Folder) -> Iterator[tuple[str, Node]]:
    """The nodes below a folder as far as it is loaded."""
    for name, child in (folder.children or {}).items():
        yield name, child
        if isinstance(child, Folder):
            yield from _loaded(child)


def _empty_folders(folder: Folder) -> list[str]:
    """Folders without any file, which a version does not keep; parents first."""
    found = []
    for _, child in _loaded(folder):
        if isinstance(child, Folder) and child.children is not None:
            files = any(not isinstance(node, Folder) for _, node in _loaded(child))
            unloaded = any(
                isinstance(node, Folder) and node.children is None for _, node in _loaded(child)
            )
            if not files and not unloaded:
                found.append(child.path)
    return found
