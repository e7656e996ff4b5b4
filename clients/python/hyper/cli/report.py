"""`hyper report`: what workflows did, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyper.cli import complete, output
from hyper.cli.visible import shown


def report(
    workflows: Annotated[
        list[str],
        typer.Argument(
            help="as `hyper ps` names them; the last one is shown in full",
            autocompletion=complete.workflows,
        ),
    ],
    out: Annotated[Path, typer.Option(help="the page's file")] = Path("report.html"),
    stage: Annotated[
        str | None, typer.Option(help="experiment whose speed-up with workers is plotted")
    ] = None,
    price: Annotated[float, typer.Option(help="USD of a worker slot an hour", min=0)] = 0.0,
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Write time line, speed-up with workers and cost of workflows that have ended."""
    from hyper.client import connect
    from hyper.errors import FailedPreconditionError
    from hyper.run_report import collect, render

    with connect(notice=output.say) as client:
        handles = [client.workflow(name) for name in workflows]
        for handle in handles:
            if not handle.state.ended:
                raise FailedPreconditionError(
                    f"{handle.name} still runs: wait for it with "
                    f"`hyper ps {shown(handle.status)} -w`"
                )
        runs = [collect(handle) for handle in handles]
    out.write_text(render(runs[-1].title, runs, stage=stage, usd_per_hour=price))
    facts = {
        "report": str(out),
        "workflows": [
            {"name": run.name, "wall_s": run.wall_s, "busy_s": run.busy_s} for run in runs
        ],
    }
    output.emit(facts, str(out), as_json=json_output)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)
