"""Machines for what waits: looks, plans (`placement.fleet`), launches, drains, terminates.

Runs while this replica leads. What is paid for is in the ledger, which is written to etcd before a
machine is launched; after a leader's death the next one finds every machine by its tag
and adopts it, or ends it when nobody needs it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hyper.errors import HyperError
from hyper_scheduler import asking, metrics
from hyper_scheduler.asking import Joining, Tag, network_of
from hyper_scheduler.catalogue import Catalogue
from hyper_scheduler.config import PlacementSettings
from hyper_scheduler.core import commands as c
from hyper_scheduler.core.events import DrainWorker, Placed
from hyper_scheduler.core.state import WorkerRun
from hyper_scheduler.demands import after_own_machines, demand_kind, demands, without
from hyper_scheduler.experience import Experience
from hyper_scheduler.measured import Prometheus
from hyper_scheduler.placement.backoff import Refusal, accepted, refused
from hyper_scheduler.placement.demand import NO_AGENT, Demand, Held, Known, Plan, refusal_key
from hyper_scheduler.placement.fleet import plan
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
_NO_AGENT_TEXT = "{}, no agent came from its machines: look at its image and options"
GONE_LOOKS = 2  # looks in a row that a provider must not list a machine before it counts as gone


@dataclass(frozen=True, slots=True)
class _Drain:
    """A machine that gets nothing new.

    Args:
        since: when it was asked.
        cut: what it runs need not be finished there: `drain_s` to save a checkpoint are enough.
        replaced: its tasks are lost with it, or go on elsewhere, as far as plans are concerned.
    """

    since: float
    cut: bool = False
    replaced: bool = True


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
        self._asked_to_drain: dict[str, _Drain] = {}
        self._agent_seen: dict[str, float] = {}
        self._began = clock.now()
        self._kinds: set[str] = set()
        self._experience = Experience()
        metrics.know_offers(offer.name for offer in catalogue.offers)
        self._looked_at = clock.now()
        self.ledger = Ledger()
        self.plans: dict[tuple[str, str], Plan] = {}
        self.over_budget: dict[str, str] = {}
        self._told = Placed(0.0)

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
        for machine, entry in self.ledger.machines.items():
            if entry.ready:
                self._experience.started(entry.offer, entry.ready - entry.launched)
            if entry.ending:  # an earlier leader was about to
                self._asked_to_drain[machine] = _Drain(self._clock.now())
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
            metrics.count_done(self._told_of(kind), offer, count, seconds)
        for worker, seconds in command.lost:
            machine = asking.machine_of(self._term.state, worker)
            entry = self.ledger.rework(machine, seconds)
            if entry is not None:
                usd = seconds / 3600 * entry.usd_h / entry.slots
                metrics.count_rework(entry.offer, seconds, usd)
        for worker, size in command.carried:
            paid = self.ledger.carry(asking.machine_of(self._term.state, worker), size)
            if paid is not None:
                metrics.count_egress(*paid)

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
        await self._notice_drained(now)
        if self._term.state.expected:  # who is busy is known when these have come, or are lost
            await self._carry_out({}, now)
        else:
            self.plans = self._plan(now)
            await self._carry_out(self.plans, now)
        await self._tell(now)
        await self._store.save_ledger(self.ledger.parts(), self._term.fence)

    def _plan(self, now: float) -> dict[tuple[str, str], Plan]:
        """For each experiment with tasks or machines."""
        state, most_of_all = self._term.state, self._settings.max_machines
        owned = ((each.workflow, each.experiment) for each in self.ledger.machines.values())
        wanted = demands(state, owned, now, most_of_all)
        if self._settings.use_own_first:
            wanted = after_own_machines(state, wanted)
        drained = self._running_on_drained()
        plans: dict[tuple[str, str], Plan] = {}
        for demand in wanted:
            held = self._held(demand, now)
            key = (demand.workflow, demand.experiment)
            if demand.workflow in self.over_budget:
                names = tuple(each.name for each in held)
                cut = frozenset(names) if demand.step_s else frozenset[str]()
                text = self.over_budget[demand.workflow]
                plans[key] = Plan(ends=names, moved=cut, message=text)
                continue
            kind = demand_kind(state, demand)
            self._told_of(kind)
            known = self.known(kind)
            best = max((each.throughput for each in known.values()), default=0.0)
            if not demand.task_s and best:  # the same program ran in other workflows
                demand = replace(demand, task_s=3600 / best)
            most = max(0, most_of_all - len(self.ledger.machines) + len(held))
            plans[key] = plan(
                without(demand, drained), self._offers(held), known, held, self._refusals, now, most
            )
        return plans

    def _take_prices(self, now: float) -> None:
        """Live prices count from now on, for machines that are there too."""
        self._catalogue = self._prices.catalogue(now)
        live = self._prices.live(now)
        for entry in self.ledger.machines.values():
            if entry.spot and entry.offer in live:
                entry.usd_h = live[entry.offer][0]

    def _running_on_drained(self) -> Counter[tuple[str, str]]:
        """Tasks that are finished on machines that get nothing more, by experiment."""
        found: Counter[tuple[str, str]] = Counter()
        for machine, worker in self._agents().items():
            drain = self._asked_to_drain.get(machine)
            if drain is not None and not drain.replaced:
                found.update((task.workflow, task.experiment) for task in worker.running)
        return found

    def _offers(self, held: list[Held]) -> list[Offer]:
        """The catalogue, less what there is of each offer besides `held`."""
        mine = {each.name for each in held}
        others = Counter(
            each.offer for name, each in self.ledger.machines.items() if name not in mine
        )
        return [
            replace(each, most=max(0, each.most - others[each.name]))
            for each in self._catalogue.offers
        ]

    def known(self, kind: str) -> dict[str, Known]:
        """What is known of each offer for one kind of task."""
        offers = (offer.name for offer in self._catalogue.offers)
        return self._experience.known(offers, kind, self._prometheus.last)

    # What is there

    async def _compare(self, now: float) -> None:
        """The ledger against what providers have: adopt, end strays, notice what is gone."""
        answers = await asyncio.gather(*(asking.listed(*each) for each in self._providers.items()))
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
                    entry.noticed = entry.noticed or not entry.ending
                    await self._drain(machine, "its provider will take it away", now)
            if strays:
                log.warning("machines that nobody knows are ended", provider=name, ids=strays)
                await asking.terminated(name, self._providers[name], strays)
            for machine, entry in list(self.ledger.machines.items()):
                if entry.provider == name:
                    self._check_there(machine, entry, machine in there)

    def _check_there(self, machine: str, entry: Machine, there: bool) -> None:
        if there:
            self._missing.pop(machine, None)
            return
        self._missing[machine] += 1
        if self._missing[machine] >= GONE_LOOKS or not entry.provider_id:
            taken = entry.noticed or not entry.ending
            preempted = entry.spot and taken and bool(entry.provider_id)
            log.info("machine gone", machine=machine, offer=entry.offer, preempted=preempted)
            if preempted:
                metrics.PREEMPTIONS.labels(entry.offer).inc()
                self._experience.preempted(entry.offer)
            self._close(machine, preempted=preempted)

    def _close(self, machine: str, *, preempted: bool) -> None:
        self.ledger.close(machine, preempted=preempted)
        self._missing.pop(machine, None)
        self._asked_to_drain.pop(machine, None)
        self._agent_seen.pop(machine, None)

    def _account(self, now: float) -> None:
        """Pay until now; notice agents that have come."""
        self._experience.remember(self._prometheus.last)
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
                key = refusal_key(entry.offer, spot=entry.spot)
                self._refusals = accepted(self._refusals, key)
                metrics.COLD_STARTS.labels(entry.offer).inc()
                cold_s = max(0.0, now - entry.launched)
                metrics.COLD_SECONDS.labels(entry.offer).inc(cold_s)
                self._experience.started(entry.offer, cold_s)
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
            self._experience.passed(name, exposed[name], passed_h)
        self._check_budgets()
        self.ledger.forget(set(self._term.state.workflows))

    async def _check_agents(self, now: float) -> None:
        """A machine whose agent never comes, or stays away, is ended; it counts for nothing now."""
        workers = self._workers()
        absent: set[str] = set()
        for machine, entry in list(self.ledger.machines.items()):
            if machine in workers:
                self._agent_seen[machine] = now
            heard = self._agent_seen.setdefault(machine, max(entry.launched, self._began))
            patience_s = self._settings.silent_s if entry.ready else self._settings.join_s
            if now - heard <= patience_s or machine in self._asked_to_drain:
                continue
            log.warning("agent is away", machine=machine, offer=entry.offer)
            if not entry.ready:
                absent.add(refusal_key(entry.offer, spot=entry.spot))
            await self._drain(machine, "its agent is away", now)
            entry.ending = True
        for key in absent:  # those that were launched together count once
            self._refusals = refused(self._refusals, key, NO_AGENT, now)

    async def _notice_drained(self, now: float) -> None:
        """Agents that get nothing new, though nobody here has asked: they are of no more use.

        Somebody has drained them (`hyper drain`, an earlier leader), or they have had a notice.
        """
        for machine, worker in self._workers().items():
            entry = self.ledger.machines.get(machine)
            if entry is None or not worker.draining or machine in self._asked_to_drain:
                continue
            asked = worker.name in self._term.state.drained
            entry.noticed = entry.noticed or not (asked or entry.ending)
            reason = "its worker was drained" if asked else "it is taken away"
            await self._drain(machine, reason, now, replaced=not asked)

    def _check_budgets(self) -> None:
        """The hard stop: nothing more is bought, what runs has a while to be finished."""
        over: dict[str, str] = {}
        for name, workflow in self._term.state.workflows.items():
            budget, spent = workflow.recipe.budget_usd, self.ledger.spent_usd(name)
            if budget is not None and spent >= budget and not workflow.state.ended:
                if name not in self.over_budget:
                    log.warning("budget used up", workflow=name, spent_usd=spent)
                if name not in self.over_budget:  # what is finished costs more; one text is enough
                    over[name] = (
                        f"the budget of {budget:g} USD is used up ({spent:.4g} USD spent): its "
                        "machines finish what they run and are ended, none is launched; workers "
                        "of your own (`hyper join`) go on with it"
                    )
                else:
                    over[name] = self.over_budget[name]
        self.over_budget = over

    def _agents(self) -> dict[str, WorkerRun]:
        """Agents by machine, those whose stream broke a moment ago too."""
        found = {}
        for worker in self._term.state.workers.values():
            if machine := dict(worker.capacity.labels).get("machine", ""):
                found[machine] = worker
        return found

    def _workers(self) -> dict[str, WorkerRun]:
        """Connected agents by machine."""
        return {machine: worker for machine, worker in self._agents().items() if worker.session}

    def _held(self, demand: Demand, now: float) -> list[Held]:
        agents = self._agents()
        return [
            Held(
                name, each.offer, each.spot, bool(each.ready), (now - each.launched) / 3600,
                len(agents[name].running) if name in agents else 0,
            )
            for name, each in self.ledger.machines.items()
            if (each.workflow, each.experiment) == (demand.workflow, demand.experiment)
            and not each.ending and name not in self._asked_to_drain
        ]  # fmt: skip

    async def _tell(self, now: float) -> None:
        """Let the core know why machines do not come, for people who look at a workflow."""
        notes: dict[str, str] = {}
        for (workflow, experiment), drawn in self.plans.items():
            note = f"{experiment}: {drawn.message}" if drawn.message else self._refused(drawn)
            if note and workflow not in self.over_budget:
                notes.setdefault(workflow, note)
        told = Placed(now, dict(self.over_budget), notes)
        if (told.over_budget, told.notes) != (self._told.over_budget, self._told.notes):
            await self._term.tell(told)
            self._told = told

    def _refused(self, drawn: Plan) -> str:
        """Which of the offers that fit give no machines; empty while one of them does."""
        texts = []
        for row in drawn.rows:
            refusal = self._refusals.get(refusal_key(row.offer, spot=row.spot))
            if row.machines and refusal is None:
                return ""
            if refusal is not None:
                what = f"{row.offer} ({'spot' if row.spot else 'on demand'}): {refusal.reason}"
                texts.append(_NO_AGENT_TEXT.format(what) if refusal.reason == NO_AGENT else what)
        return f"machines are not to be had: {'; '.join(texts[:3])}" if texts else ""

    # What is done

    async def _carry_out(self, plans: Mapping[tuple[str, str], Plan], now: float) -> None:
        wanted: dict[tuple[str, bool], list[tuple[str, str]]] = {}
        for key, each in plans.items():
            for name in each.ends:
                await self._drain(name, "it is not needed any more", now, cut=name in each.moved)
            for launch in each.launches:
                wanted.setdefault(launch, []).append(key)
        # One of each offer goes first: what is refused to it would be to the others.
        await self._launch_all([(offer, keys[:1]) for offer, keys in wanted.items()], now)
        await self._launch_all([(offer, keys[1:]) for offer, keys in wanted.items()], now)
        await self._end_drained(now)
        live = {each.workflow for each in self.ledger.machines.values()}
        networks = sorted({network_of(name) for name in live})
        await asyncio.gather(*(asking.tidied(*each, networks) for each in self._providers.items()))

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
            await self._store.save_ledger(self.ledger.parts(), self._term.fence)
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
        self.ledger.open(machine, asking.entry_of(offer, workflow, experiment, now, spot=spot))
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
        refusal = self._refusals.get(key)
        if refusal is not None and refusal.reason != NO_AGENT:  # that is over when its agent comes
            self._refusals = accepted(self._refusals, key)
        log.info(
            "machine launched", machine=order.machine, offer=offer, spot=spot, usd_h=entry.usd_h
        )

    def _refuse(self, key: str, reason: str, now: float) -> None:
        """Back off from an offer: once for all that were asked for together."""
        before = self._refusals.get(key)
        if before is None or before.until <= now:
            self._refusals = refused(self._refusals, key, reason, now)

    async def _drain(
        self, machine: str, reason: str, now: float, *, cut: bool = False, replaced: bool = True
    ) -> None:
        """Nothing new for it; it is ended once it is idle, or, if it is `cut`, after a while."""
        if machine in self._asked_to_drain or machine not in self.ledger.machines:
            return
        log.info("machine drained", machine=machine, reason=reason)
        self._asked_to_drain[machine] = _Drain(now, cut, replaced)

    async def _end_drained(self, now: float) -> None:
        """End machines that were asked to drain and are idle, or have had their time."""
        ready: dict[str, dict[str, str]] = {}  # provider -> its name of a machine -> ours
        for machine, drain in list(self._asked_to_drain.items()):
            entry = self.ledger.machines.get(machine)
            if entry is None:
                self._asked_to_drain.pop(machine, None)
            elif await self._may_end(machine, entry, drain, now):
                entry.ending = True
                if entry.provider_id:
                    ready.setdefault(entry.provider, {})[entry.provider_id] = machine

        async def end(provider: str, ids: dict[str, str]) -> None:
            if await asking.terminated(provider, self._providers.get(provider), list(ids)):
                log.info("machines ended", provider=provider, machines=list(ids.values()))

        await asyncio.gather(*(end(provider, ids) for provider, ids in ready.items()))

    async def _may_end(self, machine: str, entry: Machine, drain: _Drain, now: float) -> bool:
        worker = self._agents().get(machine)
        if worker is not None:
            if worker.session and not worker.draining:  # it may have come since
                await self._term.ask(DrainWorker(now, uuid.uuid4().hex, worker.name))
            cut = drain.cut and now - drain.since >= self._settings.drain_s
            return cut or not worker.running
        if entry.ready and not entry.ending:  # it may come back, with what it runs
            away_s = now - self._agent_seen.get(machine, self._began)
            return away_s > self._settings.silent_s
        return True
