"""Beside running tasks: commands in their place, what machines use, secrets."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from hyper.config import SCHEDULER
from hyper.names import check_part
from hyperapi.scheduler.v1 import secret_service_pb2, workflow_pb2, workflow_service_pb2
from hyperapi.scheduler.v1.secret_service_pb2_grpc import SecretServiceStub
from hyperapi.scheduler.v1.workflow_service_pb2_grpc import NodeServiceStub

if TYPE_CHECKING:
    from hyper.client import Client

_PAGE = 500
_MORE_S = 15.0  # for the way there and back


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command beside a task has come to.

    Args:
        exit_code: negative for a signal.
        output: stdout and stderr, in order.
        truncated: whether only the end of it is here.
    """

    exit_code: int
    output: bytes
    truncated: bool


def exec_task(client: Client, task: str, arguments: Sequence[str], timeout_s: float = 60.0) -> Ran:
    """Run a command beside a live task: in its folder, with its environment, in its container.

    Raises:
        FailedPreconditionError: the task does not run.
    """
    timeout = Duration()
    timeout.FromNanoseconds(int(timeout_s * 1e9))
    request = workflow_service_pb2.ExecTaskRequest(name=task, arguments=arguments, timeout=timeout)
    response = client.call(
        SCHEDULER, NodeServiceStub, "ExecTask", request, timeout_s=timeout_s + _MORE_S
    )
    return Ran(response.exit_code, response.output, response.truncated)


def usage(client: Client) -> Iterator[workflow_pb2.Worker]:
    """Every machine with what it and its tasks use."""
    request = workflow_service_pb2.ListWorkersRequest(page_size=_PAGE, tasks=True)
    while True:
        response = client.call(SCHEDULER, NodeServiceStub, "ListWorkers", request)
        yield from response.workers
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def put_secret(client: Client, secret: str, value: str) -> None:
    """Store or replace a secret of the client's tenant."""
    request = secret_service_pb2.PutSecretRequest(
        name=_name(client, secret), value=value, request_id=str(uuid.uuid4())
    )
    client.call(SCHEDULER, SecretServiceStub, "PutSecret", request)


def list_secrets(client: Client) -> list[str]:
    """Names of the tenant's secrets."""
    request = secret_service_pb2.ListSecretsRequest(
        parent=f"tenants/{client.tenant}", page_size=_PAGE
    )
    names: list[str] = []
    while True:
        response = client.call(SCHEDULER, SecretServiceStub, "ListSecrets", request)
        names += [each.name.rpartition("/")[2] for each in response.secrets]
        if not response.next_page_token:
            return names
        request.page_token = response.next_page_token


def delete_secret(client: Client, secret: str) -> None:
    """Forget a secret."""
    request = secret_service_pb2.DeleteSecretRequest(
        name=_name(client, secret), request_id=str(uuid.uuid4())
    )
    client.call(SCHEDULER, SecretServiceStub, "DeleteSecret", request)


def _name(client: Client, secret: str) -> str:
    return f"tenants/{client.tenant}/secrets/{check_part(secret, 'secret')}"
