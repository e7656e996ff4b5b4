"""Workflows: submit a recipe, watch it, read its tasks and logs, cancel, retry; the machines.

A `Workflow` is a handle; what it is doing is in the frozen values that it returns.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hyper.config import SCHEDULER, STORAGE
from hyper.errors import (
    DeadlineError,
    HyperError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    WorkFailedError,
)
from hyper.names import EVERY_TENANT, check_part
from hyper.recipe_files import inline_files
from hyper.status import (
    ClusterInfo,
    RunState,
    ServiceInstance,
    TaskInfo,
    TaskState,
    WorkerInfo,
    WorkflowStatus,
    task_from_proto,
    task_state_to_proto,
    worker_from_proto,
    workflow_from_proto,
)
from hyper.workdir import upload_folders
from hyperapi.scheduler.v1 import cluster_service_pb2, workflow_service_pb2
from hyperapi.scheduler.v1.cluster_service_pb2_grpc import ClusterServiceStub
from hyperapi.scheduler.v1.workflow_service_pb2_grpc import NodeServiceStub, WorkflowServiceStub
from hyperapi.storage.v1.dataset_service_pb2 import LogSource, ReadLogRequest, ReadLogResponse
from hyperapi.storage.v1.dataset_service_pb2_grpc import LogServiceStub

if TYPE_CHECKING:
    from hyper.client import Client

__all__ = [
    "ClusterInfo",
    "RunState",
    "TaskInfo",
    "TaskState",
    "WorkerInfo",
    "Workflow",
    "WorkflowStatus",
    "check",
    "cluster",
    "drain",
    "get",
    "list_workers",
    "list_workflows",
    "submit",
]

RECIPE_BYTES_MAX = 1 << 20
_TAIL_BYTES = 65_536
LOG_SOURCES = ("program", "os", "usage")
PAGE_SIZE = 500
_FOLLOW_POLL_S = 0.5
_LOG_LAG_S = 2.0  # a worker ships a log's last part at most this long after the task's end


class Workflow:
    """A submitted recipe.

    Args:
        client: of the cluster it runs in; must outlive this handle.
        status: what was last heard of it.
    """

    def __init__(self, client: Client, status: WorkflowStatus) -> None:
        self._client = client
        self._status = status

    def __repr__(self) -> str:
        return f"<Workflow {self.name} {self.state}>"

    def _repr_html_(self) -> str:
        from hyper import notebooks

        return notebooks.workflow(self._status)

    @property
    def name(self) -> str:
        """Its resource name, tenants/{t}/workflows/{w}."""
        return self._status.name

    @property
    def status(self) -> WorkflowStatus:
        """What was last heard of it; `refresh` asks anew."""
        return self._status

    @property
    def state(self) -> RunState:
        """The state that was last heard of."""
        return self._status.state

    def refresh(self) -> WorkflowStatus:
        """Ask the scheduler for the workflow as it is now."""
        request = workflow_service_pb2.GetWorkflowRequest(name=self.name)
        response = self._client.call(SCHEDULER, WorkflowServiceStub, "GetWorkflow", request)
        self._status = workflow_from_proto(response.workflow)
        return self._status

    def watch(self) -> Iterator[WorkflowStatus]:
        """The workflow now, then after each change, up to and with its end.

        A scheduler that goes away is waited for (`Client.patience_s`) and asked again.
        """
        request = workflow_service_pb2.WatchWorkflowRequest(name=self.name)
        while True:
            try:
                for response in self._client.stream(
                    SCHEDULER, WorkflowServiceStub, "WatchWorkflow", request
                ):
                    self._status = workflow_from_proto(response.workflow, self._status)
                    yield self._status
                    if self._status.state.ended:
                        return
            except UnavailableError as error:
                self._client.notify(f"lost the watch of {self.name}, asking again: {error}")
            # the stream ended before the workflow did: this also waits for the scheduler
            self.refresh()

    def wait(
        self,
        timeout_s: float | None = None,
        on_update: Callable[[WorkflowStatus], None] | None = None,
        *,
        check: bool = False,
    ) -> WorkflowStatus:
        """Wait for the end; `on_update` is called with every status on the way.

        Raises:
            WorkFailedError: `check` is set, and it failed or was cancelled.
            DeadlineError: it still runs after `timeout_s`; it goes on running.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._watch_until(end, on_update):
            if end is not None and time.monotonic() >= end:
                raise still_runs(self.name, timeout_s)
        if check:
            check_succeeded(self)
        return self._status

    def _watch_until(
        self, end: float | None, on_update: Callable[[WorkflowStatus], None] | None
    ) -> bool:
        """Pass updates on until the workflow has ended (True) or `end` has come (False)."""
        if end is None:
            for status in self.watch():
                if on_update is not None:
                    on_update(status)
            return True
        request = workflow_service_pb2.WatchWorkflowRequest(name=self.name)
        try:
            for response in self._client.stream(
                SCHEDULER,
                WorkflowServiceStub,
                "WatchWorkflow",
                request,
                timeout_s=max(end - time.monotonic(), 0.001),
            ):
                self._status = workflow_from_proto(response.workflow, self._status)
                if on_update is not None:
                    on_update(self._status)
                if self._status.state.ended:
                    return True
        except DeadlineError:
            return False
        except UnavailableError as error:
            self._client.notify(f"lost the watch of {self.name}, asking again: {error}")
            self.refresh()
        return False

    def cancel(self, reason: str = "") -> WorkflowStatus:
        """Stop it: running tasks get SIGTERM, then SIGKILL after their grace."""
        request = workflow_service_pb2.CancelWorkflowRequest(
            name=self.name, request_id=str(uuid.uuid4()), reason=reason
        )
        response = self._client.call(SCHEDULER, WorkflowServiceStub, "CancelWorkflow", request)
        self._status = workflow_from_proto(response.workflow, self._status)
        return self._status

    def retry(self) -> WorkflowStatus:
        """Run the failed and cancelled tasks again; done tasks stay done."""
        request = workflow_service_pb2.RetryWorkflowRequest(
            name=self.name, request_id=str(uuid.uuid4())
        )
        response = self._client.call(SCHEDULER, WorkflowServiceStub, "RetryWorkflow", request)
        self._status = workflow_from_proto(response.workflow, self._status)
        return self._status

    def pause(self) -> WorkflowStatus:
        """Start nothing more of it until `resume`; what runs goes on."""
        request = workflow_service_pb2.PauseWorkflowRequest(
            name=self.name, request_id=str(uuid.uuid4())
        )
        response = self._client.call(SCHEDULER, WorkflowServiceStub, "PauseWorkflow", request)
        self._status = workflow_from_proto(response.workflow, self._status)
        return self._status

    def resume(self) -> WorkflowStatus:
        """Go on with a paused workflow."""
        request = workflow_service_pb2.ResumeWorkflowRequest(
            name=self.name, request_id=str(uuid.uuid4())
        )
        response = self._client.call(SCHEDULER, WorkflowServiceStub, "ResumeWorkflow", request)
        self._status = workflow_from_proto(response.workflow, self._status)
        return self._status

    def tasks(
        self, experiment: str, state: TaskState | None = None, *, results: bool = False
    ) -> Iterator[TaskInfo]:
        """The tasks of one experiment in order, all or those in `state`; with their `results`."""
        request = workflow_service_pb2.ListTasksRequest(
            parent=f"{self.name}/experiments/{check_part(experiment, 'experiment')}",
            page_size=PAGE_SIZE,
            state=task_state_to_proto(state),
            results=results,
        )
        while True:
            response = self._client.call(SCHEDULER, WorkflowServiceStub, "ListTasks", request)
            for task in response.tasks:
                yield task_from_proto(task)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def task(self, experiment: str, index: int) -> TaskInfo:
        """One task, with its result."""
        return get_task(self._client, f"{self.name}/experiments/{experiment}/tasks/{index}")

    def logs(
        self,
        task: TaskInfo | str,
        follow: bool = False,
        source: str = "program",
        *,
        since: datetime | None = None,
        tail_bytes: int = 0,
    ) -> Iterator[bytes]:
        """The output of a task's newest attempt, in parts; with `follow`, while it grows.

        `task` is a `TaskInfo`, a full resource name, or "experiment/index"; `source` is "program",
        "os" (events) or "usage"; parts that were stored before `since` are left out; with
        `tail_bytes`, all but so many bytes of what there is.
        """
        name = task.name if isinstance(task, TaskInfo) else task
        if not name.startswith("tenants/"):
            experiment, _, index = name.partition("/")
            name = f"{self.name}/experiments/{check_part(experiment, 'experiment')}/tasks/{index}"
        return read_log(
            self._client, name, follow=follow, source=source, since=since, tail_bytes=tail_bytes
        )

    def log_tail(self, task: TaskInfo | str, lines: int = 10) -> list[str]:
        """The last lines of a task's output, once a task that has just ended has shipped it."""
        end = time.monotonic() + _LOG_LAG_S
        while True:
            tail = b""
            for part in self.logs(task, tail_bytes=_TAIL_BYTES):
                tail = (tail + part)[-_TAIL_BYTES:]
            if tail or time.monotonic() > end:
                return tail.decode(errors="replace").splitlines()[-lines:]
            time.sleep(0.2)

    def first_failure(self) -> TaskInfo | None:
        """A failed task, of the first experiment in topological order that has one."""
        for experiment in self._status.experiments:
            if experiment.tasks.failed:
                return next(self.tasks(experiment.id, TaskState.FAILED), None)
        return None


