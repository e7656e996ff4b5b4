"""Where an attempt runs and what it sees there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Bind:
    """A folder of this machine that the attempt sees elsewhere."""

    source: Path
    target: str  # absolute
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where an attempt runs.

    Args:
        root: the attempt's own folder, or that of a node's work folder.
        cwd: where it starts; in `root`.
        binds: what it sees beside this machine's files, or beside its image's.
        site: Python packages and programs that a setup has installed, or None.
        environment: on top of what every attempt gets; secrets among it.
        gpus: indices that are its alone.
        registry: "user:password" that fetches the image, or "".
    """

    root: Path
    cwd: Path
    binds: tuple[Bind, ...] = ()
    site: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[int, ...] = ()
    registry: str = ""
