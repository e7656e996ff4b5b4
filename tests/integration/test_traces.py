"""Traces of real services: a workflow is one, with its attempts and all that these call."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from hyper.client import Client
from hyper_servicekit import tracing
from tests.support.otlp import Collector, Seen, run_collector
from tests.support.servers import EtcdServer, S3Server
from tests.support.services import Services, run_services

PROGRAM = (
    "import hyper\n"
    "with hyper.connect() as client, client.session('test/out') as session:\n"
    "    session.write('x.txt', b'x')\n"
)
RECIPE = {
    "version": 1, "name": "traced", "experiments": {
        "write": {"command": "python -c {{p}}", "parameters": {"p": PROGRAM}},
        "read": {
            "depends_on": ["write"],
            "function": "tests.integration.worker_functions:count_files",
            "parameters": {"dataset": "test/out"},
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def traced(
    tmp_path_factory: pytest.TempPathFactory, etcd_server: EtcdServer, s3_server: S3Server
) -> Iterator[tuple[Services, Collector]]:
    name = f"test-{secrets.token_hex(8)}"
    with run_collector() as collector:
        settings = {"TRACES_ENDPOINT": collector.address}
        with run_services(
            tmp_path_factory.mktemp("services"), etcd_server, s3_server.settings(name), f"/{name}",
            workers=1, common_settings=settings, worker_settings=settings,
        ) as running:  # fmt: skip
            yield running, collector


def of(spans: list[Seen], trace_id: str, name: str) -> list[Seen]:
    return [span for span in spans if span.trace == trace_id and span.name == name]


@pytest.mark.timeout(120)
def test_a_workflow_is_one_trace(traced: tuple[Services, Collector]) -> None:
    services, collector = traced
    with services.client() as client:
        workflow = client.submit(RECIPE)
        workflow.wait(timeout_s=60, check=True)
    trace_id = f"{tracing.workflow_ids(workflow.name)[0]:032x}"

    def whole(spans: list[Seen]) -> bool:
        return bool(of(spans, trace_id, f"workflow {workflow.name}")) and all(
            of(spans, trace_id, name)
            for name in ("task write", "task read", "DatasetService/ListFiles")
        )

    spans = collector.wait_for(whole)
    (root,) = of(spans, trace_id, f"workflow {workflow.name}")
    assert root.service == "hyper-scheduler" and not root.parent and not root.failed
    (write,), (read,) = (of(spans, trace_id, name) for name in ("task write", "task read"))
    for attempt in (write, read):
        assert attempt.service == "hyper-worker" and attempt.parent == root.id
        assert not attempt.failed and 0 < attempt.seconds <= root.seconds
    (commit,) = of(spans, trace_id, "DatasetService/CommitSession")
    assert commit.service == "hyper-storage-gateway" and commit.parent == write.id
    assert {span.parent for span in of(spans, trace_id, "DatasetService/ListFiles")} == {read.id}


@pytest.mark.timeout(120)
def test_failures_are_marked(traced: tuple[Services, Collector]) -> None:
    services, collector = traced
    with services.client() as client:
        workflow = client.submit(
            {"version": 1, "name": "t", "experiments": {"bad": {"command": "exit 3"}}}
        )
        workflow.wait(timeout_s=60)
    trace_id = f"{tracing.workflow_ids(workflow.name)[0]:032x}"
    spans = collector.wait_for(lambda seen: of(seen, trace_id, f"workflow {workflow.name}"))
    spans = collector.wait_for(lambda seen: of(seen, trace_id, "task bad"))
    assert all(span.failed for span in spans if span.trace == trace_id)


def test_a_callers_own_trace_goes_on_in_the_services(traced: tuple[Services, Collector]) -> None:
    services, collector = traced
    with TracerProvider().get_tracer("test").start_as_current_span("mine") as span:
        with Client(services.scheduler.address, tenant="test") as client:
            list(client.workflows())
        mine = span.get_span_context()
    assert trace.get_current_span() is not span
    trace_id = f"{mine.trace_id:032x}"
    spans = collector.wait_for(lambda seen: of(seen, trace_id, "WorkflowService/ListWorkflows"))
    (call,) = of(spans, trace_id, "WorkflowService/ListWorkflows")
    assert call.parent == f"{mine.span_id:016x}" and call.attributes["hyper.request_id"]
