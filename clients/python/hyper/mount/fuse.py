"""The kernel's side of a mount: mfusepy, with folders listed together with their attributes."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Any

from hyper.mount.libfuse import load
from hyper.mount.reading import VersionFiles, options

log = logging.getLogger("hyper.mount")
_THREADS = 10
_READDIR_PLUS = 1  # of the kernel: attributes are wanted too
_FILL_PLUS = 2  # of libfuse: here they are


def serve(files: VersionFiles, folder: Path, name: str) -> None:
    """Mount `files` at `folder`; returns once it is unmounted, or SIGTERM came.

    Raises:
        FailedPreconditionError: no libfuse.
        RuntimeError: libfuse could not mount; it says why on stderr.
    """
    mfusepy = load()

    class Fuse(mfusepy.FUSE):  # type: ignore[misc, name-defined]  # known once libfuse is found
        def readdir_fuse_3(
            self, path: bytes, buffer: Any, fill: Any, offset: int, info: Any, flags: int
        ) -> int:
            entry = mfusepy.c_stat()
            plus = _FILL_PLUS if flags & _READDIR_PLUS else 0
            for child, attributes, _ in files.readdir(path.decode("utf-8", "surrogateescape"), 0):
                known = attributes is not None
                if attributes is not None:
                    mfusepy.set_st_attrs(entry, attributes, use_ns=True)
                encoded = child.encode("utf-8", "surrogateescape")
                if fill(buffer, encoded, entry if known else None, 0, plus if known else 0):
                    break
            return 0

        def read(self, path: bytes | None, buffer: Any, size: int, offset: int, info: Any) -> int:
            where = None if path is None else path.decode("utf-8", "surrogateescape")
            data = files.read(where, size, offset, info.contents.fh)
            if isinstance(data, memoryview):
                ctypes.memmove(buffer, _address(data), len(data))
            else:
                ctypes.memmove(buffer, data, len(data))
            return len(data)

    def init_with_config(connection: Any, config: Any) -> None:
        config.hard_remove = 1  # a deleted file that is open needs no other name
        config.nullpath_ok = int(files.writable)
        for key, value in options(writable=files.writable).items():
            setattr(config, key, value)

    files.init_with_config = init_with_config  # type: ignore[attr-defined]  # mfusepy looks for it
    Fuse(
        files, str(folder), foreground=True, ro=not files.writable, fsname=f"hyper:{name}",
        subtype="hyper", default_permissions=True, max_threads=_THREADS,
    )  # fmt: skip


def _address(view: memoryview) -> int:
    """Where the bytes of a read-only view begin."""
    import numpy as np

    return int(np.frombuffer(view, np.uint8).ctypes.data) if len(view) else 0
