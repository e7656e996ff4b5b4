"""What a caller may see: of every tenant, where the token is for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from hyper.client import DEFAULT_TENANT, Client
from hyper.errors import InvalidArgumentError, PermissionDeniedError
from hyper.status import WorkflowStatus

if TYPE_CHECKING:
    from hyperapi.storage.v1 import dataset_pb2

T = TypeVar("T")


def visible_workflows(client: Client) -> Iterator[WorkflowStatus]:
    """Newest first; of one tenant alone where HYPER_TENANT names it, or the token is for one.

    `hyper align F lab/brain` runs in tenant lab: who has named no tenant looks for it as well.
    """
    if os.environ.get("HYPER_TENANT"):
        return client.workflows()
    return _or_else(client.workflows(every_tenant=True), client.workflows)


def visible_datasets(client: Client) -> Iterator[dataset_pb2.Dataset]:
    """In order of name; of one tenant alone where HYPER_TENANT names it, or the token is for one.

    A token of one tenant does not say of which: it is HYPER_TENANT, or "default".
    """
    from hyper.datasets import list_datasets

    if os.environ.get("HYPER_TENANT"):
        return list_datasets(client, client.tenant)
    return _or_else(list_datasets(client, None), lambda: list_datasets(client, client.tenant))


def _or_else(everywhere: Iterator[T], own: Callable[[], Iterator[T]]) -> Iterator[T]:
    """The first, unless it is refused."""
    try:
        first = list(islice(everywhere, 1))
    except (PermissionDeniedError, InvalidArgumentError):  # of one tenant; an older service
        return own()
    return chain(first, everywhere)


def shown(status: WorkflowStatus) -> str:
    """What commands take for this workflow: its id, or its full name in another tenant."""
    own = os.environ.get("HYPER_TENANT") or DEFAULT_TENANT
    return status.id if status.name.startswith(f"tenants/{own}/") else status.name
