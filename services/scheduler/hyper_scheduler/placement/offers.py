"""Machines that can be had, and whether they are what a task needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hyper_scheduler.core.model import Hardware, Spot

LOCAL = "local"  # an offer's cloud, region, zone and type where it names none


@dataclass(frozen=True, slots=True)
class Offer:
    """One kind of machine in one zone.

    Args:
        name: unique in the catalogue.
        provider: who starts it.
        cloud: whose it is; "local" for one's own.
        region: data within it move for nothing.
        zone: failure domain.
        instance_type: as the cloud names it.
        cpus: cores.
        memory_bytes: of memory.
        gpus: how many.
        gpu: of which model.
        on_demand_usd_h: price an hour; None: not sold so.
        spot_usd_h: the same for a machine that may be taken away.
        egress_usd_gb: price of a gigabyte between the machine and storage; 0 where both are of one
            region.
        slots: tasks at once.
        most: machines at most.
        options: what the provider wants to know besides.
    """

    name: str
    provider: str
    cloud: str = LOCAL
    region: str = LOCAL
    zone: str = LOCAL
    instance_type: str = LOCAL
    cpus: float = 1.0
    memory_bytes: int = 0
    gpus: int = 0
    gpu: str = ""
    on_demand_usd_h: float | None = None
    spot_usd_h: float | None = None
    egress_usd_gb: float = 0.0
    slots: int = 1
    most: int = 1_000
    options: Mapping[str, str] = field(default_factory=dict)

    def usd_h(self, *, spot: bool) -> float | None:
        """The price of one sort; None: it is not sold so."""
        return self.spot_usd_h if spot else self.on_demand_usd_h

    def labels(self, *, spot: bool) -> dict[str, str]:
        """What its workers say of themselves."""
        labels = {
            "offer": self.name,
            "cloud": self.cloud,
            "region": self.region,
            "zone": self.zone,
            "instance_type": self.instance_type,
            "spot": "true" if spot else "false",
        }
        return labels | ({"gpu": self.gpu} if self.gpu else {})

    def places(self, need: Hardware) -> int:
        """Tasks that run at once on one of these machines."""
        rooms = [self.slots]
        if need.cpus:
            rooms.append(int(self.cpus / need.cpus + 1e-9))
        if need.memory_bytes:
            rooms.append(self.memory_bytes // need.memory_bytes)
        if need.gpus:
            rooms.append(self.gpus // need.gpus)
        return max(0, min(rooms))


def mismatch(offer: Offer, need: Hardware) -> str:
    """Why a machine is not what a task needs, in a few words; empty if it is."""
    if need.clouds and offer.cloud not in need.clouds:
        return f"cloud {offer.cloud} is not among {', '.join(need.clouds)}"
    if need.instance_type and offer.instance_type != need.instance_type:
        return f"not of type {need.instance_type}"
    if offer.cpus + 1e-9 < need.cpus:
        return f"has {offer.cpus:g} of {need.cpus:g} cores"
    if offer.memory_bytes < need.memory_bytes:
        return f"has {offer.memory_bytes / 2**30:.3g} of {need.memory_bytes / 2**30:.3g} GiB"
    if offer.gpus < need.gpus:
        return f"has {offer.gpus} of {need.gpus} GPUs"
    if need.gpu and offer.gpu.lower() != need.gpu.lower():
        return f"its GPU is {offer.gpu or 'none'}, not {need.gpu}"
    return ""


def sorts(offer: Offer, need: Hardware) -> list[bool]:
    """How a fitting machine may be bought: spot (True), on demand (False), or both.

    With `spot: true` on-demand is there where it costs no more, and as the net before a deadline.
    """
    wanted = [False] if need.spot is Spot.NEVER else [True, False]
    found = []
    for spot in wanted:
        usd_h = offer.usd_h(spot=spot)
        if usd_h is not None and (need.max_usd_h is None or usd_h <= need.max_usd_h):
            found.append(spot)
    return found
