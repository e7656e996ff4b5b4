"""Sessions: one set of changes, written by any number of processes, committed as one version."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import google_crc32c
import numpy as np

from hyper import _s3
from hyper._files import FileInfo, TransferProgress, Tree
from hyper._s3 import array_call, service_call
from hyper.arrays import Array
from hyper.errors import HyperError, InvalidArgumentError
from hyper.names import check_path, parse_address
from hyperapi.common.v1.geometry_pb2 import VoxelSize
from hyperapi.storage.v1 import array_service_pb2 as array_api
from hyperapi.storage.v1 import dataset_pb2
from hyperapi.storage.v1 import dataset_service_pb2 as api

if TYPE_CHECKING:
    from types import TracebackType

    from hyper.client import Client

PACK_BYTES = 32 * 2**20  # packs are closed once they hold so much
LARGE_BYTES = 16 * 2**20  # a file of this size is an object of its own
LARGEST_BYTES = 5 * 2**30  # of one PUT
COMMIT_TIMEOUT_S = 600.0
_UPLOADS_AT_ONCE = 2
_FILES_A_CALL = 2048
_CALL_BYTES = 2**20
_PATHS_A_CALL = 2048
_HASH_BYTES = 2**20

Contents = bytes | bytearray | memoryview | str | Path


@dataclass(frozen=True, slots=True)
class Version:
    """A committed version."""

    name: str
    number: int
    root: str
    message: str
    files: int
    arrays: tuple[str, ...]


class Session(Tree):
    """Changes on top of a dataset's newest version, invisible to others until `commit`.

    As a context manager: what `Client.session` began is committed at a clean end and aborted on
    an exception; what `Client.attach` found is left open.
    """

    def __init__(self, client: Client, message: dataset_pb2.Session, *, owned: bool) -> None:
        super().__init__(client, message.name)
        self._message = message
        self._owned = owned
        self._closed = False
        self._id = message.name.rpartition("/")[2]

    @property
    def base(self) -> int:
        """The version that it started from; 0: none."""
        return self._message.base

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._owned or self._closed:
            return
        if error is None:
            self.commit()
            return
        try:
            self.abort()
        except HyperError as failure:  # what went wrong first is what the caller should see
            self._client.notify(f"{self.name} is not aborted ({failure}); it expires by itself")

    def __repr__(self) -> str:
        return f"<Session {self.name}>"

    # Arrays

    def create_array(
        self,
        name: str,
        shape: Sequence[int],
        dtype: Any,
        *,
        chunks: Sequence[int] | None = None,
        shards: Sequence[int] | None = None,
        fill_value: Any = 0,
        voxel_size_nm: tuple[float, float, float] | None = None,
        attributes: Mapping[str, Any] | None = None,
        compressor: str | None = "zstd",
        dimension_names: Sequence[str] | None = None,
        request_id: str | None = None,
    ) -> Array:
        """Make an array.

        Args:
            name: parts joined by '/'.
            shape: elements along each axis, (c, z, y, x) order.
            dtype: anything numpy takes: bool, integers, floats, complex.
            chunks: unit of reading; chosen if None.
            shards: unit of writing, multiples of `chunks`; chosen if None (sections or blocks).
            fill_value: of what nobody writes.
            voxel_size_nm: (z, y, x).
            attributes: JSON.
            compressor: "zstd" or None.
            dimension_names: one an axis; (c, z, y, x) by default.
            request_id: repeat it to get the same array again after a lost reply.
        """
        kind = np.dtype(dtype)
        lengths = tuple(_whole(n) for n in shape)
        names = dimension_names if dimension_names is not None else _axis_names(len(lengths))
        request = api.CreateArrayRequest(
            session=self.name,
            array=name,
            shape=lengths,
            dtype=kind.name,
            chunk_shape=tuple(_whole(n) for n in chunks or ()),
            shard_shape=tuple(_whole(n) for n in shards or ()),
            fill_value_json=_fill_json(fill_value),
            attributes_json=json.dumps(dict(attributes or {})),
            dimension_names=names,
            request_id=request_id or str(uuid.uuid4()),
            compressor=compressor or "none",
        )
        if voxel_size_nm is not None:
            z, y, x = voxel_size_nm
            request.voxel_size.CopyFrom(VoxelSize(z_nm=z, y_nm=y, x_nm=x))
        response = service_call(self._client, "CreateArray", request)
        return Array(self._client, response.array, self._remote)

    def edit_array(self, name: str) -> Array:
        """An array of the version that the session began on, writable here.

        Shards that are written lie over those of the base, which is not copied, and appear with
        the commit all at once. Sessions that edit other shards of it meanwhile are no conflict.
        """
        request = array_api.EditArrayRequest(
            name=f"{self.name}/arrays/{name}", request_id=str(uuid.uuid4())
        )
        response = array_call(self._client, "EditArray", request)
        return Array(self._client, response.array, self._remote)

    def register_array(
        self,
        name: str,
        store: str,
        path: str,
        *,
        scale: str = "",
        voxel_size_nm: tuple[float, float, float] | None = None,
    ) -> Array:
        """Add an array that lies elsewhere, without a copy: Zarr, N5 or precomputed.

        Args:
            name: that it gets here.
            store: of this tenant (`hyper.stores.set_store`).
            path: of the array in the store's bucket.
            scale: of precomputed, by its key; the first one by default.
            voxel_size_nm: (z, y, x); by default what its metadata say.
        """
        tenant = "/".join(self.name.split("/")[:2])
        request = array_api.RegisterArrayRequest(
            session=self.name, array=name, store=f"{tenant}/stores/{store}", path=path,
            scale=scale, request_id=str(uuid.uuid4()),
        )  # fmt: skip
        if voxel_size_nm is not None:
            z, y, x = voxel_size_nm
            request.voxel_size.CopyFrom(VoxelSize(z_nm=z, y_nm=y, x_nm=x))
        response = array_call(self._client, "RegisterArray", request)
        return Array(self._client, response.array, self._remote)

    def delete_array(self, name: str) -> None:
        """Take an array out of the coming version."""
        request = api.DeleteArrayRequest(
            name=f"{self.name}/arrays/{name}", request_id=str(uuid.uuid4())
        )
        service_call(self._client, "DeleteArray", request)

    # Files

    def write(self, path: str, data: Contents) -> None:
        """Write one file; durable, and visible to all who hold the session's name, on return.

        `data` is bytes, text, or a local file's `Path` (which is streamed).
        """
        self.write_many([(path, data)])

    def write_many(
        self,
        files: Iterable[tuple[str, Contents]],
        *,
        on_progress: Callable[[TransferProgress], None] | None = None,
    ) -> int:
        """Write files; small ones are packed together. Returns how many, all durable on return.

        `on_progress` is called in this thread whenever more of them are in the bucket.
        """
        uploader = _Uploader(self._client, self._remote, self.name, self._id, on_progress)
        count = 0
        for path, data in files:
            check_path(path)
            uploader.add(path, data)
            count += 1
        uploader.finish()
        return count

    def refer(self, files: Iterable[FileInfo]) -> None:
        """Add files whose bytes are in the bucket already: of the session, or of its base version.

        A file of the base is renamed so without a byte moved.
        """
        batch: list[dataset_pb2.File] = []
        for info in files:
            batch.append(
                dataset_pb2.File(
                    path=check_path(info.path),
                    size_bytes=info.size_bytes,
                    object=info.object,
                    offset=info.offset,
                    sha256=bytes.fromhex(info.sha256),
                    crc32c=info.crc32c,
                )
            )
            if len(batch) >= _FILES_A_CALL:
                self._add(batch)
                batch = []
        if batch:
            self._add(batch)

    def _add(self, files: list[dataset_pb2.File]) -> None:
        request = api.AddFilesRequest(session=self.name, files=files, request_id=str(uuid.uuid4()))
        service_call(self._client, "AddFiles", request)

    def existing(self, paths: Sequence[str]) -> list[str]:
        """Those of `paths` (at most 4,096) that the session shows."""
        return list(self._find(paths))

    def delete(self, *paths: str) -> None:
        """Take files out of the coming version; older versions keep them.

        Raises:
            NotFoundError: there is no such file; nothing is deleted by that call (of 4,096 paths).
        """
        for path in paths:
            check_path(path)
        for at in range(0, len(paths), _PATHS_A_CALL):
            request = api.DeleteFilesRequest(
                session=self.name,
                paths=paths[at : at + _PATHS_A_CALL],
                request_id=str(uuid.uuid4()),
            )
            service_call(self._client, "DeleteFiles", request)

    # The end

    def commit(
        self, message: str = "", request_id: str | None = None, *, once: bool = False
    ) -> Version:
        """Make everything one new version of the dataset.

        Args:
            message: of the version.
            request_id: the same for every try; a repeat gets the first answer.
            once: `request_id` is of work that others may do too, in sessions of their own: if one
                of them came first, this is its version, and this session is to be aborted.

        Raises:
            ConflictError: another commit changed the same path or array.
            FailedPreconditionError: SESSION_CLOSED.
        """
        request = api.CommitSessionRequest(
            name=self.name, message=message, request_id=request_id or str(uuid.uuid4()), once=once
        )
        response = service_call(self._client, "CommitSession", request, timeout_s=COMMIT_TIMEOUT_S)
        self._closed = True
        version = response.version
        return Version(
            name=version.name,
            number=version.number,
            root=version.root,
            message=version.message,
            files=version.files,
            arrays=tuple(version.arrays),
        )

    def abort(self) -> None:
        """Drop all changes."""
        request = api.AbortSessionRequest(name=self.name, request_id=str(uuid.uuid4()))
        service_call(self._client, "AbortSession", request)
        self._closed = True


class _Uploader:
    """Packs files into objects, uploads a few at a time, and records them in the session."""

    def __init__(
        self,
        client: Client,
        remote: _s3.Remote,
        session: str,
        session_id: str,
        on_progress: Callable[[TransferProgress], None] | None = None,
    ) -> None:
        self._client = client
        self._remote = remote
        self._on_progress = on_progress
        self._through = TransferProgress(0, 0)
        self._session = session
        self._prefix = f"blobs/{session_id}/"
        self._pack = bytearray()
        self._packed: list[dataset_pb2.File] = []
        self._uploads: deque[tuple[Future[None], list[dataset_pb2.File]]] = deque()
        self._ready: list[dataset_pb2.File] = []
        self._ready_bytes = 0
        self._recorded: Future[Any] = Future()
        self._recorded.set_result(None)

    def add(self, path: str, data: Contents) -> None:
        """Take one file."""
        if isinstance(data, Path):
            size = data.stat().st_size
            if size >= LARGE_BYTES:
                self._add_large(path, data, size)
                return
            data = data.read_bytes()
        content = data.encode() if isinstance(data, str) else data
        if len(content) >= LARGE_BYTES:
            self._upload(content, [_file(path, content, self._new_key(), 0)])
            return
        if not self._packed:
            self._key = self._new_key()
        self._packed.append(_file(path, content, self._key, len(self._pack)))
        self._pack += content
        if len(self._pack) >= PACK_BYTES or len(self._packed) >= _FILES_A_CALL:
            self._close_pack()

    def finish(self) -> None:
        """Return once everything is durable."""
        self._close_pack()
        while self._uploads:
            self._collect()
        self._record()
        self._recorded.result()

    def _add_large(self, path: str, local: Path, size: int) -> None:
        if size > LARGEST_BYTES:
            raise InvalidArgumentError(
                f"{local}: {size} bytes; a file may have at most 5 GiB: split it, or store an array"
            )
        sha256, crc32c = hashlib.sha256(), google_crc32c.Checksum()
        with local.open("rb") as stream:
            while part := stream.read(_HASH_BYTES):
                sha256.update(part)
                crc32c.update(part)
        file = dataset_pb2.File(
            path=path,
            size_bytes=size,
            object=self._new_key(),
            sha256=sha256.digest(),
            crc32c=int.from_bytes(crc32c.digest(), "big"),
        )
        self._upload(local, [file])

    def _close_pack(self) -> None:
        if self._packed:
            pack, files = bytes(self._pack), self._packed
            self._pack, self._packed = bytearray(), []
            self._upload(pack, files)

    def _upload(self, body: _s3.Body, files: list[dataset_pb2.File]) -> None:
        while len(self._uploads) >= _UPLOADS_AT_ONCE:
            self._collect()
        if len(body) if not isinstance(body, Path) else True:
            future = _s3.threads().submit(self._remote.put, files[0].object, body)
            self._uploads.append((future, files))
        else:
            self._note(files)

    def _collect(self) -> None:
        future, files = self._uploads.popleft()
        future.result()
        self._note(files)

    def _note(self, files: list[dataset_pb2.File]) -> None:
        if self._on_progress is not None:
            size = sum(file.size_bytes for file in files)
            before = self._through
            self._through = TransferProgress(before.files + len(files), before.bytes + size)
            self._on_progress(self._through)
        for file in files:
            self._ready.append(file)
            self._ready_bytes += file.ByteSize()
            if len(self._ready) >= _FILES_A_CALL or self._ready_bytes >= _CALL_BYTES:
                self._record()

    def _record(self) -> None:
        if not self._ready:
            return
        files, self._ready, self._ready_bytes = self._ready, [], 0
        request = api.AddFilesRequest(
            session=self._session, files=files, request_id=str(uuid.uuid4())
        )
        self._recorded.result()  # in order: of two files of one path the later one counts
        self._recorded = _s3.threads().submit(service_call, self._client, "AddFiles", request)

    def _new_key(self) -> str:
        return f"{self._prefix}{uuid.uuid4().hex}"


def begin(client: Client, dataset: str) -> Session:
    """A new session on `tenant/name`."""
    address = parse_address(dataset)
    if address.array is not None or address.version is not None:
        raise InvalidArgumentError(
            f"{dataset!r}: a session changes a dataset: write tenant/name", reason="INVALID_NAME"
        )
    request = api.CreateSessionRequest(parent=address.dataset_name, request_id=str(uuid.uuid4()))
    response = service_call(client, "CreateSession", request)
    return Session(client, response.session, owned=True)


def attach(client: Client, name: str) -> Session:
    """A session that someone else began, by its resource name."""
    response = service_call(client, "GetSession", api.GetSessionRequest(name=name))
    return Session(client, response.session, owned=False)


def _file(path: str, content: bytes | bytearray | memoryview, key: str, at: int) -> Any:
    return dataset_pb2.File(
        path=path,
        size_bytes=len(content),
        object=key,
        offset=at,
        sha256=hashlib.sha256(content).digest(),
        crc32c=google_crc32c.value(bytes(content)),
    )


def _axis_names(axes: int) -> tuple[str, ...]:
    return ("c", "z", "y", "x")[-axes:] if 0 < axes <= 4 else ()


def _whole(length: Any) -> int:
    """A length, as an integer that the wire can carry."""
    try:
        value = int(length.__index__())
    except AttributeError:
        raise InvalidArgumentError(
            f"{length!r} in a shape is not a whole number", reason="SHAPE_MISMATCH"
        ) from None
    if not -(2**63) <= value < 2**63:
        raise InvalidArgumentError(
            f"{value} in a shape is out of range: an axis has 1 to 2^40 elements",
            reason="SHAPE_MISMATCH",
        )
    return value


def _fill_json(value: Any) -> str:
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, complex):
        return json.dumps([_float_json(plain.real), _float_json(plain.imag)])
    return json.dumps(_float_json(plain) if isinstance(plain, float) else plain)


def _float_json(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value
