"""WorkflowService: proto in, proto out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from hyper.errors import NotFoundError
from hyper.names import EVERY_TENANT
from hyper_scheduler import convert
from hyper_scheduler.config import SchedulerSettings
from hyper_scheduler.core.events import Cancel, Pause, Retry, Submit
from hyper_scheduler.core.model import Choice, TaskId
from hyper_scheduler.core.pages import PAGE_TASKS, PageKey
from hyper_scheduler.core.state import (
    ExperimentRun,
    State,
    TaskState,
    WorkflowRun,
    experiment_runs,
)
from hyper_scheduler.driver import Driver
from hyper_scheduler.items import items_of
from hyper_scheduler.paging import make_token, page_size, read_index, read_token
from hyper_scheduler.recipe import parse_recipe
from hyper_scheduler.store import Store, result_lines
from hyper_scheduler.term import Term
from hyper_servicekit.clock import Clock
from hyperapi.scheduler.v1 import workflow_pb2 as nouns
from hyperapi.scheduler.v1 import workflow_service_pb2 as pb

_MAX_SCANNED = 50_000  # tasks, and pages, that one ListTasks call looks at
_RESULTS_BYTES = 2 << 20  # of a page with results; a message may have 4 MiB
_FOLLOWER_POLL_S = 0.5
_LOOK_S = 2.0


class WorkflowServicer:
    """What people and programs ask of the scheduler."""

    def __init__(
        self, settings: SchedulerSettings, driver: Driver, store: Store, clock: Clock
    ) -> None:
        self._settings, self._driver, self._store, self._clock = settings, driver, store, clock

    async def CreateWorkflow(  # noqa: N802  (gRPC's name)
        self, request: pb.CreateWorkflowRequest, context: Any
    ) -> pb.CreateWorkflowResponse:
        """Validate a recipe and start it."""
        tenant = convert.tenant(request.parent)
        request_id = convert.request_id(request.request_id, tenant)
        recipe = await asyncio.to_thread(parse_recipe, request.recipe_yaml, tenant)
        name = convert.new_workflow_name(recipe.name, request_id)
        if request.validate_only:
            runs = experiment_runs(recipe)
            run = WorkflowRun(name, recipe, request.recipe_yaml, runs, self._clock.now())
            return pb.CreateWorkflowResponse(workflow=convert.workflow(run))
        term = await self._driver.leading()
        event = Submit(self._clock.now(), request_id, name, recipe, request.recipe_yaml)
        return pb.CreateWorkflowResponse(workflow=await self._changed(term, event))

    async def CancelWorkflow(  # noqa: N802
        self, request: pb.CancelWorkflowRequest, context: Any
    ) -> pb.CancelWorkflowResponse:
        """Stop a workflow."""
        name = convert.workflow_name(request.name)
        request_id = convert.request_id(request.request_id, convert.tenant_of(name))
        term = await self._driver.leading()
        event = Cancel(self._clock.now(), request_id, name, request.reason, request.etag)
        return pb.CancelWorkflowResponse(workflow=await self._changed(term, event))

    async def RetryWorkflow(  # noqa: N802
        self, request: pb.RetryWorkflowRequest, context: Any
    ) -> pb.RetryWorkflowResponse:
        """Run what failed or was cancelled again."""
        name = convert.workflow_name(request.name)
        request_id = convert.request_id(request.request_id, convert.tenant_of(name))
        term = await self._driver.leading()
        event = Retry(self._clock.now(), request_id, name, request.etag)
        return pb.RetryWorkflowResponse(workflow=await self._changed(term, event))

    async def PauseWorkflow(  # noqa: N802
        self, request: pb.PauseWorkflowRequest, context: Any
    ) -> pb.PauseWorkflowResponse:
        """Start nothing more."""
        return pb.PauseWorkflowResponse(workflow=await self._pause(request, paused=True))

    async def ResumeWorkflow(  # noqa: N802
        self, request: pb.ResumeWorkflowRequest, context: Any
    ) -> pb.ResumeWorkflowResponse:
        """Go on."""
        return pb.ResumeWorkflowResponse(workflow=await self._pause(request, paused=False))

    async def _pause(
        self, request: pb.PauseWorkflowRequest | pb.ResumeWorkflowRequest, *, paused: bool
    ) -> nouns.Workflow:
        name = convert.workflow_name(request.name)
        request_id = convert.request_id(request.request_id, convert.tenant_of(name))
        term = await self._driver.leading()
        event = Pause(self._clock.now(), request_id, name, paused, request.etag)
        return await self._changed(term, event)

    async def _changed(self, term: Term, event: Submit | Cancel | Retry | Pause) -> nouns.Workflow:
        name = await term.ask(event)
        run = term.state.workflows.get(name)
        if run is None:
            raise NotFoundError(f"there is no workflow {name}; `hyper ps` lists them")
        return convert.workflow(run, term.state)

    async def GetWorkflow(  # noqa: N802
        self, request: pb.GetWorkflowRequest, context: Any
    ) -> pb.GetWorkflowResponse:
        """One workflow."""
        run = await self._driver.workflow(convert.workflow_name(request.name))
        return pb.GetWorkflowResponse(workflow=convert.workflow(run, self._state()))

    async def ListWorkflows(  # noqa: N802
        self, request: pb.ListWorkflowsRequest, context: Any
    ) -> pb.ListWorkflowsResponse:
        """Newest first, without recipes; of all tenants for `EVERY_TENANT`."""
        everywhere = request.parent == EVERY_TENANT  # tokens of one tenant were refused
        prefix = "tenants/" if everywhere else f"tenants/{convert.tenant(request.parent)}/"
        size = page_size(request.page_size, self._settings.max_page_size)
        after = read_token(request.page_token)
        runs = [each for each in await self._driver.workflows() if each.name.startswith(prefix)]
        keyed = sorted(((f"{run.create_time:020.6f} {run.name}", run) for run in runs),
                       key=lambda pair: pair[0], reverse=True)  # fmt: skip
        rest = [pair for pair in keyed if not after or pair[0] < after]
        response = pb.ListWorkflowsResponse(
            workflows=[convert.workflow(run, self._state(), recipe=False) for _, run in rest[:size]]
        )
        if len(rest) > size:
            response.next_page_token = make_token(rest[size - 1][0])
        return response

    async def WatchWorkflow(  # noqa: N802
        self, request: pb.WatchWorkflowRequest, context: Any
    ) -> AsyncIterator[pb.WatchWorkflowResponse]:
        """The workflow now and after each change, until it has ended."""
        name = convert.workflow_name(request.name)
        term = self._driver.leading_now()
        changed = asyncio.Event() if term is None else term.watch(name)
        shown: nouns.Workflow | None = None
        try:
            while True:
                changed.clear()
                run = await self._driver.workflow(name)
                view = convert.workflow(run, self._state(), recipe=shown is None)
                if shown is None or not _same(view, shown):
                    yield pb.WatchWorkflowResponse(workflow=view)
                    shown = view
                if run.durable.ended:
                    return
                if term is None:
                    self._driver.check_serving()
                    await self._clock.sleep(_FOLLOWER_POLL_S)
                    continue
                with contextlib.suppress(TimeoutError):  # why tasks wait may change on its own
                    await asyncio.wait_for(changed.wait(), _LOOK_S)
                if term.ended:
                    await self._driver.leading()  # says who leads now
                    return
                await self._clock.sleep(self._settings.watch_interval_s)
        finally:
            if term is not None:
                term.unwatch(name, changed)

    def _state(self) -> State | None:
        term = self._driver.leading_now()
        return None if term is None else term.state

    async def GetTask(  # noqa: N802
        self, request: pb.GetTaskRequest, context: Any
    ) -> pb.GetTaskResponse:
        """One task with its result."""
        key = convert.task_id(request.name)
        run = await self._experiment(key.workflow, key.experiment)
        if key.index >= run.total:
            raise NotFoundError(f"there is no task {key.name}: the experiment has {run.total}")
        lines = await self._lines(key.workflow, run, {key.index})
        task = convert.task(run, key, lines.get(key.index), with_result=True)
        return pb.GetTaskResponse(task=task)

    async def ListTasks(  # noqa: N802
        self, request: pb.ListTasksRequest, context: Any
    ) -> pb.ListTasksResponse:
        """Tasks in order of index."""
        workflow, experiment = convert.split_experiment(request.parent)
        size = page_size(request.page_size, self._settings.max_page_size)
        wanted = convert.state_filter(request.state)
        run = await self._experiment(workflow, experiment)
        found, after = select(run, read_index(request.page_token), size, wanted)
        done = {index for index in found if run.is_done(index)}
        lines = await self._lines(workflow, run, done)
        response = pb.ListTasksResponse()
        size_bytes = 0
        for index in found:
            key = TaskId(workflow, experiment, index)
            task = convert.task(run, key, lines.get(index), with_result=request.results)
            size_bytes += task.ByteSize()
            if request.results and response.tasks and size_bytes > _RESULTS_BYTES:
                after = index  # the next page begins with it
                break
            response.tasks.append(task)
        if after < run.total:
            response.next_page_token = make_token(str(after))
        return response

    async def _experiment(self, workflow: str, experiment: str) -> ExperimentRun:
        found = await self._driver.workflow(workflow)
        run = found.experiments.get(experiment)
        if run is None:
            raise NotFoundError(f"workflow {workflow} has no experiment {experiment}")
        sources = run.spec.items
        if sources and run.total and (self._state() is None or found.state.ended):
            # else the leader has them, or will have in a moment
            items = await items_of(self._store, found, sources)
            choices = {name: Choice(values) for name, values in items.items()}
            run.spec = replace(run.spec, parameters={**run.spec.parameters, **choices})
        return run

    async def _lines(
        self, workflow: str, run: ExperimentRun, indices: set[int]
    ) -> dict[int, dict[str, Any]]:
        """The result lines of done tasks: from memory while they are fresh, else from objects."""
        found: dict[int, dict[str, Any]] = {}
        for number in sorted({index // PAGE_TASKS for index in indices}):
            page = run.pages.get(number)
            if page is None:
                continue
            key = PageKey(workflow, run.spec.name, number)
            memory = list(page.unsaved())
            term = self._driver.leading_now()
            if term is not None and term.state.committing is not None:
                memory += term.state.committing.lines.get(key, [])
            found |= result_lines(memory)
            here = {index for index in indices if index // PAGE_TASKS == number}
            if any(page.is_done(index) for index in here - found.keys()):
                found |= await self._store.results(key, page)
        return found


def _same(one: nouns.Workflow, other: nouns.Workflow) -> bool:
    """Whether two views differ in nothing but the recipe."""
    left, right = nouns.Workflow(), nouns.Workflow()
    left.CopyFrom(one)
    right.CopyFrom(other)
    left.recipe_yaml = right.recipe_yaml = ""
    return bool(left == right)


def select(
    run: ExperimentRun, start: int, size: int, wanted: TaskState | None
) -> tuple[list[int], int]:
    """The first `size` tasks from `start` on in state `wanted`, and where to go on.

    Looks at a bounded number of tasks, so fewer may come back although there are more.
    """
    found: list[int] = []
    index, looked = start, 0
    while index < run.total and looked < _MAX_SCANNED:
        page_end = min(run.total, (index // PAGE_TASKS + 1) * PAGE_TASKS)
        candidates = _candidates(run, index, page_end, wanted)
        for each in candidates:
            if wanted is None or run.task_state(each) is wanted:
                found.append(each)
                if len(found) == size:
                    return found, each + 1
        looked += len(candidates) + 1
        index = page_end
    return found, index


def _candidates(
    run: ExperimentRun, start: int, end: int, wanted: TaskState | None
) -> Sequence[int]:
    """Tasks of one page that may be in state `wanted`: few where a page tells so at once."""
    page = run.pages.get(start // PAGE_TASKS)
    done = 0 if page is None else page.done_count
    match wanted:
        case TaskState.RUNNING | TaskState.FAILED:
            return sorted(i for i in page.records if i >= start) if page is not None else ()
        case TaskState.SUCCEEDED if not done:
            return ()
        case TaskState.PENDING | TaskState.CANCELLED:
            ended = run.state.ended
            if done == PAGE_TASKS or ended == (wanted is TaskState.PENDING):
                return ()
    return range(start, end)
