"""Where libfuse is, and how to get it without root.

`python -m hyper.mount.libfuse` says where it is; with `--fetch` it first unpacks Debian's package
into `.tools/` beside the virtual environment, where there is none.
"""

from __future__ import annotations

import argparse
import ctypes.util
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyper.errors import FailedPreconditionError, HyperError

_FETCH_S = 120.0


def load() -> Any:
    """The module `mfusepy` with a libfuse of version 3.

    Raises:
        FailedPreconditionError: something is missing; the message says what to install.
    """
    if not Path("/dev/fuse").exists():
        raise _missing("this kernel has no /dev/fuse: load the module `fuse` (in a container: "
                       "--device /dev/fuse --cap-add SYS_ADMIN)")  # fmt: skip
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        raise _missing("mounting without root needs fusermount3: `apt-get install fuse3`")
    path = find()
    if path is None:
        raise _missing(
            "no libfuse 3 on this machine: `apt-get install fuse3`, or as root "
            "`python -m hyper.mount.libfuse --fetch`"
        )
    os.environ["FUSE_LIBRARY_PATH"] = path
    return importlib.import_module("mfusepy")


def find() -> str | None:
    """The shared library's name or path; `HYPER_LIBFUSE` beats all."""
    named = os.environ.get("HYPER_LIBFUSE") or ctypes.util.find_library("fuse3")
    if named:
        return named
    return next((str(path) for path in _unpacked()), None)


def _unpacked() -> Iterator[Path]:
    for root in (Path.cwd(), Path(sys.prefix).parent):
        for folder in ("usr/lib", "lib"):
            yield from sorted((root / ".tools" / folder).glob("*/libfuse3.so.[0-9]"))


def fetch(folder: Path) -> None:
    """Unpack Debian's libfuse into `folder`, without root and without installing it.

    Raises:
        FailedPreconditionError: apt cannot give it.
    """
    names = _run(["apt-cache", "pkgnames", "libfuse3-"]).split()
    libraries = [name for name in names if name.removeprefix("libfuse3-").isdecimal()]
    if not libraries:
        raise _missing("apt knows no libfuse3: run `apt-get update` first")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        _run(["apt-get", "download", max(libraries)], scratch)
        for package in Path(scratch).glob("*.deb"):
            _run(["dpkg", "-x", str(package), str(folder)])


def _run(command: list[str], folder: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _missing(f"{command[0]} does not work here: {error}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise _missing(f"{' '.join(command[:2])} failed: {said[-1] if said else done.returncode}")
    return done.stdout


def _missing(what: str) -> FailedPreconditionError:
    return FailedPreconditionError(what, reason="NOT_FOUND")


def main() -> int:
    """Say where libfuse is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fetch", action="store_true", help="unpack it if there is none")
    if parser.parse_args().fetch and find() is None:
        try:
            fetch(Path(sys.prefix).parent / ".tools")
        except HyperError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    print(find() or "none")
    return 0 if find() else 1


if __name__ == "__main__":
    sys.exit(main())
