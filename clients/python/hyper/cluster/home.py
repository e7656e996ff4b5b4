"""The data folder of a local cluster: what lies where, who may change it, is there room.

cluster.json        what runs now; gone after `hyper down`
lock                held by the `up`, `down` or `restart` at work
logs/NAME.log       output of each process, appended to
run/NAME.json       ready files
etcd/made-by.json   which etcd made etcd/data
s3/credentials      key pair of this cluster's S3 server (the format of ~/.aws/credentials)
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import errno
import fcntl
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hyper.cluster.processes import ProcessId
from hyper.cluster.programs import Program, S3Credentials
from hyper.config import CLUSTER_FILE, hyper_home
from hyper.errors import FailedPreconditionError, InternalError

MIN_FREE_BYTES = 200_000_000
MAX_LOG_BYTES = 20_000_000  # at the next start it becomes NAME.log.1
_PROFILE = "default"


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below HYPER_HOME; `root` is absolute."""

    root: Path

    @classmethod
    def default(cls) -> Home:
        """The folder that HYPER_HOME names, or `~/.hyper`."""
        return cls(hyper_home().expanduser().resolve())

    @property
    def cluster_file(self) -> Path:
        """What runs now."""
        return self.root / CLUSTER_FILE

    @property
    def run(self) -> Path:
        """Ready files and sockets of what runs now."""
        return self.root / "run"

    @property
    def etcd_data(self) -> Path:
        """etcd's own folder."""
        return self.root / "etcd" / "data"

    @property
    def made_by(self) -> Path:
        """Which etcd made `etcd_data`."""
        return self.root / "etcd" / "made-by.json"

    @property
    def s3_data(self) -> Path:
        """SeaweedFS's own folder."""
        return self.root / "s3" / "data"

    @property
    def s3_config(self) -> Path:
        """SeaweedFS's identities; secret."""
        return self.root / "s3" / "config.json"

    @property
    def credentials(self) -> Path:
        """The key pair for S3; secret."""
        return self.root / "s3" / "credentials"

    @property
    def secrets_key(self) -> Path:
        """The key of the tenants' secrets; secret."""
        return self.root / "secrets.key"

    def log(self, name: str) -> Path:
        """The log of one process."""
        return self.root / "logs" / f"{name}.log"

    def ready_file(self, name: str) -> Path:
        """The ready file of one service."""
        return self.run / f"{name}.json"

    def make(self) -> None:
        """Create the folders.

        Raises:
            FailedPreconditionError: this user cannot, or the disk is full.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in ("logs", "run", "etcd", "s3/data"):
                (self.root / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.root / "run" / ".probe"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise disk_full(self.root) from error
            raise FailedPreconditionError(
                f"HYPER_HOME {self.root} cannot be written ({error.strerror}): "
                "set HYPER_HOME to a folder of yours"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who changes the cluster.

        Raises:
            FailedPreconditionError: another `hyper up`, `down` or `restart` is at work.
        """
        lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                pid = os.read(lock, 20).decode("ascii", "replace") or "?"
                raise FailedPreconditionError(
                    f"another `hyper` command (pid {pid}) is changing the cluster in {self.root}: "
                    "wait for it, or choose another HYPER_HOME"
                ) from error
            os.ftruncate(lock, 0)
            with contextlib.suppress(OSError):  # for people only; `down` works on a full disk
                os.pwrite(lock, str(os.getpid()).encode(), 0)
            try:
                yield
            finally:
                os.ftruncate(lock, 0)
        finally:
            os.close(lock)

    def busy(self) -> bool:
        """Whether a command is changing the cluster."""
        try:
            pid = int((self.root / "lock").read_text())
        except (OSError, ValueError):
            return False
        return ProcessId.of(pid) is not None

    def free_bytes(self) -> int:
        """Room on the disk for this user."""
        return shutil.disk_usage(self.root).free

    def begin_log(self, name: str) -> tuple[Path, int]:
        """The log of a process about to start, and where its output will begin."""
        log = self.log(name)
        size = log.stat().st_size if log.exists() else 0
        if size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
            size = 0
        return log, size

    def check_room(self) -> None:
        """Refuse a disk that is nearly full.

        Raises:
            FailedPreconditionError: fewer than 200 MB are free.
        """
        if self.free_bytes() < MIN_FREE_BYTES:
            raise disk_full(self.root)


def disk_full(folder: Path) -> FailedPreconditionError:
    """The error for a disk without room."""
    try:
        free = f"{shutil.disk_usage(folder).free // 1_000_000} MB free"
    except OSError:
        free = "no room"
    return FailedPreconditionError(
        f"the disk of {folder} is full ({free}, a cluster needs {MIN_FREE_BYTES // 1_000_000}): "
        "free some space, or set HYPER_HOME to a folder on another disk",
        reason="DISK_FULL",
    )


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads; complete or not there at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)


def load_or_make_credentials(home: Home) -> S3Credentials:
    """The cluster's key pair, made at its first start."""
    found = load_credentials(home)
    if found is not None:
        return found
    made = S3Credentials(secrets.token_hex(10).upper(), secrets.token_urlsafe(30))
    file = configparser.ConfigParser(interpolation=None)
    file[_PROFILE] = {
        "aws_access_key_id": made.access_key,
        "aws_secret_access_key": made.secret_key,
    }
    text = io.StringIO()
    file.write(text)
    write_private(home.credentials, text.getvalue())
    return made


def load_or_make_secrets_key(home: Home) -> str:
    """The key that the tenants' secrets are encrypted with, made when first needed."""
    if not home.secrets_key.exists():
        write_private(home.secrets_key, base64.b64encode(secrets.token_bytes(32)).decode())
    return home.secrets_key.read_text()


def load_credentials(home: Home) -> S3Credentials | None:
    """The cluster's key pair; None before its first start.

    Raises:
        InternalError: the file is damaged.
    """
    if not home.credentials.exists():
        return None
    file = configparser.ConfigParser(interpolation=None)
    try:
        file.read_string(home.credentials.read_text())
        profile = file[_PROFILE]
        return S3Credentials(profile["aws_access_key_id"], profile["aws_secret_access_key"])
    except (configparser.Error, KeyError) as error:
        raise InternalError(
            f"{home.credentials} is damaged ({error}): restore it, or remove it to get a new pair"
        ) from error


@dataclass(frozen=True, slots=True)
class MadeBy:
    """Which etcd made the data folder, where it was, and the name of its member."""

    version: str
    source: str
    name: str
    path: Path

    @property
    def series(self) -> str:
        """Major and minor version."""
        return ".".join(self.version.split(".")[:2])


def load_made_by(home: Home) -> MadeBy | None:
    """What made the data folder; None if there is no data folder yet.

    Raises:
        FailedPreconditionError: there are data, but nothing tells whose.
    """
    if not home.etcd_data.exists():
        return None
    try:
        facts = json.loads(home.made_by.read_text())
        return MadeBy(facts["version"], facts["source"], facts["name"], Path(facts["path"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FailedPreconditionError(
            f"{home.made_by} does not say which etcd made {home.etcd_data} ({error}): restore it, "
            "or start over with another HYPER_HOME"
        ) from error


def record_made_by(home: Home, program: Program, name: str) -> None:
    """Record which etcd makes, or uses, the data folder."""
    facts = {
        "version": program.version,
        "source": program.source,
        "name": name,
        "path": str(program.path),
    }
    write_private(home.made_by, json.dumps(facts) + "\n")
