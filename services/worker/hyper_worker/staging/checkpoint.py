"""Checkpoints: a folder that outlives its attempt.

It is a dataset of the task's own. What has changed is copied, then uploaded; a copy counts only if
the folder was the same before and after it was made, so that no half-written file is kept beside
its neighbours of another moment. An attempt claims the checkpoint when it reads it, by a
version that bears its name; each commit replaces one marker file. Of two attempts that are alive
at once (one of them cut off), the store so lets only the newer one save.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import threading
import uuid
from pathlib import Path

from hyper.client import Client
from hyper.datasets import Dataset, delete_dataset
from hyper.errors import ConflictError, HyperError, NotFoundError
from hyper.sessions import Session
from hyper_servicekit.logs import get_logger
from hyper_worker.core.model import Job
from hyper_worker.staging.trees import Below, Snapshot, Stamp, fetch

log = get_logger(__name__)

FILES_MAX = 1_000_000
_MARKER = ".hyper-attempt"
_NAME = re.compile(r"attempt ([0-9]+)\.([0-9]+)\Z")
_LOOKS = 10  # at a folder that changes while it is copied
_IN_MEMORY_BYTES = 64 << 20  # of a copy; what is more lies on disk


class StaleError(Exception):
    """A newer attempt at the task has saved a checkpoint."""


class Checkpoint:
    """The checkpoint of one attempt. Methods block.

    Args:
        client: of the cluster.
        job: whose it is.
        place: the folder that the program sees; empty.
        scratch: where copies lie while they are uploaded.
    """

    def __init__(self, client: Client, job: Job, place: Below, scratch: Path) -> None:
        self._client, self._place, self._scratch = client, place, scratch
        self._attempt = (job.key.epoch, job.key.number)
        name = hashlib.sha256(job.key.task.encode()).hexdigest()[:32]
        self._dataset = f"{job.tenant}/checkpoint-{name}"
        self._saved: dict[str, Stamp] = {}
        self._version = 0  # that this attempt has committed
        self.stale = False
        self._turn = threading.Lock()

    def restore(self, halt: threading.Event) -> bool:
        """Fill the folder with the last one, and claim it; returns whether there was one.

        Raises:
            StaleError: a newer attempt has claimed it.
            HyperError: it cannot be read.
            HaltedError: `halt` was set.
        """
        for _ in range(_LOOKS):
            head = self._head()
            if head is not None:
                if _attempt_of(head.message) > self._attempt:
                    raise StaleError(f"a newer attempt of this task has claimed {head.name}")
                fetch(head, self._place.folder, halt, skip=_MARKER)
            if self._claim(0 if head is None else head.version):
                self._saved = self._look(halt)
                return head is not None
            for each in self._place.folder.iterdir():
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        raise ConflictError("the checkpoint changes faster than it can be read")

    def save(self, halt: threading.Event) -> bool:
        """Commit the folder; returns whether there was anything new to commit.

        Raises:
            StaleError: a newer attempt has claimed it.
            ConflictError: the folder changes faster than it can be read.
            HyperError: it cannot be stored.
            HaltedError: `halt` was set.
        """
        with self._turn:
            for _ in range(_LOOKS):
                if self._look(halt) == self._saved:
                    return False
                if self._save(halt):
                    return True
        raise ConflictError(
            "the folder changes faster than it can be read: write a file under another name, "
            "then rename it"
        )

    def discard(self) -> None:
        """The task has ended well: nobody will ask for it again."""
        with self._turn:
            delete_dataset(self._client, self._dataset, request_id=str(uuid.uuid4()))

    def _head(self) -> Dataset | None:
        try:
            return self._client.open_dataset(self._dataset)
        except NotFoundError:
            return None

    def _look(self, halt: threading.Event) -> dict[str, Stamp]:
        snapshot = Snapshot(self._place, halt, FILES_MAX)
        for _ in snapshot.files(unchanged=lambda path, stamp: True):
            pass
        return snapshot.stamps

    def _claim(self, base: int) -> bool:
        """Make a version that says whose checkpoint it is from now on; False: it has moved."""
        session = self._client.session(self._dataset)
        if session.base != base:
            session.abort()
            return False
        session.write(_MARKER, _name(self._attempt))
        try:
            self._version = session.commit(_name(self._attempt)).number
        except ConflictError:
            _abort(session)
            return False
        return True

    def _save(self, halt: threading.Event) -> bool:
        """Commit what has changed; False if the folder changed while it was copied."""
        with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=self._scratch) as spare:
            snapshot = Snapshot(self._place, halt, FILES_MAX)
            copies = self._copy(snapshot, Path(spare))
            if not snapshot.same():
                return False
            self._upload(copies, snapshot.stamps)
        return True

    def _copy(self, snapshot: Snapshot, spare: Path) -> list[tuple[str, bytes | Path]]:
        """(path, content) of what has changed, out of the program's reach."""
        copies: list[tuple[str, bytes | Path]] = []
        size = 0
        try:
            for path, found in snapshot.files(lambda path, stamp: self._saved.get(path) == stamp):
                kept = spare / str(len(copies))
                if isinstance(found, Path):
                    shutil.copyfile(found, kept)
                elif size + len(found) > _IN_MEMORY_BYTES:
                    kept.write_bytes(found)
                else:
                    size += len(found)
                    copies.append((path, found))
                    continue
                copies.append((path, kept))
        finally:
            snapshot.close()
        return copies

    def _upload(self, copies: list[tuple[str, bytes | Path]], stamps: dict[str, Stamp]) -> None:
        session = self._client.session(self._dataset)
        try:
            self._check_claim(session)
            session.write(_MARKER, _name(self._attempt))
            session.write_many(copies)
            session.delete(*sorted(self._saved.keys() - stamps.keys()))
            try:
                self._version = session.commit(_name(self._attempt)).number
            except ConflictError as error:  # another attempt's marker came first
                self.stale = True
                raise StaleError("a newer attempt of this task has saved a checkpoint") from error
        except BaseException:
            _abort(session)
            raise
        self._saved = stamps

    def _check_claim(self, session: Session) -> None:
        if session.base != self._version:
            self.stale = True
            raise StaleError("a newer attempt of this task has saved a checkpoint")


def _name(attempt: tuple[int, int]) -> str:
    return f"attempt {attempt[0]}.{attempt[1]}"


def _attempt_of(message: str) -> tuple[int, int]:
    """The attempt that a version's message names; (0, 0) for what somebody else has committed."""
    match = _NAME.match(message)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _abort(session: Session) -> None:
    """What is not aborted expires by itself."""
    try:
        session.abort()
    except HyperError as error:
        log.debug("session not aborted", session=session.name, detail=str(error))