def still_runs(name: str, timeout_s: float | None) -> DeadlineError:
    """That a workflow has not ended in so long."""
    return DeadlineError(f"{name} still runs after {timeout_s:g} s; it goes on: see `hyper ps`")


def check_succeeded(workflow: Workflow) -> None:
    """Look at how it ended.

    Raises:
        WorkFailedError: it failed or was cancelled.
    """
    if workflow.state is not RunState.SUCCEEDED:
        reason = workflow.status.message or "no reason given"
        raise WorkFailedError(
            f"{workflow.name} {workflow.state.lower()}: {reason}; see `hyper logs {workflow.name}`"
        )


def submit(
    client: Client, recipe: str | Path | Mapping[str, Any], *, request_id: str | None = None
) -> Workflow:
    """Start a recipe; durable on return. A repeated `request_id` gets the first workflow.

    Local work folders (`workdir`) are uploaded first; relative ones start from the recipe's
    folder, or from the current one where the recipe is text or a mapping.

    Args:
        client: of the cluster to run it.
        recipe: a path, YAML text (with a line break) or a mapping.
        request_id: a UUID; made up if not given.

    Raises:
        InvalidArgumentError: the recipe is wrong; the message names line and key.
        UnavailableError, DeadlineError: no answer came, so it may run or not; submitting it again
            with `error.metadata["request_id"]` finds it or starts it, never twice.
    """
    base = recipe_folder(recipe)
    text = upload_folders(client, inline_files(recipe_text(recipe), base), base)
    request = workflow_service_pb2.CreateWorkflowRequest(
        parent=f"tenants/{client.tenant}",
        recipe_yaml=text,
        request_id=request_id or str(uuid.uuid4()),
    )
    try:
        response = client.call(SCHEDULER, WorkflowServiceStub, "CreateWorkflow", request)
    except (UnavailableError, DeadlineError) as error:
        error.metadata["request_id"] = request.request_id
        raise
    return Workflow(client, workflow_from_proto(response.workflow))


