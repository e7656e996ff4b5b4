"""What the autoscaler asks of providers: the questions, and what is logged when one is away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hyper.errors import HyperError
from hyper_scheduler.core.state import State
from hyper_scheduler.placement.ledger import Machine
from hyper_scheduler.placement.offers import Offer
from hyper_scheduler.providers.base import Instance, Order, Provider, agent_environment
from hyper_scheduler.store import Store
from hyper_servicekit.etcd import Compare
from hyper_servicekit.logs import get_logger

log = get_logger(__name__)

DEFAULT_CLUSTER = "hyper"


@dataclass(slots=True)
class Tag:
    """What machines of this deployment are tagged with.

    Args:
        value: as it is set; "": it is not known before `find`.
    """

    value: str

    async def find(self, store: Store, fence: Compare, *, machines: bool) -> bool:
        """Find out where it was not set; whether it is another one than before.

        Deployments that share a cloud account and were not named must not take each other's
        machines for strays. Machines of older versions keep their tag as long as there are any.

        Args:
            store: where it is kept.
            fence: of the leadership.
            machines: whether the ledger has any.
        """
        name = DEFAULT_CLUSTER
        if not machines or await store.has_identity():
            name = f"{name}-{await store.identity(fence)}"
        changed, self.value = name != self.value, name
        return changed


@dataclass(frozen=True, slots=True)
class Joining:
    """What a machine's agent needs in order to join.

    Args:
        endpoint: where it dials.
        token: makes what lets it in, from the machine's name.
        certificates: PEM by variable; see `providers.base.agent_environment`.
    """

    endpoint: str
    token: Callable[[str], str]
    certificates: Mapping[str, str] = field(default_factory=dict)

    def order(self, machine: str, offer: Offer, network: str, *, spot: bool) -> Order:
        """What its provider is told."""
        return Order(
            machine=machine,
            offer=offer.name,
            instance_type=offer.instance_type,
            region=offer.region,
            zone=offer.zone,
            spot=spot,
            network=network,
            environment=agent_environment(
                machine=machine, endpoint=self.endpoint, slots=offer.slots,
                labels=offer.labels(spot=spot), token=self.token(machine),
                certificates=self.certificates,
            ),
            options=offer.options,
        )  # fmt: skip


def entry_of(offer: Offer, workflow: str, experiment: str, now: float, *, spot: bool) -> Machine:
    """A machine's line in the ledger."""
    usd_h = offer.usd_h(spot=spot) or 0.0
    on_demand_usd_h = offer.on_demand_usd_h if offer.on_demand_usd_h is not None else usd_h
    return Machine(
        offer.name, workflow, experiment, offer.provider, spot, usd_h, on_demand_usd_h,
        offer.slots, now, now, egress_usd_gb=offer.egress_usd_gb,
    )  # fmt: skip


async def listed(name: str, provider: Provider) -> tuple[Sequence[Instance], set[str]] | None:
    """What a provider has, and of these what it will take away; None: it is away."""
    try:
        return await provider.instances(), set(await provider.notices())
    except HyperError as error:
        log.warning("provider not asked", provider=name, error=str(error))
        return None


async def tidied(name: str, provider: Provider, networks: Sequence[str]) -> None:
    """Let a provider remove networks but these, if it can now."""
    try:
        await provider.tidy(networks)
    except HyperError as error:
        log.warning("networks wait", provider=name, error=str(error))


async def terminated(name: str, provider: Provider | None, ids: Sequence[str]) -> bool:
    """End machines; False: their provider is away, and is asked again at the next look."""
    if provider is None:
        return False
    try:
        await provider.terminate(ids)
    except HyperError as error:
        log.warning("machines not ended", provider=name, ids=ids, error=str(error))
        return False
    return True


def network_of(workflow: str) -> str:
    """The private network of a workflow's machines."""
    return workflow.rpartition("/")[2][-48:].lstrip("-._")  # its end is what makes it unique


def machine_of(state: State, worker: str) -> str:
    """The machine of a worker that lives or was lost lately."""
    found = state.workers.get(worker) or state.lost.get(worker)
    return "" if found is None else dict(found.capacity.labels).get("machine", "")
