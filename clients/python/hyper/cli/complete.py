"""What a shell completes beside commands and options: names of workflows and datasets.

A shell asks at a press of a key and shows what is printed: so a look-up is short, and one that
fails offers nothing and says nothing.
"""

from __future__ import annotations

import os
from itertools import islice

from hyper.cli.visible import shown, visible_workflows
from hyper.client import Client
from hyper.errors import HyperError

_TIMEOUT_S = 1.0
_MOST = 100


def workflows(incomplete: str) -> list[str]:
    """Ids of workflows that begin so, newest first; also for WORKFLOW/EXPERIMENT."""
    try:
        with _client() as client:
            if "/" not in incomplete:
                found = (shown(status) for status in islice(visible_workflows(client), _MOST))
                return [name for name in found if name.startswith(incomplete)]
            workflow = client.workflow(incomplete.partition("/")[0])
            names = (f"{workflow.status.id}/{each.id}" for each in workflow.status.experiments)
            return [name for name in names if name.startswith(incomplete)]
    except HyperError:
        return []


def datasets(incomplete: str) -> list[str]:
    """`tenant/name` of datasets that begin so; of `HYPER_TENANT` while no tenant is written."""
    from hyper.datasets import list_datasets

    tenant, slash, _ = incomplete.partition("/")
    try:
        with _client() as client:
            listed = islice(list_datasets(client, tenant if slash else client.tenant), _MOST)
            found = ("/".join(each.name.split("/")[1::2]) for each in listed)
            return [name for name in found if name.startswith(incomplete)]
    except HyperError:
        return []


def _client() -> Client:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return Client(timeout_s=_TIMEOUT_S, patience_s=0.0, notice=lambda _: None)
