"""`hyper mount | umount | commit`: a dataset as a folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from hyper.cli import complete, output
from hyper.errors import InvalidArgumentError

_Json = Annotated[bool, typer.Option("--json", help="print JSON")]
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("mount")(mount)
    app.command("umount")(umount)
    app.command("commit")(commit)


def mount(
    address: Annotated[
        str, typer.Argument(help="tenant/name[@version]", autocompletion=complete.datasets)
    ],
    folder: Annotated[Path, typer.Argument(help="an empty folder")],
    write: Annotated[
        bool, typer.Option("--write", help="take changes; they are committed at the unmount")
    ] = False,
    commit_every: Annotated[
        str | None, typer.Option(help="commit at this interval too: 30s, 5m, 1h")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="folder of the cache")] = None,
    cache_size: Annotated[str, typer.Option(help="cap of the cache on disk; 0: none")] = "10G",
    memory: Annotated[str, typer.Option(help="cap of what is kept in memory")] = "64M",
    json_output: _Json = False,
) -> None:
    """Show a version as a folder; with --write, make what is written there the next version."""
    from hyper.mount.process import Options
    from hyper.mount.process import mount as start

    if commit_every is not None and not write:
        raise InvalidArgumentError("--commit-every goes with --write")
    options = Options(
        address=address, folder=str(folder), write=write,
        commit_every_s=_duration(commit_every) if commit_every else 0.0,
        cache=str(cache.resolve()) if cache else "",
        disk_bytes=_size(cache_size), memory_bytes=_size(memory),
    )  # fmt: skip
    facts = start(options)
    output.emit(facts, f"{address} is at {folder}; `hyper umount {folder}`", as_json=json_output)


def umount(
    folder: Annotated[Path, typer.Argument(help="where the dataset is mounted")],
    json_output: _Json = False,
) -> None:
    """Commit what was written and unmount."""
    from hyper.mount.process import umount as stop

    answer = stop(folder)
    number = answer.get("version")
    text = f"{folder} is unmounted" + (f"; committed as version {number}" if number else "")
    output.emit(answer, text, as_json=json_output)


def commit(
    target: Annotated[str, typer.Argument(help="a mounted folder, or a session's resource name")],
    message: Annotated[str, typer.Option("--message", "-m", help="of the version")] = "",
    json_output: _Json = False,
) -> None:
    """Make what was written so far a version; the mount goes on."""
    from hyper.client import connect
    from hyper.mount.process import is_mount, order

    if is_mount(Path(target)):
        number = order(Path(target), "commit", message=message)["version"]
    else:
        with connect(notice=output.say) as client:
            number = client.attach(target).commit(message).number
    text = f"committed as version {number}" if number else "nothing has changed"
    output.emit({"version": number}, text, as_json=json_output)


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([kmgt]?)(i?b)?", text.strip().lower())
    if found is None:
        raise InvalidArgumentError(f"{text!r} is no size: write 500M, 10G")
    return int(found[1]) * _UNITS[found[2]]


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise InvalidArgumentError(f"{text!r} is no duration: write 30s, 5m, 1h")
    return float(found[1]) * _SECONDS[found[2]]
