"""Calls that are built from server reflection alone, as grpcurl builds them."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection_pb2

_CALL_S = 20


class Reflected:
    """What a server tells of itself; nothing that was generated here is used.

    Args:
        channel: to it.
        version: of reflection, "v1" or "v1alpha".
    """

    def __init__(self, channel: grpc.Channel, version: str = "v1") -> None:
        self._channel = channel
        self._ask = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        self._pool = descriptor_pool.DescriptorPool()
        self._known: set[str] = set()

    def services(self) -> list[str]:
        """Their full names, as `grpcurl list` prints them."""
        listed = self._answer(list_services="").list_services_response
        return sorted(each.name for each in listed.service)

    def describe(self, service: str) -> ServiceDescriptor:
        """A service's descriptor, with all that it refers to fetched."""
        self._take(self._answer(file_containing_symbol=service))
        return self._pool.FindServiceByName(service)

    def call(self, method: str, body: Any) -> Any:
        """The first answer to one request, both as JSON; `method` is "package.Service/Method"."""
        service, _, name = method.partition("/")
        found = self.describe(service).methods_by_name[name]
        request = message_factory.GetMessageClass(found.input_type)()
        json_format.ParseDict(body, request, descriptor_pool=self._pool)
        response = message_factory.GetMessageClass(found.output_type)
        make = self._channel.unary_stream if found.server_streaming else self._channel.unary_unary
        handle = make(
            f"/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        answer = handle(request, timeout=_CALL_S)
        if found.server_streaming:
            answer = next(answer)
        return json_format.MessageToDict(answer, descriptor_pool=self._pool)

    def _answer(self, **question: str) -> Any:
        request = reflection_pb2.ServerReflectionRequest(**question)
        (answer,) = self._ask(iter([request]), timeout=_CALL_S)
        if answer.HasField("error_response"):
            raise LookupError(f"no such symbol: {question}: {answer.error_response}")
        return answer

    def _take(self, answer: Any) -> None:
        """Add files to the pool, those that they import first."""
        files = answer.file_descriptor_response.file_descriptor_proto
        for each in map(descriptor_pb2.FileDescriptorProto.FromString, files):
            if each.name in self._known:
                continue
            self._known.add(each.name)
            for needed in each.dependency:
                if needed not in self._known:
                    self._take(self._answer(file_by_filename=needed))
            self._pool.Add(each)
