"""Work folders and what their setup makes of them: once a node and content."""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import re
import shutil
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from hyper.client import Client
from hyper.errors import InvalidArgumentError, PermissionDeniedError
from hyper.names import Address, parse_address
from hyper_worker.core.model import Exit, Job, describe_exit
from hyper_worker.staging.cache import Cache, HaltedError, Lease
from hyper_worker.staging.trees import fetch

_BY_CONTENT = re.compile(r"workdir-[0-9a-f]{32}")  # hyper.workdir: names tell what is in them
RunSetup = Callable[[Path, Path], Awaitable[Exit]]


class SetupError(Exception):
    """A setup has failed; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Code:
    """A work folder on this node.

    Args:
        work: the files; shared, so not to be written to.
        site: what the setup has installed, or None.
        lease: keeps it here.
    """

    work: Path
    site: Path | None
    lease: Lease


def own_address(address: str, tenant: str) -> Address:
    """An address that a recipe names, if it is of the task's own tenant.

    Whatever is done with it is done with the worker's token, which is good for all tenants.

    Raises:
        PermissionDeniedError: it is another tenant's.
        InvalidArgumentError: it is none.
    """
    parsed = parse_address(address)
    if parsed.tenant != tenant:
        raise PermissionDeniedError(f"{address} belongs to another tenant than the task")
    return parsed


def dataset_key(client: Client, address: str, tenant: str) -> tuple[str, Callable[[Path], None]]:
    """The key of a dataset's version in the node's cache, and what fetches it.

    One that is named by its content is not looked up: short tasks would wait for that.

    Raises:
        PermissionDeniedError: it is another tenant's.
        HyperError: there is no such version.
    """
    parsed = own_address(address, tenant)
    if parsed.array is not None:
        raise InvalidArgumentError(f"{address!r} is an array; name a dataset")
    if parsed.version == 1 and _BY_CONTENT.fullmatch(parsed.dataset):
        key = hashlib.sha256(f"{tenant}/{parsed.dataset}".encode()).hexdigest()
        return key, lambda folder: fetch(
            client.open_dataset(str(parsed)), folder, threading.Event()
        )
    dataset = client.open_dataset(str(parsed))
    key = hashlib.sha256(f"{dataset.name}\n{dataset.root}".encode()).hexdigest()
    return key, lambda folder: fetch(dataset, folder, threading.Event())


def fetch_dataset(
    client: Client, cache: Cache, address: str, tenant: str, halt: threading.Event
) -> Lease:
    """The files of a dataset of this tenant on this node; blocks."""
    key, make = dataset_key(client, address, tenant)
    return cache.acquire(key, make, halt)


def fetch_code(
    client: Client,
    cache: Cache,
    job: Job,
    run_setup: RunSetup,
    loop: asyncio.AbstractEventLoop,
    halt: threading.Event,
) -> Code:
    """The work folder of a job, set up; blocks in a thread beside `loop`.

    Args:
        client: of the cluster.
        cache: of the node.
        job: that will run in it.
        run_setup: runs the setup in (work folder, site folder), in `loop`.
        loop: of the agent.
        halt: the attempt is being ended.

    Raises:
        SetupError: the setup failed.
        HaltedError: `halt` was set.
        HyperError: the work folder cannot be fetched.
    """
    if not job.around.setup:
        lease = fetch_dataset(client, cache, job.workdir, job.tenant, halt)
        return Code(lease.path, None, lease)

    def make(folder: Path) -> None:
        work, site = folder / "work", folder / "site"
        site.mkdir()
        if job.workdir:
            source = fetch_dataset(client, cache, job.workdir, job.tenant, halt)
            try:
                shutil.copytree(source.path, work)
            finally:
                source.release()
        else:
            work.mkdir()
        future = asyncio.run_coroutine_threadsafe(_ended(run_setup(work, site)), loop)
        exit_ = future.result()
        if halt.is_set():
            raise HaltedError
        if exit_.exit_code != 0 or exit_.message:
            reason = exit_.message or describe_exit(exit_.exit_code)
            raise SetupError(f"the setup {reason}; its output is in the log")

    lease = cache.acquire(_setup_key(job), make, halt)
    return Code(lease.path / "work", lease.path / "site", lease)


async def _ended(exit_: Awaitable[Exit]) -> Exit:
    return await exit_


def _setup_key(job: Job) -> str:
    """Whatever can change what a setup makes."""
    facts = [
        job.tenant,
        job.workdir,
        job.around.setup,
        job.image,
        sorted(job.env),
        "" if job.image else [sys.version, sys.prefix, platform.machine()],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
