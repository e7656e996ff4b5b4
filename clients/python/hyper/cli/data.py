"""`hyper ls | versions | cp | export | import | rm`: datasets from the command line."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyper.cli import complete, output
from hyper.cli.visible import visible_datasets
from hyper.errors import InvalidArgumentError, NotFoundError
from hyper.names import Address, check_path, parse_address

if TYPE_CHECKING:
    from hyper._files import FileInfo
    from hyper.arrays import Array
    from hyper.client import Client
    from hyper.datasets import Dataset
    from hyperapi.storage.v1 import dataset_pb2

SCHEME = "hyper://"
_DOWNLOADS_AT_ONCE = 8
_VOLUMES = ("zarr", "precomputed")  # with their pyramids
_SINGLE = ("n5", "hdf5")
_SLAB_BYTES = 256 * 2**20

_Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("ls")(ls)
    app.command("versions")(versions)
    app.command("cp")(cp)
    app.command("export")(export)
    app.command("import")(import_)
    app.command("rm")(rm)


# ls, versions


def ls(
    what: Annotated[
        str | None,
        typer.Argument(help="tenant, or tenant/name[@version]", autocompletion=complete.datasets),
    ] = None,
    json_output: _Json = False,
) -> None:
    """List the datasets that you may see, a tenant's, or what a dataset holds."""
    from hyper.client import connect
    from hyper.datasets import list_datasets

    with connect(notice=output.say) as client:
        if what is None:
            _list_datasets(visible_datasets(client), "yet", json_output)
        elif "/" in what.removeprefix(SCHEME).strip("/"):
            _list_dataset(client, what.rstrip("/"), json_output)
        else:
            tenant = what.removeprefix(SCHEME).strip("/")
            _list_datasets(list_datasets(client, tenant), f"of {tenant}", json_output)


def _list_datasets(listed: Iterable[dataset_pb2.Dataset], whose: str, json_output: bool) -> None:
    found = [
        {
            "dataset": "/".join(dataset.name.split("/")[1::2]),
            "version": dataset.head,
            "updated": dataset.update_time.ToJsonString(),
        }
        for dataset in listed
    ]
    rows = [(d["dataset"], d["version"] or "-", d["updated"][:19]) for d in found]  # type: ignore[index]
    text = output.table(("DATASET", "VERSION", "UPDATED"), rows)
    output.emit(found, text if found else f"no datasets {whose}", as_json=json_output)


def _list_dataset(client: Client, what: str, json_output: bool) -> None:
    address = parse_address(what)
    dataset = _open(client, Address(address.tenant, address.dataset, address.version))
    prefix = address.array or ""
    arrays = [dataset[name] for name in dataset.arrays() if name.startswith(prefix)]
    files = list(dataset.files(prefix))
    value = {
        "dataset": f"{address.tenant}/{address.dataset}",
        "version": dataset.version,
        "message": dataset.message,
        "arrays": [_describe(array) for array in arrays],
        "files": [{"path": info.path, "size_bytes": info.size_bytes} for info in files],
    }
    rows: list[tuple[object, ...]] = [
        (_short(array), "array", f"{array.dtype} {' x '.join(map(str, array.shape))}")
        for array in arrays
    ]
    rows += [(info.path, "file", output.human_bytes(info.size_bytes)) for info in files]
    text = f"{value['dataset']}@{dataset.version}"
    if rows:
        text += "\n" + output.table(("NAME", "KIND", "WHAT"), rows)
    output.emit(value, text, as_json=json_output)


def _describe(array: Array) -> dict[str, Any]:
    return {
        "name": _short(array),
        "shape": array.shape,
        "dtype": array.dtype.name,
        "chunks": array.chunks,
        "shards": array.shards,
        "voxel_size_nm": array.voxel_size_nm,
        "url": array.url,
    }


def _short(array: Array) -> str:
    return array.name.partition("/arrays/")[2]


def versions(
    dataset: Annotated[str, typer.Argument(help="tenant/name", autocompletion=complete.datasets)],
    json_output: _Json = False,
) -> None:
    """List a dataset's versions, newest first."""
    from hyper.client import connect
    from hyper.datasets import list_versions

    with connect(notice=output.say) as client:
        found = [
            {
                "version": version.number,
                "created": version.create_time.ToJsonString(),
                "files": version.files,
                "file_bytes": version.file_bytes,
                "arrays": list(version.arrays),
                "message": version.message,
            }
            for version in list_versions(client, dataset)
        ]
    rows = [
        (v["version"], str(v["created"])[:19], v["files"], len(v["arrays"]), v["message"])  # type: ignore[arg-type]
        for v in found
    ]
    text = output.table(("VERSION", "CREATED", "FILES", "ARRAYS", "MESSAGE"), rows)
    output.emit(found, text if found else f"{dataset} has no version yet", as_json=json_output)


