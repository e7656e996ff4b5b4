"""The workflows that a caller may see: of every tenant, where the token is for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain

from hyper.client import DEFAULT_TENANT, Client
from hyper.errors import InvalidArgumentError, PermissionDeniedError
from hyper.status import WorkflowStatus


def visible_workflows(client: Client) -> Iterator[WorkflowStatus]:
    """Newest first; of one tenant alone where HYPER_TENANT names it, or the token is for one.

    `hyper align F lab/brain` runs in tenant lab: who has named no tenant looks for it as well.
    """
    if os.environ.get("HYPER_TENANT"):
        return client.workflows()
    everywhere = client.workflows(every_tenant=True)
    try:
        first = next(everywhere, None)
    except (PermissionDeniedError, InvalidArgumentError):  # of one tenant; an older scheduler
        return client.workflows()
    return chain([first] if first is not None else [], everywhere)


def shown(status: WorkflowStatus) -> str:
    """What commands take for this workflow: its id, or its full name in another tenant."""
    own = os.environ.get("HYPER_TENANT") or DEFAULT_TENANT
    return status.id if status.name.startswith(f"tenants/{own}/") else status.name
