"""`hyper exec | secret | join`."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from typing import Annotated

import typer

from hyper import running
from hyper.cli import complete, output
from hyper.cli.targets import parse_target
from hyper.client import connect
from hyper.config import split_endpoint
from hyper.errors import FailedPreconditionError, InvalidArgumentError
from hyper.installed import install_command

Json = Annotated[bool, typer.Option("--json", help="print JSON on the last line")]
secret_app = typer.Typer(
    help="Values that recipes use without containing them.", no_args_is_help=True
)


def exec_(
    target: Annotated[
        str,
        typer.Argument(
            help="WORKFLOW/EXPERIMENT/INDEX, a running task", autocompletion=complete.workflows
        ),
    ],
    command: Annotated[list[str], typer.Argument(help="after --: program and arguments")],
    timeout: Annotated[float, typer.Option(help="seconds", min=0.1, max=3600)] = 60.0,
    json_output: Json = False,
) -> None:
    """Run a command beside a live task; its exit status becomes this one's."""
    with connect(notice=output.say) as client:
        place = parse_target(target)
        if place.index is None or place.experiment is None:
            raise InvalidArgumentError(f"{target!r} is no task: write WORKFLOW/EXPERIMENT/INDEX")
        name = client.workflow(place.workflow).name
        task = f"{name}/experiments/{place.experiment}/tasks/{place.index}"
        ran = running.exec_task(client, task, command, timeout)
    if json_output:
        text = ran.output.decode(errors="replace")
        facts = {"exit_code": ran.exit_code, "output": text, "truncated": ran.truncated}
        output.emit(facts, "", as_json=True)
    else:
        sys.stdout.buffer.write(ran.output)
        sys.stdout.buffer.flush()
    if ran.truncated:
        output.say("only the end of the output is shown")
    if ran.exit_code:
        raise typer.Exit(ran.exit_code if 0 < ran.exit_code < 126 else 1)


@secret_app.command("put")
def secret_put(
    name: Annotated[str, typer.Argument(help="as recipes name it")],
    value: Annotated[
        str | None, typer.Option(help="by default it is read from standard input")
    ] = None,
    json_output: Json = False,
) -> None:
    """Store or replace a secret."""
    text = sys.stdin.read().rstrip("\n") if value is None else value
    with connect(notice=output.say) as client:
        running.put_secret(client, name, text)
    output.emit({"stored": name}, f"stored {name}", as_json=json_output)


@secret_app.command("list")
def secret_list(json_output: Json = False) -> None:
    """Names of the tenant's secrets; values are never shown."""
    with connect(notice=output.say) as client:
        names = running.list_secrets(client)
        output.emit(names, "\n".join(names) or "no secrets", as_json=json_output)


@secret_app.command("delete")
def secret_delete(
    name: Annotated[str, typer.Argument(help="as `hyper secret list` has it")],
    json_output: Json = False,
) -> None:
    """Forget a secret."""
    with connect(notice=output.say) as client:
        running.delete_secret(client, name)
    output.emit({"deleted": name}, f"deleted {name}", as_json=json_output)


def join(
    endpoint: Annotated[str, typer.Argument(help="host:port[,host:port] of schedulers")],
    token: Annotated[
        str, typer.Option(envvar="HYPER_TOKEN", help="that lets this machine in")
    ] = "",
    slots: Annotated[int | None, typer.Option(help="tasks at once; a core each", min=1)] = None,
    label: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, for placement")] = None,
    isolation: Annotated[str, typer.Option(help="of processes: none, or user (root)")] = "none",
    json_output: Annotated[
        bool, typer.Option("--json", help="print what is begun, then logs, as lines of JSON")
    ] = False,
) -> None:
    """Turn this machine into a worker until Ctrl-C; it only dials out and needs no root."""
    address = endpoint.removeprefix("hyper://").removeprefix("grpc://").rstrip("/")
    split_endpoint(address)
    if importlib.util.find_spec("hyper_worker") is None:
        raise FailedPreconditionError(f"the worker is not installed: {install_command('worker')}")
    labels = dict(each.partition("=")[::2] for each in label or ())
    environment = {
        **os.environ,
        "HYPER_WORKER__SCHEDULER_ENDPOINT": address,
        "HYPER_WORKER__LISTEN": "127.0.0.1:0",
        "HYPER_WORKER__METRICS_LISTEN": os.environ.get(
            "HYPER_WORKER__METRICS_LISTEN", "127.0.0.1:0"
        ),
        "HYPER_WORKER__LOG_FORMAT": "json" if json_output else "console",
        "HYPER_WORKER__ISOLATION": isolation,
    }
    if token:
        environment["HYPER_TOKEN"] = token
    if slots is not None:
        environment["HYPER_WORKER__SLOTS"] = str(slots)
    if labels:
        environment["HYPER_WORKER__LABELS"] = json.dumps(labels)
    if json_output:
        output.emit({"endpoint": address, "labels": labels, "slots": slots}, "", as_json=True)
    os.execve(sys.executable, [sys.executable, "-m", "hyper_worker"], environment)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("exec")(exec_)
    app.command("join")(join)
    app.add_typer(secret_app, name="secret")
