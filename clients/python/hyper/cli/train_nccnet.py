"""`hyper train-nccnet`: features for matching, learned from a stack without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hyper.cli import output


def _edges(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter("write edges in px, such as 160,224") from None


def train_nccnet(
    source: Annotated[str, typer.Argument(help="tenant/name[@v]/array, roughly aligned")],
    destination: Annotated[str, typer.Argument(help="tenant/name, which gets the model")],
    steps: Annotated[int, typer.Option(help="of training", min=1)] = 2400,
    batch_size: Annotated[int, typer.Option(help="pairs a step, over all workers", min=1)] = 6,
    workers: Annotated[int, typer.Option(help="that train together, as a gang", min=1)] = 1,
    template: Annotated[str, typer.Option(help="edges of templates, px")] = "160,224",
    search: Annotated[int, typer.Option(help="largest displacement, px", min=8)] = 100,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    gpu: Annotated[bool, typer.Option("--gpu", help="train on a GPU for each worker")] = False,
    report: Annotated[Path | None, typer.Option(help="also write the report to this file")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="do not wait for the end")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="print a JSON object")] = False,
) -> None:
    """Train NCCNet on a stack, and say whether it beats the best filter."""
    from hyper.cli import watch
    from hyper.cli.job import check_writable, client_for
    from hyper.errors import WorkFailedError
    from hyper.train_nccnet import (
        MODEL_FILE,
        REPORT_FILE,
        RESULT_FILE,
        TrainOptions,
        submit,
    )

    check_writable(report)
    options = TrainOptions(steps, batch_size, workers, seed, _edges(template), search, gpu)
    with client_for(destination) as client:
        workflow = submit(client, source, destination, options)
        result: dict[str, object] = {
            "workflow": workflow.name, "model": f"{destination}/{MODEL_FILE}",
        }  # fmt: skip
        text = f"{workflow.name} is training; `hyper ps` shows how far it is"
        if not detach:
            status = watch.watch(workflow)
            if status.state != "SUCCEEDED":
                raise typer.Exit(WorkFailedError.exit_code)
            dataset = client.open_dataset(destination)
            found = json.loads(dataset.read(RESULT_FILE))
            result |= {key: found[key] for key in ("choice", "why", "scores", "parameters")}
            text = f"{destination}/{MODEL_FILE}\nused for matching: {found['why']}"
            if report is not None:
                report.write_bytes(dataset.read(REPORT_FILE))
    output.emit(result, text, as_json=json_output)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("train-nccnet")(train_nccnet)
