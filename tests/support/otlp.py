"""A collector of OTLP spans, in this process: no real one can be installed here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as api
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as api_grpc


@dataclass(frozen=True)
class Seen:
    """A span as it came."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    failed: bool
    seconds: float
    attributes: dict[str, str]


class Collector(api_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.address = ""
        self._lock = threading.Lock()
        self._spans: list[Seen] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            facts = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                with self._lock:
                    self._spans += [_seen(facts["service.name"], span) for span in scope.spans]
        return api.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Seen]:
        with self._lock:
            return list(self._spans)

    def wait_for(self, wanted: Callable[[list[Seen]], Any], timeout_s: float = 30.0) -> list[Seen]:
        """What has come, once `wanted` of it is true."""
        end = time.monotonic() + timeout_s
        while not wanted(spans := self.spans):
            assert time.monotonic() < end, sorted((s.service, s.name, s.trace) for s in spans)
            time.sleep(0.05)
        return spans


def _seen(service: str, span: Any) -> Seen:
    attributes = {a.key: a.value.string_value for a in span.attributes}
    return Seen(
        service, span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
        span.status.code == 2, (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        attributes,
    )  # fmt: skip


@contextmanager
def run_collector() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    api_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(1.0).wait()
