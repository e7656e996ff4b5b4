"""`hyper://` for fsspec: what pandas, dask, xarray, pyarrow and others open by address.

```python
pandas.read_csv("hyper://lab/tables/cells.csv")
frame.to_parquet("hyper://lab/tables/cells.parquet")
xarray.open_zarr("hyper://lab/brain@3")
dask.array.from_zarr("hyper://lab/brain/aligned")
```

Paths are `tenant/name[@version]/path`. A dataset's files are there as they are; its arrays as Zarr
v3 (`hyper.zarr_view`). Every file that is written is a new version; within a transaction
(`with fs.transaction:`) all of them are one version a dataset, at its end, or none.

Without `@version` every call sees the newest version, whoever made it, and an open file keeps the
one it was opened in. Chunks of an array are of the version whose `zarr.json` was read last: a lazy
computation that must see one version throughout names it, `hyper://tenant/name@3/...`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.transaction import Transaction

from hyper import zarr_view
from hyper._files import FileInfo
from hyper.arrays import Array
from hyper.client import Client, connect, default_client
from hyper.datasets import Dataset, list_datasets
from hyper.errors import InvalidArgumentError, NotFoundError
from hyper.names import check_part, parse_address
from hyper.sessions import Session

_VERSIONS_KEPT = 64


@dataclass(frozen=True, slots=True)
class _Place:
    """A path, taken apart; `dataset` is "tenant/name[@version]"."""

    tenant: str
    dataset: str
    path: str


class _Transaction(Transaction):  # type: ignore[misc]  # fsspec has no types
    """Gathers what is written into one version a dataset; an exception drops it."""

    def complete(self, commit: bool = True) -> None:
        """Make the versions, or drop them."""
        fs = self.fs
        fs._intrans = False
        fs._transaction = None
        fs.finish(commit=commit)


class HyperFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Datasets as a file system.

    Args:
        endpoint: of a scheduler; by default `HYPER_ENDPOINT` or the cluster of `hyper up`.
        client: to use instead.
        options: of fsspec.
    """

    protocol = "hyper"
    root_marker = ""
    cachable = True
    transaction_type = _Transaction

    def __init__(
        self, endpoint: str | None = None, client: Client | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._client = client
        self._endpoint = endpoint
        self._versions: dict[str, Dataset] = {}
        self._arrays: dict[str, Array] = {}
        self._sessions: dict[str, Session] = {}

    @property
    def client(self) -> Client:
        """What reaches the cluster."""
        if self._client is None:
            self._client = connect(self._endpoint) if self._endpoint else default_client()
        return self._client

    # Reading

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """What is in a tenant, a dataset, a folder, or an array.

        Raises:
            FileNotFoundError: there is no such thing.
        """
        place = self._newest(path)
        entries = self._list(place)
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Name, type, size and more of one thing.

        Raises:
            FileNotFoundError: there is no such thing.
        """
        return self._info(path, self._newest(path))

    def _info(self, path: str, place: _Place) -> dict[str, Any]:
        name = self._strip_protocol(path)
        if not place.path:
            if place.dataset:
                self._dataset(place)
            return _folder(name)
        found = self._entry(place)
        if found is not None:
            return found
        if self._list(place):
            return _folder(name)
        raise FileNotFoundError(path)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        """A file's bytes, or a range of them; checked."""
        place = self._newest(path)
        in_array = self._in_array(place)
        if in_array is None and start is None and end is None:
            try:
                return self._dataset(place).read(place.path)
            except NotFoundError as error:
                raise FileNotFoundError(path) from error
        size = self._info(path, place)["size"]
        first, stop, _ = slice(start, end).indices(size or 0)
        if in_array is not None:
            data = self._array_value(*in_array)
            if data is None:
                raise FileNotFoundError(path)
            return data[start:end]
        return self._dataset(place).read_range(place.path, first, max(first, stop))

    def created(self, path: str) -> Any:
        """When it was written."""
        return self.modified(path)

    def modified(self, path: str) -> Any:
        """When it was written."""
        place = self._newest(path)
        entry = self._info(path, place)
        if "modified" in entry:
            return entry["modified"]
        return self._dataset(place).created

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget what is kept of versions and arrays."""
        self._versions.clear()
        self._arrays.clear()
        super().invalidate_cache(path)

    def _open(
        self, path: str, mode: str = "rb", block_size: int | str | None = None, **options: Any
    ) -> Any:
        options.pop("autocommit", None)
        options.pop("cache_options", None)
        if mode == "rb":
            place = self._newest(path)
            size = self._info(path, place)["size"]
            if size is None:
                raise IsADirectoryError(path)
            in_array = self._in_array(place)
            if in_array is not None:
                return io.BytesIO(self._array_value(*in_array) or b"")
            reading = _Reading(self, path, mode, block_size or "default", size=size, **options)
            reading.read_from(self._dataset(place), place.path)
            return reading
        if mode in ("wb", "xb"):
            if mode == "xb" and self.exists(path):
                raise FileExistsError(path)
            self._writable(path)
            return _Writing(self, path)
        raise InvalidArgumentError(f"mode {mode!r} is not known here: files are read or replaced")

    # Writing

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Write a file: a version of its own, or a part of the transaction's."""
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        place = self._writable(path)
        self._change(place.dataset, lambda session: session.write(place.path, bytes(value)))

    def rm_file(self, path: str) -> None:
        """Take a file out; older versions keep it."""
        place = self._writable(path)
        try:
            self._change(place.dataset, lambda session: session.delete(place.path))
        except NotFoundError as error:
            raise FileNotFoundError(path) from error

    _rm = rm_file

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        """Nothing: a folder is there while a file is in it."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: a folder is there while a file is in it."""

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        """Copy a file."""
        self.pipe_file(path2, self.cat_file(path1))

    def finish(self, *, commit: bool) -> None:
        """End what a transaction has gathered: one version a dataset, or nothing."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            if commit:
                session.commit("written through fsspec")
            else:
                session.abort()
        self.invalidate_cache()

    def _change(self, dataset: str, change: Any) -> None:
        if self._intrans:
            if dataset not in self._sessions:
                self._sessions[dataset] = self.client.session(dataset)
            change(self._sessions[dataset])
            return
        with self.client.session(dataset) as session:
            change(session)
            session.commit("written through fsspec")
        self.invalidate_cache()

    # Paths

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return str(path).removeprefix("hyper://").strip("/")

    def _place(self, path: str) -> _Place:
        parts = self._strip_protocol(path).split("/", 2)
        if not parts[0]:
            raise InvalidArgumentError(f"{path!r} names no tenant: write hyper://tenant/name/path")
        check_part(parts[0], "tenant")
        if len(parts) == 1:
            return _Place(parts[0], "", "")
        parse_address(f"{parts[0]}/{parts[1]}")
        return _Place(parts[0], f"{parts[0]}/{parts[1]}", parts[2] if len(parts) > 2 else "")

    def _writable(self, path: str) -> _Place:
        place = self._place(path)
        if "@" in place.dataset:
            raise InvalidArgumentError(
                f"{place.dataset} is a version and never changes: write to its dataset, without @"
            )
        if not place.path:
            raise InvalidArgumentError(f"{path!r} names no file: write hyper://tenant/name/path")
        return place

    def _newest(self, path: str) -> _Place:
        """A path's place, its dataset looked up anew unless the path names a version or a chunk."""
        place = self._place(path)
        known = self._versions.get(place.dataset)
        if known is None or "@" in place.dataset:
            return place
        if any(place.path.startswith(f"{array}/c/") for array in known.arrays()):
            return place  # a look-up a chunk costs too much: the array's metadata were looked up
        newest = self._look_up(place)
        if (newest.name, newest.root) == (known.name, known.root):
            self._versions[place.dataset] = known  # with what it has read of its manifests
        else:
            for key in [key for key in self._arrays if key.startswith(f"{known.name}/")]:
                self._arrays.pop(key, None)
        return place

    def _dataset(self, place: _Place) -> Dataset:
        return self._versions.get(place.dataset) or self._look_up(place)

    def _look_up(self, place: _Place) -> Dataset:
        if len(self._versions) >= _VERSIONS_KEPT:
            self._versions.clear()
        try:
            found = self.client.open_dataset(place.dataset)
        except NotFoundError as error:
            self._versions.pop(place.dataset, None)
            raise FileNotFoundError(place.dataset) from error
        self._versions[place.dataset] = found
        return found

    def _in_array(self, place: _Place) -> tuple[Array, str] | None:
        """The array that a path lies in, and the key within it; else None."""
        if not place.path:
            return None
        dataset = self._dataset(place)
        for name in dataset.arrays():
            if place.path == name or place.path.startswith(f"{name}/"):
                key = f"{dataset.name}/{name}"
                if key not in self._arrays:
                    self._arrays[key] = dataset[name]
                return self._arrays[key], place.path[len(name) + 1 :]
        return None

    def _array_value(self, array: Array, key: str) -> bytes | None:
        if key == zarr_view.METADATA:
            return zarr_view.encode(zarr_view.array_document(array))
        return zarr_view.chunk(array, key)

    def _entry(self, place: _Place) -> dict[str, Any] | None:
        """What is known of a file, or of a key of an array; None if there is none."""
        name = f"{place.dataset}/{place.path}"
        in_array = self._in_array(place)
        if in_array is not None:
            array, key = in_array
            if key == zarr_view.METADATA:
                return _file(name, len(zarr_view.encode(zarr_view.array_document(array))))
            if zarr_view.has_chunk(array, key):
                return _file(name, zarr_view.chunk_bytes(array))
            return None
        dataset = self._dataset(place)
        if place.path == zarr_view.METADATA and dataset.arrays():
            return _file(name, len(zarr_view.encode(zarr_view.group_document(dataset))))
        try:
            return _of(place.dataset, dataset.file(place.path))
        except NotFoundError:
            return None

    def _list(self, place: _Place) -> list[dict[str, Any]]:
        if not place.dataset:
            found = [
                each.name.rpartition("/")[2] for each in list_datasets(self.client, place.tenant)
            ]
            return [_folder(f"{place.tenant}/{name}") for name in found]
        dataset = self._dataset(place)
        base = f"{place.dataset}/{place.path}".rstrip("/")
        in_array = self._in_array(place)
        if in_array is not None:
            return self._list_array(base, *in_array)
        below = f"{place.path}/" if place.path else ""
        files, folders = dataset.list_folder(below)
        names = {name.rstrip("/") for name in folders}
        for array in dataset.arrays():
            if array.startswith(below):
                names.add(array[len(below) :].partition("/")[0])
        entries = [_of(place.dataset, info) for info in files]
        entries += [_folder(f"{base}/{name}") for name in sorted(names)]
        if not entries and place.path:
            found_file = self._entry(place)
            if found_file is None:
                raise FileNotFoundError(base)
            return [found_file]
        return entries

    def _list_array(self, base: str, array: Array, key: str) -> list[dict[str, Any]]:
        if not key:
            size = len(zarr_view.encode(zarr_view.array_document(array)))
            return [_file(f"{base}/{zarr_view.METADATA}", size), _folder(f"{base}/c")]
        size = zarr_view.chunk_bytes(array)
        if zarr_view.has_chunk(array, key):
            return [_file(base, size)]
        below = zarr_view.children(array, key)
        if below is None:
            raise FileNotFoundError(base)
        numbers, chunks = below
        return [_file(f"{base}/{n}", size) if chunks else _folder(f"{base}/{n}") for n in numbers]


class _Reading(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file that is read, range by range, in the version it was opened in."""

    def read_from(self, dataset: Dataset, name: str) -> None:
        """Say where it lies."""
        self._dataset, self._name = dataset, name

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._dataset.read_range(self._name, start, end)


class _Writing(io.BytesIO):
    """A file that is written when it is closed; nothing where an exception ends its `with`."""

    def __init__(self, fs: HyperFileSystem, path: str) -> None:
        super().__init__()
        self._fs, self._path = fs, path

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            super().close()
            return
        self.close()

    def close(self) -> None:
        """Store it."""
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._fs.pipe_file(self._path, data)

    def __del__(self) -> None:  # an abandoned file is not written
        io.BytesIO.close(self)


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "type": "directory", "size": None}


def _file(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "type": "file", "size": size}


def _of(dataset: str, info: FileInfo) -> dict[str, Any]:
    return {
        **_file(f"{dataset}/{info.path}", info.size_bytes),
        "modified": info.modified, "sha256": info.sha256,
    }  # fmt: skip
