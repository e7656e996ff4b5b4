"""The status page in a browser, over services that say what a test wants to see."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from hyper_scheduler.web.pages import StatusPages
from hyper_servicekit.metrics import MetricsServer
from hyperapi.scheduler.v1 import cluster_service_pb2 as cluster
from hyperapi.scheduler.v1 import cluster_service_pb2_grpc as cluster_grpc
from hyperapi.scheduler.v1 import placement_service_pb2 as placement
from hyperapi.scheduler.v1 import placement_service_pb2_grpc as placement_grpc
from hyperapi.scheduler.v1 import workflow_pb2 as nouns
from hyperapi.scheduler.v1 import workflow_service_pb2 as workflow
from hyperapi.scheduler.v1 import workflow_service_pb2_grpc as workflow_grpc
from hyperapi.storage.v1 import dataset_service_pb2 as storage
from hyperapi.storage.v1 import dataset_service_pb2_grpc as storage_grpc
from tests.support.browser import Page, open_page

pytestmark = pytest.mark.timeout(240)
BROWSER_S = 90.0
WORKFLOW = "tenants/default/workflows/w-{}"
EXPERIMENT = f"{WORKFLOW.format(0)}/experiments/e"


class Services(
    cluster_grpc.ClusterServiceServicer,
    placement_grpc.PlacementServiceServicer,
    workflow_grpc.WorkflowServiceServicer,
    workflow_grpc.NodeServiceServicer,
    storage_grpc.LogServiceServicer,
):
    """Of one address."""

    address = ""
    count = 5
    log = b"first line\n"
    asked_tail = 0

    def GetCluster(self, request: Any, context: Any) -> Any:
        response = cluster.GetClusterResponse()
        response.instances.add(service="storage-gateway", instance="s", address=self.address)
        return response

    def ListWorkflows(self, request: Any, context: Any) -> Any:
        start = int(request.page_token or 0)
        stop = min(start + request.page_size, self.count)
        return workflow.ListWorkflowsResponse(
            workflows=[
                nouns.Workflow(name=WORKFLOW.format(n), state=nouns.RUN_STATE_RUNNING)
                for n in range(start, stop)
            ],
            next_page_token=str(stop) if stop < self.count else "",
        )

    def GetWorkflow(self, request: Any, context: Any) -> Any:
        found = nouns.Workflow(name=request.name, state=nouns.RUN_STATE_RUNNING)
        found.experiments.add(name=EXPERIMENT, state=nouns.RUN_STATE_RUNNING)
        return workflow.GetWorkflowResponse(workflow=found)

    def ListTasks(self, request: Any, context: Any) -> Any:
        return workflow.ListTasksResponse(
            tasks=[nouns.Task(name=f"{EXPERIMENT}/tasks/0", state=nouns.TASK_STATE_RUNNING)]
        )

    def GetTask(self, request: Any, context: Any) -> Any:
        return workflow.GetTaskResponse(
            task=nouns.Task(name=request.name, state=nouns.TASK_STATE_RUNNING)
        )

    def ListWorkers(self, request: Any, context: Any) -> Any:
        return workflow.ListWorkersResponse()

    def GetCost(self, request: Any, context: Any) -> Any:
        response = placement.GetCostResponse()
        response.workflows.add(
            name=WORKFLOW.format(0), usd=1.5, on_demand_usd=4.5, budget_usd=40,
            offers=[placement.OfferCost(offer="m5.large@zone", usd=1.5, launches=3, preemptions=2)],
        )  # fmt: skip
        response.machines.add(
            machine="i-1", offer="m5.large@zone", spot=True, usd_h=0.04, workflow=WORKFLOW.format(0)
        )
        return response

    def ReadLog(self, request: Any, context: Any) -> Iterator[Any]:
        self.asked_tail = request.tail
        data = self.log[-request.tail :]
        yield storage.ReadLogResponse(data=data, offset=len(self.log) - len(data))


@pytest.fixture
def services() -> Iterator[Services]:
    made = Services()
    server = grpc.server(ThreadPoolExecutor(8))
    cluster_grpc.add_ClusterServiceServicer_to_server(made, server)
    placement_grpc.add_PlacementServiceServicer_to_server(made, server)
    workflow_grpc.add_WorkflowServiceServicer_to_server(made, server)
    workflow_grpc.add_NodeServiceServicer_to_server(made, server)
    storage_grpc.add_LogServiceServicer_to_server(made, server)
    made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield made
    server.stop(None).wait()


@pytest.fixture
def base(services: Services) -> Iterator[str]:
    pages = StatusPages(lambda: services.address, loopback=True)
    server = MetricsServer("127.0.0.1:0", lambda: True)
    server.pages = pages.answer
    server.start()
    yield f"http://{server.address}"
    server.stop()
    pages.close()


def answer(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as response:
        return json.load(response)


def test_a_log_is_read_from_its_end(services: Services, base: str) -> None:
    services.log = b"x" * 400_000 + b"the end\n"
    found = answer(f"{base}/api/log?task={EXPERIMENT}/tasks/0")
    assert found["cut"] and found["text"].endswith("x" * 100 + "the end\n")
    assert services.asked_tail == 256 << 10
    services.log = b"short\n"
    assert answer(f"{base}/api/log?task={EXPERIMENT}/tasks/0") == {"text": "short\n", "cut": False}


async def until(page: Page, expression: str) -> None:
    """Wait until some JavaScript is true in the page."""
    end = time.monotonic() + BROWSER_S
    while not await page.evaluate(expression):
        assert time.monotonic() < end, await page.evaluate("document.body.innerText")
        await asyncio.sleep(0.1)


TEXT = "document.body.innerText"


async def next_turn(page: Page) -> None:
    """Wait until the page has asked anew, twice, so that one answer has been shown."""
    before = await page.evaluate("turn")
    await until(page, f"turn > {before} + 1")


async def test_cost_and_older_workflows(services: Services, base: str, tmp_path: Path) -> None:
    async with open_page(f"{base}/#limit=2", tmp_path) as page:
        await until(page, f"{TEXT}.includes('w-1')")
        assert await page.evaluate(f"{TEXT}.includes('1.50 of 40.00')")
        assert await page.evaluate(f"{TEXT}.includes('i-1') && !{TEXT}.includes('w-2')")
        for shown, gone in (("w-3", "w-1"), ("w-4", "w-3")):
            older = "[...document.querySelectorAll('main a')].find(a => a.textContent === 'Older')"
            await page.evaluate(f"{older}.click()")
            await until(page, f"{TEXT}.includes('{shown}') && !{TEXT}.includes('{gone}')")
        assert await page.evaluate(f"{older} === undefined")
        await page.evaluate(f"location.hash = 'workflow={WORKFLOW.format(0)}'")
        await until(page, f"{TEXT}.includes('1.50 USD spent of a budget of 40.00 USD')")
        assert await page.evaluate(f"{TEXT}.includes('on demand it would have been 4.50 USD')")
        captions = "[...document.querySelectorAll('table')].every(t => t.caption)"
        assert await page.evaluate(captions)
        scopes = "[...document.querySelectorAll('th')].every(t => t.scope === 'col')"
        assert await page.evaluate(scopes)


async def test_what_a_reader_does_outlives_an_update(
    services: Services, base: str, tmp_path: Path
) -> None:
    target = f"workflow={WORKFLOW.format(0)}&experiment={EXPERIMENT}"
    async with open_page(f"{base}/#{target}", tmp_path) as page:
        await until(page, "document.querySelector('select') !== null")
        await page.evaluate("document.querySelector('select').focus()")
        await next_turn(page)
        assert await page.evaluate("document.activeElement.localName") == "select"
        await page.evaluate(
            "const s = document.activeElement; s.value = 'failed'; "
            "s.dispatchEvent(new Event('change'))"
        )
        await until(page, "location.hash.includes('state=failed')")
        await next_turn(page)
        assert await page.evaluate("document.activeElement.value") == "failed"

        await page.evaluate(f"location.hash = '{target}&task={EXPERIMENT}/tasks/0'")
        await until(page, f"{TEXT}.includes('first line')")
        await page.evaluate(
            "const t = document.querySelector('pre[tabindex]').firstChild; "
            "document.getSelection().setBaseAndExtent(t, 0, t, 5)"
        )
        services.log += b"second line\n"
        await until(page, f"{TEXT}.includes('second line')")
        assert await page.evaluate("document.getSelection().toString()") == "first"
        services.log = b"only the end of what is a long log now\n"
        await next_turn(page)
        assert await page.evaluate("document.getSelection().toString()") == "first"
        await page.evaluate("document.getSelection().empty()")
        await until(page, f"{TEXT}.includes('a long log now')")
