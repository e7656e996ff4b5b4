"""HistoryService: proto in, proto out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from hyper.errors import ConflictError, InvalidArgumentError, NotFoundError
from hyper_servicekit.clock import Clock
from hyper_servicekit.etcd import Compare, Op
from hyper_storage import convert
from hyper_storage.catalog import Catalog
from hyper_storage.diff import Difference, Kind, array_differences, file_differences
from hyper_storage.files.root import Root
from hyper_storage.garbage import Collector
from hyper_storage.manifests import Manifests
from hyper_storage.records import TagRecord
from hyper_storage.resources import TagName, VersionName, parse_dataset, parse_tag, parse_version
from hyper_storage.sessions import NANO
from hyper_storage.views import Views
from hyperapi.storage.v1 import history_service_pb2 as api
from hyperapi.storage.v1 import history_service_pb2_grpc as api_grpc

Context = grpc.aio.ServicerContext[Any, Any]
_PAGE_BYTES = 2 * 2**20
_ATTEMPTS = 10
_TAGS_MAX = 10_000
_GRACE_MAX_S = 10 * 366 * 86_400.0
_KINDS = {
    Kind.ADDED: api.CHANGE_ADDED,
    Kind.REMOVED: api.CHANGE_REMOVED,
    Kind.MODIFIED: api.CHANGE_MODIFIED,
}


class HistoryServicer(api_grpc.HistoryServiceServicer):
    """Serves tags, differences and garbage collection."""

    def __init__(
        self,
        catalog: Catalog,
        views: Views,
        manifests: Manifests,
        collector: Collector,
        clock: Clock,
        *,
        grace_s: float,
        grace_min_s: float,
    ) -> None:
        self._catalog = catalog
        self._views = views
        self._manifests = manifests
        self._collector = collector
        self._clock = clock
        self._grace_s = grace_s
        self._grace_min_s = grace_min_s

    async def SetTag(  # noqa: N802  (the RPC's name; so below)
        self, request: api.SetTagRequest, context: Context
    ) -> api.SetTagResponse:
        """Let a tag name a version."""
        name = parse_tag(request.tag.name)
        version = VersionName(name.dataset, request.tag.version)
        if request.tag.version < 1:
            raise InvalidArgumentError("a tag names a version of 1 or more", field="tag.version")
        entry = await self._views.version(version)
        record = TagRecord(entry.number, int(self._clock.now() * NANO))
        asked = convert.request_of(
            name.dataset.tenant, request.request_id, f"SetTag {name} {entry.number}"
        )
        for _ in range(_ATTEMPTS):
            if await self._catalog.answer(asked) is not None:
                break
            head = await self._views.head(name.dataset)
            if len(await self._catalog.tags(head.id)) >= _TAGS_MAX:
                raise InvalidArgumentError(f"a dataset has at most {_TAGS_MAX} tags", field="tag")
            key = f"{self._catalog.tags_prefix(head.id)}{name.tag}"
            exists = Compare.exists(self._catalog.version_key(head.id, entry.number))
            put = Op.put(key, record.encode())
            if await self._catalog.change([exists], [put], request=asked):
                break
        else:
            raise ConflictError(f"{name.dataset} is being changed by too many at once; try again")
        return api.SetTagResponse(tag=_tag(name, record))

    async def DeleteTag(  # noqa: N802
        self, request: api.DeleteTagRequest, context: Context
    ) -> api.DeleteTagResponse:
        """Remove a tag; the version stays."""
        name = parse_tag(request.name)
        asked = convert.request_of(name.dataset.tenant, request.request_id, f"DeleteTag {name}")
        if await self._catalog.answer(asked) is not None:
            return api.DeleteTagResponse()
        head = await self._views.head(name.dataset)
        key = f"{self._catalog.tags_prefix(head.id)}{name.tag}"
        done = await self._catalog.change([Compare.exists(key)], [Op.delete(key)], request=asked)
        if not done and await self._catalog.answer(asked) is None:
            raise NotFoundError(f"{name.dataset} has no tag {name.tag!r}")
        return api.DeleteTagResponse()

    async def ListTags(  # noqa: N802
        self, request: api.ListTagsRequest, context: Context
    ) -> api.ListTagsResponse:
        """A dataset's tags, in order of name."""
        name = parse_dataset(request.parent)
        size = convert.page_size_of(request.page_size, 1000, 1000)
        after = convert.token_text(request.page_token)
        head = await self._views.head(name)
        tags = [(tag, rec) for tag, rec in await self._catalog.tags(head.id) if tag > after]
        response = api.ListTagsResponse(
            tags=[_tag(TagName(name, tag), record) for tag, record in tags[:size]]
        )
        if len(tags) > size:
            response.next_page_token = convert.token_of(tags[size - 1][0])
        return response

    async def DiffVersions(  # noqa: N802
        self, request: api.DiffVersionsRequest, context: Context
    ) -> api.DiffVersionsResponse:
        """What differs between two versions."""
        base, target = await self._root(request.base), await self._root(request.target)
        size = convert.page_size_of(request.page_size, 1000, 4096)
        after = convert.token_text(request.page_token)
        response = api.DiffVersionsResponse()
        if not after:
            response.arrays.extend(
                api.ArrayChange(change=_KINDS[kind], array=name)
                for kind, name in array_differences(base, target)
                if name.startswith(request.prefix)
            )
        length, last = 0, ""
        differences = file_differences(
            base,
            target,
            self._manifests.page,
            prefix=convert.prefix_of(request.prefix),
            after=after,
        )
        async for difference in differences:
            if len(response.files) >= size or length > _PAGE_BYTES:
                response.next_page_token = convert.token_of(last)
                break
            change, last = _change(difference)
            length += change.ByteSize()
            response.files.append(change)
        return response

    async def CollectGarbage(  # noqa: N802
        self, request: api.CollectGarbageRequest, context: Context
    ) -> AsyncIterator[api.CollectGarbageResponse]:
        """Find, and with `apply` delete, what nobody needs."""
        asked_s = request.grace.ToNanoseconds() / NANO if request.HasField("grace") else None
        grace_s = self._grace_s if asked_s is None else asked_s
        if not self._grace_min_s <= grace_s <= _GRACE_MAX_S:
            raise InvalidArgumentError(
                f"grace must be at least {self._grace_min_s:g} s, for signed URLs live as long, "
                f"and at most {_GRACE_MAX_S:g} s",
                field="grace",
            )
        async for totals in self._collector.collect(apply=request.apply, grace_s=grace_s):
            yield api.CollectGarbageResponse(
                kept_objects=totals.kept_objects,
                kept_bytes=totals.kept_bytes,
                garbage_objects=totals.garbage_objects,
                garbage_bytes=totals.garbage_bytes,
                applied=totals.applied,
                done=totals.done,
            )

    async def _root(self, name: str) -> Root:
        entry = await self._views.version(parse_version(name))
        return await self._manifests.root(entry.root)


def _tag(name: TagName, record: TagRecord) -> api.Tag:
    return api.Tag(
        name=str(name), version=record.number, update_time=convert.time_of(record.updated_ns)
    )


def _change(difference: Difference) -> tuple[api.FileChange, str]:
    change = api.FileChange(change=_KINDS[difference.kind])
    path = ""
    if difference.before is not None:
        change.before.CopyFrom(convert.file_to_proto(difference.before))
        path = difference.before.path
    if difference.after is not None:
        change.after.CopyFrom(convert.file_to_proto(difference.after))
        path = difference.after.path
    return change, path
