"""`hyper tokens`: let people and machines in, and out again."""

from __future__ import annotations

from typing import Annotated

import typer

from hyper import access
from hyper.cli import output
from hyper.client import connect

tokens_app = typer.Typer(help="Tokens; needs the role admin.", no_args_is_help=True)


@tokens_app.command("create")
def create(
    tenant: Annotated[str, typer.Option(help="whose data and workflows; '*' for all")],
    role: Annotated[str, typer.Option(help="admin, user, worker or service")] = "user",
    subject: Annotated[str, typer.Option(help="who it is for; shown in logs")] = "",
    hours: Annotated[float, typer.Option(help="how long it is good", min=0.01)] = 24.0,
    json_output: Annotated[bool, typer.Option("--json", help="print a JSON object")] = False,
) -> None:
    """Make a token; a worker's, for all tenants, lets a machine `hyper join`."""
    with connect(notice=output.say) as client:
        made = access.create_token(
            client, tenant, role=role, subject=subject, lifetime_s=hours * 3600
        )
    facts = {"token": made.text, "id": made.id, "expires": made.expires.isoformat()}
    output.emit(facts, made.text, as_json=json_output)


@tokens_app.command("revoke")
def revoke(
    token: Annotated[str, typer.Argument(help="the token, or its id")],
    json_output: Annotated[bool, typer.Option("--json", help="print a JSON object")] = False,
) -> None:
    """Have every service refuse a token, in streams that are open, too."""
    with connect(notice=output.say) as client:
        access.revoke_token(client, token)
    output.emit({"revoked": access.token_id(token)}, "revoked", as_json=json_output)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(tokens_app, name="tokens")
