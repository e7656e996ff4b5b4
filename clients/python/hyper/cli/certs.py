"""`hyper certs`: certificates of a cluster."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from hyper.cli import output
from hyper.errors import FailedPreconditionError
from hyper.installed import install_command


def certs(
    folder: Annotated[Path, typer.Argument(help="made if need be; keep ca.key to yourself")],
    host: Annotated[
        list[str] | None, typer.Option(help="another name or address of services")
    ] = None,
    client: Annotated[
        list[str] | None, typer.Option(help="make a certificate for this caller instead")
    ] = None,
    days: Annotated[int, typer.Option(help="how long it is good", min=1, max=3650)] = 365,
    json_output: Annotated[bool, typer.Option("--json", help="print a JSON object")] = False,
) -> None:
    """Make a private authority, and certificates for services or for those who call them."""
    if importlib.util.find_spec("cryptography") is None:
        raise FailedPreconditionError(f"not installed: {install_command('certs')}")
    from hyper import certificates

    certificates.make_authority(folder)
    lines = []
    for name in client or ():
        certificates.make_client(folder, name, days)
        lines.append(f"{folder}/{name}.pem and .key: HYPER_TLS_CERT and HYPER_TLS_KEY")
    if not client:
        certificates.make_service(folder, host or [], days)
        lines.append(f"{folder}/service.pem and .key: HYPER_<SERVICE>__TLS__CERT and __TLS__KEY")
    lines.append(f"{folder}/ca.pem: HYPER_TLS_CA of everybody who calls")
    made = [
        str(folder / f"{name}.{end}") for name in client or ["service"] for end in ("pem", "key")
    ]
    facts = {"authority": str(folder / "ca.pem"), "made": made, "days": days}
    output.emit(facts, "\n".join(lines), as_json=json_output)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("certs")(certs)