# cp


@dataclass(frozen=True, slots=True)
class _Place:
    """`hyper://tenant/name[@version][/path]`."""

    address: Address
    path: str


def _place(text: str) -> _Place:
    parts = text.removeprefix(SCHEME).split("/", 2)
    address = parse_address("/".join(parts[:2]))
    path = parts[2].strip("/") if len(parts) == 3 else ""
    return _Place(address, check_path(path) if path else "")


def cp(
    source: Annotated[str, typer.Argument(help="local file or folder, or hyper://tenant/name/...")],
    destination: Annotated[str, typer.Argument(help="the other one")],
    message: Annotated[str, typer.Option("-m", "--message", help="of the new version")] = "",
    json_output: _Json = False,
) -> None:
    """Copy files into a dataset (as one new version), or out of it."""
    from hyper.client import connect

    up, down = destination.startswith(SCHEME), source.startswith(SCHEME)
    if up == down:
        raise InvalidArgumentError(
            "one of SRC and DST must be a dataset, written hyper://tenant/name[@version][/path], "
            "and the other a local file or folder"
        )
    place = _place(destination if up else source)
    local = Path(source if up else destination)
    files = _local_files(local, place.path) if up else []
    with connect(notice=output.say) as client:
        if up:
            _upload(client, files, place, message or f"cp {source}", json_output)
        else:
            _download(client, place, local, json_output)


def _local_files(source: Path, prefix: str) -> list[tuple[str, Path]]:
    """(path in the dataset, local file), checked before anything is sent."""
    if source.is_file():
        return [(check_path(prefix or source.name), source)]
    if not source.is_dir():
        raise InvalidArgumentError(f"{source}: no such file or folder")
    root = source.resolve()
    files: list[tuple[str, Path]] = []
    for path in sorted(source.rglob("*")):
        if path.is_dir():
            continue
        if not path.is_file():
            raise InvalidArgumentError(f"{path}: not a regular file; remove it or copy without it")
        if not path.resolve().is_relative_to(root):
            raise InvalidArgumentError(
                f"{path}: a link that leads out of {source}; copy its target"
            )
        relative = path.relative_to(source).as_posix()
        files.append((check_path(f"{prefix}/{relative}" if prefix else relative), path))
    if not files:
        raise InvalidArgumentError(f"{source}: no files in it")
    return files


def _upload(
    client: Client, files: list[tuple[str, Path]], place: _Place, message: str, json_output: bool
) -> None:
    if place.address.version is not None:
        raise InvalidArgumentError("a version never changes: write hyper://tenant/name without @")
    with output.progress() as progress, client.session(str(place.address)) as session:
        task = progress.add_task("uploading", total=len(files))
        session.write_many(
            files, on_progress=lambda now: progress.update(task, completed=now.files)
        )
        version = session.commit(message)
    value = {"dataset": str(place.address), "version": version.number, "files": len(files)}
    text = f"{len(files)} file(s) are in {place.address}@{version.number}"
    output.emit(value, text, as_json=json_output)


def _download(client: Client, place: _Place, target: Path, json_output: bool) -> None:
    dataset = _open(client, place.address)
    infos = _wanted(dataset, place)
    single = len(infos) == 1 and infos[0].path == place.path
    pairs: list[tuple[FileInfo, Path]] = []
    for info in infos:
        relative = check_path(info.path).removeprefix(place.path).lstrip("/")
        if single:
            name = info.path.rpartition("/")[2]
            pairs.append((info, target / name if target.is_dir() else target))
        else:
            pairs.append((info, target / relative))
    for folder in sorted({path.parent for _, path in pairs}):
        folder.mkdir(parents=True, exist_ok=True)
    with output.progress() as progress, ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
        task = progress.add_task("downloading", total=len(pairs))
        for _ in pool.map(lambda pair: dataset.download_file(*pair), pairs):
            progress.advance(task)
    size = sum(info.size_bytes for info in infos)
    value = {
        "dataset": f"{place.address.tenant}/{place.address.dataset}",
        "version": dataset.version,
        "files": len(infos),
        "bytes": size,
        "to": str(target),
    }
    text = f"{len(infos)} file(s), {output.human_bytes(size)}, are in {target}"
    output.emit(value, text, as_json=json_output)


