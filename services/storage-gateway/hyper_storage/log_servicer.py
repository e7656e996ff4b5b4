"""LogService: proto in, proto out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc.aio

from hyper.errors import InvalidArgumentError
from hyper_storage.convert import ns_of
from hyper_storage.log_packs import Attempt, Whole
from hyper_storage.resources import parse_experiment, parse_task
from hyper_storage.sessions import NANO
from hyper_storage.task_logs import TaskLogs
from hyperapi.storage.v1 import dataset_service_pb2 as api
from hyperapi.storage.v1 import dataset_service_pb2_grpc as api_grpc

_MAX = 2**62
_SOURCES: dict[int, str] = {
    api.LOG_SOURCE_UNSPECIFIED: "",
    api.LOG_SOURCE_PROGRAM: "",
    api.LOG_SOURCE_OS: "os",
    api.LOG_SOURCE_USAGE: "usage",
}

Context = grpc.aio.ServicerContext[Any, Any]


class LogServicer(api_grpc.LogServiceServicer):
    """Serves the logs of tasks."""

    def __init__(self, logs: TaskLogs) -> None:
        self._logs = logs

    async def AppendLog(  # noqa: N802  (the RPC's name)
        self, request: api.AppendLogRequest, context: Context
    ) -> api.AppendLogResponse:
        """Store one part."""
        task = parse_task(request.task)
        attempt = _attempt(request.epoch, request.number)
        offset = _bounded(request.offset, "offset")
        if attempt is None:
            raise InvalidArgumentError("epoch and number name the attempt", field="epoch")
        await self._logs.append(
            task, attempt, offset, request.data, last=request.last, source=_source(request.source)
        )
        return api.AppendLogResponse()

    async def AppendLogs(  # noqa: N802
        self, request: api.AppendLogsRequest, context: Context
    ) -> api.AppendLogsResponse:
        """Store whole logs."""
        logs: list[Whole] = []
        for each in request.logs:
            attempt = _attempt(each.epoch, each.number)
            if attempt is None:
                raise InvalidArgumentError("epoch and number name the attempt", field="logs")
            logs.append(Whole(_bounded(each.task_index, "task_index"), attempt, each.data))
        await self._logs.append_whole(parse_experiment(request.parent), logs)
        return api.AppendLogsResponse()

    async def ReadLog(  # noqa: N802
        self, request: api.ReadLogRequest, context: Context
    ) -> AsyncIterator[api.ReadLogResponse]:
        """Stream a log."""
        task = parse_task(request.task)
        parts = self._logs.read(
            task,
            _attempt(request.epoch, request.number),
            _bounded(request.offset, "offset"),
            follow=request.follow,
            source=_source(request.source),
            since=_since(request),
            tail=_bounded(request.tail, "tail"),
        )
        async for part in parts:
            yield api.ReadLogResponse(
                data=part.data,
                offset=part.offset,
                epoch=part.attempt.epoch,
                number=part.attempt.number,
            )


def _source(value: int) -> str:
    """The folder of a source."""
    found = _SOURCES.get(value)
    if found is None:
        raise InvalidArgumentError(f"source {value} is not known", field="source")
    return found


def _attempt(epoch: int, number: int) -> Attempt | None:
    if epoch == 0 and number == 0:
        return None
    return Attempt(_bounded(epoch, "epoch"), _bounded(number, "number", 10**10))


def _bounded(value: int, field: str, limit: int = _MAX) -> int:
    if not 0 <= value < limit:
        raise InvalidArgumentError(f"{field} must be 0 or more and below {limit}", field=field)
    return value


def _since(request: api.ReadLogRequest) -> datetime | None:
    if not request.HasField("since"):
        return None
    return datetime.fromtimestamp(ns_of(request.since, "since") / NANO, UTC)
