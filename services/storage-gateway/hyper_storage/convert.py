"""Protobuf in, checked domain values out, and back."""

from __future__ import annotations

import base64
import binascii
import json
import re
import uuid
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.timestamp_pb2 import Timestamp

from hyper.array_spec import (
    DTYPES,
    ArraySpec,
    check,
    read_attributes,
    read_fill_value,
)
from hyper.errors import InvalidArgumentError
from hyper.names import check_path
from hyper_storage.access import Writable
from hyper_storage.arrays.layout import default_chunks, default_shards
from hyper_storage.catalog import Request
from hyper_storage.files.entries import Entry
from hyper_storage.files.root import ArrayRef
from hyper_storage.manifests import digest_of
from hyper_storage.records import Head, SessionRecord, SessionState, VersionEntry
from hyper_storage.resources import ArrayName, DatasetName, SessionName, VersionName
from hyperapi.common.v1 import geometry_pb2
from hyperapi.storage.v1 import array_service_pb2, dataset_pb2, dataset_service_pb2

MAX_FILES_A_CALL = 4096
MAX_OBJECTS_A_CALL = 4096
MAX_SHARDS_A_CALL = 100
MAX_FILE_BYTES = 2**62
MAX_MESSAGE_CHARS = 4096
_NS_END = 2**63

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_METHODS: dict[int, str] = {
    dataset_service_pb2.METHOD_GET: "GET",
    dataset_service_pb2.METHOD_PUT: "PUT",
    dataset_service_pb2.METHOD_HEAD: "HEAD",
}


# Requests


def request_of(tenant: str, request_id: str, call: str) -> Request:
    """Who asks for a change."""
    if request_id and not _REQUEST_ID.match(request_id):
        raise InvalidArgumentError(
            "request_id must be a UUID (letters, digits, '-', '_', at most 64)", field="request_id"
        )
    return Request(tenant, request_id, call)


def unique_of(request_id: str) -> str:
    """A part of a key that is the same for a repeated request."""
    return request_of("", request_id, "").id or uuid.uuid4().hex


def message_of(text: str) -> str:
    """A commit's message, bounded."""
    if len(text) > MAX_MESSAGE_CHARS:
        raise InvalidArgumentError(
            f"a message has at most {MAX_MESSAGE_CHARS} characters", field="message"
        )
    return text


def page_size_of(asked: int, default: int, limit: int) -> int:
    """Items on one page of an answer."""
    if asked < 0:
        raise InvalidArgumentError("page_size cannot be negative", field="page_size")
    return min(asked or default, limit)


def token_text(token: str) -> str:
    """What a page token stands for; "" for none."""
    try:
        return base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error) as error:
        raise InvalidArgumentError(
            "page_token is not one of ours; begin at the first page", field="page_token"
        ) from error


def token_number(token: str) -> int:
    """What a numeric page token stands for; 0 for none."""
    text = token_text(token)
    if text and not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise InvalidArgumentError(
            "page_token is not one of ours; begin at the first page", field="page_token"
        )
    return int(text or 0)


def token_of(text: str) -> str:
    """The token of a page that begins after `text`."""
    return base64.urlsafe_b64encode(text.encode()).decode()


def prefix_of(prefix: str) -> str:
    """A prefix of file paths."""
    check_path(prefix.rstrip("/") or "x")
    return prefix


def paths_of(paths: Any) -> list[str]:
    """Exact paths of files, each once."""
    if not 1 <= len(paths) <= MAX_FILES_A_CALL:
        raise InvalidArgumentError(
            f"a call asks for 1 to {MAX_FILES_A_CALL} files, not {len(paths)}", field="paths"
        )
    return [check_path(path) for path in dict.fromkeys(paths)]


def owner_of(owner: str) -> str:
    """Who reserves shards."""
    if not _REQUEST_ID.match(owner):
        raise InvalidArgumentError("owner must be a UUID", field="owner")
    return owner


def shards_of(objects: Any) -> list[str]:
    """Keys of shards, each once, in order."""
    if not 1 <= len(objects) <= MAX_SHARDS_A_CALL:
        raise InvalidArgumentError(
            f"a call reserves 1 to {MAX_SHARDS_A_CALL} shards, not {len(objects)}", field="objects"
        )
    keys = sorted(set(objects))
    for key in keys:
        if not key.startswith("arrays/"):
            raise InvalidArgumentError(f"{key[:120]!r} is not a shard", field="objects")
        check_path(key)
    return keys


