"""`hyper publish | register | store`: edited and registered arrays, and where the latter lie."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from hyper.cli import complete, output
from hyper.errors import InvalidArgumentError
from hyper.names import parse_address

_Json = Annotated[bool, typer.Option("--json", help="print JSON")]
_SECRET = "HYPER_STORE_SECRET_KEY"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("publish")(publish)
    app.command("register")(register_)
    stores = typer.Typer(help="Buckets of others, for `hyper register`.", no_args_is_help=True)
    stores.command("set")(set_store)
    stores.command("ls")(list_stores)
    stores.command("rm")(remove_store)
    app.add_typer(stores, name="store")


def publish(
    source: Annotated[
        str, typer.Argument(help="tenant/name[@version]/array", autocompletion=complete.datasets)
    ],
    target: Annotated[
        str | None,
        typer.Argument(
            help="tenant/name/array; by default the source's own name",
            autocompletion=complete.datasets,
        ),
    ] = None,
    message: Annotated[str, typer.Option("-m", "--message", help="of the new version")] = "",
    json_output: _Json = False,
) -> None:
    """Make an edited or registered array plain Zarr v3 that any reader opens from the bucket."""
    from hyper.client import connect
    from hyper.publish import publish as copy

    origin = parse_address(source)
    place = parse_address(target or f"{origin.tenant}/{origin.dataset}/{origin.array or ''}")
    if origin.array is None or place.array is None or place.version is not None:
        raise InvalidArgumentError("write tenant/name[@version]/array, and a target without @")
    dataset = f"{place.tenant}/{place.dataset}"
    with connect(notice=output.say) as client, output.progress() as progress:
        task = progress.add_task("copying shards", total=None)
        array = client.open_array(source)
        with client.session(dataset) as session:
            copy(session, array, place.array, advance=lambda count: progress.advance(task, count))
            version = session.commit(message or f"publish {source}")
        url = client.open_array(f"{dataset}@{version.number}/{place.array}").url
    value = {"array": str(place), "version": version.number, "url": url}
    text = f"{dataset}@{version.number}/{place.array} is plain Zarr v3 at {url}"
    output.emit(value, text, as_json=json_output)


def register_(
    store: Annotated[str, typer.Argument(help="name of a store of the target's tenant")],
    path: Annotated[str, typer.Argument(help="of a Zarr, N5 or precomputed array in it")],
    target: Annotated[
        str, typer.Argument(help="tenant/name/array", autocompletion=complete.datasets)
    ],
    scale: Annotated[str, typer.Option("--scale", help="of precomputed, by its key")] = "",
    message: Annotated[str, typer.Option("-m", "--message", help="of the new version")] = "",
    json_output: _Json = False,
) -> None:
    """Add an array that lies elsewhere to a dataset, without copying it."""
    from hyper.client import connect

    place = parse_address(target)
    if place.array is None or place.version is not None:
        raise InvalidArgumentError(f"{target}: write tenant/name/array, without @")
    dataset = f"{place.tenant}/{place.dataset}"
    with connect(notice=output.say) as client, client.session(dataset) as session:
        array = session.register_array(place.array, store, path, scale=scale)
        version = session.commit(message or f"register {store}/{path}")
    value = {
        "array": str(place), "version": version.number, "shape": array.shape,
        "dtype": array.dtype.name, "voxel_size_nm": array.voxel_size_nm,
    }  # fmt: skip
    size = " x ".join(map(str, array.shape))
    text = f"{dataset}@{version.number}/{place.array} is {size} {array.dtype}, in {store}"
    output.emit(value, text, as_json=json_output)


def set_store(
    name: Annotated[str, typer.Argument(help="that it gets here")],
    endpoint: Annotated[
        str, typer.Argument(help="http(s)://host[:port] of S3; GCS: https://storage.googleapis.com")
    ],
    bucket: Annotated[str, typer.Argument(help="in which the arrays lie")],
    region: Annotated[str, typer.Option("--region")] = "us-east-1",
    access_key: Annotated[
        str, typer.Option("--access-key", help=f"with the secret key in {_SECRET}, or asked for")
    ] = "",
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="whose datasets may use it")
    ] = None,
    json_output: _Json = False,
) -> None:
    """Name a bucket; its credentials are kept encrypted and never shown. Without: public."""
    from hyper import stores
    from hyper.client import connect

    secret = os.environ.get(_SECRET, "") if access_key else ""
    if access_key and not secret:
        if not output.interactive():
            raise InvalidArgumentError(f"set {_SECRET} to the secret key of {access_key}")
        secret = typer.prompt("secret key", hide_input=True, err=True)
    with connect(tenant=tenant, notice=output.say) as client:
        store = stores.set_store(
            client, name, endpoint=endpoint, bucket=bucket, region=region, access_key=access_key,
            secret_key=secret,
        )  # fmt: skip
    value = {"name": store.name, "endpoint": store.endpoint, "bucket": store.bucket}
    output.emit(value, f"store {name} is {endpoint}/{bucket}", as_json=json_output)


def list_stores(
    tenant: Annotated[str | None, typer.Option("--tenant", help="whose they are")] = None,
    json_output: _Json = False,
) -> None:
    """List the stores of a tenant."""
    from hyper import stores
    from hyper.client import connect

    with connect(tenant=tenant, notice=output.say) as client:
        found = list(stores.list_stores(client))
    rows = [(s.name, s.endpoint, s.bucket, s.access_key or "public") for s in found]
    value = [
        {"name": s.name, "endpoint": s.endpoint, "bucket": s.bucket, "access_key": s.access_key}
        for s in found
    ]
    text = output.table(("STORE", "ENDPOINT", "BUCKET", "ACCESS KEY"), rows)
    output.emit(value, text if found else "no stores", as_json=json_output)


def remove_store(
    name: Annotated[str, typer.Argument(help="of the store")],
    tenant: Annotated[str | None, typer.Option("--tenant", help="whose it is")] = None,
    json_output: _Json = False,
) -> None:
    """Forget a store; arrays that were registered from it cannot be read any more."""
    from hyper import stores
    from hyper.client import connect

    with connect(tenant=tenant, notice=output.say) as client:
        stores.delete_store(client, name)
    output.emit({"deleted": name}, f"store {name} is forgotten", as_json=json_output)
