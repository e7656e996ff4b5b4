"""Outputs: what a task has written becomes one version of each dataset, once in its life.

The commit's request id is made from the task, not from the attempt. The gateway stores it in the
transaction that makes the version visible, so of all attempts at a task, also of some that run
at the same time, exactly one commits; the others learn that it is done, and say they succeeded.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence

from hyper.client import Client
from hyper.errors import ConflictError, HyperError
from hyper.names import parse_address
from hyper.sessions import Session
from hyper_servicekit.logs import get_logger
from hyper_worker.core.model import Job
from hyper_worker.staging.cache import HaltedError
from hyper_worker.staging.trees import Below, Snapshot

log = get_logger(__name__)

FILES_MAX = 10_000_000
_TRIES = 5  # against other tasks that write the same paths; the last one wins
_NAMESPACE = uuid.UUID("6f5f7a0e-3d0c-5d2b-9a35-6a0e8e1f4f11")


def commit_outputs(
    client: Client, job: Job, folders: Sequence[tuple[Below, str]], halt: threading.Event
) -> list[str]:
    """Commit each folder to its dataset; returns the names of the versions.

    Args:
        client: of the cluster.
        job: that has ended well.
        folders: (local folder, address).
        halt: stops before the next file.

    Raises:
        HaltedError: `halt` was set before all was committed.
        HyperError: it cannot be stored.
    """
    return [_commit(client, job, folder, address, halt) for folder, address in folders]


def request_id(task: str, address: str) -> str:
    """The same for every attempt at the task."""
    return str(uuid.uuid5(_NAMESPACE, f"{task}\n{address}"))


def _commit(client: Client, job: Job, folder: Below, address: str, halt: threading.Event) -> str:
    dataset = str(parse_address(address))
    message = f"{job.key.task} attempt {job.key.epoch}.{job.key.number}"
    for attempt in range(1, _TRIES + 1):
        session = client.session(dataset)
        try:
            _fill(session, folder, halt)
            version = session.commit(
                message, request_id=request_id(job.key.task, dataset), once=True
            )
        except ConflictError:
            _abort(session)
            if attempt == _TRIES:
                raise
            continue
        except (HyperError, OSError, HaltedError):
            _abort(session)
            raise
        if version.message != message:
            log.info("outputs were committed before", task=job.key.task, version=version.name)
            _abort(session)
        return version.name
    raise AssertionError("unreachable")


def _fill(session: Session, folder: Below, halt: threading.Event) -> None:
    snapshot = Snapshot(folder, halt, FILES_MAX)
    try:
        session.write_many(snapshot.files())
    finally:
        snapshot.close()


def _abort(session: Session) -> None:
    """What is not aborted expires by itself."""
    try:
        session.abort()
    except HyperError as error:
        log.debug("session not aborted", session=session.name, detail=str(error))
