"""DatasetService: proto in, proto out."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import google_crc32c
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from hyper.array_spec import updated_zarr, zarr_json
from hyper.errors import (
    ConflictError,
    DataLossError,
    HyperError,
    InvalidArgumentError,
    NotFoundError,
)
from hyper.names import EVERY_TENANT
from hyper_servicekit.clock import Clock
from hyper_servicekit.etcd import Compare, Op
from hyper_servicekit.objects import ObjectStore
from hyper_storage import convert
from hyper_storage.access import Writable
from hyper_storage.array_servicer import ArraysShown
from hyper_storage.catalog import VERSIONS_AT_ONCE, Catalog, Request
from hyper_storage.commit import Committer
from hyper_storage.config import Settings
from hyper_storage.files.entries import gone
from hyper_storage.files.fragments import Fragments
from hyper_storage.locate import Locator, Place
from hyper_storage.manifests import Manifests
from hyper_storage.quotas import Quotas
from hyper_storage.records import Made
from hyper_storage.resources import (
    ArrayName,
    SessionName,
    check_array,
    parse_array,
    parse_dataset,
    parse_parent,
    parse_session,
    parse_tenant,
    parse_version,
)
from hyper_storage.sessions import NANO, Sessions, ttl_of
from hyper_storage.views import View, Views
from hyperapi.storage.v1 import dataset_service_pb2 as api
from hyperapi.storage.v1 import dataset_service_pb2_grpc as api_grpc

_LIST_BYTES = 2 * 2**20  # of an answer; gRPC's default limit is 4 MiB
_DELETE_ATTEMPTS = 10
_READ_AHEAD_BYTES = 4 * 2**20
_STREAM_BYTES = 2**20

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the servicer is made of."""

    settings: Settings
    store: ObjectStore
    catalog: Catalog
    sessions: Sessions
    views: Views
    manifests: Manifests
    fragments: Fragments
    committer: Committer
    arrays: ArraysShown
    locator: Locator
    quotas: Quotas
    clock: Clock
    new_id: Callable[[], str]


