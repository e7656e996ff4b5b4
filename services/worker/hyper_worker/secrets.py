"""Secrets of tasks: asked for when one starts, kept nowhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hyper.client import Client
from hyper.config import SCHEDULER
from hyper_worker import convert
from hyper_worker.core.model import Job
from hyperapi.worker.v1.agent_service_pb2 import ReadSecretsRequest
from hyperapi.worker.v1.agent_service_pb2_grpc import AgentServiceStub


@dataclass(frozen=True, slots=True)
class Secrets:
    """The secrets of one attempt; not shown by `repr`.

    Args:
        variables: values by environment variable.
        registry: "user:password" that fetches the image, or "".
    """

    variables: dict[str, str] = field(default_factory=dict, repr=False)
    registry: str = field(default="", repr=False)


def read_with(client: Client, worker: str) -> Callable[[Job], Secrets]:
    """What reads a job's secrets from the scheduler; blocks.

    Args:
        client: of the cluster.
        worker: this worker's name, which the attempt was given to.
    """

    def read(job: Job) -> Secrets:
        around = job.around
        if not around.secrets and not around.registry:
            return Secrets()
        request = ReadSecretsRequest(worker=worker, key=convert.key_to_proto(job.key))
        values = client.call(SCHEDULER, AgentServiceStub, "ReadSecrets", request).values
        return Secrets(
            {variable: values[name] for variable, name in around.secrets},
            values[around.registry] if around.registry else "",
        )

    return read
