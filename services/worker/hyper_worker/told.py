"""Certificates that the scheduler hands to machines it launches, which have none of their files.

They come as PEM in the environment (`HYPER_TLS_CA_PEM`, ...) and are put where everything looks for
them: into files that `HYPER_TLS_CA`, ... name.
"""

from __future__ import annotations

import os
from pathlib import Path

NAMES = ("HYPER_TLS_CA", "HYPER_TLS_CERT", "HYPER_TLS_KEY", "HYPER_S3_CA")


def write_certificates(folder: Path) -> None:
    """Move what the environment holds into files; a file that is named already stays the one."""
    for name in NAMES:
        text = os.environ.pop(f"{name}_PEM", "")
        if not text or os.environ.get(name):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name.lower()}.pem"
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(text)
        os.environ[name] = str(file)
