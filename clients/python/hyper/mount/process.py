"""The life of a mount: a process of its own, with a socket that takes orders.

`run/mounts/` below HYPER_HOME has one JSON file for each mount: who serves it, and, where it is
written, the session that holds what was synced and not committed. A mount that finds the session of
one that was killed commits it first: what was `fsync`ed is never lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hyper._files import Tree
from hyper.client import Client, connect
from hyper.cluster.processes import kill, log_tail, spawn
from hyper.config import hyper_home
from hyper.datasets import Dataset
from hyper.errors import (
    FailedPreconditionError,
    HyperError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from hyper.mount import libfuse
from hyper.mount.blocks import BlockCache
from hyper.mount.fuse import serve
from hyper.mount.reading import VersionFiles, default_cache
from hyper.mount.writing import EmptyTree, SessionFiles
from hyper.names import parse_address

log = logging.getLogger("hyper.mount")
_START_S = 60.0
_POLL_S = 0.05
_ORDER_S = 900.0  # a commit uploads everything that was written
_ORDER_BYTES = 65536
_KERNEL_AHEAD_KB = 1024
_MALLOC = ((-8, 1), (-3, 32 * 2**20), (-1, 512 * 2**20))  # one arena, nothing given back at once
_SWITCH_S = 0.0005  # the kernel waits for one thread while others copy bytes: let it in sooner


@dataclass(frozen=True, slots=True)
class Options:
    """What a mount is to be.

    Args:
        address: tenant/name[@version].
        folder: where.
        write: whether changes are taken and become versions.
        commit_every_s: 0: at the unmount, or when `hyper commit` says so.
        cache: folder of the cache.
        disk_bytes: its cap.
        memory_bytes: cap of what is kept in memory.
    """

    address: str
    folder: str
    write: bool = False
    commit_every_s: float = 0.0
    cache: str = ""
    disk_bytes: int = 10 * 2**30
    memory_bytes: int = 64 * 2**20


def mount(options: Options) -> dict[str, Any]:
    """Start a mount; returns when it can be used, with what `status` says of it.

    Raises:
        HyperError: it cannot be; the message says why.
    """
    libfuse.load()
    folder = Path(options.folder).resolve()
    address = parse_address(options.address)
    if address.array is not None or (options.write and address.version is not None):
        wanted = "tenant/name" if options.write else "tenant/name[@version]"
        raise InvalidArgumentError(f"{options.address!r}: a mount shows a dataset: write {wanted}")
    if not folder.is_dir():
        raise InvalidArgumentError(f"{folder} is not a folder")
    if os.path.ismount(folder):
        raise FailedPreconditionError(f"something is mounted at {folder} already: `hyper umount`")
    state = _state_file(folder)
    state.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    said = state.with_suffix(".log")
    text = json.dumps({**asdict(options), "folder": str(folder)})
    said.unlink(missing_ok=True)
    process = spawn(
        [sys.executable, "-m", "hyper.mount.process", text],
        log=said, environment=os.environ, folder=Path("/"),
    )  # fmt: skip
    deadline = time.monotonic() + _START_S
    while not (os.path.ismount(folder) and _answers(folder)):
        if not process.alive or time.monotonic() > deadline:
            kill(process)
            raise FailedPreconditionError(
                f"{options.address} cannot be mounted at {folder}: {log_tail(said, 1)}"
            )
        time.sleep(_POLL_S)
    _read_further(folder)
    return order(folder, "status")


def _read_further(folder: Path) -> None:
    """Let the kernel ask for 1 MiB at a time instead of 128 KiB, where we may say so (root)."""
    device = folder.stat().st_dev
    knob = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    with contextlib.suppress(OSError):
        knob.write_text(str(_KERNEL_AHEAD_KB))


def umount(folder: Path) -> dict[str, Any]:
    """Commit what was written, unmount, and wait for the end; returns the version, if there is one.

    Raises:
        HyperError: what was written cannot be committed; it stays mounted.
    """
    folder = folder.resolve()
    known = _known(folder)
    answer = order(folder, "commit") if known["write"] else {}
    _detach(folder)
    deadline = time.monotonic() + _START_S
    while Path(f"/proc/{known['pid']}").exists() and _state_file(folder).exists():
        if time.monotonic() > deadline:
            raise UnavailableError(f"the mount at {folder} is still in use; see {known['log']}")
        time.sleep(_POLL_S)
    return answer


def order(folder: Path, do: str, **arguments: Any) -> dict[str, Any]:
    """Tell the process of a mount to do something: "status" or "commit"."""
    known = _known(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(_ORDER_S)
        try:
            with _short_path(Path(known["socket"])) as path:
                line.connect(path)
            line.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
            answer = json.loads(line.makefile("rb").readline(_ORDER_BYTES))
        except (OSError, ValueError) as error:
            raise UnavailableError(
                f"the mount at {folder} does not answer ({error}); see {known['log']}"
            ) from error
    if "error" in answer:
        raise FailedPreconditionError(answer["error"])
    found: dict[str, Any] = answer
    return found


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Another name of a socket: the kernel takes at most 107 bytes, and folders lie deep."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def is_mount(folder: Path) -> bool:
    """Whether a mount of ours is known at this folder."""
    return _state_file(folder.resolve()).exists()


def _known(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(_state_file(folder.resolve()).read_text())
    except (OSError, ValueError) as error:
        raise NotFoundError(f"no dataset is mounted at {folder}") from error
    return facts


def _answers(folder: Path) -> bool:
    try:
        order(folder, "status")
    except HyperError:
        return False
    return True


def _state_file(folder: Path) -> Path:
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return hyper_home().expanduser() / "run" / "mounts" / f"{name}.json"


def _detach(folder: Path) -> None:
    """Unmount: by the system call as root, by fusermount3 otherwise."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(folder), 0) == 0:
            return
        why = os.strerror(ctypes.get_errno())
    else:
        command = [shutil.which("fusermount3") or "fusermount3", "-u", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        why = done.stderr.strip()
    raise UnavailableError(f"{folder} cannot be unmounted: {why}; close what uses it")


class Mount:
    """One mount, in its own process."""

    def __init__(self, options: Options, client: Client) -> None:
        self._options = options
        self._client = client
        self._folder = Path(options.folder)
        self._state = _state_file(self._folder)
        self._staging = self._state.with_suffix(".staging")
        self._session: str | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stop = threading.Event()
        self._cache: BlockCache | None = None

    def run(self) -> None:
        """Until it is unmounted."""
        if self._options.write:
            self._recover()
        files = self._files()
        self._socket_path = str(self._state.with_suffix(".sock"))
        Path(self._socket_path).unlink(missing_ok=True)
        with _short_path(Path(self._socket_path)) as path:
            self._socket.bind(path)
        self._socket.listen(4)
        self._save()
        workers = [threading.Thread(target=self._listen, args=(files,), daemon=True)]
        if isinstance(files, SessionFiles) and self._options.commit_every_s:
            workers.append(threading.Thread(target=self._commit_often, args=(files,), daemon=True))
        for worker in workers:
            worker.start()
        try:
            serve(files, self._folder, self._options.address)
        finally:
            self._stop.set()
            self._end(files)

    def _files(self) -> VersionFiles:
        options, client = self._options, self._client
        tree: Tree
        try:
            tree = client.open_dataset(options.address)
        except (NotFoundError, FailedPreconditionError):
            if not options.write:
                raise
            name = f"{parse_address(options.address).dataset_name}/versions/head"
            tree = EmptyTree(client, name)
        cache = self._cache = BlockCache(
            lambda key, start, stop: files.tree.fetch(key, start, stop),
            Path(options.cache) if options.cache else default_cache(),
            disk_bytes=options.disk_bytes, memory_bytes=options.memory_bytes, notice=log.warning,
        )  # fmt: skip
        created_ns = int(tree.created.timestamp() * 1e9) if isinstance(tree, Dataset) else 0
        files: VersionFiles
        if not options.write:
            files = VersionFiles(tree, created_ns, cache)
        else:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir(parents=True, mode=0o700)
            files = SessionFiles(
                client, options.address, tree, created_ns, cache, self._staging, self._began
            )
        return files

    def _recover(self) -> None:
        """Commit what a mount that was killed had synced."""
        try:
            left = json.loads(self._state.read_text()).get("session")
        except (OSError, ValueError):
            return
        if not left:
            return
        try:
            version = self._client.attach(left).commit("recovered from a mount that was killed")
            log.warning("what the last mount had synced is now version %d", version.number)
        except (NotFoundError, FailedPreconditionError) as error:
            log.warning("nothing to recover: %s", error)

    def _began(self, session: str | None) -> None:
        self._session = session
        self._save()

    def _save(self) -> None:
        facts = {
            "pid": os.getpid(), "address": self._options.address, "folder": str(self._folder),
            "write": self._options.write, "session": self._session, "socket": self._socket_path,
            "log": str(self._state.with_suffix(".log")),
        }  # fmt: skip
        partial = self._state.with_suffix(".partial")
        partial.write_text(json.dumps(facts))
        partial.replace(self._state)

    def _listen(self, files: VersionFiles) -> None:
        while not self._stop.is_set():
            try:
                line, _ = self._socket.accept()
            except OSError:
                return  # closed at the end
            with line, contextlib.suppress(OSError):
                request = json.loads(line.makefile("rb").readline(_ORDER_BYTES))
                line.sendall(json.dumps(self._obey(files, request)).encode() + b"\n")

    def _obey(self, files: VersionFiles, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            match request["do"]:
                case "status":
                    known = dict(files.status()) if isinstance(files, SessionFiles) else {}
                    return {
                        "address": self._options.address, "folder": str(self._folder),
                        "pid": os.getpid(), **known,
                    }  # fmt: skip
                case "commit" if isinstance(files, SessionFiles):
                    version = files.commit(str(request.get("message", "")))
                    return {"version": version.number if version else None}
                case _:
                    return {"error": f"this mount cannot {request['do']}: it is read-only"}
        except (HyperError, OSError) as error:
            return {"error": str(error)}

    def _commit_often(self, files: SessionFiles) -> None:
        while not self._stop.wait(self._options.commit_every_s):
            try:
                files.commit("at an interval")
            except (HyperError, OSError) as error:
                log.error("commit failed, tries again in a while: %s", error)

    def _end(self, files: VersionFiles) -> None:
        """Commit and tidy up; what cannot be committed stays in the session and the folder."""
        if isinstance(files, SessionFiles):
            try:
                files.commit("at the unmount")
            except (HyperError, OSError) as error:
                log.error("not committed (%s): the files are in %s", error, self._staging)
                files.end()
                return
            files.end()
            shutil.rmtree(self._staging, ignore_errors=True)
        if self._cache is not None:
            self._cache.close()
        self._socket.close()
        Path(self._socket_path).unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)


def _keep_memory() -> None:
    """Let malloc use the memory of one block for the next.

    By default it maps and unmaps megabytes each time, and the kernel clears every page of them: a
    third of what a read costs. What is kept is bounded by the cap of the cache.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        for option, value in _MALLOC:
            libc.mallopt(option, value)


def main() -> int:
    """Serve one mount; its options are one JSON object."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = Options(**json.loads(sys.argv[1]))
    sys.setswitchinterval(_SWITCH_S)
    _keep_memory()
    try:
        with connect(notice=log.warning) as client:
            Mount(options, client).run()
    except (HyperError, RuntimeError, OSError) as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
