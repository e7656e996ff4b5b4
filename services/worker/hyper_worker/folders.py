"""Folders that tasks run in: an empty one each, or the recipe's unpacked work folder."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

from hyper.client import Client
from hyper.errors import InvalidArgumentError
from hyper.names import check_path, parse_address
from hyper_servicekit.logs import get_logger
from hyper_worker.core.model import Job

log = get_logger(__name__)

_PREFIX = "agent-"
_LOCK = ".lock"


class Folders:
    """Makes and removes them under `root`.

    Args:
        root: this worker's scratch space; made if it does not exist, emptied at the end.
        client: fetches work folders from the storage gateway.
    """

    def __init__(self, root: Path, client: Client) -> None:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        self.root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        self._lock = _lock(self.root)
        self._client = client
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def prepare(self, job: Job) -> Path:
        """The folder for an attempt.

        Raises:
            OSError: it cannot be made.
            HyperError: the work folder cannot be fetched.
        """
        if not job.workdir:
            return Path(tempfile.mkdtemp(prefix="task-", dir=self.root))
        async with self._locks[job.workdir]:
            folder = self.root / ("work-" + hashlib.sha256(job.workdir.encode()).hexdigest()[:24])
            if not folder.exists():
                await asyncio.to_thread(self._fetch, job.workdir, folder)
            return folder

    async def remove(self, job: Job, folder: Path) -> None:
        """An attempt is over: remove what was its alone."""
        if not job.workdir and not _remove_empty(folder):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    def _fetch(self, address: str, folder: Path) -> None:
        """Unpack the files of a dataset; the folder appears complete or not at all."""
        parsed = parse_address(address)
        if parsed.array is not None:
            raise InvalidArgumentError(f"work folder {address!r} is an array; name a dataset")
        dataset = self._client.open_dataset(str(parsed))
        partial = Path(tempfile.mkdtemp(prefix="fetch-", dir=self.root))
        for file in dataset.files():
            target = partial / check_path(file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(dataset.read(file.path))
        partial.rename(folder)


def _remove_empty(folder: Path) -> bool:
    """Remove a folder if it is empty, as most tasks leave it: not worth a thread."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _lock(folder: Path) -> int | None:
    """Hold the folder as long as this process lives; None if another one holds it."""
    descriptor = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


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
