"""Server reflection, under both names that tools ask for."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

# The same messages under another name; grpcio-reflection serves the older one alone.
V1_NAME = "grpc.reflection.v1.ServerReflection"


def enable_reflection(names: Iterable[str], server: grpc.aio.Server) -> None:
    """Tell whoever asks what `names` are made of.

    Only the older name is listed among them: there are no descriptors of the newer one.
    """
    servicer = reflection.aio.ReflectionServicer([*names, reflection.SERVICE_NAME])
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(V1_NAME, {"ServerReflectionInfo": method})
    server.add_generic_rpc_handlers((handler,))
