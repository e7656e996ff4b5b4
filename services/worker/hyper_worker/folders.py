"""The scratch folder of an agent, in which tasks have theirs."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hyper_servicekit.logs import get_logger

log = get_logger(__name__)

_PREFIX = "agent-"
_LOCK = ".lock"


class Folders:
    """Makes and removes them under `root`.

    Args:
        root: this worker's scratch space; made if it does not exist, emptied at the end.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        self.root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        self._lock = _lock(self.root)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)


async def remove_folder(folder: Path) -> None:
    """Remove what was an attempt's alone."""
    if not _remove_empty(folder):
        await asyncio.to_thread(_remove_tree, folder)


def _remove_empty(folder: Path) -> bool:
    """Remove a folder if it is empty, as most tasks leave it: not worth a thread."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _remove_tree(folder: Path) -> None:
    """Also what the program has protected against being removed."""

    def open_up(function: Any, path: str, problem: BaseException) -> None:
        parent = Path(path).parent
        if isinstance(problem, FileNotFoundError):
            return
        for each in (parent, Path(path)):
            if each.is_relative_to(folder) and each.is_dir() and not each.is_symlink():
                each.chmod(0o700)
        if Path(path).is_dir() and not Path(path).is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            Path(path).unlink(missing_ok=True)

    try:
        shutil.rmtree(folder, onerror=lambda f, p, e: open_up(f, p, e[1]))
    except OSError as error:
        log.warning("folder not removed", folder=str(folder), detail=str(error))


def _lock(folder: Path) -> int | None:
    """Hold the folder as long as this process lives; None if another one holds it."""
    descriptor = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_held(folder: Path) -> bool:
    """Whether the agent whose folder this is lives."""
    if not folder.is_dir():
        return False
    descriptor = _lock(folder)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _sweep(root: Path) -> None:
    """Remove what agents have left that were killed."""
    for folder in root.glob(f"{_PREFIX}*"):
        try:
            held = _lock(folder)
        except OSError as error:
            log.warning("old folder cannot be looked at", folder=str(folder), detail=str(error))
            continue
        if held is not None:
            log.info("removing what a killed agent has left", folder=str(folder))
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)
