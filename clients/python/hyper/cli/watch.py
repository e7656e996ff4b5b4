"""Watching a workflow from a terminal: a bar an experiment, or a line a change."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import typer

from hyper.cli import output
from hyper.cli.visible import shown
from hyper.status import ExperimentStatus, RunState, WorkflowStatus
from hyper.workflows import Workflow, explain_failure

INTERRUPTED = 130
_STYLES = {
    RunState.PENDING: "dim",
    RunState.RUNNING: "cyan",
    RunState.SUCCEEDED: "green",
    RunState.FAILED: "red",
    RunState.CANCELLED: "yellow",
}


def watch(workflow: Workflow) -> WorkflowStatus:
    """Show the workflow until it ends; says why if it failed.

    Ctrl-C leaves it running and says how to come back.

    Raises:
        typer.Exit: 130 after Ctrl-C.
    """
    try:
        bars, update = display(workflow.status)
        with bars:
            status = workflow.wait(on_update=update)
    except KeyboardInterrupt:
        name = shown(workflow.status)
        output.say(
            f"\ninterrupted; {name} goes on running: watch it with "
            f"`hyper ps {name} --watch`, stop it with "
            f"`hyper cancel {name}`"
        )
        raise typer.Exit(INTERRUPTED) from None
    summarise(workflow, status)
    return status


def summarise(workflow: Workflow, status: WorkflowStatus) -> None:
    """One line on how it ended; the failing task and its log's last lines if it failed."""
    seconds = ""
    if status.create_time is not None and status.end_time is not None:
        seconds = f" after {duration((status.end_time - status.create_time).total_seconds())}"
    lost = f", {status.tasks.lost} lost with their nodes" if status.tasks.lost else ""
    output.say(
        f"{status.id} {status.state.lower()}{seconds}: "
        f"{status.tasks.succeeded} of {status.tasks.total} tasks done{lost}"
    )
    if status.state is not RunState.FAILED:
        return
    task, tail = explain_failure(workflow)
    if task is not None:
        output.fail(f"task {task.id} failed: {task.message or status.message}")
    else:
        output.fail(status.message or "no reason was given")
    for line in tail:
        output.say(f"  | {line}")
    if task is not None:
        own = shown(status) == status.id
        output.say(f"all of it: `hyper logs {f'{status.id}/{task.id}' if own else task.name}`")


Update = Callable[[WorkflowStatus], None]
Display = tuple[AbstractContextManager[object], Update]


def display(first: WorkflowStatus) -> Display:
    """What fits: bars for a person at a terminal, lines for a file."""
    return bars(first) if output.interactive() else lines()


def bars(first: WorkflowStatus) -> Display:
    """A live display with one bar an experiment."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        Elapsed(),
        console=output.console(),
    )
    width = max((len(e.id) for e in first.experiments), default=0)
    rows = {
        e.name: progress.add_task(e.id, total=max(e.tasks.total, 1), start=False, note="")
        for e in first.experiments
    }

    said = [""]

    def update(status: WorkflowStatus) -> None:
        if status.waiting != said[0]:
            said[0] = status.waiting
            progress.console.print(f"waiting: {status.waiting}" if status.waiting else "goes on")
        for experiment in status.experiments:
            row = rows[experiment.name]
            if experiment.start_time is not None:
                progress.start_task(row)
            style = _STYLES[experiment.state]
            progress.update(
                row,
                total=max(experiment.tasks.total, 1),
                completed=experiment.tasks.succeeded,
                description=f"[{style}]{experiment.id:<{width}}[/]",
                note=note(experiment),
            )
            if experiment.state.ended:
                progress.stop_task(row)

    return progress, update


def lines() -> Display:
    """One line on stderr whenever an experiment changes its state, or why tasks wait."""
    seen: dict[str, RunState] = {}
    said = [""]

    def update(status: WorkflowStatus) -> None:
        if status.waiting != said[0]:
            said[0] = status.waiting
            output.say(f"waiting: {status.waiting}" if status.waiting else "goes on")
        for experiment in status.experiments:
            if seen.get(experiment.id, RunState.PENDING) is not experiment.state:
                done = f"{experiment.tasks.succeeded} of {experiment.tasks.total} tasks done"
                if experiment.start_time is not None and experiment.end_time is not None:
                    seconds = (experiment.end_time - experiment.start_time).total_seconds()
                    done += f" in {duration(seconds)}"
                if experiment.tasks.lost:
                    done += f", {experiment.tasks.lost} lost with their nodes"
                output.say(f"{experiment.id} {experiment.state.lower()}: {done}")
            seen[experiment.id] = experiment.state

    return nullcontext(), update


def note(experiment: ExperimentStatus) -> str:
    """What else there is to say of an experiment: running, failed, lost."""
    counts = experiment.tasks
    parts = [
        f"{count} {word}"
        for count, word in (
            (counts.running, "running"),
            (counts.failed, "failed"),
            (counts.cancelled, "cancelled"),
            (counts.lost, "lost"),
        )
        if count
    ]
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A span of time for people: "4.2 s", "3m12s", "2h05m", "3d04h"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    return f"{hours // 24}d{hours % 24:02d}h"