_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}[a-z0-9]\Z")
_KEY_TEXT = re.compile(r"[!-~]{0,512}\Z")


def check_store(store: array_service_pb2.ExternalStore) -> None:
    """Raise unless a store is one that URLs can be made for."""
    parts = urlsplit(store.endpoint)
    if (
        len(store.endpoint) > 512
        or parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.path.strip("/")
        or parts.query
        or parts.username
    ):
        raise InvalidArgumentError(
            f"endpoint {store.endpoint[:80]!r} is not http(s)://host[:port]", field="endpoint"
        )
    if not _BUCKET.match(store.bucket) or ".." in store.bucket:
        raise InvalidArgumentError(f"{store.bucket[:80]!r} is not a bucket", field="bucket")
    texts = (store.region, store.access_key, store.secret_key)
    if not all(_KEY_TEXT.match(text) for text in texts):
        raise InvalidArgumentError("region and keys are printable and short", field="access_key")
    if bool(store.access_key) != bool(store.secret_key):
        raise InvalidArgumentError("give both keys, or none for public objects", field="secret_key")


def method_of(method: int) -> str:
    """GET, PUT or HEAD."""
    if method not in _METHODS:
        raise InvalidArgumentError("method must be GET, PUT or HEAD", field="method")
    return _METHODS[method]


def entries_of(files: Any, writable: Writable, now_ns: int) -> list[Entry]:
    """The files of an `AddFiles`, each in a blob of its own session."""
    if not 1 <= len(files) <= MAX_FILES_A_CALL:
        raise InvalidArgumentError(
            f"a call adds 1 to {MAX_FILES_A_CALL} files, not {len(files)}", field="files"
        )
    return [_entry(file, writable, now_ns) for file in files]


def ns_of(stamp: Timestamp, field: str) -> int:
    """A caller's point in time as Unix ns; until the year 2262, where 64 bits end."""
    try:
        found = stamp.ToNanoseconds()
    except ValueError:
        found = _NS_END
    if not -_NS_END < found < _NS_END:
        raise InvalidArgumentError(f"{field} is no time from 1678 to 2262", field=field)
    return found


def _entry(file: dataset_pb2.File, writable: Writable, now_ns: int) -> Entry:
    path = check_path(file.path)
    if not (0 <= file.size_bytes <= MAX_FILE_BYTES and 0 <= file.offset <= MAX_FILE_BYTES):
        raise InvalidArgumentError(f"{path!r}: size and offset cannot be negative", field="files")
    if len(file.sha256) != 32:
        raise InvalidArgumentError(f"{path!r}: sha256 must have 32 bytes", field="files")
    if not file.object.startswith("blobs/"):
        raise InvalidArgumentError(f"{path!r}: its object is not a blob", field="files")
    writable.check(file.object)
    modified_ns = now_ns
    if file.HasField("modify_time"):
        modified_ns = ns_of(file.modify_time, f"modify_time of {path!r}")
    return Entry(
        path, file.size_bytes, file.object, file.offset, file.sha256, file.crc32c, modified_ns
    )


def spec_of(request: dataset_service_pb2.CreateArrayRequest) -> ArraySpec:
    """The array that a `CreateArray` asks for, with its layout chosen where none was given."""
    shape = tuple(request.shape)
    fill_value = read_fill_value(request.fill_value_json, request.dtype)
    voxel = request.voxel_size
    given = request.HasField("voxel_size")
    chunks, shards = tuple(request.chunk_shape), tuple(request.shard_shape)
    draft = ArraySpec(
        shape=shape,
        dtype=request.dtype,
        chunks=chunks or shape,
        shards=shards or chunks or shape,
        fill_value=fill_value,
        compressor=request.compressor or "zstd",
        dimension_names=tuple(request.dimension_names),
        voxel_size_nm=(voxel.z_nm, voxel.y_nm, voxel.x_nm) if given else None,
        attributes=read_attributes(request.attributes_json),
    )
    return check(_with_layout(draft, bool(chunks), bool(shards)))


