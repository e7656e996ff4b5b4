"""Answers of the status page: its three files, and JSON from the services' own calls.

The page changes nothing. What it shows it asks for over gRPC with the token that the browser sends,
so that who may see what is decided in one place (`hyper_servicekit.authorize`).
"""

from __future__ import annotations

import ipaddress
import json
import threading
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from hyper._transport import plain_channel
from hyper._wire_errors import from_rpc_error
from hyper.errors import HyperError, InvalidArgumentError, UnavailableError
from hyper.names import check_part
from hyper_servicekit.metrics import Answer
from hyperapi.scheduler.v1 import cluster_service_pb2 as cluster
from hyperapi.scheduler.v1 import cluster_service_pb2_grpc as cluster_grpc
from hyperapi.scheduler.v1 import placement_service_pb2 as placement
from hyperapi.scheduler.v1 import placement_service_pb2_grpc as placement_grpc
from hyperapi.scheduler.v1 import workflow_pb2 as nouns
from hyperapi.scheduler.v1 import workflow_service_pb2 as workflow
from hyperapi.scheduler.v1 import workflow_service_pb2_grpc as workflow_grpc
from hyperapi.storage.v1 import dataset_service_pb2 as storage
from hyperapi.storage.v1 import dataset_service_pb2_grpc as storage_grpc

