"""Object code on disk, keyed by what it was made from, which CPU and which compiler.

An entry is the digest of its bytes, then the bytes: one that was cut off or damaged is ignored and
written again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path


class CodeCache:
    """Entries in a folder; None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, key: str) -> bytes | None:
        """The entry of `key`, if there is one and it is whole."""
        if self._folder is None:
            return None
        try:
            stored = (self._folder / f"{key}.o").read_bytes()
        except OSError:
            return None
        digest, data = stored[:32], stored[32:]
        return data if hashlib.sha256(data).digest() == digest else None

    def put(self, key: str, data: bytes) -> None:
        """Keep an entry; a folder that cannot be written is not used."""
        if self._folder is None:
            return
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._folder, suffix=".partial")
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            Path(name).replace(self._folder / f"{key}.o")