def _with_layout(draft: ArraySpec, has_chunks: bool, has_shards: bool) -> ArraySpec:
    """Fill in chunks and shards; a draft that is wrong anyway is left for `check` to refuse."""
    usable = draft.shape and all(0 < n <= 2**40 for n in draft.shape) and draft.dtype in DTYPES
    lengths = (len(draft.shape), len(draft.chunks), len(draft.shards))
    positive = all(0 < n <= 2**40 for n in (*draft.chunks, *draft.shards))
    if not usable or len(set(lengths)) != 1 or not positive:
        return draft
    chunks = draft.chunks
    if not has_chunks:
        chunks = default_chunks(draft.shape, draft.shards if has_shards else ())
    shards = draft.shards
    if not has_shards:
        shards = default_shards(draft.shape, chunks, DTYPES[draft.dtype])
    return ArraySpec(
        draft.shape, draft.dtype, chunks, shards, draft.fill_value, draft.compressor,
        draft.dimension_names, draft.voxel_size_nm, draft.attributes,
    )  # fmt: skip


# Answers


def time_of(ns: int) -> Timestamp:
    """A timestamp of Unix nanoseconds."""
    stamp = Timestamp()
    stamp.FromNanoseconds(ns)
    return stamp


def dataset_to_proto(name: DatasetName, head: Head) -> dataset_pb2.Dataset:
    """A dataset on the wire."""
    return dataset_pb2.Dataset(
        name=str(name),
        head=head.number,
        create_time=time_of(head.created_ns),
        update_time=time_of(head.updated_ns),
    )


def version_to_proto(dataset: DatasetName, entry: VersionEntry) -> dataset_pb2.Version:
    """A version on the wire."""
    return dataset_pb2.Version(
        name=str(VersionName(dataset, entry.number)),
        number=entry.number,
        root=digest_of(entry.root),
        message=entry.message,
        create_time=time_of(entry.created_ns),
        files=entry.files,
        file_bytes=entry.file_bytes,
        arrays=entry.arrays,
    )


_STATES = {
    SessionState.OPEN: dataset_pb2.SESSION_STATE_OPEN,
    SessionState.SEALED: dataset_pb2.SESSION_STATE_OPEN,
    SessionState.COMMITTED: dataset_pb2.SESSION_STATE_COMMITTED,
    SessionState.ABORTED: dataset_pb2.SESSION_STATE_ABORTED,
}


def session_to_proto(record: SessionRecord) -> dataset_pb2.Session:
    """A session on the wire."""
    return dataset_pb2.Session(
        name=str(SessionName(DatasetName(record.tenant, record.dataset), record.id)),
        base=record.base,
        state=_STATES[record.state],
        create_time=time_of(record.created_ns),
        expire_time=time_of(record.expires_ns),
        committed_version=record.committed,
    )


def file_to_proto(entry: Entry) -> dataset_pb2.File:
    """A file on the wire."""
    return dataset_pb2.File(
        path=entry.path,
        size_bytes=entry.size_bytes,
        object=entry.object,
        offset=entry.offset,
        sha256=entry.sha256,
        crc32c=entry.crc32c,
        modify_time=time_of(entry.modified_ns),
    )


def array_to_proto(
    name: ArrayName,
    ref: ArrayRef,
    zarr: bytes,
    url: str,
    *,
    writable: bool,
    registered: bool = False,
    base_prefix: str = "",
) -> dataset_pb2.Array:
    """An array on the wire; everything about it stands in its `zarr.json`."""
    document = json.loads(zarr)
    attributes = document["attributes"]
    shards = document["chunk_grid"]["configuration"]["chunk_shape"]
    sharded = document["codecs"][0]["name"] == "sharding_indexed"
    voxel = attributes.get("voxel_size_nm")
    array = dataset_pb2.Array(
        name=str(name),
        prefix=ref.prefix,
        url=url,
        shape=document["shape"],
        dtype=document["data_type"],
        chunk_shape=document["codecs"][0]["configuration"]["chunk_shape"] if sharded else shards,
        shard_shape=shards,
        zarr_json=zarr,
        attributes_json=json.dumps(attributes),
        writable=writable,
        registered=registered,
        base_prefix=base_prefix,
    )
    if isinstance(voxel, list) and len(voxel) == 3:
        array.voxel_size.CopyFrom(
            geometry_pb2.VoxelSize(z_nm=voxel[0], y_nm=voxel[1], x_nm=voxel[2])
        )
    return array
