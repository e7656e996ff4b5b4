"""`hyper submit | ps | tasks | logs | cancel | retry | pause | resume | nodes | drain`."""

from __future__ import annotations

import itertools
import re
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from hyper.cli import complete, output
from hyper.cli.targets import Target, parse_target
from hyper.cli.visible import shown, visible_workflows
from hyper.cli.watch import duration, note, watch
from hyper.client import Client, connect
from hyper.errors import (
    DeadlineError,
    HyperError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from hyper.status import (
    RunState,
    TaskInfo,
    TaskState,
    WorkflowStatus,
    to_json,
)
from hyper.workflows import LOG_SOURCES, Workflow, read_log

Json = Annotated[bool, typer.Option("--json", help="print JSON on the last line")]
Name = Annotated[
    str,
    typer.Argument(help="a workflow, as `hyper ps` names it", autocompletion=complete.workflows),
]
_FOLLOW_POLL_S = 1.0
_MESSAGE_CHARS = 120  # of a row; `hyper ps WORKFLOW` and --json show all of it


def _connect() -> Client:
    return connect(notice=output.say)


def submit(
    recipe: Annotated[Path, typer.Argument(help="a recipe (YAML)")],
    watching: Annotated[
        bool, typer.Option("--watch", "-w", help="show progress until it ends")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="only say whether the recipe is right")
    ] = False,
    request_id: Annotated[
        str | None, typer.Option(help="UUID; the same one again starts nothing new")
    ] = None,
    json_output: Json = False,
) -> None:
    """Start a recipe."""
    with _connect() as client:
        if check:
            status = client.check(recipe)
            text = f"{recipe}: {status.tasks.total} tasks in {len(status.experiments)} experiments"
            output.emit(_plain(status), text, as_json=json_output)
            return
        workflow = _submit(client, recipe, request_id or str(uuid.uuid4()))
        status = workflow.status
        if not watching:
            output.say(f"{status.tasks.total} tasks; watch them with `hyper ps {status.id} -w`")
            output.emit(_plain(status), status.id, as_json=json_output)
            return
        output.say(f"submitted {status.id}: {status.tasks.total} tasks")
        _finish(workflow, as_json=json_output)


def _submit(client: Client, recipe: Path, request_id: str) -> Workflow:
    """Submit; says how to find out what has become of it if no answer comes."""
    again = f"`hyper submit {recipe} --request-id {request_id}`"
    try:
        return client.submit(recipe, request_id=request_id)
    except (KeyboardInterrupt, UnavailableError, DeadlineError):
        output.say(f"no answer came, so it may run or not: {again} finds it, or starts it once")
        raise


def ps(
    workflow: Annotated[
        str | None, typer.Argument(help="show its experiments", autocompletion=complete.workflows)
    ] = None,
    watching: Annotated[
        bool, typer.Option("--watch", "-w", help="show progress until it ends")
    ] = False,
    limit: Annotated[int, typer.Option(help="of workflows, newest first", min=1)] = 50,
    json_output: Json = False,
) -> None:
    """List workflows, or the experiments of one."""
    if watching and workflow is None:
        raise typer.BadParameter("--watch needs a workflow")
    with _connect() as client:
        if workflow is None:
            statuses = list(itertools.islice(visible_workflows(client), limit))
            text = output.table(
                ("WORKFLOW", "RECIPE", "STATE", "DONE", "FAILED", "AGE", "MESSAGE"),
                [_workflow_row(status) for status in statuses],
            )
            none = "no workflows yet; start one with `hyper submit RECIPE`"
            output.emit(
                [_plain(s) for s in statuses], text if statuses else none, as_json=json_output
            )
            return
        handle = client.workflow(workflow)
        if watching:
            _finish(handle, as_json=json_output)
            return
        output.emit(_plain(handle.status), _experiments(handle.status), as_json=json_output)


def tasks(
    target: Annotated[
        str,
        typer.Argument(
            help="WORKFLOW or WORKFLOW/EXPERIMENT[/INDEX]", autocompletion=complete.workflows
        ),
    ],
    state: Annotated[
        str | None, typer.Option(help="pending, running, succeeded, failed or cancelled")
    ] = None,
    limit: Annotated[int, typer.Option(help="of tasks", min=1)] = 200,
    json_output: Json = False,
) -> None:
    """List tasks, or show one with its result."""
    wanted = _task_state(state)
    with _connect() as client:
        place = parse_target(target)
        handle = client.workflow(place.workflow)
        if place.index is not None and place.experiment is not None:
            task = handle.task(place.experiment, place.index)
            output.emit(to_json(task), _one_task(task), as_json=json_output)
            return
        found = list(itertools.islice(_tasks(handle, place.experiment, wanted), limit + 1))
        if len(found) > limit:
            output.say(f"only the first {limit}; see --limit, --state")
            del found[limit:]
        text = output.table(
            ("TASK", "STATE", "WORKER", "FAILURES", "LOSSES", "TIME", "MESSAGE"),
            [_task_row(task) for task in found],
        )
        output.emit([to_json(task) for task in found], text, as_json=json_output)


