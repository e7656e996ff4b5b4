"""Commands in containers: what strangers' programs belong into.

A container has no capabilities, no way to gain privileges, a read-only root, its own /tmp, limits
of memory, processor and processes, and no network unless the recipe asks for one; with one it
reaches neither other tasks nor the address where clouds hand out credentials. It sees of this
machine what its place binds and nothing else.

Its labels say whose it is. An agent that was killed leaves its containers running; the next one
on the machine finds and removes them before it takes any work (`sweep`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

from hyper.context import ATTEMPT, PARAMETERS, TASK
from hyper_servicekit.logs import get_logger
from hyper_worker.core.model import Exit, Job, Key
from hyper_worker.folders import is_held
from hyper_worker.runner.base import Ran, Sink
from hyper_worker.runner.beside import OUTPUT_BYTES_MAX
from hyper_worker.runner.environment import (
    gpu_environment,
    token_environment,
    trace_environment,
)
from hyper_worker.runner.images import Images
from hyper_worker.runner.isolation import block_metadata
from hyper_worker.runner.place import Place
from hyper_worker.runner.template import render
from hyper_worker.runner.trust import Trust, trust_environment
from hyper_worker.runner.usage import Usage

log = get_logger(__name__)
T = TypeVar("T")

CWD = "/hyper/work"
SITE = "/hyper/site"
NETWORK = "hyper-tasks"
BRIDGE = "hyper-tasks0"
_TASK, _HOST, _AGENT = "hyper.task", "hyper.host", "hyper.agent"
_SHM_BYTES = 1 << 30
_DEFAULT_HOST = "unix:///var/run/docker.sock"
_KNOCK_S = 5.0
_HEADER = struct.Struct(">B3xI")
_READ_BYTES = 1 << 16
_LOST_TRIES = 30  # a daemon that restarts is asked again so often, a second apart


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """How containers are made.

    Args:
        user: "uid:gid" that programs run as.
        pids: processes and threads in one, at most.
        memory_bytes: of one whose recipe promises none; 0: no limit.
        tmp_bytes: of its /tmp, which is memory.
        guard_metadata: refuse a network that would reach the cloud's credentials.
    """

    user: str
    pids: int
    memory_bytes: int
    tmp_bytes: int
    guard_metadata: bool


class ContainerRunner:
    """Runs the command of a job in a container of its image.

    Args:
        endpoint: of the scheduler, for `HYPER_ENDPOINT`.
        settings: how containers are made.
        agent: this agent's scratch folder, whose lock says that it lives.
        slots: how many run at once.
    """

    def __init__(self, endpoint: str, settings: ContainerSettings, agent: Path, slots: int) -> None:
        self._endpoint, self._settings, self._agent = endpoint, settings, agent
        self._trust = Trust(agent)
        self.threads = ThreadPoolExecutor(2 * slots + 4, thread_name_prefix="docker")
        self._slots = slots
        self._api: docker.APIClient | None = None
        self._images: Images | None = None
        self._live: set[Container] = set()
        self._lock = asyncio.Lock()
        self._network_ready = False

    async def start(self, jobs: Sequence[Job], place: Place, sink: Sink) -> Container:
        """Start the command of the only job; see `Runner.start`."""
        (job,) = jobs
        command, variables = render(job.command, json.loads(job.parameters_json or "{}"))
        api, images = await self._connect(job.image)
        await images.ensure(job.image, place.registry, partial(_say, sink, job.key))
        if job.around.network:
            await self._make_network(api)
        environment = {**self._environment(job, place), **variables}
        container = Container(self, api, job, sink)
        self._live.add(container)
        try:
            await self.thread(
                partial(self._create_and_start, api, container, command, environment, place)
            )
        except (DockerException, requests.RequestException) as error:
            await container.discard()
            raise ValueError(f"image {job.image} cannot be started: {_reason(error)}") from error
        except BaseException:
            await container.discard()
            raise
        return container

    async def prefetch(self, image: str) -> None:
        """Pull an image before it is needed; failures show when it is."""
        try:
            _, images = await self._connect(image)
            await images.ensure(image, "", lambda text: None)
        except ValueError as error:
            log.debug("image not fetched ahead", image=image, detail=str(error))

    async def close(self) -> None:
        """Remove every container that is left."""
        for container in list(self._live):
            await container.discard()
        self.threads.shutdown(wait=False, cancel_futures=True)
        if self._api is not None:
            self._api.close()

    async def sweep(self) -> int:
        """Remove the containers of agents of this machine that are no more; returns how many.

        Without a daemon there is nothing to remove.
        """
        try:
            api, _ = await self._connect("")
        except ValueError as error:
            log.info("no containers here", detail=str(error))
            return 0
        return await self.thread(partial(self._sweep, api))

    async def thread(self, work: Callable[[], T]) -> T:
        """Do something that blocks."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)

    def forget(self, container: Container) -> None:
        """It is gone."""
        self._live.discard(container)

    async def _connect(self, image: str) -> tuple[docker.APIClient, Images]:
        async with self._lock:
            if self._api is None or self._images is None:
                try:
                    self._api = await self.thread(self._open)
                except (DockerException, requests.RequestException, OSError) as error:
                    asks = f", and the task asks for image {image!r}" if image else ""
                    raise ValueError(
                        f"this worker runs no containers{asks}: no Docker daemon answers "
                        f"({_reason(error)})"
                    ) from error
                self._images = Images(self._api, self.thread, self._agent.parent / "private-images")
            return self._api, self._images

    def _open(self) -> docker.APIClient:
        _knock()
        api = docker.from_env(version="auto", max_pool_size=2 * self._slots + 8).api
        api.ping()
        return api

    def _environment(self, job: Job, place: Place) -> dict[str, str]:
        environment = {
            "PYTHONUNBUFFERED": "1",
            "HOME": "/tmp",
            "TINI_KILL_PROCESS_GROUP": "1",
            **dict(job.env),
            **place.environment,
            **gpu_environment(tuple(range(len(place.gpus))), job.around.needs.gpus),
            TASK: job.key.task,
            ATTEMPT: job.key.attempt,
            PARAMETERS: job.parameters_json,
            **trace_environment(job),
        }
        if job.around.network and self._endpoint:
            environment["HYPER_ENDPOINT"] = self._endpoint
            environment = token_environment(job.token) | trust_environment() | environment
        paths = [SITE] if place.site is not None else []
        if job.workdir:
            paths.append(CWD)
        if paths:
            environment["PYTHONPATH"] = ":".join(paths)
        if "PIP_TARGET" in environment:
            environment["PIP_TARGET"] = SITE
        return environment

    def _create_and_start(
        self,
        api: docker.APIClient,
        container: Container,
        command: str,
        environment: dict[str, str],
        place: Place,
    ) -> None:
        job = container.job
        mounts, own_cwd = self._mounts(job, place)
        if place.site is not None:  # its programs come first; the image says what comes after
            command = f'PATH="{SITE}/bin:$PATH"; {command}'
        made = api.create_container(
            job.image,
            ["-c", f"exec 2>&1\n{command}"],  # one pipe: two would lose the order of their lines
            entrypoint=["/bin/sh"],
            environment=environment,
            user=self._settings.user,
            working_dir=CWD if own_cwd else None,
            labels={_TASK: job.key.task, _HOST: _host(), _AGENT: str(self._agent)},
            host_config=self._host_config(api, job, place, mounts),
            stdin_open=False,
        )
        container.id = made["Id"]
        container.stream = OutputStream(api, container.id)
        api.start(container.id)
        container.pid = int(api.inspect_container(container.id)["State"]["Pid"])

    def _mounts(self, job: Job, place: Place) -> tuple[list[Mount], bool]:
        """What it sees of this machine, and whether it starts in a folder of ours."""
        own_cwd = bool(job.workdir) or job.around.setup != "" or place.site is not None
        own_cwd = own_cwd or any(not each.target.startswith("/") for each in place.binds)
        own_cwd = own_cwd or any(place.cwd.iterdir())
        mounts = []
        if own_cwd:
            self._own(place.cwd)
            mounts.append(Mount(CWD, str(place.cwd), "bind"))
        if place.site is not None:
            writable = "PIP_TARGET" in place.environment
            if writable:
                self._own(place.site)
            mounts.append(Mount(SITE, str(place.site), "bind", read_only=not writable))
        for bind in (*place.binds, *(self._trust.binds() if job.around.network else ())):
            target = bind.target if bind.target.startswith("/") else f"{CWD}/{bind.target}"
            if bind.writable:
                self._own(bind.source)
            elif not bind.target.startswith("/"):
                (place.cwd / bind.target).mkdir(parents=True, exist_ok=True)
            mounts.append(Mount(target, str(bind.source), "bind", read_only=not bind.writable))
        return mounts, own_cwd

    def _own(self, folder: Path) -> None:
        """Give a folder to the user that programs run as."""
        if os.geteuid() != 0:
            return  # it is our own user
        user, _, group = self._settings.user.partition(":")
        for root, _, names in os.walk(folder):
            for name in ("", *names):
                os.chown(Path(root) / name, int(user), int(group), follow_symlinks=False)

    def _host_config(
        self, api: docker.APIClient, job: Job, place: Place, mounts: list[Mount]
    ) -> Any:
        needs = job.around.needs
        memory_bytes = needs.memory_bytes or self._settings.memory_bytes or None
        gpus = [str(index) for index in place.gpus]
        return api.create_host_config(
            mounts=mounts,
            read_only=True,
            tmpfs={"/tmp": f"mode=1777,size={self._settings.tmp_bytes}"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            network_mode=NETWORK if job.around.network else "none",
            pids_limit=self._settings.pids,
            mem_limit=memory_bytes,
            memswap_limit=memory_bytes,
            nano_cpus=int(needs.cpus * 1e9) or None,
            shm_size=min(_SHM_BYTES, memory_bytes // 2) if memory_bytes else _SHM_BYTES,
            ulimits=[Ulimit(name="core", soft=0, hard=0)],
            init=True,
            oom_score_adj=500,
            log_config=LogConfig(type=LogConfig.types.NONE),
            device_requests=[DeviceRequest(device_ids=gpus, capabilities=[["gpu"]])]
            if gpus
            else None,
        )

    async def _make_network(self, api: docker.APIClient) -> None:
        async with self._lock:
            if not self._network_ready:
                await self.thread(partial(self._network, api))
                self._network_ready = True

    def _network(self, api: docker.APIClient) -> None:
        if not api.networks(names=[NETWORK]):
            options = {
                "com.docker.network.bridge.name": BRIDGE,
                "com.docker.network.bridge.enable_icc": "false",
            }
            with contextlib.suppress(APIError):  # another agent made it meanwhile
                api.create_network(NETWORK, driver="bridge", options=options)
        if self._settings.guard_metadata:
            try:
                block_metadata(["iif", BRIDGE])
            except OSError as error:
                raise ValueError(
                    f"this worker gives containers no network, because it cannot keep them from "
                    f"the cloud's credentials ({error}); HYPER_WORKER__GUARD_METADATA=false if "
                    "there are none"
                ) from error

    def _sweep(self, api: docker.APIClient) -> int:
        swept = 0
        found = api.containers(all=True, filters={"label": f"{_HOST}={_host()}"})
        for each in found:
            owner = Path(each["Labels"].get(_AGENT, ""))
            if owner.parent != self._agent.parent or owner == self._agent or is_held(owner):
                continue
            with contextlib.suppress(NotFound):
                api.remove_container(each["Id"], force=True, v=True)
                swept += 1
        if swept:
            log.info("removed containers that a killed agent has left", containers=swept)
        return swept


class OutputStream:
    """stdout and stderr of a container as they come, in order; attached before it starts.

    The daemon's frames: a byte that says which stream, three zeros, the length (big-endian, four
    bytes), the data.
    """

    def __init__(self, api: docker.APIClient, container: str) -> None:
        params = {"stdout": 1, "stderr": 1, "stream": 1, "logs": 0}
        self._file = api.attach_socket(container, params=params)
        self._response, self._socket = self._file._response, getattr(self._file, "_sock", None)
        self._left = 0

    def read(self) -> bytes:
        """Some bytes; none at the end."""
        while not self._left:
            header = self._file.read(_HEADER.size)
            while 0 < len(header) < _HEADER.size and (more := self._file.read(1)):
                header += more
            if len(header) < _HEADER.size:
                return b""
            self._left = _HEADER.unpack(header)[1]
        data: bytes = self._file.read(min(self._left, _READ_BYTES))
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Free the connection; doing so twice is fine."""
        self._response.close()
        self._file.close()
        if self._socket is not None:
            self._socket.close()


class Container:
    """A command in a container; an `Execution`."""

    def __init__(
        self, runner: ContainerRunner, api: docker.APIClient, job: Job, sink: Sink
    ) -> None:
        self.job = job
        self.id = ""
        self.pid = 0
        self.stream: OutputStream | None = None
        self._runner, self._api, self._sink = runner, api, sink
        self._loop = asyncio.get_running_loop()
        self._start = time.monotonic()
        self._killed = False
        self._gone = False

    async def exec(self, arguments: Sequence[str], timeout_s: float) -> Ran:
        """See `Execution`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._runner.thread(partial(self._exec, list(arguments)))
        except TimeoutError:
            raise ValueError(f"the command has not ended in {timeout_s:g} s") from None
        except (DockerException, requests.RequestException) as error:
            raise ValueError(f"the container runs no command: {_reason(error)}") from error

    def _exec(self, arguments: list[str]) -> Ran:
        made = self._api.exec_create(self.id, arguments)["Id"]
        data = b""
        truncated = False
        for part in self._api.exec_start(made, stream=True):
            data += part
            if len(data) > OUTPUT_BYTES_MAX:
                data, truncated = data[-OUTPUT_BYTES_MAX:], True
        return Ran(int(self._api.exec_inspect(made)["ExitCode"] or 0), data, truncated)

    async def wait(self) -> None:
        """Wait for its end, pass on all it has printed, remove it."""
        usage = Usage(self.pid)
        async with asyncio.TaskGroup() as group:
            if self.pid:
                group.create_task(usage.watch())
            state = await self._runner.thread(self._follow)
            usage.stop()
        await self.discard()
        exit_ = Exit(
            exit_code=int(state["ExitCode"]),
            message=self._why(state),
            wall_s=time.monotonic() - self._start,
            cpu_s=usage.cpu_s,
            peak_rss_bytes=usage.peak_rss_bytes,
        )
        self._sink.ended([(self.job.key, exit_)])

    def terminate(self, key: Key) -> None:
        """SIGTERM to its processes."""
        self._signal(signal.SIGTERM)

    def kill(self, key: Key) -> None:
        """SIGKILL to all of it."""
        self._killed = True
        self._signal(signal.SIGKILL)

    async def discard(self) -> None:
        """Remove it, running or not."""
        if not self._gone and self.id:
            try:
                await self._runner.thread(partial(self._remove))
            except (DockerException, requests.RequestException) as error:
                log.error("container not removed", container=self.id, detail=_reason(error))
        if self.stream is not None:
            self.stream.close()
        self._gone = True
        self._runner.forget(self)

    def _remove(self) -> None:
        with contextlib.suppress(NotFound):
            self._api.remove_container(self.id, force=True, v=True)

    def _signal(self, number: signal.Signals) -> None:
        future = self._loop.run_in_executor(self._runner.threads, self._send, number)
        future.add_done_callback(_told)

    def _send(self, number: signal.Signals) -> None:
        try:
            self._api.kill(self.id, number.value)
        except APIError as error:  # it has ended
            log.debug("container not signalled", container=self.id, detail=_reason(error))

    def _follow(self) -> dict[str, Any]:
        """Pass its output on until it ends; its state then. In a thread."""
        assert self.stream is not None
        output = self._sink.output
        with contextlib.suppress(OSError), contextlib.closing(self.stream):
            while data := self.stream.read():
                done = asyncio.run_coroutine_threadsafe(
                    _write(output, self.job.key, data), self._loop
                )
                done.result()  # so that a shouting program waits
        for _ in range(_LOST_TRIES):
            try:
                self._api.wait(self.id)
                state: dict[str, Any] = self._api.inspect_container(self.id)["State"]
            except NotFound:
                return {"ExitCode": 125, "Error": "someone has removed the container"}
            except (DockerException, requests.RequestException):
                time.sleep(1.0)
            else:
                return state
        return {"ExitCode": 125, "Error": "the Docker daemon does not answer any more"}

    def _why(self, state: dict[str, Any]) -> str:
        """A sentence on an end that the program did not choose."""
        if state.get("Error"):
            return f"the container failed: {state['Error']}"
        if state.get("OOMKilled"):
            limit = self.job.around.needs.memory_bytes
            promised = f" of {limit >> 20} MiB, which `hardware: memory` promises" if limit else ""
            return f"out of memory: the kernel killed it at its limit{promised}"
        if state["ExitCode"] == 128 + signal.SIGKILL and not self._killed:
            return "killed by SIGKILL, not by Hyper"
        return ""


def _told(future: asyncio.Future[None]) -> None:
    """A signal has been sent, or could not be."""
    error = None if future.cancelled() else future.exception()
    if error is not None:
        log.warning("container not signalled", detail=str(error))


async def _write(output: Callable[[Key], Any], key: Key, data: bytes) -> None:
    output(key).write(data)


def _say(sink: Sink, key: Key, text: str) -> None:
    sink.output(key).write(f"[hyper: {text}]\n".encode(errors="replace"))


def _knock() -> None:
    """Whether anyone listens at the daemon's socket: its client leaks one where nobody does.

    Raises:
        OSError: nobody does.
    """
    host = os.environ.get("DOCKER_HOST") or _DEFAULT_HOST
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_KNOCK_S)
            try:
                probe.connect(host.removeprefix("unix://"))
            except OSError as error:
                raise OSError(f"{host}: {error.strerror}") from error


def _host() -> str:
    return socket.gethostname()


def _reason(error: Exception) -> str:
    explanation = getattr(error, "explanation", None)
    return str(explanation or error)[:300]