def _wanted(dataset: Dataset, place: _Place) -> list[FileInfo]:
    """The file of this path, or all files of this folder."""
    if not place.path:
        infos = list(dataset.files())
    else:
        infos = [i for i in dataset.files(place.path) if i.path == place.path]
        infos = infos or list(dataset.files(f"{place.path}/"))
    if not infos:
        arrays = dataset.arrays()
        hint = f"; it has arrays: {', '.join(arrays[:5])} (see `hyper export`)" if arrays else ""
        raise NotFoundError(f"{place.address} has no file {place.path!r}{hint}")
    return infos


# export


def export(
    source: Annotated[
        str, typer.Argument(help="tenant/name[@version]/array", autocompletion=complete.datasets)
    ],
    folder: Annotated[Path, typer.Argument(help="for the sections; made if it does not exist")],
    form: Annotated[
        str, typer.Option("--format", help="png, tiff, zarr (OME-Zarr), precomputed, n5 or hdf5")
    ] = "png",
    force: Annotated[bool, typer.Option("--force", help="into a folder that has files")] = False,
    json_output: _Json = False,
) -> None:
    """Write an array as one image a section, or with its pyramid as a volume."""
    from hyper.client import connect

    if form not in ("png", "tiff", *_VOLUMES, *_SINGLE):
        raise InvalidArgumentError(
            f"--format {form!r}: choose png, tiff, zarr, precomputed, n5 or hdf5"
        )
    if folder.exists() and not folder.is_dir():
        raise InvalidArgumentError(f"{folder}: is a file; name a folder")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise InvalidArgumentError(f"{folder}: not empty; name another folder, or give --force")
    with connect(notice=output.say) as client:
        array = client.open_array(source)
        if form in _VOLUMES:
            levels = _export_volume(client, array, folder, form)
            value = {"array": source, "folder": str(folder), "levels": levels, "format": form}
            output.emit(value, f"{levels} level(s) are in {folder}", as_json=json_output)
            return
        if form in _SINGLE:
            target = _export_single(array, folder, form)
            value = {"array": source, "path": str(target), "format": form}
            output.emit(value, f"{source} is in {target}", as_json=json_output)
            return
        _check_exportable(array, source, form)
        folder.mkdir(parents=True, exist_ok=True)
        count = _export(array, folder, form)
    value = {
        "array": source, "folder": str(folder), "sections": count, "shape": array.shape,
        "dtype": array.dtype.name, "format": form,
    }  # fmt: skip
    output.emit(value, f"{count} section(s) are in {folder}", as_json=json_output)


def _export_single(array: Array, folder: Path, form: str) -> Path:
    from hyper import exports

    folder.mkdir(parents=True, exist_ok=True)
    with output.progress() as progress:
        task = progress.add_task("exporting", total=None)

        def advance(count: int) -> None:
            progress.advance(task, count)

        if form == "n5":
            exports.write_n5(array, folder, advance=advance)
            return folder
        target = folder / "data.h5"
        exports.write_hdf5(array, target, advance=advance)
        return target


def _export_volume(client: Client, array: Array, folder: Path, form: str) -> int:
    from hyper import exports, pyramids
    from hyper.datasets import open_version

    version, _, name = array.name.partition("/arrays/")
    levels = pyramids.open_levels(open_version(client, version), name)
    sections = sum(level.shape[0] for level in levels)
    with output.progress() as progress:
        task = progress.add_task("exporting", total=sections)

        def advance(count: int) -> None:
            progress.advance(task, count)

        if form == "zarr":
            exports.write_ome_zarr(levels, folder, name=name, advance=advance)
        else:
            exports.write_precomputed(levels, folder, advance=advance)
    return len(levels)


