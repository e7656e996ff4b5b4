"""Machines for what waits: looks, plans (`placement.fleet`), launches, drains, terminates.

Runs while this replica leads. What is paid for is in the ledger, one key of etcd that is written
before a machine is launched; after a leader's death the next one finds every machine by its tag
and adopts it, or ends it when nobody needs it.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hyper.errors import HyperError
from hyper_scheduler import metrics
from hyper_scheduler.asking import Joining, Tag, entry_of, listed, terminated, tidied
from hyper_scheduler.catalogue import Catalogue
from hyper_scheduler.config import PlacementSettings
from hyper_scheduler.core import commands as c
from hyper_scheduler.core.events import DrainWorker
from hyper_scheduler.core.model import Hardware
from hyper_scheduler.core.state import ExperimentRun, RunState, State, WorkerRun, WorkflowRun
from hyper_scheduler.core.tasks import places_when_empty
from hyper_scheduler.measured import Prometheus
from hyper_scheduler.placement.backoff import Refusal, accepted, refused
from hyper_scheduler.placement.fleet import Demand, Held, Known, Plan, plan, refusal_key
from hyper_scheduler.placement.hazard import Hazard
from hyper_scheduler.placement.ledger import Ledger, Machine
from hyper_scheduler.placement.offers import Offer
from hyper_scheduler.prices import Prices
from hyper_scheduler.providers.base import Order, Provider, RefusedError
from hyper_scheduler.store import DeposedError, Store
from hyper_scheduler.term import Term
from hyper_servicekit.clock import Clock
from hyper_servicekit.logs import get_logger

log = get_logger(__name__)

KINDS = 200  # kinds of tasks that Prometheus is told of; the rest are one
OTHER_KIND = "other"
GONE_LOOKS = 2  # looks in a row that a provider must not list a machine before it counts as gone


class Autoscaler:
    """The machines of one leadership.

    Args:
        settings: of placement.
        catalogue: what can be had.
        providers: by name, those that offers name.
        prometheus: what was measured.
        term: the leadership.
        store: where the ledger is.
        clock: the time.
        endpoint: where agents dial.
        token: makes what lets a machine's agent in, from its name.
        certificates: that machines get, PEM by variable; see `providers.base.agent_environment`.
        tag: what machines are tagged with.
    """

    def __init__(
        self,
        settings: PlacementSettings,
        catalogue: Catalogue,
        providers: Mapping[str, Provider],
        prometheus: Prometheus,
        term: Term,
        store: Store,
        clock: Clock,
        endpoint: str,
        token: Callable[[str], str] = lambda machine: "",
        certificates: Mapping[str, str] | None = None,
        tag: Tag | None = None,
    ) -> None:
        self._settings, self._catalogue, self._providers = settings, catalogue, providers
        self._prices = Prices(catalogue, settings.prices_every_s)
        self._prometheus, self._term, self._store = prometheus, term, store
        self._clock, self._tag = clock, tag or Tag(settings.cluster)
        self._joining = Joining(endpoint, token, certificates or {})
        self._refusals: dict[str, Refusal] = {}
        self._missing: Counter[str] = Counter()
        self._asked_to_drain: dict[str, float] = {}
        self._agent_seen: dict[str, float] = {}
        self._began = clock.now()
        self._kinds: set[str] = set()
        self._hazards: dict[str, Hazard] = {}
        self._remembered: set[str] = set()  # offers whose hazard has Prometheus's history
        metrics.know_offers(offer.name for offer in catalogue.offers)
        self._looked_at = clock.now()
        self.ledger = Ledger()
        self.plans: dict[tuple[str, str], Plan] = {}
        self.over_budget: dict[str, str] = {}

    @property
    def catalogue(self) -> Catalogue:
        """What can be had."""
        return self._catalogue

    @property
    def price_times(self) -> Mapping[str, float]:
        """When each live price was heard, by offer; others are the catalogue's."""
        return {name: heard for name, (_, heard) in self._prices.live(self.now()).items()}

    @property
    def utilization(self) -> Mapping[str, float]:
        """Part of the slots of each offer's machines that has work, as Prometheus saw it."""
        return self._prometheus.last.utilization

    @property
    def refusals(self) -> Mapping[str, Refusal]:
        """Offers that are left alone for a while."""
        return self._refusals

    @property
    def max_machines(self) -> int:
        """In all."""
        return self._settings.max_machines

    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock.now()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        self.ledger = Ledger.of(await self._store.load_ledger())
        await self._name_cluster()
        while True:
            try:
                await self.look()
            except HyperError as error:
                log.warning("placement waits", error=str(error))
            except (DeposedError, asyncio.CancelledError):
                raise
            except Exception as error:  # of a provider's library: it must not end the scheduler
                log.error("placement failed; it goes on", exc_info=error)
            await self._clock.sleep(self._settings.interval_s)

    async def _name_cluster(self) -> None:
        """Find out what our machines are tagged with: providers are made anew for it."""
        if self._settings.cluster:
            return
        store, fence, machines = self._store, self._term.fence, bool(self.ledger.machines)
        if await self._tag.find(store, fence, machines=machines):
            for provider in self._providers.values():
                await provider.close()

    def worked(self, command: c.Worked) -> None:
        """What launched machines have done and lost."""
        for (kind, offer), count, seconds in command.done:
            labels = (self._told_of(kind), offer)
            metrics.DONE.labels(*labels).inc(count)
            metrics.DONE_SECONDS.labels(*labels).inc(seconds)
        for worker, seconds in command.lost:
            machine = _machine_of_name(self._term.state, worker)
            entry = self.ledger.rework(machine, seconds)
            if entry is not None:
                metrics.REWORK_SECONDS.labels(entry.offer).inc(seconds)
                usd = seconds / 3600 * entry.usd_h / entry.slots
                metrics.REWORK_USD.labels(entry.offer).inc(usd)

    def _told_of(self, kind: str) -> str:
        """The label of a kind of task; its counters are there before they count."""
        if kind not in self._kinds:
            if len(self._kinds) >= KINDS:
                return OTHER_KIND
            self._kinds.add(kind)
            for offer in self._catalogue.offers:
                metrics.DONE.labels(kind, offer.name)
                metrics.DONE_SECONDS.labels(kind, offer.name)
        return kind

    async def look(self) -> None:
        """One round."""
        now = self._clock.now()
        await asyncio.gather(self._prometheus.look(now), self._prices.look(self._providers, now))
        self._take_prices(now)
        await self._compare(now)
        self._account(now)
        await self._check_agents(now)
        plans: dict[tuple[str, str], Plan] = {}
        for demand in self._demands(now):
            held = self._held(demand, now)
            if demand.workflow in self.over_budget:
                plans[demand.workflow, demand.experiment] = Plan(
                    ends=tuple(each.name for each in held),
                    message=self.over_budget[demand.workflow],
                )
                continue
            kind = demand_kind(self._term.state, demand)
            self._told_of(kind)
            known = self.known(kind)
            most = max(0, self._settings.max_machines - len(self.ledger.machines) + len(held))
            plans[demand.workflow, demand.experiment] = plan(
                demand, self._offers(demand), known, held, self._refusals, now, most
            )
        self.plans = plans
        await self._carry_out(plans, now)
        await self._store.save_ledger(self.ledger.plain(), self._term.fence)

    def _take_prices(self, now: float) -> None:
        """Live prices count from now on, for machines that are there too."""
        self._catalogue = self._prices.catalogue(now)
        live = self._prices.live(now)
        for entry in self.ledger.machines.values():
            if entry.spot and entry.offer in live:
                entry.usd_h = live[entry.offer][0]

    def _offers(self, demand: Demand) -> list[Offer]:
        """The catalogue, less what others have of each offer's most."""
        others = Counter(
            each.offer for each in self.ledger.machines.values()
            if (each.workflow, each.experiment) != (demand.workflow, demand.experiment)
        )  # fmt: skip
        return [
            replace(each, most=max(0, each.most - others[each.name]))
            for each in self._catalogue.offers
        ]

    def known(self, kind: str) -> dict[str, Known]:
        """What is known of each offer for one kind of task."""
        found, measured = {}, self._prometheus.last
        for offer in self._catalogue.offers:
            found[offer.name] = Known(
                hazard=self._hazard(offer.name),
                throughput=measured.throughput.get((kind, offer.name), 0.0),
                cold_start_h=measured.cold_start_h.get(offer.name, Known().cold_start_h),
            )
        return found

    # What is there

    async def _compare(self, now: float) -> None:
        """The ledger against what providers have: adopt, end strays, notice what is gone."""
        answers = await asyncio.gather(*(listed(*each) for each in self._providers.items()))
        for name, answer in zip(self._providers, answers, strict=True):
            if answer is None:
                continue
            instances, noticed = answer
            there = {each.machine: each for each in instances}
            strays = []
            for machine, instance in there.items():
                entry = self.ledger.machines.get(machine)
                if entry is None:
                    strays.append(instance.id)
                elif not entry.provider_id:
                    entry.provider_id = instance.id  # its launch was not answered
                    log.info("machine adopted", machine=machine, offer=entry.offer)
                if instance.id in noticed and entry is not None:
                    await self._drain(machine, "its provider will take it away", now)
            if strays:
                log.warning("machines that nobody knows are ended", provider=name, ids=strays)
                await terminated(name, self._providers[name], strays)
            for machine, entry in list(self.ledger.machines.items()):
                if entry.provider == name:
                    self._check_there(machine, entry, machine in there)

    def _check_there(self, machine: str, entry: Machine, there: bool) -> None:
        if there:
            self._missing.pop(machine, None)
            return
        self._missing[machine] += 1
        if self._missing[machine] >= GONE_LOOKS or not entry.provider_id:
            preempted = entry.spot and not entry.ending and bool(entry.provider_id)
            log.info("machine gone", machine=machine, offer=entry.offer, preempted=preempted)
            if preempted:
                metrics.PREEMPTIONS.labels(entry.offer).inc()
                self._hazards[entry.offer] = self._hazard(entry.offer).seen(1, 0.0)
            self._close(machine, preempted=preempted)

    def _close(self, machine: str, *, preempted: bool) -> None:
        self.ledger.close(machine, preempted=preempted)
        self._missing.pop(machine, None)
        self._asked_to_drain.pop(machine, None)
        self._agent_seen.pop(machine, None)

    def _hazard(self, offer: str) -> Hazard:
        """The posterior of this leadership, and of what Prometheus had seen before it."""
        return self._hazards.get(offer, Hazard())

    def _remember(self) -> None:
        """Take what Prometheus has seen before this leadership: once, whenever it comes.

        What it saw since then is in it too, so the greater counts and not the sum.
        """
        for offer, before in self._prometheus.last.hazards.items():
            if offer not in self._remembered:
                self._remembered.add(offer)
                own = self._hazard(offer)
                self._hazards[offer] = replace(
                    own,
                    events=max(own.events, before.events),
                    exposure_h=max(own.exposure_h, before.exposure_h),
                )

    def _account(self, now: float) -> None:
        """Pay until now; notice agents that have come."""
        self._remember()
        workers = self._workers()
        counts: Counter[str] = Counter()
        busy: Counter[str] = Counter()
        slots: Counter[str] = Counter()
        passed_h = max(0.0, now - self._looked_at) / 3600
        self._looked_at = now
        exposed: Counter[str] = Counter()
        for machine, entry in self.ledger.machines.items():
            worker = workers.get(machine)
            running = min(len(worker.running), entry.slots) if worker is not None else 0
            before = self.ledger.account(entry.workflow, entry.offer).usd
            self.ledger.see(machine, now, running)
            paid = self.ledger.account(entry.workflow, entry.offer).usd - before
            metrics.USD.labels(entry.offer).inc(paid)
            if worker is not None and not entry.ready:
                entry.ready = now
                metrics.COLD_STARTS.labels(entry.offer).inc()
                metrics.COLD_SECONDS.labels(entry.offer).inc(max(0.0, now - entry.launched))
            if entry.spot:
                metrics.EXPOSURE.labels(entry.offer).inc(passed_h * 3600)
                exposed[entry.offer] += 1
            counts[entry.offer] += 1
            busy[entry.offer] += running
            slots[entry.offer] += entry.slots
        for offer in self._catalogue.offers:
            name = offer.name
            metrics.MACHINES.labels(name).set(counts[name])
            metrics.BUSY.labels(name).set(busy[name] / slots[name] if slots[name] else 0.0)
            known = self._hazard(name)
            self._hazards[name] = known.seen(0, exposed[name] * passed_h, passed_h)
        self._check_budgets()
        self.ledger.forget(set(self._term.state.workflows))

    async def _check_agents(self, now: float) -> None:
        """A machine whose agent never comes, or stays away, is ended; it counts for nothing now."""
        workers = self._workers()
        for machine, entry in list(self.ledger.machines.items()):
            if machine in workers:
                self._agent_seen[machine] = now
            heard = self._agent_seen.setdefault(machine, max(entry.launched, self._began))
            patience_s = self._settings.silent_s if entry.ready else self._settings.join_s
            if now - heard <= patience_s or machine in self._asked_to_drain:
                continue
            log.warning("agent is away", machine=machine, offer=entry.offer)
            if not entry.ready:
                key = refusal_key(entry.offer, spot=entry.spot)
                self._refusals = refused(self._refusals, key, "NoAgent", now)
            await self._drain(machine, "its agent is away", now)
            entry.ending = True

    def _check_budgets(self) -> None:
        """The hard stop: nothing more is bought, what runs has a while to be finished."""
        over: dict[str, str] = {}
        for name, workflow in self._term.state.workflows.items():
            budget, spent = workflow.recipe.budget_usd, self.ledger.spent_usd(name)
            if budget is not None and spent >= budget and not workflow.state.ended:
                if name not in self.over_budget:
                    log.warning("budget used up", workflow=name, spent_usd=spent)
                over[name] = (
                    f"the budget of {budget:g} USD is used up ({spent:.4g} USD spent): machines "
                    f"have {self._settings.drain_s:g} s to finish what they run and are ended, "
                    "none is launched"
                )
        self.over_budget = over

    def _workers(self) -> dict[str, WorkerRun]:
        """Connected agents by machine."""
        found = {}
        for worker in self._term.state.workers.values():
            machine = dict(worker.capacity.labels).get("machine", "")
            if machine and worker.session:
                found[machine] = worker
        return found

    def _held(self, demand: Demand, now: float) -> list[Held]:
        return [
            Held(name, each.offer, each.spot, bool(each.ready), (now - each.launched) / 3600)
            for name, each in self.ledger.machines.items()
            if (each.workflow, each.experiment) == (demand.workflow, demand.experiment)
            and not each.ending
        ]  # fmt: skip

    # What is wanted

    def _demands(self, now: float) -> list[Demand]:
        """Experiments with machines or with tasks to run; the urgent first."""
        state = self._term.state
        found: dict[tuple[str, str], Demand] = {}
        for workflow in state.workflows.values():
            for run in workflow.experiments.values():
                demand = demand_of(workflow, run, now)
                if demand is not None:
                    found[workflow.name, run.spec.name] = demand
        for each in self.ledger.machines.values():
            key = (each.workflow, each.experiment)
            if key not in found:
                found[key] = _nothing(*key)
        order = sorted(found.values(), key=lambda each: each.left_s)
        return self._after_own_machines(order) if self._settings.use_own_first else order

    def _after_own_machines(self, demands: Sequence[Demand]) -> list[Demand]:
        """Machines that are there anyway cost nothing: theirs is the first work that fits there."""
        state = self._term.state
        own = [
            each for each in state.workers.values()
            if each.session and not each.capacity.offer and not each.draining
        ]  # fmt: skip
        free = {each.name: each.capacity.slots for each in own}
        found = []
        for demand in demands:
            run, taken = _run_of(state, demand), 0
            for worker in own:
                if run is None:
                    break
                places = min(free[worker.name], places_when_empty(worker, run.spec))
                places = min(places, demand.tasks - taken)
                free[worker.name] -= places
                taken += places
            found.append(replace(demand, tasks=demand.tasks - taken // demand.gang * demand.gang))
        return found

    # What is done

    async def _carry_out(self, plans: Mapping[tuple[str, str], Plan], now: float) -> None:
        wanted: dict[tuple[str, bool], list[tuple[str, str]]] = {}
        for key, each in plans.items():
            for name in each.ends:
                await self._drain(name, "it is not needed any more", now)
            for launch in each.launches:
                wanted.setdefault(launch, []).append(key)
        # One of each offer goes first: what is refused to it would be to the others.
        await self._launch_all([(offer, keys[:1]) for offer, keys in wanted.items()], now)
        await self._launch_all([(offer, keys[1:]) for offer, keys in wanted.items()], now)
        await self._end_drained(now)
        live = {each.workflow for each in self.ledger.machines.values()}
        networks = sorted({network_of(name) for name in live})
        await asyncio.gather(*(tidied(*each, networks) for each in self._providers.items()))

    async def _launch_all(
        self, wanted: Sequence[tuple[tuple[str, bool], Sequence[tuple[str, str]]]], now: float
    ) -> None:
        """All at once; the ledger knows of them before they are asked for."""
        orders: list[Order] = []
        for (name, spot), keys in wanted:
            offer = self._catalogue.offer(name)
            for workflow, experiment in keys:
                if offer is not None and self._may_launch(offer, spot, now):
                    orders.append(self._open(offer, spot, workflow, experiment, now))
        if orders:
            await self._store.save_ledger(self.ledger.plain(), self._term.fence)
            await asyncio.gather(*(self._launch(order, now) for order in orders))

    def _may_launch(self, offer: Offer, spot: bool, now: float) -> bool:
        refusal = self._refusals.get(refusal_key(offer.name, spot=spot))
        if refusal is not None and refusal.until > now:
            return False
        machines = self.ledger.machines.values()
        if len(machines) >= self._settings.max_machines:
            return False
        return sum(each.offer == offer.name for each in machines) < offer.most

    def _open(
        self, offer: Offer, spot: bool, workflow: str, experiment: str, now: float
    ) -> Order:  # fmt: skip
        """Enter a machine into the ledger; what its provider is told."""
        machine = f"m-{uuid.uuid4().hex[:12]}"
        self.ledger.open(machine, entry_of(offer, workflow, experiment, now, spot=spot))
        return self._joining.order(machine, offer, network_of(workflow), spot=spot)

    async def _launch(self, order: Order, now: float) -> None:
        entry, offer, spot = self.ledger.machines[order.machine], order.offer, order.spot
        key = refusal_key(offer, spot=spot)
        try:
            entry.provider_id = await self._providers[entry.provider].launch(order)
        except RefusedError as error:
            log.warning("machine refused", offer=offer, spot=spot, reason=error.name)
            metrics.LAUNCHES.labels(offer, "refused").inc()
            self._refuse(key, error.name, now)
            self._close(order.machine, preempted=False)
            return
        except HyperError as error:  # it may have been launched: `_compare` adopts it then
            log.warning("launch not answered", offer=offer, spot=spot, error=str(error))
            metrics.LAUNCHES.labels(offer, "refused").inc()
            self._refuse(key, "Unreachable", now)
            return
        metrics.LAUNCHES.labels(offer, "started").inc()
        self._refusals = accepted(self._refusals, key)
        log.info(
            "machine launched", machine=order.machine, offer=offer, spot=spot, usd_h=entry.usd_h
        )

    def _refuse(self, key: str, reason: str, now: float) -> None:
        """Back off from an offer: once for all that were asked for together."""
        before = self._refusals.get(key)
        if before is None or before.until <= now:
            self._refusals = refused(self._refusals, key, reason, now)

    async def _drain(self, machine: str, reason: str, now: float) -> None:
        """Nothing new for it; it is ended once it is idle, or after a while."""
        if machine in self._asked_to_drain or machine not in self.ledger.machines:
            return
        log.info("machine drained", machine=machine, reason=reason)
        self._asked_to_drain[machine] = now
        worker = self._workers().get(machine)
        if worker is not None and not worker.draining:
            await self._term.ask(DrainWorker(now, uuid.uuid4().hex, worker.name))

    async def _end_drained(self, now: float) -> None:
        """End machines that were asked to drain and are idle, or have had their time."""
        workers = self._workers()
        ready: dict[str, dict[str, str]] = {}  # provider -> its name of a machine -> ours
        for machine, since in list(self._asked_to_drain.items()):
            entry = self.ledger.machines.get(machine)
            if entry is None:
                self._asked_to_drain.pop(machine, None)
                continue
            worker = workers.get(machine)
            if worker is not None and worker.running and now - since < self._settings.drain_s:
                continue
            entry.ending = True
            if entry.provider_id:
                ready.setdefault(entry.provider, {})[entry.provider_id] = machine

        async def end(provider: str, ids: dict[str, str]) -> None:
            if await terminated(provider, self._providers.get(provider), list(ids)):
                log.info("machines ended", provider=provider, machines=list(ids.values()))

        await asyncio.gather(*(end(provider, ids) for provider, ids in ready.items()))


def demand_of(workflow: WorkflowRun, run: ExperimentRun, now: float) -> Demand | None:
    """What an experiment needs now; None: nothing."""
    if workflow.state.ended or workflow.stopping is not None or workflow.paused:
        return None
    if run.state is not RunState.RUNNING or run.spec.items:
        return None
    left = run.total - run.succeeded - run.failed
    if left <= 0:
        return None
    deadline_s = workflow.recipe.deadline_s
    checkpoint_s = run.spec.around.checkpoint_every_s
    return Demand(
        workflow=workflow.name,
        experiment=run.spec.name,
        tasks=left,
        total=run.total,
        hardware=run.spec.hardware,
        limit=run.spec.workers,
        gang=run.spec.gang,
        task_s=run.mean_s,
        step_s=checkpoint_s,
        left_s=math.inf if deadline_s is None else workflow.create_time + deadline_s - now,
        deadline_s=math.inf if deadline_s is None else deadline_s,
    )


def demand_kind(state: State, demand: Demand) -> str:
    """The kind of its tasks."""
    run = _run_of(state, demand)
    return "" if run is None else run.kind


def _run_of(state: State, demand: Demand) -> ExperimentRun | None:
    workflow = state.workflows.get(demand.workflow)
    return None if workflow is None else workflow.experiments.get(demand.experiment)


def network_of(workflow: str) -> str:
    """The private network of a workflow's machines."""
    return workflow.rpartition("/")[2][-48:].lstrip("-._")  # its end is what makes it unique


def _nothing(workflow: str, experiment: str) -> Demand:
    """Of an experiment that has ended, or is forgotten."""
    return Demand(workflow, experiment, 0, 1, Hardware())


def _machine_of_name(state: State, worker: str) -> str:
    """The machine of a worker that lives or was lost lately."""
    found = state.workers.get(worker) or state.lost.get(worker)
    return "" if found is None else dict(found.capacity.labels).get("machine", "")
