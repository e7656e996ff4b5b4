"""Every reason goes through a real server and comes back as the class and facts it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from hyper._wire_errors import from_rpc_error
from hyper.errors import (
    CLASS_OF_REASON,
    HyperError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from hyper_servicekit.interceptor import CallInterceptor
from hyper_servicekit.metrics import RPC_REDIRECTED, RPC_TOTAL
from hyperapi.common.v1 import errors_pb2
from tests.support.echo_service import FULL_NAME, SECRET, Echo, add_echo, caller, failure

REASONS = sorted(
    name.removeprefix("REASON_")
    for name, _ in errors_pb2.Reason.items()
    if name != "REASON_UNSPECIFIED"
)
KINDS = ("Unary", "Stream", "Upload", "Chat")


@pytest.fixture
async def echo() -> AsyncIterator[tuple[grpc.aio.Channel, Echo]]:
    server = grpc.aio.server(interceptors=[CallInterceptor()])
    servicer = Echo()
    add_echo(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel, servicer
    await server.stop(0)


async def call(channel: grpc.aio.Channel, kind: str, text: str) -> list[str]:
    """Call with one message; all answers."""
    request = StringValue(value=text)
    sent: Any = request if kind in ("Unary", "Stream") else iter([request])
    answer = caller(channel, kind)(sent, timeout=10)
    if kind in ("Unary", "Upload"):
        return [(await answer).value]
    return [message.value async for message in answer]


async def error_of(channel: grpc.aio.Channel, kind: str, text: str) -> HyperError:
    with pytest.raises(grpc.RpcError) as caught:
        await call(channel, kind, text)
    return from_rpc_error(caught.value, peer="echo")


def test_every_reason_has_its_class() -> None:
    assert sorted(CLASS_OF_REASON) == REASONS


@pytest.mark.parametrize("kind", KINDS)
async def test_every_reason_comes_back(echo: tuple[grpc.aio.Channel, Echo], kind: str) -> None:
    channel, _ = echo
    for reason in REASONS:
        if reason == "INTERNAL":
            continue
        sent = failure(reason)
        assert isinstance(sent, HyperError)
        error = await error_of(channel, kind, f"raise {reason}")
        assert type(error) is CLASS_OF_REASON[reason]
        assert error.code is sent.code
        assert (error.reason, error.metadata) == (reason, sent.metadata)
        assert (error.message, str(error)) == (sent.message, sent.message)
        assert (error.field, error.retry_after_s) == ("spec.field", 1.5)


async def test_calls_for_another_replica_are_counted_apart(
    echo: tuple[grpc.aio.Channel, Echo],
) -> None:
    """They are UNAVAILABLE and no failures; of etcd's absence the same code tells a failure."""
    unavailable = RPC_TOTAL.labels("Echo", "Unary", "UNAVAILABLE")
    counters = (unavailable, RPC_REDIRECTED)
    before = [each._value.get() for each in counters]
    for reason in ("ETCD_UNREACHABLE", "NOT_LEADER", "DRAINING"):
        await error_of(echo[0], "Unary", f"raise {reason}")
    async with asyncio.timeout(10):  # a call is counted once its caller has been told
        while unavailable._value.get() - before[0] < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert [each._value.get() - was for each, was in zip(counters, before, strict=True)] == [3, 2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["bug", "raise INTERNAL"])
async def test_a_bug_tells_the_caller_only_where_to_look(
    echo: tuple[grpc.aio.Channel, Echo], kind: str, text: str
) -> None:
    error = await error_of(echo[0], kind, text)
    assert type(error) is InternalError
    assert error.reason == "INTERNAL"
    assert "request id" in error.message
    assert SECRET not in repr(vars(error))
    assert "because" not in error.message


@pytest.mark.parametrize("kind", KINDS)
async def test_bytes_that_are_no_message_are_the_callers_mistake(
    echo: tuple[grpc.aio.Channel, Echo], kind: str
) -> None:
    channel, _ = echo
    many = kind in ("Upload", "Chat")
    open_call = {
        "Unary": channel.unary_unary, "Stream": channel.unary_stream,
        "Upload": channel.stream_unary, "Chat": channel.stream_stream,
    }[kind]  # fmt: skip
    answer = open_call(f"/{FULL_NAME}/{kind}")(
        iter([b"\xff\xff"]) if many else b"\xff\xff", timeout=10
    )
    with pytest.raises(grpc.RpcError) as caught:
        await (anext(aiter(answer)) if kind in ("Stream", "Chat") else answer)
    error = from_rpc_error(caught.value, peer="echo")
    assert isinstance(error, InvalidArgumentError)
    assert "not a message of this method" in error.message
    assert await call(channel, kind, "hello") == await call(channel, kind, "hello")


@pytest.mark.parametrize("kind", KINDS)
async def test_without_an_error_nothing_changes(
    echo: tuple[grpc.aio.Channel, Echo], kind: str
) -> None:
    answers = await call(echo[0], kind, "echo hello")
    assert answers[-1] == "echo hello"
    assert len(answers) == (2 if kind == "Stream" else 1)


async def test_a_stream_that_nobody_reads_ends_with_its_caller(
    echo: tuple[grpc.aio.Channel, Echo],
) -> None:
    channel, servicer = echo
    cancelled = RPC_TOTAL.labels("Echo", "Stream", "CANCELLED")
    before = cancelled._value.get()
    stream = caller(channel, "Stream")(StringValue(value="flood"), timeout=30)
    assert (await stream.read()).value == "first"
    assert not servicer.closed.is_set()
    stream.cancel()
    async with asyncio.timeout(10):
        await servicer.closed.wait()
        while cancelled._value.get() == before:  # noqa: ASYNC110  (a counter tells nobody)
            await asyncio.sleep(0)


async def raised(
    echo: tuple[grpc.aio.Channel, Echo], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> HyperError:
    """What comes back when the servicer raises `error`."""
    channel, servicer = echo

    async def act(text: str) -> str:
        raise error

    monkeypatch.setattr(servicer, "act", act)
    return await error_of(channel, "Unary", "")


@pytest.mark.parametrize("character", ["x", "é", "😀", "\x00", "\n", "\udcff"])
async def test_a_status_of_any_text_fits_the_wire(
    echo: tuple[grpc.aio.Channel, Echo], monkeypatch: pytest.MonkeyPatch, character: str
) -> None:
    text = character * 20_000
    error = InvalidArgumentError(
        f"begin {text} end", metadata={str(i): text for i in range(50)}, field=text
    )
    back = await raised(echo, monkeypatch, error)
    assert type(back) is InvalidArgumentError
    assert back.reason == "INVALID_REQUEST"
    assert back.message.startswith("begin")
    assert back.message.endswith("end")


async def test_a_reason_outside_the_enum_is_a_bug(
    echo: tuple[grpc.aio.Channel, Echo], monkeypatch: pytest.MonkeyPatch
) -> None:
    back = await raised(echo, monkeypatch, InvalidArgumentError("no", reason="NO_SUCH_REASON"))
    assert type(back) is InternalError


async def test_details_of_another_service_are_no_obstacle() -> None:
    async def abort(request: Any, context: Any) -> Any:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\x08\x63"),))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "elsewhere")

    handler: Any = grpc.unary_unary_rpc_method_handler(abort)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", {"Z": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.RpcError) as caught:
                call: Any = channel.unary_unary("/x.Y/Z")
                await call(b"", timeout=10)
            error = from_rpc_error(caught.value, peer="y")
    finally:
        await server.stop(0)
    assert type(error) is UnavailableError
    assert "cannot reach y" in str(error)
    assert "elsewhere" in str(error)
