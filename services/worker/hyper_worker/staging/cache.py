"""Folders that are made once a node and used by many attempts: work folders, inputs, setups.

Each has a key that determines its content, so that whoever finds it need not look inside. All
agents of a node share them; locks are the kernel's (flock), so a killed agent holds none:

    locks/KEY      shared by those who use the folder, exclusive for who makes or removes it
    trees/KEY      the folder, complete as soon as it is there
    sizes/KEY      its size; the time of its last use is the file's
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hyper_servicekit.logs import get_logger

log = get_logger(__name__)

_LOCK_POLL_S = 0.05


class HaltedError(Exception):
    """The attempt is being ended: whatever is under way for it stops."""


@dataclass(slots=True)
class Lease:
    """A folder that stays until `release`."""

    path: Path
    _descriptor: int

    def release(self) -> None:
        """It may go; doing so twice is fine."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Cache:
    """All methods block: they are called from threads.

    Args:
        root: of the node; made if it does not exist.
        limit_bytes: what nobody uses is removed beyond this, least recently used first.
    """

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self._root, self._limit_bytes = root, limit_bytes
        for name in ("locks", "trees", "sizes", "partial"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self._sweep_partial()

    def acquire(self, key: str, make: Callable[[Path], None], halt: threading.Event) -> Lease:
        """The folder of `key`, which `make` fills if it is not there yet.

        Args:
            key: hexadecimal.
            make: is given an empty folder; one maker at a time on this node.
            halt: ends the wait for another maker.

        Raises:
            HaltedError: `halt` was set.
            OSError: no space, no permission.
        """
        tree = self._root / "trees" / key
        descriptor = os.open(self._root / "locks" / key, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            self._lock(descriptor, fcntl.LOCK_SH, halt)
            while not tree.exists():
                self._lock(descriptor, fcntl.LOCK_EX, halt)
                if not tree.exists():
                    self._make(key, tree, make)
                self._lock(descriptor, fcntl.LOCK_SH, halt)  # not atomic: look again
            os.utime(self._root / "sizes" / key)
        except BaseException:
            os.close(descriptor)
            raise
        return Lease(tree, descriptor)

    def _make(self, key: str, tree: Path, make: Callable[[Path], None]) -> None:
        partial = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self._root / "partial"))
        try:
            partial.chmod(0o755)
            make(partial)
            (self._root / "sizes" / key).write_text(str(_size_bytes(partial)))
            partial.rename(tree)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._evict()

    def _evict(self) -> None:
        """Remove what is over the limit and nobody uses."""
        found = [(each.stat().st_mtime, each) for each in (self._root / "sizes").iterdir()]
        used = sum(int(each.read_text() or "0") for _, each in found)
        for _, size in sorted(found):
            if used <= self._limit_bytes:
                return
            descriptor = os.open(self._root / "locks" / size.name, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                used -= int(size.read_text() or "0")
                self._remove(size.name)
                size.unlink()
            finally:
                os.close(descriptor)
        log.warning("cache over its limit: all of it is in use", bytes=used)

    def _remove(self, key: str) -> None:
        """Away in one step, then file by file."""
        doomed = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self._root / "partial"))
        tree = self._root / "trees" / key
        if tree.exists():
            tree.rename(doomed / "tree")
        shutil.rmtree(doomed, ignore_errors=True)

    @staticmethod
    def _lock(descriptor: int, kind: int, halt: threading.Event) -> None:
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if halt.wait(_LOCK_POLL_S):
                    raise HaltedError from None
            else:
                return

    def _sweep_partial(self) -> None:
        """Remove what makers that were killed have left."""
        for folder in (self._root / "partial").iterdir():
            pid = folder.name.partition("-")[0]
            if not Path(f"/proc/{pid}").exists():
                shutil.rmtree(folder, ignore_errors=True)


def _size_bytes(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            total += os.lstat(os.path.join(root, name)).st_blocks * 512  # noqa: PTH118  (hot)
    return total
