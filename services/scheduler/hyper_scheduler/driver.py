"""Standing for election, leading, and what a replica can answer meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable

from hyper.errors import HyperError, NotFoundError, UnavailableError
from hyper_scheduler import metrics
from hyper_scheduler.autoscaler import Autoscaler
from hyper_scheduler.config import SchedulerSettings
from hyper_scheduler.core.restore import restore_workflow
from hyper_scheduler.core.state import WorkflowRun
from hyper_scheduler.store import Store
from hyper_scheduler.term import Term
from hyper_servicekit.clock import Clock
from hyper_servicekit.etcd import Election, Etcd
from hyper_servicekit.logs import get_logger

log = get_logger(__name__)

_RETRY_S = 0.5


class Driver:
    """Runs term after term.

    Args:
        settings: of the service.
        etcd: entered.
        store: the same etcd's.
        clock: the time of every event.
        instance: this replica's name.
        autoscaler: makes one for a term and our address; None: no machines are launched.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        etcd: Etcd,
        store: Store,
        clock: Clock,
        instance: str,
        autoscaler: Callable[[Term, str], Autoscaler] | None = None,
    ) -> None:
        self._settings, self._etcd, self._store, self._clock = settings, etcd, store, clock
        self._instance = instance
        self._address = ""
        self._term: Term | None = None
        self._draining = False
        self._make_autoscaler = autoscaler
        self.autoscaler: Autoscaler | None = None  # while this replica leads

    async def run(self, address: str) -> None:
        """Stand for election and lead, over and over, until cancelled."""
        self._address = address
        value = json.dumps({"instance": self._instance, "address": address}).encode()
        election = Election(self._etcd, self._store.leader_key, value, self._settings.leader_ttl_s)
        while True:
            async with election.lead() as leadership:
                term = Term(self._settings, self._store, leadership, self._clock)
                try:
                    while not leadership.lost.is_set():
                        try:
                            await term.load()
                            break
                        except UnavailableError as error:
                            log.warning("cannot load the state", error=str(error))
                            await self._clock.sleep(_RETRY_S)
                    self._term = term
                    if self._make_autoscaler is not None:
                        self.autoscaler = self._make_autoscaler(term, address)
                        term.accompany(self.autoscaler.run, self.autoscaler.worked)
                    metrics.LEADING.set(1)
                    await term.run()
                finally:
                    self._term = self.autoscaler = None
                    metrics.LEADING.set(0)
                    term.end(self._gone(None))

    async def drain(self) -> None:
        """End the streams; the callers find another replica."""
        self._draining = True
        if self._term is not None:
            self._term.end(self._gone(None))
            self._term = None

    async def leading(self) -> Term:
        """The term, if this replica leads.

        Raises:
            UnavailableError: NOT_LEADER, naming who leads, or DRAINING.
        """
        if self._term is not None:
            return self._term
        raise self._gone(None if self._draining else await self.leader())

    def check_serving(self) -> None:
        """Ends a long answer when this replica stops.

        Raises:
            UnavailableError: DRAINING.
        """
        if self._draining:
            raise self._gone(None)

    def leading_now(self) -> Term | None:
        """The term, if this replica leads."""
        return self._term

    async def leader(self) -> str:
        """The leader's address; empty while nobody leads."""
        found = await self._etcd.get(self._store.leader_key)
        return "" if found is None else str(json.loads(found.value)["address"])

    async def workflow(self, name: str) -> WorkflowRun:
        """A workflow, from memory where this replica leads, else from etcd.

        Raises:
            NotFoundError: there is none of that name.
        """
        if self._term is not None:
            found = self._term.state.workflows.get(name)
        else:
            stored = await self._store.load_workflow(name)
            found = None if stored is None else restore_workflow(name, stored)
        if found is None:
            raise NotFoundError(f"there is no workflow {name}; `hyper ps` lists them")
        return found

    async def workflows(self) -> list[WorkflowRun]:
        """All of them."""
        if self._term is not None:
            return list(self._term.state.workflows.values())
        stored = await self._store.load()
        return [restore_workflow(name, each) for name, each in stored.workflows.items()]

    def _gone(self, leader: str | None) -> HyperError:
        if self._draining:
            return UnavailableError(
                "this scheduler stops; ask another one", reason="DRAINING", retry_after_s=0.2
            )
        if leader and leader != self._address:
            text = f"this scheduler does not lead; ask the one at {leader}"
            metadata = {"leader": leader}
        else:
            text, metadata = "no scheduler leads just now; try again in a moment", {}
        return UnavailableError(text, reason="NOT_LEADER", metadata=metadata, retry_after_s=0.5)