def check(client: Client, recipe: str | Path | Mapping[str, Any]) -> WorkflowStatus:
    """What a recipe would become; nothing is started.

    Raises:
        InvalidArgumentError: the recipe is wrong; the message names line and key.
    """
    request = workflow_service_pb2.CreateWorkflowRequest(
        parent=f"tenants/{client.tenant}",
        recipe_yaml=inline_files(recipe_text(recipe), recipe_folder(recipe)),
        request_id=str(uuid.uuid4()),
        validate_only=True,
    )
    response = client.call(SCHEDULER, WorkflowServiceStub, "CreateWorkflow", request)
    return workflow_from_proto(response.workflow)


def recipe_text(recipe: str | Path | Mapping[str, Any]) -> str:
    """The YAML of a recipe given as a path, as text or as a mapping.

    Raises:
        InvalidArgumentError: it cannot be read, or is over 1 MiB.
    """
    if isinstance(recipe, Mapping):
        text = yaml.safe_dump(dict(recipe), sort_keys=False)
    elif isinstance(recipe, str) and "\n" in recipe:
        text = recipe
    else:
        path = Path(recipe)
        try:
            with path.open("rb") as file:
                text = file.read(RECIPE_BYTES_MAX + 1).decode()
        except FileNotFoundError as error:
            raise InvalidArgumentError(
                f"recipe {str(path)!r} does not exist", reason="INVALID_RECIPE"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgumentError(
                f"recipe {str(path)!r} cannot be read: {error}", reason="INVALID_RECIPE"
            ) from error
    if len(text) > RECIPE_BYTES_MAX:
        raise InvalidArgumentError(
            f"the recipe is over {RECIPE_BYTES_MAX >> 20} MiB; give long lists as ranges",
            reason="INVALID_RECIPE",
        )
    return text


def recipe_folder(recipe: str | Path | Mapping[str, Any]) -> Path:
    """Where the recipe's relative work folders start."""
    if isinstance(recipe, Mapping) or (isinstance(recipe, str) and "\n" in recipe):
        return Path.cwd()
    return Path(recipe).parent


def get(client: Client, name: str) -> Workflow:
    """A workflow by its resource name, or by its last part within the client's tenant.

    Raises:
        NotFoundError: there is none.
    """
    if not name.startswith("tenants/"):
        name = f"tenants/{client.tenant}/workflows/{check_part(name, 'workflow')}"
    request = workflow_service_pb2.GetWorkflowRequest(name=name)
    response = client.call(SCHEDULER, WorkflowServiceStub, "GetWorkflow", request)
    return Workflow(client, workflow_from_proto(response.workflow))


def list_workflows(client: Client, *, every_tenant: bool = False) -> Iterator[WorkflowStatus]:
    """Workflows of the client's tenant, or of all, newest first, page by page.

    Raises:
        PermissionDeniedError: of all tenants, with a token of one.
    """
    request = workflow_service_pb2.ListWorkflowsRequest(
        parent=EVERY_TENANT if every_tenant else f"tenants/{client.tenant}", page_size=PAGE_SIZE
    )
    while True:
        response = client.call(SCHEDULER, WorkflowServiceStub, "ListWorkflows", request)
        for workflow in response.workflows:
            yield workflow_from_proto(workflow)
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def get_task(client: Client, name: str) -> TaskInfo:
    """A task by its resource name, with its result."""
    request = workflow_service_pb2.GetTaskRequest(name=name)
    response = client.call(SCHEDULER, WorkflowServiceStub, "GetTask", request)
    return task_from_proto(response.task)


def read_log(
    client: Client,
    task: str,
    *,
    follow: bool = False,
    source: str = "program",
    since: datetime | None = None,
    tail_bytes: int = 0,
) -> Iterator[bytes]:
    """The output of the newest attempt of `task`; none if it has written nothing.

    With `follow`, goes on until the log is closed; a gateway that goes away is asked again.

    Args:
        client: of the cluster.
        task: resource name.
        follow: while it grows.
        source: "program" for stdout and stderr; "os" for how it started and ended, signals, lack
            of memory; "usage" for CPU, memory and I/O over time: both JSON lines.
        since: parts of up to 1 MiB that were stored before are left out.
        tail_bytes: only so many bytes before the end that it has now; 0: all.
    """
    if source not in LOG_SOURCES:
        raise InvalidArgumentError(f"source {source!r} is none of {', '.join(LOG_SOURCES)}")
    request = ReadLogRequest(
        task=task,
        follow=follow,
        source=LogSource.Value(f"LOG_SOURCE_{source.upper()}"),
        tail=tail_bytes,
    )
    if since is not None:
        request.since.FromDatetime(since)
    while True:
        ended = get_task(client, task).state.ended or not follow  # also says if there is no task
        try:
            response: ReadLogResponse
            for response in client.stream(STORAGE, LogServiceStub, "ReadLog", request):
                request.epoch, request.number = response.epoch, response.number
                request.offset, request.tail = response.offset + len(response.data), 0
                if response.data:
                    yield response.data
            if not follow or request.offset or ended:
                return
        except NotFoundError:  # no output, or none yet
            if ended:
                return
        except UnavailableError as error:
            if not follow:
                raise
            client.notify(f"lost the log of {task}, asking again: {error}")
        time.sleep(_FOLLOW_POLL_S)


def list_workers(client: Client) -> list[WorkerInfo]:
    """The machines that run tasks, as the scheduler sees them."""
    request = workflow_service_pb2.ListWorkersRequest(page_size=PAGE_SIZE)
    workers: list[WorkerInfo] = []
    while True:
        response = client.call(SCHEDULER, NodeServiceStub, "ListWorkers", request)
        workers.extend(worker_from_proto(worker) for worker in response.workers)
        if not response.next_page_token:
            return workers
        request.page_token = response.next_page_token


def drain(client: Client, worker: str) -> WorkerInfo:
    """Let a worker (`workers/{name}` or `{name}`) finish what it runs; it gets nothing new."""
    name = worker if worker.startswith("workers/") else f"workers/{check_part(worker, 'worker')}"
    request = workflow_service_pb2.DrainWorkerRequest(name=name, request_id=str(uuid.uuid4()))
    response = client.call(SCHEDULER, NodeServiceStub, "DrainWorker", request)
    return worker_from_proto(response.worker)


def cluster(client: Client) -> ClusterInfo:
    """Every replica of every service that is alive, and which scheduler leads."""
    response: cluster_service_pb2.GetClusterResponse = client.call(
        SCHEDULER, ClusterServiceStub, "GetCluster", cluster_service_pb2.GetClusterRequest()
    )
    return ClusterInfo(
        instances=tuple(
            ServiceInstance(i.service, i.instance, i.address, i.metrics_address)
            for i in response.instances
        ),
        leader=response.leader,
        version=response.version,
    )


def explain_failure(workflow: Workflow, *, lines: int = 10) -> tuple[TaskInfo | None, list[str]]:
    """The failing task of a failed workflow and its log's last lines, as far as they can be had."""
    try:
        task = workflow.first_failure()
        return task, workflow.log_tail(task, lines) if task is not None else []
    except HyperError as error:
        return None, [f"(the failing task's log cannot be read: {error})"]