class DatasetServicer(api_grpc.DatasetServiceServicer):
    """Serves datasets."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._writes = asyncio.Semaphore(parts.settings.write_object_streams)

    # Datasets and versions

    async def GetDataset(  # noqa: N802  (the RPC's name; so below)
        self, request: api.GetDatasetRequest, context: Context
    ) -> api.GetDatasetResponse:
        """One dataset."""
        name = parse_dataset(request.name)
        head = await self._parts.views.head(name)
        return api.GetDatasetResponse(dataset=convert.dataset_to_proto(name, head))

    async def ListDatasets(  # noqa: N802
        self, request: api.ListDatasetsRequest, context: Context
    ) -> api.ListDatasetsResponse:
        """Datasets of a tenant, or of all (`EVERY_TENANT`), in order of name."""
        everywhere = request.parent == EVERY_TENANT  # tokens of one tenant were refused
        tenant = None if everywhere else parse_tenant(request.parent)
        size = convert.page_size_of(request.page_size, 100, 1000)
        after = convert.token_text(request.page_token)
        keyed = (
            (str(name) if everywhere else name.dataset, name, head)
            for name, head in await self._parts.catalog.heads(tenant)
        )
        rest = [each for each in keyed if each[0] > after]
        response = api.ListDatasetsResponse(
            datasets=[convert.dataset_to_proto(name, head) for _, name, head in rest[:size]]
        )
        if len(rest) > size:
            response.next_page_token = convert.token_of(rest[size - 1][0])
        return response

    async def DeleteDataset(  # noqa: N802
        self, request: api.DeleteDatasetRequest, context: Context
    ) -> api.DeleteDatasetResponse:
        """Remove a dataset's name and versions."""
        name = parse_dataset(request.name)
        asked = convert.request_of(name.tenant, request.request_id, f"DeleteDataset {name}")
        catalog = self._parts.catalog
        for _ in range(_DELETE_ATTEMPTS):
            answer = await catalog.answer(asked)
            if answer is not None:
                await catalog.delete_versions(answer["dataset_id"])
                await self._parts.quotas.forget(name.tenant, answer["dataset_id"])
                return api.DeleteDatasetResponse()
            await self._parts.views.head(name)
            found = await catalog.head(name)
            if found is None:
                continue
            key = catalog.head_key(name)
            done = await catalog.change(
                [Compare.mod_revision(key, found.revision)],
                [Op.delete(key)],
                request=asked,
                answer={"dataset_id": found.value.id},
            )
            if done:
                await catalog.delete_versions(found.value.id)
                await self._parts.quotas.forget(name.tenant, found.value.id)
                return api.DeleteDatasetResponse()
        raise ConflictError(f"{name} is being changed by too many at once; try again")

    async def GetVersion(  # noqa: N802
        self, request: api.GetVersionRequest, context: Context
    ) -> api.GetVersionResponse:
        """One version."""
        name = parse_version(request.name)
        entry = await self._parts.views.version(name)
        return api.GetVersionResponse(version=convert.version_to_proto(name.dataset, entry))

    async def ListVersions(  # noqa: N802
        self, request: api.ListVersionsRequest, context: Context
    ) -> api.ListVersionsResponse:
        """A dataset's versions, newest first."""
        name = parse_dataset(request.parent)
        size = convert.page_size_of(request.page_size, VERSIONS_AT_ONCE, VERSIONS_AT_ONCE)
        head = await self._parts.views.head(name)
        before = convert.token_number(request.page_token)
        newest = min(head.number, before - 1) if before else head.number
        numbers = range(newest, max(newest - size, 0), -1)
        entries = await self._parts.catalog.versions(head.id, numbers) if numbers else []
        response = api.ListVersionsResponse(
            versions=[convert.version_to_proto(name, entry) for entry in entries]
        )
        if numbers and numbers[-1] > 1:
            response.next_page_token = convert.token_of(str(numbers[-1]))
        return response

    # Sessions

    async def CreateSession(  # noqa: N802
        self, request: api.CreateSessionRequest, context: Context
    ) -> api.CreateSessionResponse:
        """Start a session."""
        name = parse_dataset(request.parent)
        settings = self._parts.settings
        asked_s = request.ttl.ToNanoseconds() / NANO if request.HasField("ttl") else 0
        ttl_s = ttl_of(asked_s, settings.session_ttl_s, settings.session_ttl_max_s)
        asked = convert.request_of(name.tenant, request.request_id, f"CreateSession {name}")
        if not 0 <= request.reserve_bytes < 2**62:
            raise InvalidArgumentError("a session reserves 0 bytes or more", field="reserve_bytes")
        record = await self._parts.sessions.create(name, ttl_s, asked)
        try:
            await self._parts.quotas.reserve(record, request.reserve_bytes)
        except HyperError:
            session = SessionName(name, record.id)
            await self._parts.sessions.abort(session, Request(name.tenant, "", ""))
            raise
        return api.CreateSessionResponse(session=convert.session_to_proto(record))

    async def GetSession(  # noqa: N802
        self, request: api.GetSessionRequest, context: Context
    ) -> api.GetSessionResponse:
        """One session."""
        record = await self._parts.sessions.get(parse_session(request.name))
        return api.GetSessionResponse(session=convert.session_to_proto(record))

    async def CommitSession(  # noqa: N802
        self, request: api.CommitSessionRequest, context: Context
    ) -> api.CommitSessionResponse:
        """Make a session's changes a version."""
        name = parse_session(request.name)
        call = f"CommitSession {name.dataset if request.once else name}"
        asked = convert.request_of(name.dataset.tenant, request.request_id, call)
        message = convert.message_of(request.message)
        entry = await self._parts.committer.commit(name, message, asked)
        return api.CommitSessionResponse(version=convert.version_to_proto(name.dataset, entry))

    async def AbortSession(  # noqa: N802
        self, request: api.AbortSessionRequest, context: Context
    ) -> api.AbortSessionResponse:
        """Drop a session's changes."""
        name = parse_session(request.name)
        asked = convert.request_of(name.dataset.tenant, request.request_id, f"AbortSession {name}")
        await self._parts.sessions.abort(name, asked)
        return api.AbortSessionResponse()

    # Files

    async def AddFiles(  # noqa: N802
        self, request: api.AddFilesRequest, context: Context
    ) -> api.AddFilesResponse:
        """Record uploaded files in a session."""
        name = parse_session(request.session)
        parts = self._parts
        now_ns = int(parts.clock.now() * NANO)
        unique = convert.unique_of(request.request_id)
        record = await parts.sessions.writable(name)
        own = Writable(record.id, {})
        if any(not own.allows(file.object) for file in request.files):
            own = own.with_base((await parts.manifests.root(record.base_root)).sources)
        entries = convert.entries_of(request.files, own, now_ns)
        young_ns = parts.settings.request_memory_s * NANO // 2  # clocks of gateways differ a little
        await parts.fragments.add(
            record.id, entries, now_ns=now_ns, unique=unique,
            young=now_ns - record.created_ns < young_ns,
        )  # fmt: skip
        # A commit seals before it looks: still open now means that it will see this fragment.
        await parts.sessions.check_open(name)
        return api.AddFilesResponse()

    async def DeleteFiles(  # noqa: N802
        self, request: api.DeleteFilesRequest, context: Context
    ) -> api.DeleteFilesResponse:
        """Take files out of the coming version; those that the session deleted before stay so."""
        name = parse_session(request.session)
        paths = convert.paths_of(request.paths)
        parts = self._parts
        now_ns = int(parts.clock.now() * NANO)
        unique = convert.unique_of(request.request_id)
        record = await parts.sessions.writable(name)
        view = await parts.views.open(name)
        found = await parts.views.find(view, paths)
        known = {**await parts.fragments.find(record.id, paths), **found}
        missing = [path for path in paths if path not in known]
        if missing:
            raise NotFoundError(f"{name} has no file {missing[0]!r}", metadata={"path": missing[0]})
        entries = [gone(path, now_ns) for path in sorted(paths)]
        await parts.fragments.add(record.id, entries, now_ns=now_ns, unique=unique)
        await parts.sessions.check_open(name)
        return api.DeleteFilesResponse()

    async def ListFiles(  # noqa: N802
        self, request: api.ListFilesRequest, context: Context
    ) -> api.ListFilesResponse:
        """Files in order of path."""
        size = convert.page_size_of(request.page_size, 1000, 4096)
        prefix = convert.prefix_of(request.prefix)
        after = convert.token_text(request.page_token)
        view = await self._parts.views.open(parse_parent(request.parent))
        if request.shallow:
            return await self._list_folder(view, prefix, after, size)
        response = api.ListFilesResponse()
        length = 0
        async for entry in self._parts.views.files(view, prefix=prefix, after=after):
            if len(response.files) >= size or length > _LIST_BYTES:
                response.next_page_token = convert.token_of(response.files[-1].path)
                break
            file = convert.file_to_proto(entry)
            length += file.ByteSize()
            response.files.append(file)
        return response

    async def _list_folder(
        self, view: View, prefix: str, after: str, size: int
    ) -> api.ListFilesResponse:
        """What is directly under a folder; what lies deeper is stepped over."""
        if prefix and not prefix.endswith("/"):
            raise InvalidArgumentError(
                "a shallow listing's prefix is empty or ends with '/'", field="prefix"
            )
        response, length = api.ListFilesResponse(), 0
        steps = self._parts.views.folder(view, prefix=prefix, after=after)
        async for last, found in steps:
            if isinstance(found, str):
                response.folders.append(found)
                length += len(found)
            else:
                file = convert.file_to_proto(found)
                length += file.ByteSize()
                response.files.append(file)
            if len(response.files) + len(response.folders) >= size or length > _LIST_BYTES:
                response.next_page_token = convert.token_of(last)
                break
        return response

    async def GetFiles(  # noqa: N802
        self, request: api.GetFilesRequest, context: Context
    ) -> api.GetFilesResponse:
        """Files by their exact paths, each with a URL if wanted."""
        paths = convert.paths_of(request.paths)
        parts = self._parts
        view = await parts.views.open(parse_parent(request.parent))
        found = await parts.views.find(view, paths)
        entries = [found[path] for path in paths if path in found]
        response = api.GetFilesResponse(files=[convert.file_to_proto(entry) for entry in entries])
        if request.sign:
            lifetime_s = parts.settings.sign_lifetime_s
            response.lifetime.FromTimedelta(timedelta(seconds=lifetime_s))
            urls = {
                key: parts.store.sign(key, "GET", lifetime_s)
                for key in {entry.object for entry in entries}
            }
            response.urls.extend(urls[entry.object] for entry in entries)
        return response

    # Arrays

    async def CreateArray(  # noqa: N802
        self, request: api.CreateArrayRequest, context: Context
    ) -> api.CreateArrayResponse:
        """Make an array in a session."""
        session = parse_session(request.session)
        name = ArrayName(session, check_array(request.array))
        zarr = zarr_json(convert.spec_of(request))
        parts = self._parts
        view = await parts.views.open(session)
        await parts.sessions.writable(session)
        guard = await parts.catalog.guard()
        made = await parts.sessions.make_array(
            session,
            name.array,
            Made(parts.new_id(), await parts.manifests.put_record(zarr)),
            in_base=name.array in view.root.arrays,
            request=self._asked(session, request.request_id, f"CreateArray {name}"),
            guard=guard,
        )
        return api.CreateArrayResponse(array=await parts.arrays.made(name, made))

    async def GetArray(  # noqa: N802
        self, request: api.GetArrayRequest, context: Context
    ) -> api.GetArrayResponse:
        """One array."""
        name = parse_array(request.name)
        view = await self._parts.views.open(name.parent)
        return api.GetArrayResponse(array=await self._parts.arrays.shown(view, name.array))

    async def ListArrays(  # noqa: N802
        self, request: api.ListArraysRequest, context: Context
    ) -> api.ListArraysResponse:
        """All arrays, in order of name."""
        view = await self._parts.views.open(parse_parent(request.parent))
        return api.ListArraysResponse(
            arrays=[await self._parts.arrays.shown(view, name) for name in sorted(view.arrays)]
        )

    async def DeleteArray(  # noqa: N802
        self, request: api.DeleteArrayRequest, context: Context
    ) -> api.DeleteArrayResponse:
        """Remove an array from a session."""
        name = parse_array(request.name)
        if not isinstance(name.parent, SessionName):
            raise InvalidArgumentError(
                "a version never changes; delete the array in a session and commit it", field="name"
            )
        view = await self._parts.views.open(name.parent)
        await self._parts.sessions.drop_array(
            name.parent,
            name.array,
            in_base=name.array in view.root.arrays,
            request=self._asked(name.parent, request.request_id, f"DeleteArray {name}"),
        )
        return api.DeleteArrayResponse()

    async def UpdateArray(  # noqa: N802
        self, request: api.UpdateArrayRequest, context: Context
    ) -> api.UpdateArrayResponse:
        """Grow an array of a session, or replace its attributes."""
        name = parse_array(request.name)
        if not isinstance(name.parent, SessionName):
            raise InvalidArgumentError("a version never changes", field="name")
        parts = self._parts
        asked = self._asked(name.parent, request.request_id, f"UpdateArray {name}")
        if await parts.catalog.answer(asked) is not None:
            view = await parts.views.open(name.parent)
            return api.UpdateArrayResponse(array=await parts.arrays.shown(view, name.array))
        guard = await parts.catalog.guard()
        made, seen = await parts.sessions.own_array(name.parent, name.array)
        if made.overlay:
            raise InvalidArgumentError(
                f"{name.array} is registered: it is as its store has it", field="name"
            )
        changed = updated_zarr(
            await parts.manifests.record(made.record),
            expected=tuple(request.expected_shape),
            shape=tuple(request.shape),
            attributes_json=request.attributes_json,
        )
        after = made._replace(record=await parts.manifests.put_record(changed))
        await parts.sessions.change_array(
            name.parent,
            name.array,
            (seen, after),
            request=asked,
            guard=guard,
        )
        view = await parts.views.open(name.parent)
        return api.UpdateArrayResponse(array=await parts.arrays.shown(view, name.array))

    async def LeaseShards(  # noqa: N802
        self, request: api.LeaseShardsRequest, context: Context
    ) -> api.LeaseShardsResponse:
        """Reserve shards for one who reads, changes and writes them."""
        name, owner = parse_session(request.session), convert.owner_of(request.owner)
        objects = convert.shards_of(request.objects)
        record = await self._parts.sessions.writable(name)
        writable = Writable(record.id, await self._parts.views.own_grids(record, objects))
        for key in objects:
            writable.check(key)
        lifetime_s = self._parts.settings.shard_lease_s
        await self._parts.catalog.lease_shards(record.id, objects, owner, lifetime_s)
        response = api.LeaseShardsResponse()
        response.lifetime.FromNanoseconds(int(lifetime_s * NANO))
        return response

    async def ReleaseShards(  # noqa: N802
        self, request: api.ReleaseShardsRequest, context: Context
    ) -> api.ReleaseShardsResponse:
        """Give shards back; those of another owner stay as they are."""
        name, owner = parse_session(request.session), convert.owner_of(request.owner)
        objects = convert.shards_of(request.objects)
        await self._parts.sessions.get(name)
        await self._parts.catalog.release_shards(name.session, objects, owner)
        return api.ReleaseShardsResponse()

    # Bytes

    async def SignUrls(  # noqa: N802
        self, request: api.SignUrlsRequest, context: Context
    ) -> api.SignUrlsResponse:
        """URLs for objects of a version or session."""
        parent = parse_parent(request.parent)
        method = convert.method_of(request.method)
        if len(request.objects) > convert.MAX_OBJECTS_A_CALL:
            raise InvalidArgumentError(
                f"a call signs at most {convert.MAX_OBJECTS_A_CALL} objects", field="objects"
            )
        parts = self._parts
        if method == "PUT":
            if not isinstance(parent, SessionName):
                raise InvalidArgumentError(
                    "a version never changes; write through a session", field="parent"
                )
            record = await parts.sessions.writable(parent)
            writable = Writable(record.id, await parts.views.own_grids(record, request.objects))
            for key in request.objects:
                writable.check(key)
            places = [Place(key) for key in request.objects]
        else:
            view = await parts.views.open(parent)
            places = await parts.locator.find(view, request.objects)
        lifetime_s = parts.settings.sign_lifetime_s
        lifetime = Duration()
        lifetime.FromTimedelta(timedelta(seconds=lifetime_s))
        urls = [
            parts.store.sign(place.key, method, lifetime_s)
            if place.elsewhere is None
            else place.elsewhere.sign(method, lifetime_s)
            for place in places
        ]
        return api.SignUrlsResponse(urls=urls, lifetime=lifetime)

    async def ReadObject(  # noqa: N802
        self, request: api.ReadObjectRequest, context: Context
    ) -> AsyncIterator[api.ReadObjectResponse]:
        """Stream an object's bytes."""
        if request.offset < 0 or request.size_bytes < 0:
            raise InvalidArgumentError("offset and size cannot be negative", field="offset")
        view = await self._parts.views.open(parse_parent(request.parent))
        (place,) = await self._parts.locator.find(view, [request.object])
        end = request.offset + request.size_bytes if request.size_bytes else None
        async with aclosing(self._windows(place, request.offset, end)) as windows:
            async for offset, window in windows:
                for at in range(0, len(window), _STREAM_BYTES):
                    data = window[at : at + _STREAM_BYTES]
                    yield api.ReadObjectResponse(
                        data=data, offset=offset + at, crc32c=google_crc32c.value(data)
                    )

    async def _windows(
        self, place: Place, offset: int, end: int | None
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """An object's bytes and where they begin; the next are fetched while these are sent."""

        async def fetch(start: int) -> tuple[int, bytes]:
            stop = start + _READ_AHEAD_BYTES if end is None else min(start + _READ_AHEAD_BYTES, end)
            if place.elsewhere is None:
                return stop, await self._parts.store.get(place.key, start, stop)
            found = await place.elsewhere.get(start, stop)
            if found is None:
                raise NotFoundError(f"object {place.key!r} is not there")
            return stop, found

        coming: asyncio.Task[tuple[int, bytes]] | None = None
        try:
            coming = asyncio.create_task(fetch(offset))
            while coming is not None:
                stop, window = await coming
                more = offset + len(window) == stop != end
                coming = asyncio.create_task(fetch(stop)) if more else None
                yield offset, window
                offset = stop
        finally:
            if coming is not None:
                coming.cancel()

    async def WriteObject(  # noqa: N802
        self, request_iterator: AsyncIterator[api.WriteObjectRequest], context: Context
    ) -> api.WriteObjectResponse:
        """Store an object whose bytes come as a stream; they wait on disk, not in memory."""
        parts = self._parts
        header = await anext(request_iterator, None)
        if header is None:
            raise InvalidArgumentError("the stream ended before it began", field="session")
        session = parse_session(header.session)
        record = await parts.sessions.writable(session)
        grids = await parts.views.own_grids(record, [header.object])
        Writable(record.id, grids).check(header.object)
        if not 0 < header.size_bytes <= parts.settings.write_object_max_bytes:
            raise InvalidArgumentError(
                f"an object sent through the gateway has 1 to "
                f"{parts.settings.write_object_max_bytes} bytes, not {header.size_bytes}",
                field="size_bytes",
            )
        async with self._writes:
            with tempfile.TemporaryFile() as file:
                message: api.WriteObjectRequest | None = header
                length = 0
                while message is not None:
                    if google_crc32c.value(message.data) != message.crc32c:
                        raise DataLossError("data was damaged on its way; send it again")
                    length += len(message.data)
                    if length > header.size_bytes:
                        raise InvalidArgumentError("more data than was said", field="data")
                    await asyncio.to_thread(file.write, message.data)
                    message = await anext(request_iterator, None)
                if length != header.size_bytes:
                    raise InvalidArgumentError(
                        f"{length} bytes came of {header.size_bytes}", field="data"
                    )
                file.seek(0)
                await parts.store.put_file(header.object, file, length)
        return api.WriteObjectResponse()

    def _asked(self, session: SessionName, request_id: str, call: str) -> Request:
        return convert.request_of(session.dataset.tenant, request_id, call)
