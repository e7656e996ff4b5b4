"""Messages for any RPC, by its descriptor: as they should be, hostile, and any bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from hyper import _transport
from hyperapi.common.v1.tensor_pb2 import Tensor, TensorSpec

# A plain run tries the same messages every time; HYPER_FUZZ_EXAMPLES=200: as many new ones an RPC.
EXAMPLES = int(os.environ.get("HYPER_FUZZ_EXAMPLES", "5"))
SAME_EVERY_TIME = "HYPER_FUZZ_EXAMPLES" not in os.environ
_DEPTH = 3
_F = FieldDescriptor
_TEXTS = [
    "", "..", "/", "tenants/lab", "tenants/lab/datasets/a", "tenants/lab/datasets/../b",
    "tenants/lab/datasets/a/versions/1", "tenants/lab/datasets/a/versions/-1",
    "tenants/lab/datasets/a/sessions/s", "tenants/lab/workflows/w",
    "tenants/lab/workflows/w/experiments/e/tasks/0", "tenants/*", "workers/w", "hyper://lab/a@1",
    "../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x", "a\0b", "\u202e", "x" * 5000,
    "%s%n", "${jndi:ldap://x}", "'; DROP TABLE", "00000000-0000-0000-0000-000000000000",
    "version: 1\nexperiments: {a: {command: 'true'}}", "a: &a [*a]", "{" * 2000, "NaN", "uint8",
]  # fmt: skip
_NAMES = [
    "tenants/lab", "tenants/lab/datasets/a", "tenants/lab/datasets/a/versions/1",
    "tenants/lab/datasets/a/versions/1/arrays/x", "tenants/lab/datasets/a/sessions/s",
    "tenants/lab/datasets/a/sessions/s/arrays/x", "tenants/lab/datasets/a/tags/t",
    "tenants/lab/stores/s", "tenants/lab/secrets/s", "tenants/lab/workflows/w",
    "tenants/lab/workflows/w/experiments/e/tasks/0", "workers/w",
]  # fmt: skip
_NAMING = ("name", "parent", "session", "base", "target", "task", "store", "model")
_NAMELESS = (TensorSpec.DESCRIPTOR, Tensor.DESCRIPTOR)  # its name is an axis' or an output's
_REQUEST_ID = "6b2c2a51-6f0e-4c5e-9d2a-0123456789ab"
_NUMBERS = [0, 1, -1, 2, 7, 255, 1 << 20, (1 << 31) - 1, -(1 << 31)]
_WIDE = [*_NUMBERS, 1 << 40, (1 << 63) - 1, -(1 << 63)]
_FLOATS = [0.0, 1.0, -1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")]


def message_class(descriptor: Descriptor) -> Any:
    """The class of a message."""
    return message_factory.GetMessageClass(descriptor)


def name_paths(descriptor: Descriptor, inside: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where a request holds the name of something: the fields on the way, one path a name."""
    found = []
    for field in descriptor.fields:
        if field.is_repeated or field.message_type in (None, *_NAMELESS):
            if field.name in _NAMING and not field.is_repeated and field.message_type is None:
                found.append((*inside, field.name))
        elif len(inside) < _DEPTH:
            found += name_paths(field.message_type, (*inside, field.name))
    return found


# What lets a request get as far as the name that is wrong in it.
_GOOD = {
    "request_id": _REQUEST_ID, "owner": _REQUEST_ID, "value": "x", "array": "x", "dtype": "uint8",
    "recipe_yaml": "{version: 1, name: w, experiments: {e: {command: 'true'}}}", "message": "m",
}  # fmt: skip


def request_naming(
    descriptor: Descriptor, tenants: Mapping[tuple[str, ...], str], *, filled: bool = False
) -> Any:
    """A request whose names, by their paths, are of these tenants.

    `filled`: with some other fields that are good.
    """
    message = message_class(descriptor)()
    for field in descriptor.fields if filled else ():
        if field.name in _GOOD and field.message_type is None and not field.is_repeated:
            setattr(message, field.name, _GOOD[field.name])
    for path, tenant in tenants.items():
        part = message
        for name in path[:-1]:
            part = getattr(part, name)
        setattr(part, path[-1], f"tenants/{tenant}/datasets/a")
    return message