def logs(
    target: Annotated[
        str,
        typer.Argument(
            help="WORKFLOW/EXPERIMENT/INDEX, or WORKFLOW for all of its tasks",
            autocompletion=complete.workflows,
        ),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on while they grow")] = False,
    limit: Annotated[int, typer.Option(help="of tasks", min=1)] = 100,
    source: Annotated[
        str, typer.Option(help="program (output), os (events), usage (CPU, memory, I/O)")
    ] = "program",
    since: Annotated[
        str | None, typer.Option(help="only what is newer: 90s, 5m, 2h ago, or an ISO time")
    ] = None,
    json_output: Json = False,
) -> None:
    """Print what tasks have written."""
    start = None if since is None else _moment(since)
    if source not in LOG_SOURCES:
        raise InvalidArgumentError(f"--source {source!r} is none of {', '.join(LOG_SOURCES)}")
    if follow and json_output:
        raise typer.BadParameter("--follow prints as it goes, --json once: choose one")
    with _connect() as client:
        place = parse_target(target)
        handle = client.workflow(place.workflow)
        if json_output:
            output.emit(_logs_plain(handle, place, limit, source, start), "", as_json=True)
            return
        if place.index is not None and place.experiment is not None:
            name = f"{handle.name}/experiments/{place.experiment}/tasks/{place.index}"
            _copy(read_log(client, name, follow=follow, source=source, since=start))
            return
        _many_logs(handle, place, follow=follow, limit=limit, source=source, since=start)


def cancel(
    workflow: Name,
    reason: Annotated[str, typer.Option(help="is shown by `hyper ps`")] = "",
    json_output: Json = False,
) -> None:
    """Stop a workflow; running tasks get SIGTERM, then SIGKILL."""
    with _connect() as client:
        status = client.workflow(workflow).cancel(reason)
        text = f"{status.id} {status.state.lower()}"
        if not status.state.ended:
            text = f"{status.id} is being cancelled: {status.tasks.running} tasks are told to end"
        output.emit(_plain(status), text, as_json=json_output)


def retry(
    workflow: Name,
    watching: Annotated[
        bool, typer.Option("--watch", "-w", help="show progress until it ends")
    ] = False,
    json_output: Json = False,
) -> None:
    """Run the failed and cancelled tasks of a workflow again."""
    with _connect() as client:
        handle = client.workflow(workflow)
        status = handle.retry()
        if watching:
            _finish(handle, as_json=json_output)
            return
        output.emit(_plain(status), f"{status.id} {status.state.lower()}", as_json=json_output)


def pause(workflow: Name, json_output: Json = False) -> None:
    """Start nothing more of a workflow until `hyper resume`; what runs goes on."""
    with _connect() as client:
        status = client.workflow(workflow).pause()
        text = f"{status.id} is paused: {status.tasks.running} tasks still run"
        output.emit(_plain(status), text, as_json=json_output)


def resume(workflow: Name, json_output: Json = False) -> None:
    """Go on with a paused workflow."""
    with _connect() as client:
        status = client.workflow(workflow).resume()
        output.emit(_plain(status), f"{status.id} goes on", as_json=json_output)


def nodes(json_output: Json = False) -> None:
    """List the machines that run tasks."""
    with _connect() as client:
        workers = client.workers()
        rows = [
            (
                worker.name.removeprefix("workers/"),
                worker.state.lower(),
                f"{worker.running}/{worker.slots}",
                f"{worker.heartbeat_age_s:.1f} s ago",
                worker.version,
                ",".join(f"{key}={value}" for key, value in sorted(worker.labels.items())),
            )
            for worker in workers
        ]
        text = output.table(("WORKER", "STATE", "BUSY", "HEARD", "VERSION", "LABELS"), rows)
        output.emit([to_json(worker) for worker in workers], text, as_json=json_output)


def drain(
    worker: Annotated[str, typer.Argument(help="as `hyper nodes` names it")],
    json_output: Json = False,
) -> None:
    """Let a worker finish what it runs and give it nothing new."""
    with _connect() as client:
        info = client.drain(worker)
        name = info.name.removeprefix("workers/")
        text = f"{name} {info.state.lower()}: {info.running} tasks still run there"
        output.emit(to_json(info), text, as_json=json_output)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (submit, ps, tasks, logs, cancel, retry, pause, resume, nodes, drain):
        app.command(command.__name__)(command)


def _finish(workflow: Workflow, *, as_json: bool) -> None:
    """Watch to the end; exit status 1 unless it succeeded."""
    status = watch(workflow)
    if as_json:
        output.emit(_plain(status), "", as_json=True)
    if status.state is not RunState.SUCCEEDED:
        raise typer.Exit(1)


def _plain(status: WorkflowStatus) -> Any:
    plain = to_json(status)
    plain["id"] = status.id
    return plain


def _age(since: datetime | None, until: datetime | None = None) -> str:
    if since is None:
        return "-"
    return duration(max(((until or datetime.now(UTC)) - since).total_seconds(), 0))


def _workflow_row(status: WorkflowStatus) -> tuple[object, ...]:
    counts = status.tasks
    return (
        shown(status),
        status.display_name,
        "paused" if status.paused and not status.state.ended else status.state.lower(),
        f"{counts.succeeded}/{counts.total}",
        counts.failed,
        _age(status.create_time),
        _clipped(status.message or status.waiting),
    )


def _clipped(message: str) -> str:
    """A message that fits into a row."""
    line = " ".join(message.split())
    return line if len(line) <= _MESSAGE_CHARS else f"{line[: _MESSAGE_CHARS - 1]}…"


def _experiments(status: WorkflowStatus) -> str:
    rows = [
        (
            experiment.id,
            experiment.state.lower(),
            f"{experiment.tasks.succeeded}/{experiment.tasks.total}",
            _age(experiment.start_time, experiment.end_time),
            ", ".join(part for part in (note(experiment), experiment.message) if part),
        )
        for experiment in status.experiments
    ]
    head = f"{status.id} ({status.display_name}) {status.state.lower()}"
    if status.message:
        head += f": {status.message}"
    if status.waiting:
        head += f"\nwaiting: {status.waiting}"
    return f"{head}\n{output.table(('EXPERIMENT', 'STATE', 'DONE', 'TIME', 'NOTE'), rows)}"


def _task_row(task: TaskInfo) -> tuple[object, ...]:
    return (
        task.id,
        task.state.lower(),
        task.worker.removeprefix("workers/") or "-",
        task.failures,
        task.losses,
        _age(task.start_time, task.end_time),
        _clipped(task.message),
    )


def _one_task(task: TaskInfo) -> str:
    rows = [(key.upper(), value) for key, value in to_json(task).items() if value not in (None, "")]
    return "\n".join(f"{key:<12} {value}" for key, value in rows)


def _task_state(text: str | None) -> TaskState | None:
    if text is None:
        return None
    try:
        return TaskState(text.upper())
    except ValueError:
        states = ", ".join(state.lower() for state in TaskState)
        raise InvalidArgumentError(f"--state {text!r} is none of {states}") from None


def _tasks(
    workflow: Workflow, experiment: str | None, state: TaskState | None
) -> Iterator[TaskInfo]:
    names = [experiment] if experiment else [e.id for e in workflow.status.experiments]
    for name in names:
        yield from workflow.tasks(name, state)


def _copy(parts: Iterable[bytes]) -> int:
    """To stdout as they are; returns how many bytes."""
    size = 0
    for part in parts:
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        size += len(part)
    return size


def _moment(text: str) -> datetime:
    """`5m` (ago), or an ISO time."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text)
    if match:
        seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
        return datetime.now(UTC) - timedelta(seconds=seconds)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgumentError(f"--since {text!r} is neither 5m nor an ISO time") from None
    return found if found.tzinfo else found.astimezone()


def _many_logs(
    workflow: Workflow,
    place: Target,
    *,
    follow: bool,
    limit: int,
    source: str,
    since: datetime | None,
) -> None:
    """The logs of many tasks, each under a heading; with `follow`, each as it ends."""
    printed: set[str] = set()
    while True:
        ended = workflow.refresh().state.ended
        for task in _tasks(workflow, place.experiment, None):
            begun = task.attempt is not None and (task.state.ended or not follow)
            if not begun or task.name in printed:
                continue
            if len(printed) >= limit:
                output.say(f"only the first {limit} tasks; see --limit, `hyper tasks`")
                return
            printed.add(task.name)
            _print_log(workflow, task, source, since)
        if ended or not follow:
            break
        time.sleep(_FOLLOW_POLL_S)
    if not printed:
        output.say("no task has started yet")


def _logs_plain(
    workflow: Workflow, place: Target, limit: int, source: str, since: datetime | None
) -> list[dict[str, Any]]:
    """Task, state and log (undecodable bytes replaced) of tasks that have begun."""
    if place.index is not None and place.experiment is not None:
        found: Iterable[TaskInfo] = [workflow.task(place.experiment, place.index)]
    else:
        found = (task for task in _tasks(workflow, place.experiment, None) if task.attempt)
    rows = []
    for task in itertools.islice(found, limit):
        try:
            parts = workflow.logs(task, source=source, since=since)
            text = b"".join(parts).decode(errors="replace")
        except NotFoundError:  # nothing was written
            text = ""
        rows.append({"task": task.id, "state": str(task.state), "source": source, "log": text})
    return rows


def _print_log(workflow: Workflow, task: TaskInfo, source: str, since: datetime | None) -> None:
    output.say(f"==> {task.id} {task.state.lower()} <==")
    try:
        _copy(workflow.logs(task, source=source, since=since))
    except NotFoundError:
        return
    except HyperError as error:
        output.say(f"(cannot be read: {error})")