_FILES = {
    "/": ("status.html", "text/html; charset=utf-8"),
    "/status.js": ("status.js", "text/javascript; charset=utf-8"),
    "/status.css": ("status.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_STATUS = {
    "INVALID_ARGUMENT": 400, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 409, "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}  # fmt: skip
_CALL_S = 10.0
_WORKFLOWS = 100
_TASKS = 100
_LOG_BYTES = 256 << 10  # the end of a log


class StatusPages:
    """The page's answers.

    Args:
        address: of this scheduler's gRPC, asked at the first call.
        loopback: whether only this machine can reach the page, so that no other host name leads
            to it honestly (a web site's that now points here does not).
    """

    def __init__(self, address: Callable[[], str], *, loopback: bool) -> None:
        self._address, self._loopback = address, loopback
        self._channels: dict[str, grpc.Channel] = {}
        self._lock = threading.Lock()

    def answer(self, path: str, headers: Mapping[str, str]) -> Answer | None:
        """What a GET of `path` gets; None where nothing is."""
        place, _, query = path.partition("?")
        known = {
            "/api/overview": self._overview,
            "/api/workflow": self._workflow,
            "/api/tasks": self._tasks,
            "/api/task": self._task,
            "/api/log": self._log,
        }
        if place not in _FILES and place not in known:
            return None
        if self._loopback and not _is_local(headers.get("Host", "")):
            return _plain(403, "this page is only for the machine it runs on")
        if place in _FILES:
            name, kind = _FILES[place]
            body = files("hyper_scheduler.web").joinpath(name).read_bytes()
            return Answer(200, kind, body, _HEADERS)
        asked = {key: values[0] for key, values in parse_qs(query).items()}
        shown = headers.get("Authorization", "")
        metadata = (("authorization", shown),) if shown else ()
        try:
            value = known[place](asked, metadata)
        except HyperError as error:
            text = json.dumps({"error": error.message})
            return Answer(_STATUS.get(error.code, 500), "application/json", text.encode(), _HEADERS)
        return Answer(200, "application/json", json.dumps(value).encode(), _HEADERS)

    def close(self) -> None:
        """Close the channels."""
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    # What the page asks for

    def _overview(self, asked: Mapping[str, str], metadata: Any) -> dict[str, Any]:
        """Workflows of a tenant and their cost; machines and services, for who may see them."""
        parent = f"tenants/{check_part(asked.get('tenant', 'default'), 'tenant')}"
        request = workflow.ListWorkflowsRequest(
            parent=parent, page_size=_limit(asked.get("limit", "")),
            page_token=asked.get("page", ""),
        )  # fmt: skip
        listed = self._call(workflow_grpc.WorkflowServiceStub, "ListWorkflows", request, metadata)
        found: dict[str, Any] = _message(listed)
        found["cost"] = self._cost(parent, metadata)
        found["services"] = [_message(each) for each in self._services(metadata).instances]
        try:
            machines = self._call(
                workflow_grpc.NodeServiceStub, "ListWorkers",
                workflow.ListWorkersRequest(page_size=1000, tasks=True), metadata,
            )  # fmt: skip
            found["workers"] = [_message(each) for each in machines.workers]
        except HyperError as error:
            if error.code != "PERMISSION_DENIED":
                raise
            found["workers"] = []  # a tenant's token: machines are the operators'
        return found

    def _workflow(self, asked: Mapping[str, str], metadata: Any) -> dict[str, Any]:
        request = workflow.GetWorkflowRequest(name=_needed(asked, "name"))
        found = self._call(workflow_grpc.WorkflowServiceStub, "GetWorkflow", request, metadata)
        tenant = "/".join(found.workflow.name.split("/")[:2])
        spent = self._cost(tenant, metadata).get("workflows", [])
        cost = next((each for each in spent if each["name"] == found.workflow.name), None)
        return {**_message(found.workflow), "cost": cost}

    def _cost(self, parent: str, metadata: Any) -> dict[str, Any]:
        """What `hyper cost` says; nothing where no machines are launched, or it is not yours."""
        request = placement.GetCostRequest(parent=parent)
        try:
            found = self._call(placement_grpc.PlacementServiceStub, "GetCost", request, metadata)
        except HyperError as error:
            if error.code in ("FAILED_PRECONDITION", "PERMISSION_DENIED"):
                return {}
            raise
        return _message(found)

    def _tasks(self, asked: Mapping[str, str], metadata: Any) -> dict[str, Any]:
        request = workflow.ListTasksRequest(
            parent=_needed(asked, "parent"), page_size=_TASKS, page_token=asked.get("page", ""),
            state=_state(asked.get("state", "")),
        )  # fmt: skip
        return _message(
            self._call(workflow_grpc.WorkflowServiceStub, "ListTasks", request, metadata)
        )

    def _task(self, asked: Mapping[str, str], metadata: Any) -> dict[str, Any]:
        request = workflow.GetTaskRequest(name=_needed(asked, "name"))
        found = self._call(workflow_grpc.WorkflowServiceStub, "GetTask", request, metadata)
        return _message(found.task)

    def _log(self, asked: Mapping[str, str], metadata: Any) -> dict[str, Any]:
        """The end of what a task's newest attempt has written."""
        gateways = [i for i in self._services(metadata).instances if i.service == "storage-gateway"]
        if not gateways:
            raise UnavailableError("no storage gateway runs, so logs cannot be read")
        stub = storage_grpc.LogServiceStub(self._channel(gateways[0].address))
        request = storage.ReadLogRequest(task=_needed(asked, "task"), tail=_LOG_BYTES)
        tail, first = b"", 0
        responses = stub.ReadLog(request, timeout=_CALL_S, metadata=metadata)
        try:
            for response in responses:
                first = first if tail else response.offset
                tail += response.data
        except grpc.RpcError as error:
            translated = from_rpc_error(error, peer="storage-gateway")
            if translated.code != "NOT_FOUND":
                raise translated from error
        finally:
            responses.cancel()
        cut = first > 0 or len(tail) > _LOG_BYTES  # a gateway of before `tail` sends all
        return {"text": tail[-_LOG_BYTES:].decode(errors="replace"), "cut": cut}

    def _services(self, metadata: Any) -> cluster.GetClusterResponse:
        found: cluster.GetClusterResponse = self._call(
            cluster_grpc.ClusterServiceStub, "GetCluster", cluster.GetClusterRequest(), metadata
        )
        return found

    def _call(self, stub: Any, method: str, request: Message, metadata: Any) -> Any:
        address = self._address()
        while True:
            handle = getattr(stub(self._channel(address)), method)
            try:
                return handle(request, timeout=_CALL_S, metadata=metadata)
            except grpc.RpcError as error:
                translated = from_rpc_error(error, peer="scheduler")
                leader = translated.metadata.get("leader", "")
                if translated.reason != "NOT_LEADER" or leader in ("", address):
                    raise translated from error
                if address != self._address():  # two of them disagree for a while
                    raise translated from error
                address = leader

    def _channel(self, address: str) -> grpc.Channel:
        if not address:
            raise UnavailableError("the scheduler is starting")
        with self._lock:
            if address not in self._channels:
                self._channels[address] = plain_channel(address)
            return self._channels[address]


def _is_local(host: str) -> bool:
    """Whether a Host header names this machine by a loopback address."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _needed(asked: Mapping[str, str], key: str) -> str:
    if not asked.get(key):
        raise InvalidArgumentError(f"`{key}` is missing in the address")
    return asked[key]


def _limit(text: str) -> int:
    """How many workflows a page shows."""
    return min(max(int(text), 1), _WORKFLOWS) if text.isdecimal() else _WORKFLOWS


def _state(text: str) -> nouns.TaskState.ValueType:
    known = dict(nouns.TaskState.items())
    found = known.get(f"TASK_STATE_{text.upper() or 'UNSPECIFIED'}")
    if found is None:
        raise InvalidArgumentError(f"{text[:40]!r} is no state of a task")
    return found


def _message(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return found


def _plain(status: int, text: str) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode(), _HEADERS)
