"""What every provider does, and says when it cannot."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shlex
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from hyper.errors import ResourceExhaustedError, UnavailableError

CLUSTER_TAG = "hyper-cluster"
MACHINE_TAG = "hyper-machine"
AT_ONCE = 16  # questions to one provider
_LABEL_CHARS = 63
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Order:
    """A machine to start.

    Args:
        machine: our name for it; a repeated order of the same name is the same machine.
        offer: of the catalogue.
        instance_type: as the provider names it.
        region: where.
        zone: where in it.
        spot: whether it may be taken away.
        network: whose machines reach one another; one a workflow.
        environment: of the agent: where it dials, its slots and labels.
        options: of the offer.
    """

    machine: str
    offer: str
    instance_type: str
    region: str
    zone: str
    spot: bool
    network: str
    environment: Mapping[str, str]
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Instance:
    """A machine that is there or on its way.

    Args:
        id: the provider's name for it.
        machine: ours, from its tag.
        running: it has been started; not only asked for.
    """

    id: str
    machine: str
    running: bool = True


class Provider(Protocol):
    """A place that machines come from. Every instance carries the cluster's and its own tag."""

    async def launch(self, order: Order) -> str:
        """Start a machine; returns the provider's name for it.

        Raises:
            RefusedError: there is none to be had, or a quota is used up; its reason says which.
            UnavailableError: the provider cannot be reached; what became of it is not known.
        """
        ...

    async def instances(self) -> Sequence[Instance]:
        """All instances of this cluster that live, whoever launched them.

        Raises:
            UnavailableError: the provider cannot be reached.
        """
        ...

    async def terminate(self, ids: Sequence[str]) -> None:
        """End instances; fine for those that are gone.

        Raises:
            UnavailableError: the provider cannot be reached.
        """
        ...

    async def notices(self) -> Sequence[str]:
        """Ids of instances that are about to be taken away, as far as the provider tells."""
        ...

    async def tidy(self, networks: Sequence[str]) -> None:
        """Remove what belongs to no live workflow; `networks` are those that do."""
        ...

    async def close(self) -> None:
        """Nothing more will be asked."""
        ...


class RefusedError(ResourceExhaustedError):
    """No such machine now: no capacity, or a quota. The reason is the provider's name for it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}", reason="MACHINE_REFUSED")
        self.name = reason


def unreachable(provider: str, error: object) -> UnavailableError:
    """The provider does not answer."""
    return UnavailableError(f"provider {provider} cannot be reached: {error}")


async def all_of(
    function: Callable[[_Item], Awaitable[object]], items: Iterable[_Item], at_once: int = AT_ONCE
) -> None:
    """Call a function with every item, so many at once; an error of one stops no other.

    Raises:
        Exception: the first that one of them raised, once all are done.
    """
    room = asyncio.Semaphore(at_once)

    async def one(item: _Item) -> None:
        async with room:
            await function(item)

    for each in await asyncio.gather(*map(one, items), return_exceptions=True):
        if each is not None:
            raise each


class Threads:
    """Where a provider's library waits: threads of its own, so that it takes none of others'."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=name)

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns or raises."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(function, *arguments))

    def close(self) -> None:
        """What has not begun never does."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def plain_name(text: str) -> str:
    """As DNS allows a label: small letters, digits, dashes, 63 at most; long ones keep a hash."""
    name = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")
    if len(name) > _LABEL_CHARS:
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = f"{name[: _LABEL_CHARS - 13].strip('-')}-{digest}"
    return name


def boot_script(order: Order, cloud: str) -> str:
    """What a machine of a cloud runs when it starts: the agent, and off when that ends.

    The agent of a spot machine asks the `cloud` whether it is about to be taken away.
    """
    environment = {**order.environment, **({"HYPER_WORKER__CLOUD": cloud} if order.spot else {})}
    exports = "\n".join(
        f"export {name}={shlex.quote(value)}" for name, value in environment.items()
    )
    return (
        f"#!/bin/sh\nset -eu\numask 077\n{exports}\n{order.options.get('setup', '')}\n"
        "python3 -m hyper_worker || true\nshutdown -h now\n"
    )


def agent_environment(
    *,
    machine: str,
    endpoint: str,
    slots: int,
    labels: Mapping[str, str],
    token: str,
    certificates: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Variables that make `python -m hyper_worker` the agent of a machine.

    Args:
        machine: its name.
        endpoint: where it dials.
        slots: that it offers.
        labels: besides its name.
        token: that lets it in; "": none is needed.
        certificates: PEM by the variable that names its file, such as HYPER_TLS_CA: a machine
            elsewhere has no such files (`hyper_worker.told`).
    """
    environment = {
        "HYPER_ENDPOINT": endpoint,
        "HYPER_WORKER__SCHEDULER_ENDPOINT": endpoint,
        "HYPER_WORKER__INSTANCE": machine,
        "HYPER_WORKER__LISTEN": "127.0.0.1:0",
        "HYPER_WORKER__METRICS_LISTEN": "127.0.0.1:0",
        "HYPER_WORKER__SLOTS": str(slots),
        "HYPER_WORKER__LABELS": json.dumps({**labels, "machine": machine}),
    }
    environment |= {f"{name}_PEM": text for name, text in (certificates or {}).items()}
    return environment | ({"HYPER_TOKEN": token} if token else {})
