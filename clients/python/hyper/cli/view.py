"""`hyper view`: arrays and aligned stacks in a browser."""

from __future__ import annotations

import threading
import webbrowser
from typing import TYPE_CHECKING, Annotated

import typer

from hyper.cli import complete, output

if TYPE_CHECKING:
    from hyper.arrays import Array
    from hyper.client import Client

_SHOWN_FIRST = ("aligned", "segmentation", "raw")


def view(
    addresses: Annotated[
        list[str],
        typer.Argument(
            help="tenant/name[@version][/array]; of a dataset, its best arrays",
            autocompletion=complete.datasets,
        ),
    ],
    bind: Annotated[str, typer.Option(help="address the page is served on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="its port; 0: a free one", min=0, max=65535)] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="open it in a browser here")
    ] = True,
    json_output: Annotated[bool, typer.Option("--json", help="print the address as JSON")] = False,
) -> None:
    """Open arrays in Neuroglancer, until Ctrl-C."""
    from hyper.client import connect
    from hyper.viewer import open_viewer

    with connect(notice=output.say) as client:
        arrays = [array for address in addresses for array in _arrays(client, address)]
        url = str(open_viewer(arrays, bind=bind, port=port))
        output.emit({"url": url, "arrays": [a.name for a in arrays]}, url, as_json=json_output)
        output.say("showing " + ", ".join(array.name for array in arrays) + "; Ctrl-C ends it")
        if browser:
            webbrowser.open(url)
        threading.Event().wait()


def _arrays(client: Client, address: str) -> list[Array]:
    """The array, or those of a dataset that people want to see first."""
    from hyper.datasets import Dataset
    from hyper.errors import InvalidArgumentError

    opened = client.open(address)
    if not isinstance(opened, Dataset):
        return [opened]
    names = opened.arrays()
    if not names:
        raise InvalidArgumentError(f"{address} holds no arrays: `hyper ls {address}` lists it")
    first = [name for name in _SHOWN_FIRST if name in names]
    return [opened[name] for name in first or names[:4]]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("view")(view)
