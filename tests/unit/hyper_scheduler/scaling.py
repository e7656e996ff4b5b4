"""An autoscaler beside a core, with providers that are lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from hyper.errors import UnavailableError
from hyper_scheduler.autoscaler import Autoscaler
from hyper_scheduler.catalogue import parse_catalogue
from hyper_scheduler.config import PlacementSettings
from hyper_scheduler.core import events as e
from hyper_scheduler.core.events import Event
from hyper_scheduler.core.model import Recipe
from hyper_scheduler.core.state import Capacity
from hyper_scheduler.measured import Prometheus
from hyper_scheduler.placement.ledger import Ledger
from hyper_scheduler.providers.base import Instance, Order
from hyper_servicekit.clock import Clock, ManualClock, SystemClock
from tests.unit.hyper_scheduler.cores import Core, W

OFFERS = """
version: 1
as_of: 2026-11-01
offers:
  - {name: cheap, provider: broken, on_demand: 0.1, spot: 0.01, zone: a, max: 2}
  - {name: dear, provider: good, on_demand: 0.3, spot: 0.1, zone: b, max: 2}
"""
DEAR = "\n".join(line for line in OFFERS.splitlines() if "cheap" not in line)


@dataclass
class Provider:
    """Keeps machines in a list; no provider of ours can be made to fail on demand."""

    away: bool = False
    there: list[Instance] = field(default_factory=list)
    noticed: list[str] = field(default_factory=list)

    def _reach(self) -> None:
        if self.away:
            raise UnavailableError("no answer")

    async def launch(self, order: Order) -> str:
        self._reach()
        self.there.append(Instance(f"i-{order.machine}", order.machine))
        return self.there[-1].id

    async def instances(self) -> Sequence[Instance]:
        return list(self.there)

    async def terminate(self, ids: Sequence[str]) -> None:
        self._reach()
        self.there = [each for each in self.there if each.id not in ids]

    async def notices(self) -> Sequence[str]:
        return self.noticed

    async def tidy(self, networks: Sequence[str]) -> None:
        return None

    async def close(self) -> None:
        return None


class Beside:
    """The parts of a term and a store that the autoscaler needs."""

    def __init__(self, core: Core) -> None:
        self.state, self.fence, self.saved, self.known = core.state, None, 0, ""
        self.ledger = Ledger()
        self._core = core

    async def ask(self, change: Event) -> str:
        self._core.feed(change)
        return ""

    async def tell(self, event: Event) -> None:
        self._core.feed(event)

    async def save_ledger(self, plain: object, fence: object) -> None:
        self.saved += 1

    async def load_ledger(self) -> Mapping[str, Any]:
        return self.ledger.parts()

    async def has_identity(self) -> bool:
        return bool(self.known)

    async def identity(self, fence: object) -> str:
        self.known = self.known or "1a2b"
        return self.known


def autoscaler(
    core: Core, offers: str = OFFERS, clock: Clock | None = None, **providers: Provider
) -> tuple[Autoscaler, Beside]:
    beside = Beside(core)
    scaler = Autoscaler(
        PlacementSettings(drain_s=0, join_s=600, silent_s=60), parse_catalogue(offers), providers,
        Prometheus("", "30s"), cast(Any, beside), cast(Any, beside), clock or SystemClock(),
        "here:1",
    )  # fmt: skip
    return scaler, beside


@dataclass
class Fleet:
    """A core, its autoscaler and one provider, all at the same time."""

    offers: str = DEAR
    core: Core = field(default_factory=Core)
    clock: ManualClock = field(default_factory=lambda: ManualClock(1000.0))
    provider: Provider = field(default_factory=Provider)

    def __post_init__(self) -> None:
        self.scaler, _ = autoscaler(self.core, self.offers, self.clock, good=self.provider)

    def submit(self, what: Recipe, task_s: float = 3600.0) -> None:
        self.core.submit(what)
        for run in self.core.state.workflows[W].experiments.values():
            run.mean_s = task_s

    async def look(self, after_s: float = 5.0) -> list[str]:
        """Machines that are there then."""
        await self.clock.advance(after_s)
        self.core.now = self.core.state.checked_at = self.clock.now()
        for worker in self.core.state.workers.values():
            worker.last_seen = self.core.now
        await self.scaler.look()
        return [each.machine for each in self.provider.there]

    def join(self, *machines: str, slots: int = 1) -> None:
        """Their agents come; they are named as their machines."""
        for name in machines:
            session = self.core.sessions[name] = self.core.sessions.get(name, 0) + 1
            capacity = Capacity(slots, cpus=4, labels=(("machine", name),), offer="dear")
            self.core.feed(e.Hello(self.core.now, name, session, capacity))

    def end(self, machine: str, outcome: e.Outcome = e.Outcome.SUCCEEDED) -> None:
        """A task of the machine ends."""
        which, attempt = next(iter(self.core.state.workers[machine].running.items()))
        self.core.report(machine, which, attempt.number, outcome)

    @property
    def busy(self) -> set[str]:
        return {name for name, each in self.core.state.workers.items() if each.running}

    def next_leader(self) -> None:
        """Another scheduler leads: it has the ledger and the core's state, and nothing else."""
        before = self.scaler
        self.scaler, store = autoscaler(self.core, self.offers, self.clock, good=self.provider)
        self.scaler.ledger = store.ledger = before.ledger