def payloads(descriptor: Descriptor) -> st.SearchStrategy[bytes]:
    """Serialized messages with hostile values; now and then any bytes at all."""
    made = messages(descriptor).map(lambda message: bytes(message.SerializeToString()))
    return st.one_of(made, made, made, st.binary(max_size=200))


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = _DEPTH) -> Any:
    """A message of this kind, some of its fields set."""
    message = message_class(descriptor)()
    for field in descriptor.fields:
        if draw(st.integers(0, 3)) == 0 or (field.message_type is not None and depth == 0):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.is_repeated:
            for value in draw(st.lists(_values(field, depth), max_size=3)):
                if field.message_type is not None:
                    getattr(message, field.name).add().CopyFrom(value)
                else:
                    getattr(message, field.name).append(value)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(draw(_values(field, depth)))
        else:
            setattr(message, field.name, draw(_values(field, depth)))
    return message


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    match field.cpp_type:
        case _F.CPPTYPE_MESSAGE:
            return messages(field.message_type, depth - 1)
        case _F.CPPTYPE_STRING if field.type == _F.TYPE_BYTES:
            return st.one_of(st.binary(max_size=64), st.just(b"\0" * 4096))
        case _F.CPPTYPE_STRING:
            texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
            hostile = st.one_of(st.sampled_from(_TEXTS), texts)
            if field.name == "request_id":  # good ones let the rest be looked at
                return st.one_of(*[st.just(_REQUEST_ID)] * 6, hostile)
            if field.name in ("name", "parent", "session", "base", "target", "task"):
                return st.one_of(*[st.sampled_from(_NAMES)] * 4, hostile)
            return hostile
        case _F.CPPTYPE_BOOL:
            return st.booleans()
        case _F.CPPTYPE_ENUM:
            return st.sampled_from([0, 1, 2, 3, 99])
        case _F.CPPTYPE_DOUBLE | _F.CPPTYPE_FLOAT:
            return st.sampled_from([x for x in _FLOATS if field.cpp_type == _F.CPPTYPE_DOUBLE
                                    or abs(x) != 1e300])  # fmt: skip
        case _F.CPPTYPE_INT64:
            return st.sampled_from(_WIDE)
        case _F.CPPTYPE_UINT64 | _F.CPPTYPE_UINT32:
            return st.sampled_from([n for n in _NUMBERS if n >= 0])
        case _:
            return st.sampled_from(_NUMBERS)


def call(
    address: str, method: Any, sent: list[bytes], token: str | None, timeout_s: float = 10.0
) -> tuple[str, str]:
    """Send bytes to a method; the status code's name and its details. "OK" for a first answer."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
    raw = {"request_serializer": None, "response_deserializer": None}
    with _transport.plain_channel(_transport.target([address])) as channel:
        try:
            if method.client_streaming and method.server_streaming:
                responses = channel.stream_stream(path, **raw)(iter(sent), timeout_s, metadata)
                return first_answer(responses, timeout_s)
            if method.server_streaming:
                responses = channel.unary_stream(path, **raw)(sent[0], timeout_s, metadata)
                return first_answer(responses, timeout_s)
            if method.client_streaming:
                channel.stream_unary(path, **raw)(iter(sent), timeout_s, metadata)
            else:
                channel.unary_unary(path, **raw)(sent[0], timeout_s, metadata)
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
    return "OK", ""


def answer(address: str, method: Any, request: Any, token: str) -> Any:
    """What a unary method answers; raises grpc.RpcError."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    with _transport.plain_channel(_transport.target([address])) as channel:
        return channel.unary_unary(
            path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=message_class(method.output_type).FromString,
        )(request, 10.0, (("authorization", f"Bearer {token}"),))


@dataclass(frozen=True, slots=True)
class Found:
    """What came of all the inputs.

    Args:
        tried: calls by method and answer.
        ended: services that have ended.
        bugs: calls that a service's log tells of as failed unexpectedly.
    """

    tried: Mapping[tuple[str, str], int]
    ended: int
    bugs: int

    def in_short(self) -> str:
        """One line."""
        return (
            f"inputs tried: {sum(self.tried.values())}; services that ended: {self.ended}; "
            f"answers INTERNAL or UNKNOWN: {self._unexpected()}; bugs logged: {self.bugs}"
        )

    def table(self) -> str:
        """Markdown."""
        codes = sorted({code for _, code in self.tried})
        lines = [
            "# Hostile inputs by RPC", "",
            "Rendered by `make fuzz`; see [security.md](security.md). Calls with no token, tokens",
            "that are good no more, names and keys that lead astray, other tenants' names, and",
            "messages with hostile values or any bytes, by answer.", "",
            f"**{self.in_short()}.**", "",
            f"| RPC | inputs | {' | '.join(codes)} |", f"| --- |{' --: |' * (len(codes) + 1)}",
        ]  # fmt: skip
        for method in sorted({method for method, _ in self.tried}):
            counts = [self.tried.get((method, code), 0) for code in codes]
            shown = " | ".join(str(count or "") for count in counts)
            lines.append(f"| {method} | {sum(counts)} | {shown} |")
        return "\n".join(lines) + "\n"

    def _unexpected(self) -> int:
        return sum(n for (_, code), n in self.tried.items() if code in ("INTERNAL", "UNKNOWN"))


def first_answer(responses: Any, wait_s: float) -> tuple[str, str]:
    """How a stream of responses begins: "OK" with an answer or its end, or its error's code.

    "OPEN": nothing has come within `wait_s`.
    """
    try:
        next(responses, None)
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    finally:
        responses.cancel()
    return "OK", ""
