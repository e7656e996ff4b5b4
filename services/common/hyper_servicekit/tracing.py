"""Traces, where somebody asks for them: spans of calls, attempts and workflows, sent by OTLP.

Off unless `traces_endpoint` is set; then nothing of OpenTelemetry is imported, and a call pays for
one look at a variable. A workflow is one trace. Its ids are made of names (`workflow_ids`), so that
no state has to travel: whoever knows the name of an attempt knows the parent of what it calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hyper.errors import UnavailableError
from hyper.installed import install_command

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanProcessor
    from opentelemetry.trace import Span

TRACEPARENT = "TRACEPARENT"  # of a task's environment: what it calls is a part of its attempt
_SAMPLED, _UNSAMPLED = "01", "00"
_ENDLESS = ("Connect", "WatchWorkflow")
# By these a server says that it is at fault (OpenTelemetry's conventions for RPCs).
_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


def workflow_ids(name: str) -> tuple[int, int]:
    """Trace and root span of a workflow."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:16]), int.from_bytes(digest[16:24])


def attempt_id(task: str, attempt: str) -> int:
    """The span of an attempt; `attempt` is its epoch and number, "3.1"."""
    return int.from_bytes(hashlib.sha256(f"{task} {attempt}".encode()).digest()[:8])


def workflow_of(task: str) -> str:
    """The workflow's name in a task's: tenants/{t}/workflows/{w}."""
    return "/".join(task.split("/")[:4])


class Tracing:
    """What this process tells of itself.

    Args:
        provider: of OpenTelemetry, made for this process.
        processor: that sends its spans.
    """

    def __init__(self, provider: TracerProvider, processor: SpanProcessor) -> None:
        self._provider, self._processor = provider, processor
        self._tracer = provider.get_tracer("hyper")

    def call(
        self, service: str, method: str, metadata: Mapping[str, str | bytes], request_id: str
    ) -> Span | None:
        """A span of a call that begins, the current one from here on; None where it may not end.

        It is a part of what the caller's `traceparent` names.
        """
        from opentelemetry import context, propagate, trace

        if method in _ENDLESS:
            return None
        carrier = {key: value for key, value in metadata.items() if isinstance(value, str)}
        span = self._tracer.start_span(
            f"{service}/{method}",
            context=propagate.extract(carrier),
            kind=trace.SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc", "rpc.service": service, "rpc.method": method,
                "hyper.request_id": request_id,
            },
        )  # fmt: skip
        context.attach(trace.set_span_in_context(span))  # of the call's own asyncio task
        return span

    def ended(self, span: Span, code: str, number: int, tenant: str = "") -> None:
        """A call has ended with a gRPC status."""
        from opentelemetry.trace import StatusCode

        span.set_attribute("rpc.grpc.status_code", number)
        if tenant:
            span.set_attribute("hyper.tenant", tenant)
        if code in _FAULTS:
            span.set_status(StatusCode.ERROR, code)
        span.end()

    def attempt(
        self, task: str, attempt: str, start_ns: int, end_ns: int, facts: Mapping[str, Any],
        failure: str = "",
    ) -> None:  # fmt: skip
        """An attempt has ended; times are Unix ns."""
        trace_id, root = workflow_ids(workflow_of(task))
        name = "task " + task.split("/")[5] if task.count("/") >= 5 else task
        facts = {"hyper.task": task, "hyper.attempt": attempt, **facts}
        self._send(
            name, trace_id, attempt_id(task, attempt), root, start_ns, end_ns, facts, failure
        )

    def workflow(
        self, name: str, start_ns: int, end_ns: int, facts: Mapping[str, Any], failure: str = ""
    ) -> None:
        """A workflow has ended: the root of its trace."""
        trace_id, root = workflow_ids(name)
        self._send(f"workflow {name}", trace_id, root, 0, start_ns, end_ns, facts, failure)

    def traceparent(self, task: str, attempt: str) -> str:
        """W3C trace context of what an attempt calls."""
        trace_id, _ = workflow_ids(workflow_of(task))
        flags = _SAMPLED if self._sampled(trace_id) else _UNSAMPLED
        return f"00-{trace_id:032x}-{attempt_id(task, attempt):016x}-{flags}"

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()

    def _sampled(self, trace_id: int) -> bool:
        sampler = self._provider.sampler
        return bool(sampler.should_sample(None, trace_id, "workflow").decision.is_sampled())

    def _send(
        self, name: str, trace_id: int, span_id: int, parent: int, start_ns: int, end_ns: int,
        facts: Mapping[str, Any], failure: str,
    ) -> None:  # fmt: skip
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

        if not self._sampled(trace_id):
            return

        def known(span: int) -> SpanContext:
            return SpanContext(trace_id, span, False, TraceFlags(TraceFlags.SAMPLED))

        self._processor.on_end(
            ReadableSpan(
                name, known(span_id), known(parent) if parent else None,
                resource=self._provider.resource, attributes=facts,
                status=Status(StatusCode.ERROR, failure) if failure else Status(StatusCode.OK),
                start_time=start_ns, end_time=end_ns,
            )
        )  # fmt: skip


_current: Tracing | None = None


def traceparent(task: str, attempt: str) -> str:
    """What a task's environment says, so that its calls are a part of its attempt; "" without."""
    return "" if _current is None else _current.traceparent(task, attempt)


def current() -> Tracing | None:
    """Of this process; None while it tells nothing."""
    return _current


def start_tracing(endpoint: str, service: str, instance: str) -> Tracing:
    """From here on this process sends spans to an OTLP/gRPC collector, http(s)://host:port.

    Whatever else OpenTelemetry reads from its `OTEL_` variables (samplers, headers) counts too.

    Raises:
        UnavailableError: the packages are not installed.
    """
    global _current
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UnavailableError(
            f"traces need OpenTelemetry ({error}): {install_command('traces')}, or leave "
            "TRACES_ENDPOINT out"
        ) from error
    resource = Resource.create(
        {"service.namespace": "hyper", "service.name": f"hyper-{service}",
         "service.instance.id": instance}
    )  # fmt: skip
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint, insecure=endpoint.startswith("http://"))
    processor = BatchSpanProcessor(exporter)
    provider.add_span_processor(processor)
    _current = Tracing(provider, processor)
    return _current


def stop_tracing() -> None:
    """Send what waits; from here on nothing is told."""
    global _current
    if _current is not None:
        _current.close()
    _current = None
