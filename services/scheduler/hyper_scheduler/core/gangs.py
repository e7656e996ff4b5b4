"""Gangs: tasks that start, restart and succeed together.

The attempts of a gang's start have numbers in a row, so that (epoch, number - rank) names the
start. A gang is whole while each of its tasks runs, or has succeeded and is held, under the same
start. When it no longer is, what runs of it is stopped; when nothing of it runs, it waits for its
next start. Only then is judged: the failures of a start count unless a node was lost under it,
for the loss of one rank makes the others fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hyper_scheduler.core.commands import Command, Stop
from hyper_scheduler.core.model import TaskId
from hyper_scheduler.core.pages import Blame, Record, Status
from hyper_scheduler.core.state import ExperimentRun, State
from hyper_scheduler.core.tasks import fail_or_again, give_up_poison, touch

FALLBACK_PORT = 29_500  # torchrun's, for agents that name none


def settle_gangs(state: State, now: float) -> list[Command]:
    """Look at the gangs to which something has happened."""
    commands: list[Command] = []
    for task in list(state.broken):
        if task.workflow in state.held:
            continue  # their workers have time to come first
        del state.broken[task]
        workflow = state.workflows[task.workflow]
        if not workflow.state.ended and workflow.stopping is None:
            commands += _settle(state, task, now)
    return commands


def _settle(state: State, task: TaskId, now: float) -> list[Command]:
    run = state.workflows[task.workflow].experiments[task.experiment]
    ranks = run.gang_of(task.index)
    if run.is_done(task.index):
        return []
    records = [run.record(index) for index in ranks]
    known = [(i, record) for i, record in zip(ranks, records, strict=True) if record is not None]
    running = [(index, record) for index, record in known if record.status is Status.RUNNING]
    if _whole(records):
        if not running:
            for index in ranks:
                run.page(index).set_done(index, "")
                touch(state, task._replace(index=index), now)
            run.succeeded += len(ranks)
        return []
    for index, record in known:
        if record.status is Status.HELD:
            record.status = Status.PENDING
            touch(state, task._replace(index=index), now)
    if running:
        return list(_stops(state, task, running))
    _judge(state, run, task, known, now)
    if not any(record.status is Status.FAILED for _, record in known):
        run.gangs.add(task.index // run.spec.gang)
        state.wake = True
    return []


def _whole(records: list[Record | None]) -> bool:
    starts = {
        (record.attempt.epoch, record.attempt.number - rank)
        for rank, record in enumerate(records)
        if record is not None and record.attempt is not None
        and record.status in (Status.RUNNING, Status.HELD)
    }  # fmt: skip
    alive = sum(r is not None and r.status in (Status.RUNNING, Status.HELD) for r in records)
    return alive == len(records) and len(starts) == 1


def _stops(state: State, task: TaskId, running: list[tuple[int, Record]]) -> Iterator[Stop]:
    for index, record in running:
        worker = state.workers[record.worker]
        if worker.session and record.attempt is not None:
            key = (task._replace(index=index), record.attempt)
            yield Stop(worker.name, worker.session, (key,))


def _judge(
    state: State, run: ExperimentRun, task: TaskId, known: list[tuple[int, Record]], now: float
) -> None:
    """Nothing of the gang runs: count what failed, if no node was lost."""
    lost = any(record.blame is Blame.LOST for _, record in known)
    for index, record in known:
        if record.blame in (Blame.FAILED, Blame.PERMANENT) and not lost:
            permanent = record.blame is Blame.PERMANENT
            fail_or_again(state, run, task._replace(index=index), record, now, permanent=permanent)
        elif record.blame is Blame.LOST:
            give_up_poison(state, run, task._replace(index=index), record, now)
        record.blame = Blame.NONE


def next_gang(run: ExperimentRun) -> int | None:
    """The next gang that may start, by number."""
    while (unit := run.gangs.first()) is not None:
        indices = run.gang_of(unit * run.spec.gang)
        busy = any(
            record is not None and record.status is not Status.PENDING
            for record in map(run.record, indices)
        )
        if not busy and not run.is_done(indices[0]):
            return unit
        run.gangs.discard(unit)  # it is put in line again when nothing of it runs
    return None


@dataclass(frozen=True, slots=True)
class Rank:
    """The place of a task in its gang, under torchrun's names."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    master_addr: str
    master_port: int


def ranks(state: State, run: ExperimentRun, task: TaskId) -> dict[int, Rank]:
    """The places of all tasks of a gang that has just been given out, by task.

    A gang of one has no port: whoever runs it takes any.
    """
    indices = run.gang_of(task.index)
    hosts: list[str] = []
    for index in indices:
        record = run.record(index)
        assert record is not None
        worker = state.workers[record.worker]
        hosts.append(dict(worker.capacity.labels).get("host") or worker.name)
    nodes = list(dict.fromkeys(hosts))
    first = run.record(indices[0])
    assert first is not None and first.attempt is not None
    master = state.workers[first.worker]
    port = master.ports.get(task._replace(index=indices[0]))
    if not port and len(indices) > 1:
        port = FALLBACK_PORT + first.attempt.number % 1_000
    return {
        index: Rank(
            rank=rank,
            world_size=len(indices),
            local_rank=hosts[:rank].count(hosts[rank]),
            local_world_size=hosts.count(hosts[rank]),
            node_rank=nodes.index(hosts[rank]),
            master_addr=master.capacity.host or "127.0.0.1",
            master_port=port or 0,
        )
        for rank, index in enumerate(indices)
    }
