"""`hyper top`: what machines, workflows and tasks do now."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict

from hyper import placement, running
from hyper.cli import output
from hyper.cli.visible import shown, visible_workflows
from hyper.cli.watch import duration
from hyper.client import Client, connect
from hyper.errors import FailedPreconditionError, PermissionDeniedError
from hyper.placement import WorkflowCost
from hyper.status import WorkflowStatus
from hyperapi.scheduler.v1 import workflow_pb2

_EVERY_S = 2.0
_LOOKED_AT = 200  # workflows, newest first, among which those that run are looked for
_HOME, _REST = "\x1b[H", "\x1b[J"  # to the corner; clear what is below
_OWN_SCREEN, _BACK = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


@dataclass(frozen=True, slots=True)
class Sample:
    """What was heard at one moment.

    Args:
        at_s: when, for rates.
        workers: every machine that may be seen.
        workflows: those that have not ended, newest first.
        cost: by resource name of a workflow; None where no machines are launched.
    """

    at_s: float
    workers: Sequence[workflow_pb2.Worker]
    workflows: Sequence[WorkflowStatus]
    cost: dict[str, WorkflowCost] | None


def top(
    once: Annotated[bool, typer.Option("--once", help="do not go on, as into a pipe")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="go on, into a pipe or as JSON too")
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="print JSON on the last line")
    ] = False,
) -> None:
    """Show what machines, workflows and tasks do: live on a terminal, until Ctrl-C."""
    if once and follow:
        raise typer.BadParameter("--once and --follow: choose one")
    live = is_live(sys.stdout.isatty() and not json_output, once=once, term=os.environ.get("TERM"))
    with connect(notice=output.say) as client:
        before: Sample | None = None
        if live:
            with _own_screen():
                for now in _samples(client, time.sleep):
                    _draw(render(now, before), shutil.get_terminal_size().lines)
                    before = now
            return
        for now in _samples(client, time.sleep):
            output.emit(facts(now, before), render(now, before), as_json=json_output)
            if not follow:
                return
            before = now


def is_live(terminal: bool, *, once: bool, term: str | None) -> bool:
    """Whether the screen is drawn anew rather than lines printed."""
    return terminal and not once and term != "dumb"


def render(now: Sample, before: Sample | None = None) -> str:
    """Tables; rates are since `before`, or since a workflow's start."""
    parts = [_machines(now.workers)]
    if now.workflows:
        parts.append(_workflows(now, before))
    tasks = _tasks(now.workers)
    if tasks:
        parts.append(output.table(("TASK", "WORKER", "CPUS", "MEMORY GiB", "TIME"), tasks))
    return "\n\n".join(parts)


def facts(now: Sample, before: Sample | None = None) -> dict[str, Any]:
    """The same for programs."""
    return {
        "workers": [MessageToDict(w, preserving_proto_field_name=True) for w in now.workers],
        "workflows": [
            {
                "id": each.id,
                "name": each.name,
                "state": str(each.state),
                "running": each.tasks.running,
                "succeeded": each.tasks.succeeded,
                "total": each.tasks.total,
                "tasks_per_s": rate(each, now, before),
                "usd": None if now.cost is None else _spent(now, each),
            }
            for each in now.workflows
        ],
    }


def rate(status: WorkflowStatus, now: Sample, before: Sample | None) -> float:
    """Tasks that end well, a second."""
    for earlier in before.workflows if before is not None else ():
        if earlier.name == status.name and before is not None and now.at_s > before.at_s:
            done = status.tasks.succeeded - earlier.tasks.succeeded
            return max(done, 0) / (now.at_s - before.at_s)
    if status.create_time is None:
        return 0.0
    seconds = (datetime.now(UTC) - status.create_time).total_seconds()
    return status.tasks.succeeded / seconds if seconds > 0 else 0.0


def _samples(client: Client, sleep: Callable[[float], None]) -> Iterator[Sample]:
    while True:
        listed = islice(visible_workflows(client), _LOOKED_AT)
        active = [status for status in listed if not status.state.ended]
        yield Sample(time.monotonic(), _workers(client), active, _costs(client))
        sleep(_EVERY_S)


def _workers(client: Client) -> list[workflow_pb2.Worker]:
    try:
        return list(running.usage(client))
    except PermissionDeniedError:  # a tenant's token: machines are the operators'
        return []


def _costs(client: Client) -> dict[str, WorkflowCost] | None:
    try:
        return {each.name: each for each in placement.cost(client).workflows}
    except FailedPreconditionError:  # no machines are launched here
        return None


def _spent(now: Sample, status: WorkflowStatus) -> float:
    found = (now.cost or {}).get(status.name)
    return found.usd if found is not None else 0.0


def _machines(workers: Sequence[workflow_pb2.Worker]) -> str:
    rows: list[tuple[str, ...]] = []
    for worker in workers:
        use = worker.usage
        rows.append(
            (
                worker.name.removeprefix("workers/"),
                f"{worker.running}/{worker.slots}",
                f"{use.cpus:.1f}/{use.cpus_total}",
                f"{_gib(use.memory_bytes)}/{_gib(use.memory_total_bytes)}",
                _gib(use.disk_free_bytes),
                f"{use.received_bytes_per_s / 1e6:.1f}/{use.sent_bytes_per_s / 1e6:.1f}",
                " ".join(f"{gpu.index}:{gpu.utilization:.0%}" for gpu in use.gpus) or "-",
            )
        )
    head = ("WORKER", "BUSY", "CPUS", "MEMORY GiB", "DISK FREE", "NET MB/s IN/OUT", "GPUS")
    return output.table(head, rows)


def _workflows(now: Sample, before: Sample | None) -> str:
    rows: list[Sequence[object]] = []
    for each in now.workflows:
        counts = each.tasks
        age_s = (datetime.now(UTC) - each.create_time).total_seconds() if each.create_time else 0.0
        row: list[object] = [
            shown(each), each.display_name, "paused" if each.paused else each.state.lower(),
            counts.running, f"{counts.succeeded}/{counts.total}",
            f"{rate(each, now, before):.3g}", duration(max(age_s, 0.0)),
        ]  # fmt: skip
        if now.cost is not None:
            row.append(f"{_spent(now, each):.4g}")
        rows.append(row)
    head = ["WORKFLOW", "RECIPE", "STATE", "RUNNING", "DONE", "TASKS/s", "AGE"]
    return output.table([*head, "USD"] if now.cost is not None else head, rows)


def _tasks(workers: Sequence[workflow_pb2.Worker]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for worker in workers:
        for task in worker.usage.tasks:
            parts = task.task.split("/")
            rows.append(
                (
                    "/".join(parts[3::2]) if len(parts) == 8 else task.task,
                    worker.name.removeprefix("workers/"),
                    f"{task.cpus:.2f}",
                    _gib(task.memory_bytes),
                    duration(task.seconds),
                )
            )
    return rows


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f}"


@contextmanager
def _own_screen() -> Iterator[None]:
    """A screen of our own, as `top` has; what was there comes back. Ctrl-C is how it ends."""
    sys.stdout.write(_OWN_SCREEN)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        sys.stdout.write(_BACK)
        sys.stdout.flush()


def _draw(text: str, lines: int) -> None:
    """From the top, without a flicker; what does not fit is left out."""
    shown = text.splitlines()[: max(lines - 1, 1)]
    sys.stdout.write(_HOME + "".join(f"{line}\x1b[K\n" for line in shown) + _REST)
    sys.stdout.flush()


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("top")(top)