def import_(
    folder: Annotated[
        Path,
        typer.Argument(
            help="of PNG or TIFF sections; or a volume: Zarr, N5, precomputed, HDF5, TIFF"
        ),
    ],
    target: Annotated[
        str, typer.Argument(help="tenant/name/array", autocompletion=complete.datasets)
    ],
    voxel_size: Annotated[
        str | None, typer.Option("--voxel-size", help="z,y,x in nm, such as 40,4,4")
    ] = None,
    inner: Annotated[
        str, typer.Option("--inner", help="dataset in an HDF5 file, scale of precomputed")
    ] = "",
    pyramid: Annotated[bool, typer.Option("--pyramid", help="with coarser levels")] = False,
    message: Annotated[str, typer.Option("-m", "--message", help="of the new version")] = "",
    json_output: _Json = False,
) -> None:
    """Make a stack of images, or a volume, an array in a new version of a dataset."""
    from hyper import exports, pyramids, volumes
    from hyper.client import connect

    address = parse_address(target)
    if address.array is None or address.version is not None:
        raise InvalidArgumentError(f"{target}: write tenant/name/array, without @")
    voxel = _voxel_size(voxel_size)
    is_volume = volumes.is_volume(folder)
    if pyramid and voxel is None and not is_volume:
        raise InvalidArgumentError("--pyramid needs --voxel-size")
    dataset = f"{address.tenant}/{address.dataset}"
    with connect(notice=output.say) as client, output.progress() as progress:
        task = progress.add_task("importing", total=None)
        with client.session(dataset) as session:
            if is_volume:
                array = exports.import_volume(
                    session, address.array, folder, inner=inner, voxel_size_nm=voxel,
                    advance=lambda count: progress.advance(task, count),
                )  # fmt: skip
            else:
                array = exports.import_sections(
                    session, address.array, folder, voxel_size_nm=voxel,
                    advance=lambda count: progress.advance(task, count),
                )  # fmt: skip
            levels = pyramids.build(session, address.array) if pyramid else 1
            version = session.commit(message or f"import {folder}")
    value = {
        "dataset": dataset, "version": version.number, "array": address.array,
        "shape": array.shape, "dtype": array.dtype.name, "levels": levels,
    }  # fmt: skip
    size = " x ".join(map(str, array.shape))
    text = f"{size} {array.dtype} are in {dataset}@{version.number}/{address.array}"
    output.emit(value, text, as_json=json_output)


def _voxel_size(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgumentError(f"--voxel-size {text!r}: write z,y,x in nm") from None
    return z, y, x


def _check_exportable(array: Array, source: str, form: str) -> None:
    if array.ndim < 2 or any(n != 1 for n in array.shape[:-3]):
        raise InvalidArgumentError(
            f"{source} has shape {array.shape}; only (z, y, x) and (y, x) can be exported",
            reason="SHAPE_MISMATCH",
        )
    if form == "png" and array.dtype.name not in ("uint8", "uint16", "bool"):
        raise InvalidArgumentError(
            f"{source} has dtype {array.dtype}, which PNG cannot hold; give --format tiff"
        )
    if array.dtype.kind == "c":
        raise InvalidArgumentError(f"{source} has complex numbers, which no image holds")


def _export(array: Array, folder: Path, form: str) -> int:
    from hyper import images

    write = images.write_png if form == "png" else images.write_tiff
    sections = array.shape[-3] if array.ndim > 2 else 1
    digits = max(4, len(str(sections - 1)))
    with output.progress() as progress, ThreadPoolExecutor(2) as pool:
        task = progress.add_task("exporting", total=sections)
        for z, slab in _slabs(array, sections):
            names = [folder / f"{z + i:0{digits}d}.{form}" for i in range(len(slab))]
            for _ in pool.map(write, names, slab):
                progress.advance(task)
    return sections


def _slabs(array: Array, sections: int) -> Iterator[tuple[int, Any]]:
    """(z, some sections from there on): whole chunks, as memory allows."""
    if array.ndim == 2:
        yield 0, array[...][None]
        return
    section_bytes = max(1, array.nbytes // sections)
    thickness = max(1, min(array.chunks[-3], _SLAB_BYTES // section_bytes))
    leading = (0,) * (array.ndim - 3)
    for z in range(0, sections, thickness):
        yield z, array[(*leading, slice(z, min(z + thickness, sections)))]


# rm


def rm(
    dataset: Annotated[str, typer.Argument(help="tenant/name", autocompletion=complete.datasets)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    json_output: _Json = False,
) -> None:
    """Delete a dataset with all its versions."""
    from hyper.client import connect
    from hyper.datasets import delete_dataset

    address = parse_address(dataset)
    if address.version is not None or address.array is not None:
        raise InvalidArgumentError("only a whole dataset can be deleted: write tenant/name")
    if not yes:
        if not output.interactive():
            raise InvalidArgumentError(f"deleting {dataset} cannot be undone: give --yes")
        typer.confirm(f"delete {dataset} with all its versions?", abort=True, err=True)
    with connect(notice=output.say) as client:
        delete_dataset(client, str(address), request_id=str(uuid.uuid4()))
    output.emit({"deleted": str(address)}, f"{address} is deleted", as_json=json_output)


def _open(client: Client, address: Address) -> Dataset:
    from hyper.datasets import open_version, version_name

    return open_version(client, version_name(address))
