"""ArrayService: edits, registered arrays and the stores they lie in; proto in, proto out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from hyper import foreign
from hyper.errors import InvalidArgumentError, NotFoundError
from hyper.foreign import Foreign
from hyper.names import check_path
from hyper_servicekit.clock import Clock
from hyper_servicekit.config import S3Settings
from hyper_servicekit.objects import ObjectStore
from hyper_storage import convert
from hyper_storage.access import array_prefix
from hyper_storage.arrays.overlay import Overlay
from hyper_storage.catalog import Catalog
from hyper_storage.external import External, Externals, StoreRecord, decode_store
from hyper_storage.files.root import ArrayRef
from hyper_storage.manifests import Manifests
from hyper_storage.records import Made
from hyper_storage.resources import (
    ArrayName,
    SessionName,
    StoreName,
    check_array,
    parse_array,
    parse_session,
    parse_store,
    parse_tenant,
)
from hyper_storage.sessions import NANO, Sessions
from hyper_storage.views import View, Views
from hyperapi.storage.v1 import array_service_pb2 as api
from hyperapi.storage.v1 import array_service_pb2_grpc as api_grpc
from hyperapi.storage.v1 import dataset_pb2

_KEYS_A_MESSAGE = 4096
_STORES_MAX = 1000

Context = grpc.aio.ServicerContext[Any, Any]


class ArraysShown:
    """Arrays as clients see them.

    Args:
        manifests: with their records.
        s3: where plain ones can be opened.
    """

    def __init__(self, manifests: Manifests, s3: S3Settings) -> None:
        self._manifests = manifests
        prefix = f"/{s3.prefix.strip('/')}" if s3.prefix.strip("/") else ""
        self._base_url = f"s3://{s3.bucket}{prefix}"

    async def shown(self, view: View, name: str) -> dataset_pb2.Array:
        """An array of a version or session."""
        ref = view.array(name)
        made = view.session.arrays.get(name) if view.session else None
        zarr = await self._manifests.record(ref.record)
        base = view.root.arrays[name].prefix if made is not None and made.edits else ""
        plain = made is None and not ref.overlay
        registered = False
        if ref.overlay:
            registered = (await self._manifests.overlay(ref.overlay)).external is not None
        return convert.array_to_proto(
            ArrayName(view.name, name), ref, zarr,
            f"{self._base_url}/{ref.prefix}" if plain else "",
            writable=made is not None and not made.overlay, registered=registered,
            base_prefix=base,
        )  # fmt: skip

    async def made(
        self, name: ArrayName, made: Made, base: ArrayRef | None = None
    ) -> dataset_pb2.Array:
        """An array that a session has just made, edited or registered."""
        ref = ArrayRef(array_prefix(made.id), made.record, made.overlay)
        zarr = await self._manifests.record(made.record)
        return convert.array_to_proto(
            name, ref, zarr, "", writable=not made.overlay, registered=bool(made.overlay),
            base_prefix=base.prefix if base is not None else "",
        )  # fmt: skip


class ArrayServicer(api_grpc.ArrayServiceServicer):
    """Serves what is special about arrays."""

    def __init__(
        self,
        store: ObjectStore,
        catalog: Catalog,
        sessions: Sessions,
        views: Views,
        manifests: Manifests,
        shown: ArraysShown,
        externals: Externals,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._sessions = sessions
        self._views = views
        self._manifests = manifests
        self._shown = shown
        self._externals = externals
        self._clock = clock
        self._new_id = new_id

    async def EditArray(  # noqa: N802  (the RPC's name; so below)
        self, request: api.EditArrayRequest, context: Context
    ) -> api.EditArrayResponse:
        """Make an array of the base writable in a session."""
        name = parse_array(request.name)
        if not isinstance(name.parent, SessionName):
            raise InvalidArgumentError(
                "a version never changes; edit the array in a session", field="name"
            )
        view = await self._views.open(name.parent)
        base = view.root.arrays.get(name.array)
        if base is None:
            raise NotFoundError(f"{name.parent} is based on no array {name.array!r}")
        document = json.loads(await self._manifests.record(base.record))
        if document["codecs"][0]["name"] != "sharding_indexed":
            raise InvalidArgumentError(
                f"{name.array} is registered and has no shards; publish a copy, and edit that",
                field="name",
            )
        guard = await self._catalog.guard()
        made = await self._sessions.make_array(
            name.parent, name.array, Made(self._new_id(), base.record, edits=True), in_base=True,
            request=convert.request_of(
                name.parent.dataset.tenant, request.request_id, f"EditArray {name}"
            ),
            guard=guard,
        )  # fmt: skip
        return api.EditArrayResponse(array=await self._shown.made(name, made, base))

    async def ListShards(  # noqa: N802
        self, request: api.ListShardsRequest, context: Context
    ) -> AsyncIterator[api.ListShardsResponse]:
        """The shards that exist."""
        name = parse_array(request.name)
        view = await self._views.open(name.parent)
        ref = view.array(name.array)
        overlay = Overlay(ref.prefix)
        if ref.overlay:
            overlay = await self._manifests.overlay(ref.overlay)
        if overlay.external is not None:
            raise InvalidArgumentError(
                f"{name.array} is registered; its store knows its objects", field="name"
            )
        keys: list[str] = []
        layered = {shard for layer in overlay.layers for shard in layer.shards}
        for shard in sorted(layered):
            keys.append(f"{ref.prefix}/c/{shard}")
            if len(keys) >= _KEYS_A_MESSAGE:
                yield api.ListShardsResponse(objects=keys)
                keys = []
        folder = f"{overlay.base}/c/"
        async for info in self._store.list(folder):
            shard = info.key.removeprefix(folder)
            if shard not in layered:
                keys.append(f"{ref.prefix}/c/{shard}")
            if len(keys) >= _KEYS_A_MESSAGE:
                yield api.ListShardsResponse(objects=keys)
                keys = []
        yield api.ListShardsResponse(objects=keys)

    async def RegisterArray(  # noqa: N802
        self, request: api.RegisterArrayRequest, context: Context
    ) -> api.RegisterArrayResponse:
        """Add an array of another store to a session."""
        session, place = parse_session(request.session), parse_store(request.store)
        tenant = session.dataset.tenant
        if place.tenant != tenant:
            raise InvalidArgumentError(f"{place} is not a store of tenant {tenant}", field="store")
        name = ArrayName(session, check_array(request.array))
        path = check_path(request.path.strip("/")) if request.path.strip("/") else ""
        asked = convert.request_of(tenant, request.request_id, f"RegisterArray {name}")
        view = await self._views.open(session)
        await self._sessions.writable(session)
        found = await self._read_foreign(await self._externals.open(tenant, place.store), request)
        if request.HasField("voxel_size"):
            voxel = request.voxel_size
            found.document["attributes"]["voxel_size_nm"] = [voxel.z_nm, voxel.y_nm, voxel.x_nm]
        external = {"store": place.store, "path": path, "naming": found.naming}
        guard = await self._catalog.guard()
        made = Made(
            self._new_id(),
            await self._manifests.put_record(json.dumps(found.document, indent=1).encode()),
            overlay=await self._manifests.put_overlay(Overlay("", external)),
        )
        made = await self._sessions.make_array(
            session, name.array, made, in_base=name.array in view.root.arrays, request=asked,
            guard=guard,
        )  # fmt: skip
        return api.RegisterArrayResponse(array=await self._shown.made(name, made))

    async def _read_foreign(self, store: External, request: api.RegisterArrayRequest) -> Foreign:
        """The array at a path, of the format that was asked for, or that its metadata show."""
        path = request.path.strip("/")

        async def file(name: str) -> bytes | None:
            return await self._externals.read(store, path, name)

        any_format = request.format == api.ARRAY_FORMAT_UNSPECIFIED
        if any_format or request.format == api.ARRAY_FORMAT_ZARR:
            if (data := await file("zarr.json")) is not None:
                return foreign.zarr3(data)
            if (data := await file(".zarray")) is not None:
                return foreign.zarr2(data, await file(".zattrs"))
        wanted = any_format or request.format == api.ARRAY_FORMAT_PRECOMPUTED
        if wanted and (data := await file("info")) is not None:
            return foreign.precomputed(data, request.scale)
        wanted = any_format or request.format == api.ARRAY_FORMAT_N5
        if wanted and (data := await file("attributes.json")) is not None:
            return foreign.n5(data)
        raise NotFoundError(
            f"no array at {path!r}: neither zarr.json, .zarray, info nor attributes.json is there",
            metadata={"path": path},
        )

    # Stores

    async def SetStore(  # noqa: N802
        self, request: api.SetStoreRequest, context: Context
    ) -> api.SetStoreResponse:
        """Name a store, or replace what is known of it."""
        name, store = parse_store(request.store.name), request.store
        convert.check_store(store)
        await self._externals.check_endpoint(store.endpoint)
        record = StoreRecord(
            endpoint=store.endpoint,
            bucket=store.bucket,
            region=store.region or "us-east-1",
            access_key=store.access_key,
            secret=self._externals.seal(name.tenant, name.store, store.secret_key),
            updated_ns=int(self._clock.now() * NANO),
        )
        if len(await self._catalog.stores(name.tenant)) >= _STORES_MAX:
            raise InvalidArgumentError(f"a tenant has at most {_STORES_MAX} stores", field="store")
        await self._catalog.put_store(name.tenant, name.store, record.encode())
        return api.SetStoreResponse(store=_store(name, record))

    async def ListStores(  # noqa: N802
        self, request: api.ListStoresRequest, context: Context
    ) -> api.ListStoresResponse:
        """A tenant's stores, in order of name, without their secrets."""
        tenant = parse_tenant(request.parent)
        size = convert.page_size_of(request.page_size, 100, 1000)
        after = convert.token_text(request.page_token)
        found = [(n, value) for n, value in await self._catalog.stores(tenant) if n > after]
        response = api.ListStoresResponse(
            stores=[_store(StoreName(tenant, n), decode_store(value)) for n, value in found[:size]]
        )
        if len(found) > size:
            response.next_page_token = convert.token_of(found[size - 1][0])
        return response

    async def DeleteStore(  # noqa: N802
        self, request: api.DeleteStoreRequest, context: Context
    ) -> api.DeleteStoreResponse:
        """Forget a store."""
        name = parse_store(request.name)
        await self._catalog.delete_store(name.tenant, name.store)
        return api.DeleteStoreResponse()


def _store(name: StoreName, record: StoreRecord) -> api.ExternalStore:
    return api.ExternalStore(
        name=str(name),
        endpoint=record.endpoint,
        bucket=record.bucket,
        region=record.region,
        access_key=record.access_key,
        update_time=convert.time_of(record.updated_ns),
    )
