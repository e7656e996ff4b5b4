"""A service of the tests: its calls do what their text says. Also runnable, as a real child.

Texts: "echo ..." answers itself; "raise REASON" raises the error of that reason; "bug" raises what
nobody expects; "wait" answers once the process was asked to stop. A stream answers "first" first;
"flood" never ends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from hyper.errors import CLASS_OF_REASON
from hyper_servicekit.config import ServiceSettings, load_settings, settings_config
from hyper_servicekit.server import Running, Served, run_service

FULL_NAME = "hypertest.Echo"
SECRET = "what the caller must not see"

Act = Callable[[str], Any]


def failure(reason: str) -> Exception:
    """The error that "raise REASON" raises."""
    return CLASS_OF_REASON[reason](
        f"because of {reason}; do something – at once",
        reason=reason,
        metadata={"key": f"value of {reason}"},
        field="spec.field",
        retry_after_s=1.5,
    )


class Echo:
    """All four kinds of call."""

    def __init__(self, running: Running | None = None) -> None:
        self.running = running
        self.closed = asyncio.Event()

    async def act(self, text: str) -> str:
        word, _, rest = text.partition(" ")
        if word == "raise":
            raise failure(rest)
        if word == "bug":
            raise RuntimeError(SECRET)
        if word == "wait":
            assert self.running is not None
            await self.running.stop.wait()
        return text

    async def unary(self, request: StringValue, context: Any) -> StringValue:
        return StringValue(value=await self.act(request.value))

    async def stream(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield StringValue(value="first")
        try:
            while request.value == "flood":
                yield StringValue(value="x" * 10_000)
        finally:
            self.closed.set()
        yield StringValue(value=await self.act(request.value))

    async def upload(self, requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        texts = [await self.act(request.value) async for request in requests]
        return StringValue(value=" ".join(texts))

    async def chat(
        self, requests: AsyncIterator[StringValue], context: Any
    ) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield StringValue(value=await self.act(request.value))


def add_echo(servicer: Echo, server: grpc.aio.Server) -> None:
    """What a generated `add_...Servicer_to_server` does."""
    coding: dict[str, Any] = {
        "request_deserializer": StringValue.FromString,
        "response_serializer": StringValue.SerializeToString,
    }
    handlers: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(servicer.unary, **coding),
        "Stream": grpc.unary_stream_rpc_method_handler(servicer.stream, **coding),
        "Upload": grpc.stream_unary_rpc_method_handler(servicer.upload, **coding),
        "Chat": grpc.stream_stream_rpc_method_handler(servicer.chat, **coding),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(FULL_NAME, handlers),))


def caller(channel: Any, kind: str) -> Any:
    """The multicallable of "Unary", "Stream", "Upload" or "Chat"; for both kinds of channel."""
    make = {
        "Unary": channel.unary_unary,
        "Stream": channel.unary_stream,
        "Upload": channel.stream_unary,
        "Chat": channel.stream_stream,
    }[kind]
    return make(
        f"/{FULL_NAME}/{kind}",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=StringValue.FromString,
    )


class EchoSettings(ServiceSettings):
    """Settings of the echo service."""

    model_config = settings_config("ECHO")
    break_build: str = ""
    break_drain: bool = False


async def fail_to_drain() -> None:
    raise failure("ETCD_UNREACHABLE")


async def hang() -> None:
    await asyncio.Event().wait()


async def say_drained() -> None:
    sys.stderr.write("the last hook ran\n")


async def build(running: Running, settings: EchoSettings) -> list[Served]:
    if settings.break_build == "bug":
        raise RuntimeError("a bug in build")
    if settings.break_build == "group":
        raise ExceptionGroup("of a task group", [failure("S3_UNREACHABLE")])
    if settings.break_build:
        raise failure(settings.break_build)
    if settings.break_drain:
        running.on_drain += [fail_to_drain, hang, say_drained]
    return [Served(FULL_NAME, add_echo, Echo(running))]


def main() -> int:
    settings = load_settings(EchoSettings)
    return run_service("echo", settings, lambda running: build(running, settings))


if __name__ == "__main__":
    sys.exit(main())
