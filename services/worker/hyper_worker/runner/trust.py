"""The certificates by which tasks call the cluster, where they cannot read the agent's files.

Tasks in containers see nothing of this machine, isolated processes are another user's. They get
copies of what the agent's `HYPER_TLS_` variables name, at a place of their own. The key among them
is the agent's: a caller's (`hyper certs --client`), never a service's.
"""

from __future__ import annotations

import os
from pathlib import Path

from hyper.errors import FailedPreconditionError
from hyper_worker.runner.place import Bind

TLS = "/hyper/tls"
_FILES = {
    "HYPER_TLS_CA": "ca.pem",
    "HYPER_TLS_CERT": "cert.pem",
    "HYPER_TLS_KEY": "key.pem",
    "HYPER_S3_CA": "s3-ca.pem",
}


def trust_environment() -> dict[str, str]:
    """Where the copies are, for a task that has the bind of `Trust`."""
    return {name: f"{TLS}/{file}" for name, file in _FILES.items() if os.environ.get(name)}


class Trust:
    """Makes the copies.

    Args:
        scratch: the agent's own folder, which tasks cannot enter.
    """

    def __init__(self, scratch: Path) -> None:
        self._folder = scratch / ".tls"

    def binds(self) -> tuple[Bind, ...]:
        """What a task has to see; nothing without TLS. The files may have been renewed meanwhile.

        Raises:
            FailedPreconditionError: one cannot be read.
        """
        found = {file: os.environ[name] for name, file in _FILES.items() if os.environ.get(name)}
        if not found:
            return ()
        self._folder.mkdir(mode=0o755, exist_ok=True)
        for file, source in found.items():
            try:
                data = Path(source).read_bytes()
            except OSError as error:
                raise FailedPreconditionError(
                    f"the worker's {source} cannot be read ({error.strerror})"
                ) from error
            target = self._folder / file
            if not target.exists() or target.read_bytes() != data:
                partial = target.with_suffix(".partial")
                partial.write_bytes(data)
                partial.chmod(0o444)  # for whatever user a task is
                partial.replace(target)
        return (Bind(self._folder, TLS),)
