"""A whole cluster in one thread: the scheduler's core, its store, workers, clients, a bad network.

Time is virtual and everything is drawn from one seed. Streams keep order, delay, and break, which
loses what was under way in both directions; reports are sent again until acknowledged, so that
they come twice; clients repeat their requests. Leaders crash in the middle of commits, and go on
for a while after another has been elected. Workers crash, fall silent and are preempted.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hyper_scheduler.core import commands as c
from hyper_scheduler.core import events as e
from hyper_scheduler.core.commit import results_root, workflow_path
from hyper_scheduler.core.invariants import check_invariants
from hyper_scheduler.core.model import (
    Attempt,
    Experiment,
    Recipe,
    TaskId,
)
from hyper_scheduler.core.pages import PageKey
from hyper_scheduler.core.restore import StoredWorkflow, restore
from hyper_scheduler.core.state import Capacity, Limits, Request, State
from hyper_scheduler.core.step import step
from hyper_scheduler.items import values
from hyper_scheduler.store import transactions
from tests.simulation.disk import Disk

LIMITS = Limits(lease_s=6.0, gather_s=0.05)
FORGETFUL = replace(LIMITS, kept_s=8.0, kept_workflows=1, kept_pages=2, kept_least_s=1.0)
RECONNECT_S = (0.05, 1.0)
RESULT = '["a", "b"]'
Run = tuple[TaskId, Attempt]


@dataclass
class Leader:
    """One term."""

    epoch: int
    state: State
    alive: bool = True
    links: dict[str, tuple[Worker, int]] = field(default_factory=dict)
    flush_armed: bool = False


@dataclass
class Worker:
    """An agent process."""

    name: str
    slots: int
    alive: bool = True
    silent_until: float = 0.0
    link: int = 0  # of the stream it has open; 0: none
    leader: Leader | None = None
    running: dict[TaskId, Attempt] = field(default_factory=dict)
    unacknowledged: dict[int, tuple[e.Report, ...]] = field(default_factory=dict)
    sequence: int = 0


@dataclass
class Rates:
    """Faults a virtual second, while they last."""

    worker_crash: float = 0.05
    worker_silent: float = 0.05
    preemption: float = 0.02
    link_break: float = 0.2
    leader_crash: float = 0.1
    leader_deposed: float = 0.05
    drain: float = 0.02
    cancel: float = 0.0
    retry: float = 0.0  # of what was cancelled
    pause: float = 0.0


class World:
    """Runs one seed; assertions fail with the seed in their message by the test's hand."""

    def __init__(
        self, seed: int, rates: Rates, faults_s: float = 30.0, limits: Limits = LIMITS
    ) -> None:
        self.random = random.Random(seed)
        self.limits = limits
        self.rates, self.faults_s = rates, faults_s
        self.now = 0.0
        self.disk = Disk()
        self.leader: Leader | None = None
        self.workers: dict[str, Worker] = {}
        self.recipes: dict[str, Recipe] = {}
        self.poison: set[tuple[str, int]] = set()
        self.killers: set[tuple[str, int]] = set()  # end their worker
        self.killed = 0
        self.starts: dict[tuple[str, str, int, int, int], set[int]] = {}  # of gangs: ranks there
        self.asked: dict[str, Callable[[float], e.Event]] = {}
        self.answered: set[str] = set()
        self.started: dict[Attempt, TaskId] = {}
        self.failures: dict[TaskId, int] = {}
        self.cancelled: set[str] = set()
        self.trace: list[str] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._links = itertools.count(1)
        self._names = itertools.count(1)
        self._arrivals: dict[tuple[int, bool], float] = {}
        slots = [self.random.randint(1, 4) for _ in range(self.random.randint(1, 4))]
        slots[0] += max(0, 3 - sum(slots))  # room for any gang
        for each in slots:
            self.add_worker(each)
        self.after(0.0, self.elect)
        self.after(0.1, self.faults)

    # ---- time

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), action))

    def run(self, until_s: float, done: Callable[[], bool]) -> None:
        """Go on until `done`, at most until `until_s`."""
        while self._heap and not done():
            at, _, action = heapq.heappop(self._heap)
            if at > until_s:
                raise AssertionError(f"not done after {until_s} virtual seconds: {self.summary()}")
            self.now = at
            action()

    def say(self, text: str) -> None:
        self.trace.append(f"{self.now:8.3f} {text}")

    def summary(self) -> str:
        heads = {name: self.disk.head(name)["state"] for name in self.recipes if self.known(name)}
        return f"{heads}, asked {len(self.asked)}, answered {len(self.answered)}"

    def known(self, name: str) -> bool:
        return self.disk.find(f"{workflow_path(name)}/head") is not None

    def nothing_left(self) -> bool:
        """Every workflow is forgotten, with its results and the note of them."""
        left = ("workflows/", "forgotten/")
        return not self.disk.objects and not any(key.startswith(left) for key in self.disk.keys)

    def ended(self) -> bool:
        """Every request is answered, every workflow has durably ended."""
        return len(self.answered) == len(self.asked) and all(
            self.known(name) and self.disk.head(name)["state"] not in ("pending", "running")
            for name in self.recipes
        )

    # ---- clients

    def ask(
        self, make: Callable[[float, str], e.Event], then: Callable[[], None] = lambda: None
    ) -> None:
        """Send a request, again and again until it is answered."""
        request_id = str(uuid.UUID(int=self.random.getrandbits(128)))
        self.asked[request_id] = lambda now: make(now, request_id)
        self._send_request(request_id, then)

    def _send_request(self, request_id: str, then: Callable[[], None]) -> None:
        if request_id in self.answered:
            then()
            return
        leader = self.leader
        if leader is not None and leader.alive:
            self.feed(leader, self.asked[request_id](self.now))
        self.after(self.random.uniform(0.2, 2.0), lambda: self._send_request(request_id, then))

    def submit(self, recipe: Recipe) -> str:
        name = f"tenants/t/workflows/w{len(self.recipes)}"
        self.recipes[name] = recipe
        self.disk.gangs |= {(name, each.name) for each in recipe.experiments if each.gang > 1}
        self.ask(lambda now, request_id: e.Submit(now, request_id, name, recipe, name))
        return name

    def pause(self, name: str) -> None:
        """For a while: who has paused it goes on with it."""

        def change(paused: bool) -> Callable[[float, str], e.Event]:
            return lambda now, request_id: e.Pause(now, request_id, name, paused)

        self.ask(change(True), then=lambda: self.ask(change(False)))

    # ---- the scheduler

    def elect(self) -> None:
        self.disk.epoch += self.random.randint(1, 5)
        heads = [key for key in self.disk.keys if key.endswith("/head")]
        workflows: dict[str, StoredWorkflow] = {}
        for key in heads:
            name = json.loads(self.disk.keys[key])["name"]
            prefix = f"{workflow_path(name)}/pages/"
            pages = {
                PageKey(name, *self._page(path.removeprefix(prefix))): value
                for path, value in self.disk.keys.items()
                if path.startswith(prefix)
            }
            recipe = self.recipes[name]
            workflows[name] = StoredWorkflow(self.disk.keys[key], recipe, name, pages)
        requests = {}
        for key, value in self.disk.keys.items():
            if key.startswith("requests/"):
                request_id = key.removeprefix("requests/")
                requests[request_id] = Request(request_id, **json.loads(value))
        drained = [key.split("/")[1] for key in self.disk.keys if key.startswith("drained/")]
        notes = [key.split("/") for key in self.disk.keys if key.startswith("forgotten/")]
        forgotten = [f"tenants/{tenant}/workflows/{name}" for _, tenant, name in notes]
        state = restore(
            workflows, requests, drained, forgotten,
            epoch=self.disk.epoch, now=self.now, limits=self.limits,
        )  # fmt: skip
        self.leader = Leader(self.disk.epoch, state)
        self.say(f"leader {self.disk.epoch}")
        self._tick(self.leader)

    @staticmethod
    def _page(path: str) -> tuple[str, int]:
        experiment, number = path.split("/")
        return experiment, int(number)

    def _tick(self, leader: Leader) -> None:
        if leader.alive:
            self.feed(leader, e.Tick(self.now))
            self.after(0.25, lambda: self._tick(leader))

    def feed(self, leader: Leader, event: e.Event) -> None:
        if not leader.alive:
            return
        leader.state.room = self.random.choice((0, 1, 2, 1 << 62))  # what the shell can send
        for command in step(leader.state, event):
            self._carry_out(leader, command)
        check_invariants(leader.state)
        pending = leader.state.pending
        if not leader.flush_armed and leader.state.committing is None and pending.dirty:
            leader.flush_armed = True

            def flush() -> None:
                leader.flush_armed = False
                self.feed(leader, e.Tick(self.now))

            self.after(self.limits.gather_s + 0.001, flush)

    def _carry_out(self, leader: Leader, command: c.Command) -> None:
        match command:
            case c.Commit():
                batches = list(transactions(command.atoms))
                self.after(
                    self.random.uniform(0.001, 0.2),
                    lambda: self._commit(leader, command, batches),
                )
            case c.Reply(request):
                if self.random.random() < 0.8:  # else the answer is lost on the way
                    self.answered.add(request.request_id)
            case c.Refuse(request_id=request_id):
                self.answered.add(request_id)
            case c.Expand(workflow, experiment):
                self.after(
                    self.random.uniform(0.01, 1.0),
                    lambda: self._expand(leader, workflow, experiment),
                )
            case c.Suggest(workflow, experiment, index):
                self.after(
                    self.random.uniform(0.01, 0.5),
                    lambda: self.feed(
                        leader, e.Suggested(self.now, workflow, experiment, index, f"[{index}]")
                    ),
                )
            case c.Discard(workflow):
                self.after(self.random.uniform(0.01, 2.0), lambda: self._discard(leader, workflow))
            case c.Lost(worker=worker, session=session):
                self.say(f"lost {worker}")
                self._close(leader, worker, session)
            case c.Changed() | c.Moved() | c.Worked():
                pass
            case _:
                self._down(leader, command)

    def _discard(self, leader: Leader, workflow: str) -> None:
        """A leader that is dead deletes nothing; one that does not know that it is deposed does."""
        if leader.alive:
            root = results_root(workflow)
            assert not any(key.startswith(f"{workflow_path(workflow)}/") for key in self.disk.keys)
            for key in [key for key in self.disk.objects if key.startswith(root)]:
                del self.disk.objects[key]
            self.feed(leader, e.Discarded(self.now, workflow))

    def _expand(self, leader: Leader, workflow: str, experiment: str) -> None:
        spec = self._spec(workflow, experiment)
        items = {}
        for name, source in spec.items.items():
            results = self.disk.results(workflow, source.experiment)
            assert len(results) == self.disk.total(workflow, source.experiment)
            items[name] = tuple(
                item for i, text in sorted(results.items()) for item in values(i, text, source)
            )
        self.feed(leader, e.Expanded(self.now, workflow, experiment, tuple(items.items())))

    def _spec(self, workflow: str, experiment: str) -> Experiment:
        return next(each for each in self.recipes[workflow].experiments if each.name == experiment)

    def _commit(self, leader: Leader, commit: c.Commit, batches: list[list[c.Put]]) -> None:
        """One transaction after the other; a crash may come between."""
        if not leader.alive:
            return
        for each in commit.objects:
            self.disk.objects[each.key] = each.data
        if batches:
            if not self.disk.put(leader.epoch, batches[0]):
                self.stop_leader(leader)
                return
            rest = batches[1:]
            self.after(self.random.uniform(0.001, 0.05), lambda: self._commit(leader, commit, rest))
            return
        for key in commit.garbage:
            self.disk.objects.pop(key, None)
        self.feed(leader, e.Committed(self.now, commit.number))

    def stop_leader(self, leader: Leader) -> None:
        self.say(f"leader {leader.epoch} is gone")
        leader.alive = False
        for worker, link in list(leader.links.values()):
            self._break(worker, link)

    # ---- streams

    def _delay(self, link: int, down: bool) -> float:
        """Order holds within a stream and direction."""
        at = max(self.now + self.random.expovariate(50), self._arrivals.get((link, down), 0.0))
        self._arrivals[link, down] = at
        return at - self.now

    def connect(self, worker: Worker) -> None:
        if not worker.alive or worker.link:
            return
        leader = self.leader
        if leader is None or not leader.alive or self.random.random() < 0.1:
            self.after(self.random.uniform(*RECONNECT_S), lambda: self.connect(worker))
            return
        link = worker.link = next(self._links)
        worker.leader = leader
        older = leader.links.get(worker.name)
        leader.links[worker.name] = (worker, link)
        if older is not None and older[0].link == older[1] != link:
            self._break(*older)
        # as the agent does: what runs, and what has ended and is not acknowledged
        ended = [(r.task, r.attempt) for each in worker.unacknowledged.values() for r in each]
        running = (*worker.running.items(), *ended)
        capacity = Capacity(worker.slots, cpus=4, memory_bytes=8 << 30)
        self._up(worker, lambda now: e.Hello(now, worker.name, link, capacity, running))
        for sequence in worker.unacknowledged:
            self._send_reports(worker, sequence)
        self._beat(worker, link)

    def _beat(self, worker: Worker, link: int) -> None:
        if worker.alive and worker.link == link:
            if self.now >= worker.silent_until:
                self._up(worker, lambda now: e.Heartbeat(now, worker.name, link))
            self.after(1.5, lambda: self._beat(worker, link))

    def _up(self, worker: Worker, make: Callable[[float], e.Event]) -> None:
        leader, link = worker.leader, worker.link

        def arrive() -> None:
            event = make(self.now)
            if leader is None:
                return
            whole = leader.links.get(worker.name) == (worker, link)
            if isinstance(event, e.Hello):
                if whole:
                    self.feed(leader, event)
                return
            # of a stream that has ended, what was in line already comes, behind a new one's Hello
            if whole or self.random.random() < 0.5:
                self.feed(leader, event)
            if self.random.random() < 0.02:  # and once more, out of order
                self.after(self.random.expovariate(5), lambda: self.feed(leader, make(self.now)))

        self.after(self._delay(link, False), arrive)

    def _down(self, leader: Leader, command: Any) -> None:
        entry = leader.links.get(command.worker)
        if entry is None or entry[1] != command.session:
            return
        worker, link = entry

        def arrive() -> None:
            if worker.alive and worker.link == link:
                self._receive(worker, command)

        self.after(self._delay(link, True), arrive)

    def _close(self, leader: Leader, name: str, session: int) -> None:
        entry = leader.links.get(name)
        if entry is not None and entry[1] == session:
            self._break(*entry)

    def _break(self, worker: Worker, link: int) -> None:
        """The stream ends; each side notices at a time of its own."""
        leader = worker.leader
        if leader is not None and leader.links.get(worker.name) == (worker, link):
            del leader.links[worker.name]
            self.after(
                self.random.uniform(0.0, 0.5),
                lambda: self.feed(leader, e.Goodbye(self.now, worker.name, link)),
            )
        if worker.link == link:
            worker.link = 0
            self.after(self.random.uniform(*RECONNECT_S), lambda: self.connect(worker))

    # ---- workers

    def add_worker(self, slots: int) -> None:
        worker = Worker(f"worker{next(self._names)}", slots)
        self.workers[worker.name] = worker
        self.after(self.random.uniform(0.0, 2.0), lambda: self.connect(worker))

    def _receive(self, worker: Worker, command: c.Command) -> None:
        match command:
            case c.Start(tasks=tasks):
                for task, attempt in tasks:
                    self._start(worker, task, attempt)
            case c.Stop(tasks=tasks):
                for task, attempt in tasks:
                    if worker.running.get(task) == attempt:
                        self._finish(worker, task, attempt, e.Outcome.STOPPED)
            case c.Ack(sequence=sequence):
                for number in [n for n in worker.unacknowledged if n <= sequence]:
                    self._check_acknowledged(worker.unacknowledged.pop(number))
            case c.Drain():
                # people drain a machine to take it away; another comes
                self.after(20.0, lambda: self.crash_worker(worker))
            case _:
                pass

    def _check_acknowledged(self, reports: tuple[e.Report, ...]) -> None:
        """What a worker may now forget: durable, superseded, or of a workflow that stops."""
        for report in reports:
            if report.outcome is not e.Outcome.SUCCEEDED or self.disk.is_done(report.task):
                continue
            gang = self._spec(report.task.workflow, report.task.experiment).gang > 1
            if gang and self.disk.is_known(report.task, report.attempt):
                continue  # held, or it has to run again with the others
            head = self.disk.head(report.task.workflow)
            newer = any(
                attempt > report.attempt
                for attempt, task in self.started.items()
                if task == report.task
            )
            late = newer or head["stopping"] or head["state"] not in ("pending", "running")
            late = late or report.task.workflow in self.cancelled  # and retried since
            leader = self.leader
            if not late and leader is not None:  # given out, but not arrived yet
                run = leader.state.experiment(report.task)
                record = None if run is None else run.record(report.task.index)
                late = record is not None and record.attempt != report.attempt
            assert late, f"{report.task} {report.attempt} was acknowledged and is not durable"

    def _start(self, worker: Worker, task: TaskId, attempt: Attempt) -> None:
        assert attempt not in self.started, f"{attempt} was given out twice"
        self.started[attempt] = task
        assert task not in worker.running, f"{worker.name} got {task} while it runs it"
        spec = self._spec(task.workflow, task.experiment)
        for needed in spec.depends_on:
            if needed in spec.each:
                self._check_preceded(task, spec, self._spec(task.workflow, needed))
            else:
                self._check_complete(task.workflow, needed)
        worker.running[task] = attempt
        short = int(task.experiment[1:]) % 2 == 1 and self.random.random() < 0.9
        duration_s = self.random.expovariate(50.0 if short else 1.0)
        if (task.experiment, task.index) in self.killers and spec.objective is None:
            self.after(self.random.uniform(0.1, 1.0), lambda: self._kill(worker, task, attempt))
            return
        if spec.gang > 1:
            self._start_rank(worker, task, attempt, spec.gang, duration_s)
            return
        if spec.objective is not None:
            self._report_metrics(worker, task, attempt, duration_s)
        if self.random.random() < 0.05:  # never started: it waits behind a long one

            def back() -> None:
                if worker.alive and worker.running.get(task) == attempt:
                    self._finish(worker, task, attempt, e.Outcome.RETURNED)

            self.after(min(duration_s, 0.5), back)
            return

        def end() -> None:
            if worker.alive and worker.running.get(task) == attempt:
                failed = (task.experiment, task.index) in self.poison and spec.objective is None
                outcome = e.Outcome.FAILED if failed else e.Outcome.SUCCEEDED
                self._finish(worker, task, attempt, outcome, duration_s)

        self.after(duration_s, end)

    def _kill(self, worker: Worker, task: TaskId, attempt: Attempt) -> None:
        if worker.alive and worker.running.get(task) == attempt:
            self.killed += 1
            self.crash_worker(worker)

    def _start_rank(
        self, worker: Worker, task: TaskId, attempt: Attempt, size: int, duration_s: float
    ) -> None:
        """A rank ends well only if all others of its start were there."""
        rank = task.index % size
        unit, base = task.index // size, attempt.number - rank
        there = self.starts.setdefault(
            (task.workflow, task.experiment, unit, attempt.epoch, base), set()
        )
        there.add(rank)

        def end() -> None:
            if not worker.alive or worker.running.get(task) != attempt:
                return
            if len(there) == size:
                failed = (task.experiment, task.index) in self.poison
                outcome = e.Outcome.FAILED if failed else e.Outcome.SUCCEEDED
                self._finish(worker, task, attempt, outcome, duration_s)
            else:
                self.after(0.5, end)  # waits for them

        self.after(duration_s, end)

    def _fail_peers(self, worker: Worker) -> None:
        """Ranks that were in touch with those of a worker that is gone fail, or hang."""
        for task, attempt in worker.running.items():
            size = self._spec(task.workflow, task.experiment).gang
            if size == 1:
                continue
            base = attempt.number - task.index % size
            for other in self.workers.values():
                for peer, theirs in list(other.running.items()):
                    same = peer[:2] == task[:2] and peer.index // size == task.index // size
                    start = (theirs.epoch, theirs.number - peer.index % size)
                    if not (other.alive and same and start == (attempt.epoch, base)):
                        continue
                    if self.random.random() < 0.7:
                        self.after(
                            self.random.uniform(0.0, 2.0),
                            lambda o=other, p=peer, t=theirs: self._fail(o, p, t),
                        )

    def _fail(self, worker: Worker, task: TaskId, attempt: Attempt) -> None:
        if worker.alive and worker.running.get(task) == attempt:
            self._finish(worker, task, attempt, e.Outcome.FAILED)

    def _report_metrics(
        self, worker: Worker, task: TaskId, attempt: Attempt, duration_s: float
    ) -> None:
        goodness = self.random.random()
        for at in range(1, 10):

            def tell(at: int = at) -> None:
                if worker.alive and worker.link and worker.running.get(task) == attempt:
                    link, value = worker.link, goodness + self.random.gauss(0.0, 0.1)
                    report = e.MetricReport(task, attempt, at, (("score", value),))
                    self._up(worker, lambda now: e.Metrics(now, worker.name, link, (report,)))

            self.after(duration_s * at / 10, tell)

    def _check_complete(self, workflow: str, experiment: str) -> None:
        total = self.disk.total(workflow, experiment)
        done = all(self.disk.is_done(TaskId(workflow, experiment, i)) for i in range(total))
        assert done, f"{workflow}: started before {experiment} was durably complete"

    def _check_preceded(self, task: TaskId, spec: Experiment, before: Experiment) -> None:
        unit = task.index // spec.gang
        for index in range(unit * before.gang, (unit + 1) * before.gang):
            needed = TaskId(task.workflow, before.name, index)
            assert self.disk.is_done(needed), f"{task} started before {needed} was durably done"

    def _finish(
        self, worker: Worker, task: TaskId, attempt: Attempt, how: e.Outcome, wall_s: float = 0.0
    ) -> None:
        del worker.running[task]
        worker.sequence += 1
        report = e.Report(
            task, attempt, how, message=how.value, result_json=RESULT, wall_s=wall_s
        )  # fmt: skip
        worker.unacknowledged[worker.sequence] = (report,)
        if worker.link:
            self._send_reports(worker, worker.sequence)

    def _send_reports(self, worker: Worker, sequence: int) -> None:
        reports, link = worker.unacknowledged[sequence], worker.link
        self._up(worker, lambda now: e.Reports(now, worker.name, link, sequence, reports))

    def crash_worker(self, worker: Worker) -> None:
        if not worker.alive:
            return
        self.say(f"{worker.name} crashes")
        self._fail_peers(worker)
        worker.alive = False
        if worker.link:
            self._break(worker, worker.link)
        self.after(self.random.uniform(0.0, 5.0), lambda: self.add_worker(worker.slots))

    def preempt(self, worker: Worker) -> None:
        self._fail_peers(worker)
        for task, attempt in list(worker.running.items()):
            self._finish(worker, task, attempt, e.Outcome.PREEMPTED)
        self.after(self.random.uniform(0.0, 1.0), lambda: self.crash_worker(worker))

    # ---- faults

    def faults(self) -> None:
        """Every tenth of a second, whatever the dice say."""
        if self.now > self.faults_s:
            return
        rates, leader = self.rates, self.leader
        alive = [worker for worker in self.workers.values() if worker.alive]

        def happens(rate: float) -> bool:
            return self.random.random() < rate * 0.1

        for worker in alive:
            if happens(rates.worker_crash):
                self.crash_worker(worker)
            elif happens(rates.worker_silent):
                worker.silent_until = self.now + self.random.uniform(0.0, 15.0)
            elif happens(rates.preemption):
                self.preempt(worker)
            elif worker.link and happens(rates.link_break):
                self._break(worker, worker.link)
            elif happens(rates.drain):
                name = worker.name
                self.ask(lambda now, request_id, name=name: e.DrainWorker(now, request_id, name))
        if leader is not None and leader.alive:
            if happens(rates.leader_crash):
                self.stop_leader(leader)
                self.after(self.random.uniform(0.5, 8.0), self.elect)
            elif happens(rates.leader_deposed):
                # the old one goes on until a commit or its own clock tells it
                self.after(self.random.uniform(0.0, 5.0), lambda: self.stop_leader(leader))
                self.elect()
            for name in self.recipes:
                if name not in self.cancelled and happens(rates.cancel):
                    self.cancelled.add(name)
                    self.ask(lambda now, request_id, name=name: e.Cancel(now, request_id, name))
                elif name in self.cancelled and happens(rates.retry):
                    self.ask(lambda now, request_id, name=name: e.Retry(now, request_id, name))
                if happens(rates.pause):
                    self.pause(name)
        self.after(0.1, self.faults)
