"""What commands that start a job and wait for it share: whose job, files, Ctrl-C, failures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import typer

from hyper import _transport
from hyper.cli import output, watch
from hyper.client import Client
from hyper.errors import HyperError, InvalidArgumentError, WorkFailedError
from hyper.names import parse_address
from hyper.workflows import Workflow

T = TypeVar("T")


def client_for(destination: str) -> Client:
    """A client whose workflows may write into `tenant/name...`.

    Where calls bear tokens, tasks have one of their workflow's tenant, and write into no other.
    """
    tenant = parse_address(destination).tenant if _transport.token() else None
    return Client(notice=output.say, tenant=tenant)


def check_writable(*files: Path | None) -> None:
    """So that no result is lost for want of a place, after all the work."""
    for file in files:
        if file is None:
            continue
        folder = file.absolute().parent
        if not folder.is_dir():
            raise InvalidArgumentError(f"{file}: its folder does not exist; make it first")
        if file.is_dir():
            raise InvalidArgumentError(f"{file}: is a folder; name a file in it")
        if not os.access(file if file.exists() else folder, os.W_OK):
            raise InvalidArgumentError(f"{file}: you may not write there; name another file")


def follow(
    workflow: Workflow,
    finish: Callable[[watch.Update], T],
    *,
    abandon: Callable[[], None] | None = None,
    hint: str = "",
) -> T:
    """Show a job's stages until `finish`, which waits for its end, returns; Ctrl-C cancels it.

    Args:
        workflow: that is shown.
        finish: called with what is to be told each status.
        abandon: called once the job is cancelled.
        hint: said where the job has not come to its end.

    Raises:
        typer.Exit: the job failed or was cancelled; it has been said why.
        KeyboardInterrupt: as it came, once the job is cancelled.
    """
    display, update = watch.display(workflow.status)
    try:
        with display:
            return finish(update)
    except WorkFailedError:
        watch.summarise(workflow, workflow.status)
        if hint:
            output.say(hint)
        raise typer.Exit(WorkFailedError.exit_code) from None
    except KeyboardInterrupt:
        output.say(f"cancelling {workflow.name}")
        try:
            workflow.cancel("interrupted by the user")
            workflow.wait(timeout_s=30)
            if abandon is not None:
                abandon()
        except HyperError as error:
            output.say(f"warning: {error}; cancel it with `hyper cancel {workflow.name}`")
        if hint:
            output.say(hint)
        raise
