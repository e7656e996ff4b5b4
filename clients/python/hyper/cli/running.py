"""`hyper exec | top | secret | join`."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict

from hyper import running
from hyper.cli import output
from hyper.cli.targets import parse_target
from hyper.cli.watch import duration
from hyper.client import connect
from hyper.config import split_endpoint
from hyper.errors import FailedPreconditionError, InvalidArgumentError
from hyperapi.scheduler.v1 import workflow_pb2

Json = Annotated[bool, typer.Option("--json", help="print JSON on the last line")]
_TOP_S = 2.0
_CLEAR = "\x1b[H\x1b[2J"
secret_app = typer.Typer(
    help="Values that recipes use without containing them.", no_args_is_help=True
)


def exec_(
    target: Annotated[str, typer.Argument(help="WORKFLOW/EXPERIMENT/INDEX, a running task")],
    command: Annotated[list[str], typer.Argument(help="after --: program and arguments")],
    timeout: Annotated[float, typer.Option(help="seconds", min=0.1, max=3600)] = 60.0,
) -> None:
    """Run a command beside a live task; its exit status becomes this one's."""
    with connect(notice=output.say) as client:
        place = parse_target(target)
        if place.index is None or place.experiment is None:
            raise InvalidArgumentError(f"{target!r} is no task: write WORKFLOW/EXPERIMENT/INDEX")
        name = client.workflow(place.workflow).name
        task = f"{name}/experiments/{place.experiment}/tasks/{place.index}"
        ran = running.exec_task(client, task, command, timeout)
    sys.stdout.buffer.write(ran.output)
    sys.stdout.buffer.flush()
    if ran.truncated:
        output.say("only the end of the output is shown")
    if ran.exit_code:
        raise typer.Exit(ran.exit_code if 0 < ran.exit_code < 126 else 1)


def top(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="again every two seconds")] = False,
    json_output: Json = False,
) -> None:
    """Show what machines and tasks use."""
    with connect(notice=output.say) as client:
        while True:
            workers = list(running.usage(client))
            plain = [MessageToDict(each, preserving_proto_field_name=True) for each in workers]
            text = _machines(workers)
            output.emit(plain, f"{_CLEAR}{text}" if follow else text, as_json=json_output)
            if not follow:
                return
            time.sleep(_TOP_S)


def _machines(workers: list[workflow_pb2.Worker]) -> str:
    machines, tasks = [], []
    for worker in workers:
        use, name = worker.usage, worker.name.removeprefix("workers/")
        machines.append(
            (
                name,
                f"{worker.running}/{worker.slots}",
                f"{use.cpus:.1f}/{use.cpus_total}",
                f"{_gib(use.memory_bytes)}/{_gib(use.memory_total_bytes)}",
                _gib(use.disk_free_bytes),
                f"{use.received_bytes_per_s / 1e6:.1f}/{use.sent_bytes_per_s / 1e6:.1f}",
                " ".join(f"{gpu.index}:{gpu.utilization:.0%}" for gpu in use.gpus) or "-",
            )
        )
        for task in use.tasks:
            parts = task.task.split("/")
            label = "/".join(parts[3::2]) if len(parts) == 8 else task.task
            memory = _gib(task.memory_bytes)
            tasks.append((label, name, f"{task.cpus:.2f}", memory, duration(task.seconds)))
    head = ("WORKER", "BUSY", "CPUS", "MEMORY GiB", "DISK FREE", "NET MB/s IN/OUT", "GPUS")
    text = output.table(head, machines)
    if tasks:
        text += "\n\n" + output.table(("TASK", "WORKER", "CPUS", "MEMORY GiB", "TIME"), tasks)
    return text


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f}"


@secret_app.command("put")
def secret_put(
    name: Annotated[str, typer.Argument(help="as recipes name it")],
    value: Annotated[
        str | None, typer.Option(help="by default it is read from standard input")
    ] = None,
) -> None:
    """Store or replace a secret."""
    text = sys.stdin.read().rstrip("\n") if value is None else value
    with connect(notice=output.say) as client:
        running.put_secret(client, name, text)
        output.say(f"stored {name}")


@secret_app.command("list")
def secret_list(json_output: Json = False) -> None:
    """Names of the tenant's secrets; values are never shown."""
    with connect(notice=output.say) as client:
        names = running.list_secrets(client)
        output.emit(names, "\n".join(names) or "no secrets", as_json=json_output)


@secret_app.command("delete")
def secret_delete(
    name: Annotated[str, typer.Argument(help="as `hyper secret list` has it")],
) -> None:
    """Forget a secret."""
    with connect(notice=output.say) as client:
        running.delete_secret(client, name)
        output.say(f"deleted {name}")


def join(
    endpoint: Annotated[str, typer.Argument(help="host:port[,host:port] of schedulers")],
    token: Annotated[
        str, typer.Option(envvar="HYPER_TOKEN", help="that lets this machine in")
    ] = "",
    slots: Annotated[int | None, typer.Option(help="tasks at once; a core each", min=1)] = None,
    label: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, for placement")] = None,
    isolation: Annotated[str, typer.Option(help="of processes: none, or user (root)")] = "none",
) -> None:
    """Turn this machine into a worker until Ctrl-C; it only dials out and needs no root."""
    address = endpoint.removeprefix("hyper://").removeprefix("grpc://").rstrip("/")
    split_endpoint(address)
    if importlib.util.find_spec("hyper_worker") is None:
        raise FailedPreconditionError("the worker is not installed: pip install 'hyper-dl[worker]'")
    labels = dict(each.partition("=")[::2] for each in label or ())
    environment = {
        **os.environ,
        "HYPER_WORKER__SCHEDULER_ENDPOINT": address,
        "HYPER_WORKER__LISTEN": "127.0.0.1:0",
        "HYPER_WORKER__METRICS_LISTEN": os.environ.get(
            "HYPER_WORKER__METRICS_LISTEN", "127.0.0.1:0"
        ),
        "HYPER_WORKER__LOG_FORMAT": "console",
        "HYPER_WORKER__ISOLATION": isolation,
    }
    if token:
        environment["HYPER_TOKEN"] = token
    if slots is not None:
        environment["HYPER_WORKER__SLOTS"] = str(slots)
    if labels:
        environment["HYPER_WORKER__LABELS"] = json.dumps(labels)
    os.execve(sys.executable, [sys.executable, "-m", "hyper_worker"], environment)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("exec")(exec_)
    app.command("top")(top)
    app.command("join")(join)
    app.add_typer(secret_app, name="secret")
