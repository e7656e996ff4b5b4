"""One attempt from its inputs to its outputs, around whatever runner runs it.

    stage (work folder, setup, inputs, checkpoint) -> run, saving checkpoints -> commit -> report

Being asked to end stops staging at once. A program that runs gets its SIGTERM; what it leaves in
its checkpoint by its end is saved, its outputs are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hyper.client import Client
from hyper.errors import HyperError
from hyper_servicekit.logs import get_logger
from hyper_worker.core.model import Around, Exit, Job, Key
from hyper_worker.folders import remove_folder
from hyper_worker.gpus import GpuPool
from hyper_worker.runner.base import Execution, Output, Ran, Runner, Sink
from hyper_worker.runner.isolation import Isolation
from hyper_worker.runner.place import Bind, Place
from hyper_worker.runner.template import PLACEHOLDER, as_text
from hyper_worker.secrets import Secrets
from hyper_worker.staging.cache import Cache, HaltedError, Lease
from hyper_worker.staging.checkpoint import Checkpoint, StaleError
from hyper_worker.staging.code import Code, SetupError, fetch_code, fetch_dataset, own_address
from hyper_worker.staging.outputs import commit_outputs
from hyper_worker.staging.trees import Below

log = get_logger(__name__)
T = TypeVar("T")

_PLAIN = Around()
_NO_EXIT = Exit()
_NO_SECRETS = Secrets()


@dataclass(frozen=True, slots=True)
class Stage:
    """What staging needs; one a worker.

    Args:
        client: of the cluster.
        cache: of the node.
        scratch: where attempts have their folders.
        threads: for what blocks.
        secrets: of a job; blocks.
        isolation: of processes.
        gpus: of this machine.
    """

    client: Client
    cache: Cache
    scratch: Path
    threads: ThreadPoolExecutor
    secrets: Callable[[Job], Secrets]
    isolation: Isolation
    gpus: GpuPool

    def begin(self, job: Job, runner: Runner, sink: Sink) -> Attempt:
        """An attempt at a command."""
        return Attempt(self, job, runner, sink)

    async def code(self, job: Job, runner: Runner, sink: Sink) -> Code:
        """The work folder of a function."""
        return await Attempt(self, job, runner, sink).fetch_code()


class Attempt:
    """A command with all that is around it; an `Execution`."""

    def __init__(self, stage: Stage, job: Job, runner: Runner, sink: Sink) -> None:
        self._stage, self._job, self._runner, self._sink = stage, job, runner, sink
        self._halt = threading.Event()  # asked to end
        self._cut = threading.Event()  # to be ended at once
        self._killed = asyncio.Event()
        self._save_now = asyncio.Event()
        self._inner: Execution | None = None
        self._exit: Exit | None = None
        self._leases: list[Lease] = []
        self._outputs: list[tuple[Below, str]] = []
        self._checkpoint: Checkpoint | None = None
        self._start = time.monotonic()

    # Execution

    async def wait(self) -> None:
        """From staging to the report at the sink."""
        root = Path(tempfile.mkdtemp(prefix="task-", dir=self._stage.scratch))
        try:
            try:
                exit_ = await self._carry_out(root)
            except HaltedError:
                exit_ = Exit(exit_code=-15, message="stopped before it started")
            except (SetupError, StaleError) as error:
                exit_ = self._failed(str(error))
            self._sink.ended([(self._job.key, exit_)])
        finally:
            for lease in self._leases:
                lease.release()
            await remove_folder(root)

    @property
    def pid(self) -> int:
        """Of its program; 0 while there is none."""
        return 0 if self._inner is None else self._inner.pid

    async def exec(self, arguments: Sequence[str], timeout_s: float) -> Ran:
        """Run a command beside its program."""
        if self._inner is None:
            raise ValueError("the task's program does not run yet")
        return await self._inner.exec(arguments, timeout_s)

    def terminate(self, key: Key) -> None:
        """SIGTERM to the program, or stop what is done for it."""
        self._halt.set()
        self._save_now.set()
        if self._inner is not None:
            self._inner.terminate(key)

    def kill(self, key: Key) -> None:
        """SIGKILL to the program; nothing more is done for it."""
        self._halt.set()
        self._cut.set()
        self._killed.set()
        if self._inner is not None:
            self._inner.kill(key)

    # Sink of the program

    def output(self, key: Key) -> Output:
        """The attempt's log."""
        return self._sink.output(key)

    def ended(self, ends: list[tuple[Key, Exit]]) -> None:
        """The program has ended; the attempt has not yet."""
        ((_, self._exit),) = ends

    def returned(self, keys: list[Key]) -> None:
        """Commands are never handed back."""
        raise AssertionError(f"{keys} is no bundle")

    # The way through

    async def fetch_code(self) -> Code:
        """The work folder, set up; the lease is the caller's."""
        loop = asyncio.get_running_loop()
        stage, job = self._stage, self._job
        return await self._thread(
            lambda: fetch_code(stage.client, stage.cache, job, self._run_setup, loop, self._halt)
        )

    async def _carry_out(self, root: Path) -> Exit:
        with self._stage.gpus.holding(self._job.around.needs.gpus, self._job.key.task) as gpus:
            exit_ = await self._run(root, gpus)
        return await self._finish(exit_)

    async def _run(self, root: Path, gpus: tuple[int, ...]) -> Exit:
        place = await self._prepare(root, gpus)
        self._check_halt()
        self._inner = await self._runner.start([self._job], place, self)
        if self._killed.is_set():
            self._inner.kill(self._job.key)
        elif self._halt.is_set():
            self._inner.terminate(self._job.key)
        if self._checkpoint is None:
            await self._inner.wait()
        else:
            async with asyncio.TaskGroup() as group:
                saving = group.create_task(self._save_checkpoints(self._checkpoint))
                await self._inner.wait()
                saving.cancel()
        assert self._exit is not None
        return self._exit

    async def _finish(self, exit_: Exit) -> Exit:
        """Commit what the program has left behind."""
        well = exit_.exit_code == 0 and not exit_.message and not self._halt.is_set()
        try:
            if self._halt.is_set():
                await self._save_checkpoint()
            if well and self._outputs:
                await self._thread(
                    partial(
                        commit_outputs,
                        self._stage.client, self._job, self._outputs, self._halt,
                    )
                )  # fmt: skip
        except HaltedError:
            return replace(exit_, exit_code=-15, message="stopped before its outputs were stored")
        except (HyperError, OSError) as error:
            return self._failed(f"its outputs cannot be stored: {error}", exit_)
        if well and self._checkpoint is not None and not self._checkpoint.stale:
            try:
                await self._thread(self._checkpoint.discard)
            except (HyperError, HaltedError) as error:
                self._note(f"the checkpoint is not removed: {error}")
        return exit_

    async def _prepare(self, root: Path, gpus: tuple[int, ...]) -> Place:
        """Everything that the program finds."""
        around, job, stage = self._job.around, self._job, self._stage
        cwd = root / "work"
        site = None
        if job.workdir or around.setup:
            code = await self.fetch_code()
            self._leases.append(code.lease)
            await self._thread(partial(shutil.copytree, code.work, cwd, symlinks=True))
            cwd.chmod(0o755)
            site = code.site
        elif around == _PLAIN and not stage.isolation.active and not job.image:
            cwd = root  # a command that needs nothing is not worth another folder
        else:
            cwd.mkdir()
        binds: list[Bind] = []
        for path, address in self._bound(around.inputs):
            lease = await self._thread(
                partial(fetch_dataset, stage.client, stage.cache, address, job.tenant, self._halt)
            )
            self._leases.append(lease)
            if path.startswith("/") or job.image or stage.isolation.active:
                binds.append(Bind(lease.path, path))
            else:
                (cwd / path).parent.mkdir(parents=True, exist_ok=True)
                (cwd / path).symlink_to(lease.path)
        for number, (path, address) in enumerate(self._bound(around.outputs)):
            below = _writable(binds, root, cwd, path, f"out-{number}")
            self._outputs.append((below, address))
        if around.checkpoint_path:
            below = _writable(binds, root, cwd, around.checkpoint_path, "checkpoint")
            self._checkpoint = Checkpoint(stage.client, job, below, stage.scratch)
            if await self._thread(partial(self._checkpoint.restore, self._halt)):
                self._note("goes on from the checkpoint of an earlier attempt")
        secrets = _NO_SECRETS
        if around.secrets or around.registry:
            secrets = await self._thread(partial(stage.secrets, job))
        return Place(
            root, cwd, tuple(binds), site, secrets.variables, gpus, secrets.registry
        )  # fmt: skip

    def _bound(self, bindings: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """(path, address) with the parameters in it; only of the task's own tenant.

        Raises:
            PermissionDeniedError: another tenant's dataset.
        """
        parameters = json.loads(self._job.parameters_json or "{}")
        for path, template in bindings:
            address = PLACEHOLDER.sub(lambda match: as_text(parameters[match[1]]), template)
            own_address(address, self._job.tenant)
            yield path, address

    async def _run_setup(self, work: Path, site: Path) -> Exit:
        """Run the setup as this attempt's program, in the folder that all will share."""
        ends: list[Exit] = []

        class _SetupSink:
            output = staticmethod(self._sink.output)

            @staticmethod
            def ended(found: list[tuple[Key, Exit]]) -> None:
                ends.extend(exit_ for _, exit_ in found)

            @staticmethod
            def returned(keys: list[Key]) -> None:
                raise AssertionError(f"{keys} is no bundle")

        job = replace(
            self._job,
            command=self._job.around.setup,
            parameters_json="{}",
            around=Around(network=True, registry=self._job.around.registry),
        )
        place = Place(work.parent, work, site=site, environment={"PIP_TARGET": str(site)})
        self._inner = await self._runner.start([job], place, _SetupSink())
        try:
            if self._halt.is_set():
                self._inner.kill(job.key)
            await self._inner.wait()
        finally:
            self._inner = None
        return ends[0]

    # Checkpoints

    async def _save_checkpoints(self, checkpoint: Checkpoint) -> None:
        """At every interval, and when the program is asked to end; until cancelled."""
        while not checkpoint.stale:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._save_now.wait(), self._job.around.checkpoint_every_s)
            await self._save_checkpoint()
            if self._save_now.is_set():
                return  # the last one follows when it has ended

    async def _save_checkpoint(self) -> None:
        if self._checkpoint is None or self._checkpoint.stale:
            return
        try:
            await asyncio.shield(self._thread(partial(self._checkpoint.save, self._cut)))
        except HaltedError:
            return
        except (StaleError, HyperError, OSError) as error:
            self._note(f"checkpoint not saved: {error}")

    # Small things

    async def _thread(self, work: Callable[[], T]) -> T:
        """Do something that blocks; a kill does not wait for it."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._stage.threads, work)
        killed = asyncio.create_task(self._killed.wait())
        try:
            waited: set[asyncio.Future[Any]] = {future, killed}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            killed.cancel()
        if not future.done():
            future.add_done_callback(_forget)
            raise HaltedError
        return future.result()

    def _check_halt(self) -> None:
        if self._halt.is_set():
            raise HaltedError

    def _note(self, text: str) -> None:
        """A line of ours in the attempt's log."""
        self._sink.output(self._job.key).write(f"[hyper: {text}]\n".encode(errors="replace"))

    def _failed(self, message: str, exit_: Exit = _NO_EXIT) -> Exit:
        self._note(message)
        wall_s = time.monotonic() - self._start
        return replace(exit_, exit_code=126, message=message, result_json="", wall_s=wall_s)


def _writable(binds: list[Bind], root: Path, cwd: Path, path: str, name: str) -> Below:
    """An empty folder that the program sees at `path`."""
    if not path.startswith("/"):
        (cwd / path).mkdir(parents=True, exist_ok=True)
        return Below(cwd, path)
    folder = root / name
    folder.mkdir()
    binds.append(Bind(folder, path, writable=True))
    return Below(folder)


def _forget(future: asyncio.Future[Any]) -> None:
    """Nobody waits for it any more; what went wrong is said nowhere else."""
    error = None if future.cancelled() else future.exception()
    if error is not None and not isinstance(error, HaltedError):
        log.warning("given up work failed", detail=str(error))
