"""The one server interceptor: request ids, metrics, errors, who may call, the audit log.

Handlers are coroutines, or async generators where the response is a stream.

A domain exception (`hyper.errors.HyperError`) becomes its rich status here and nowhere else;
anything unexpected becomes INTERNAL without detail and is logged with its stack.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_status import rpc_status

from hyper._wire_errors import to_status
from hyper.errors import HyperError, InternalError, InvalidArgumentError
from hyper_servicekit import tracing
from hyper_servicekit.admission import Admission, counted_as
from hyper_servicekit.audit import Said, is_change, write
from hyper_servicekit.authorize import Authorizer, caller
from hyper_servicekit.logs import get_logger
from hyper_servicekit.metrics import RPC_REDIRECTED, RPC_SECONDS, RPC_TOTAL
from hyper_servicekit.open_streams import OpenStreams
from hyper_servicekit.tokens import Claims

log = get_logger(__name__)

# These were waited for here already: the channel's quick retries would only multiply the wait.
_WAITED_FOR = ("ETCD_UNREACHABLE", "S3_UNREACHABLE")
_ELSEWHERE = ("NOT_LEADER", "DRAINING")  # another replica takes the call: nothing is wrong
_NO_CHANNEL_RETRY = ("grpc-retry-pushback-ms", "-1")
_QUIET = ("/grpc.health.", "/grpc.reflection.")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of a service's server.

    Args:
        authorizer: says who may call what; None where anybody may.
        admission: says how many calls are taken in.
    """

    def __init__(
        self, authorizer: Authorizer | None = None, admission: Admission | None = None
    ) -> None:
        self._authorizer = authorizer
        self._admission = admission or Admission()
        self._streams = None if authorizer is None else OpenStreams(authorizer)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the method's handler with its behaviour wrapped."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_QUIET):
            return handler
        call = _Call(handler_call_details, self._authorizer, self._admission)
        kind = "stream" if handler.request_streaming or handler.response_streaming else "unary"
        if handler.response_streaming:
            inner_stream = handler.unary_stream or handler.stream_stream

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                async with call.watched(context, kind), self._admission.place():
                    _refuse_malformed(request)
                    allowed = call.authorize(request, context)
                    async with aclosing(inner_stream(allowed, context)) as responses:
                        if self._streams is not None and call.claims is not None:
                            responses = self._streams.allowed(responses, call.claims)
                        async for response in responses:
                            yield response

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(stream, _deserializer(handler), handler.response_serializer)
        inner = handler.unary_unary or handler.stream_unary

        async def unary(request: Any, context: Any) -> Any:
            async with call.watched(context, kind), self._admission.place():
                _refuse_malformed(request)
                response = await inner(call.authorize(request, context), context)
                call.said.response = response
                return response

        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(unary, _deserializer(handler), handler.response_serializer)


