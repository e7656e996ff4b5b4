"""`hyper up | down | status | restart | doctor`: the cluster on this machine."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