def _deserializer(handler: Any) -> Callable[[bytes], Any]:
    """The handler's own, for peers that send anything.

    gRPC reads the messages of a stream while the handler runs, so that an error is the handler's.
    A single request it reads before, and would answer UNKNOWN: there the error is the request.
    """

    def read(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except DecodeError as problem:
            error = InvalidArgumentError(f"not a message of this method: {problem}")
            if handler.request_streaming:
                raise error from problem
            return error

    return read


def _refuse_malformed(request: Any) -> None:
    if isinstance(request, InvalidArgumentError):
        raise request


class _Call:
    """Facts of one call."""

    def __init__(
        self,
        details: grpc.HandlerCallDetails,
        authorizer: Authorizer | None,
        admission: Admission,
    ) -> None:
        metadata = dict(details.invocation_metadata or ())
        self.metadata, self._authorizer, self._admission = metadata, authorizer, admission
        self.claims: Claims | None = None
        self.said = Said()
        given = metadata.get("x-request-id", "")
        request_id = given if isinstance(given, str) else ""
        self.request_id = request_id[:64] or uuid.uuid4().hex
        package, _, self.method = details.method.strip("/").rpartition("/")
        self.service = package.rpartition(".")[2]

    def authorize(self, request: Any, context: Any) -> Any:
        """The request, or stream of them, if the caller may make this call."""
        authorizer = self._authorizer
        if authorizer is None:
            return request
        claims = self.claims = authorizer.caller(self.metadata)
        caller.set(claims)
        if (counted := counted_as(claims, context.peer())) is not None:
            self._admission.take(counted)
        structlog.contextvars.bind_contextvars(tenant=claims.tenant, subject=claims.subject)
        if isinstance(request, Message):
            self.said.request = request
            authorizer.check(claims, self.method, request)
            return request
        return self._checked(request, authorizer, claims)

    async def _checked(
        self, requests: AsyncIterator[Any], authorizer: Authorizer, claims: Claims
    ) -> AsyncIterator[Any]:
        """The messages of a stream, each allowed before the handler sees it."""
        first = True
        async for request in requests:
            if first:
                self.said.request = request
            authorizer.still(claims)
            authorizer.check(claims, self.method, request, first=first)
            first = False
            yield request

    def watched(self, context: Any, kind: str) -> _Watched:
        return _Watched(self, context, kind)


class _Watched:
    """Measures a call and turns its exception into a status."""

    def __init__(self, call: _Call, context: Any, kind: str) -> None:
        self._call, self._context, self._kind = call, context, kind
        self._start = 0.0
        self._span: Any = None

    async def __aenter__(self) -> None:
        self._start = time.perf_counter()
        call = self._call
        structlog.contextvars.bind_contextvars(request_id=call.request_id)
        if (traces := tracing.current()) is not None:
            self._span = traces.call(call.service, call.method, call.metadata, call.request_id)

    async def __aexit__(self, kind: Any, error: BaseException | None, stack: Any) -> bool:
        call = self._call
        code = grpc.StatusCode.OK
        try:
            if error is None:
                return False
            if isinstance(error, asyncio.CancelledError | GeneratorExit):
                code = grpc.StatusCode.CANCELLED
                return False
            if isinstance(error, grpc.aio.AbortError):
                code = _status_code(self._context.code())
                return False
            if not isinstance(error, Exception):
                code = grpc.StatusCode.UNKNOWN
                return False
            status = self._status(error)
            code = _status_code(status.code)
            answer = rpc_status.to_status(status)
            if getattr(error, "reason", "") in _WAITED_FOR:
                answer = answer._replace(
                    trailing_metadata=(*answer.trailing_metadata, _NO_CHANNEL_RETRY)
                )
            await self._context.abort_with_status(answer)
            return True
        finally:
            RPC_SECONDS.labels(call.service, call.method, self._kind).observe(
                time.perf_counter() - self._start
            )
            if getattr(error, "reason", "") in _ELSEWHERE:
                RPC_REDIRECTED.inc()
            RPC_TOTAL.labels(call.service, call.method, code.name).inc()
            if self._span is not None and (traces := tracing.current()) is not None:
                tenant = "" if call.claims is None else call.claims.tenant
                traces.ended(self._span, code.name, code.value[0], tenant)
            if call.claims is not None and is_change(call.method, call.said.request):
                write(call.method, code.name, call.claims, call.said)

    def _status(self, error: Exception) -> status_pb2.Status:
        """What the caller is told; never more of an unexpected error than where to look."""
        call = self._call
        if isinstance(error, HyperError) and not isinstance(error, InternalError):
            try:
                status = to_status(error)
            except ValueError as bad_reason:
                error = bad_reason
            else:
                log.debug(
                    "call refused", method=call.method, reason=error.reason, detail=str(error)
                )
                return status
        log.error("call failed", method=call.method, exc_info=error)
        text = f"internal error; the log has it under request id {call.request_id}"
        return to_status(InternalError(text))


def _status_code(code: Any) -> grpc.StatusCode:
    """A code as gRPC's enum, from its number or itself."""
    if isinstance(code, grpc.StatusCode):
        return code
    known = {status.value[0]: status for status in grpc.StatusCode}
    return known.get(code, grpc.StatusCode.UNKNOWN)
