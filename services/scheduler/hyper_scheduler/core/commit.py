"""Making changes durable: one commit at a time, everything that came meanwhile in the next.

Acknowledgements and answers wait in the commit that makes what they speak of durable.
"""

from __future__ import annotations

import json
from typing import Any

from hyper_scheduler.core.commands import Ack, Command, Commit, Object, Put, Reply
from hyper_scheduler.core.following import follow
from hyper_scheduler.core.pages import encode_page
from hyper_scheduler.core.retention import discard_forgotten, keep
from hyper_scheduler.core.state import Pending, Request, RunState, State, WorkflowRun

FEW_RESULTS = 256
PATIENCE = 5.0


def flush(state: State, now: float) -> list[Command]:
    """Begin a commit if one is due."""
    pending = state.pending
    if state.committing is not None:
        return []
    if not pending.dirty:
        acks = _acks(state, pending)
        pending.acks = {}
        return acks
    waited = now - pending.since if pending.since is not None else 0.0
    # a step back of the clock must not hold a commit up
    gather_s = state.limits.gather_s
    if 0 < pending.results < FEW_RESULTS:
        gather_s *= PATIENCE  # nobody waits, and a commit costs as much as a hundred results
    if not pending.urgent and 0.0 <= waited < gather_s:
        return []
    state.committing, state.pending = pending, Pending()
    state.commits += 1
    return [_build(state, pending)]


def committed(state: State, number: int) -> list[Command]:
    """A commit is durable: let everybody who waited for it know."""
    done = state.committing
    if done is None or number != state.commits:
        return []
    state.committing = None
    state.wake = True
    for trial in done.trials:
        trial.durable = True
    for key, bits in done.bitmaps.items():
        page = state.workflows[key.workflow].experiments[key.experiment].pages[key.page]
        new = bits & ~page.durable
        page.durable = bits
        follow(state, key, new)
    for workflow, experiment in done.succeeded:
        state.workflows[workflow].experiments[experiment].durable = True
        state.unsettled[workflow] = None
    for name, (generation, run_state) in done.generations.items():
        workflow_run = state.workflows[name]
        workflow_run.stored = generation
        if workflow_run.begun <= generation:  # else it was retried meanwhile
            workflow_run.durable = run_state
            if run_state.ended:
                keep(state, workflow_run)
        state.unsettled[name] = state.touched[name] = None
    answers = [Reply(request) for request in done.requests]
    return [*_acks(state, done), *answers, *discard_forgotten(state, done.forgotten)]


def _acks(state: State, pending: Pending) -> list[Command]:
    return [
        Ack(name, session, sequence)
        for name, (session, sequence) in pending.acks.items()
        if name in state.workers and state.workers[name].session == session
    ]


def _build(state: State, pending: Pending) -> Commit:
    objects: list[Object] = []
    garbage: list[str] = []
    atoms: list[tuple[Put, ...]] = []
    for key in pending.pages:
        workflow = state.workflows[key.workflow]
        run = workflow.experiments[key.experiment]
        page = run.pages[key.page]
        if run.feeds:
            pending.bitmaps[key] = int.from_bytes(page.done, "little")
        pending.trials += [trial for trial in page.trials.values() if not trial.durable]
        state.segments += bool(page.fresh)
        folder = results_folder(key.workflow, key.experiment, key.page)
        before = list(page.fresh)
        cut = page.cut_segment(f"{state.epoch:x}-{state.segments:x}")
        if cut is not None:
            name, data, replaced = cut
            pending.lines[key] = before
            objects.append(Object(f"{folder}/{name}.jsonl", data))
            if replaced:
                garbage.append(f"{folder}/{replaced}.jsonl")
        path = f"{workflow_path(key.workflow)}/pages/{key.experiment}/{key.page:06d}"
        atoms.append((Put(path, encode_page(page)),))
    atoms += [_head_atom(state, pending, name) for name in pending.heads]
    alone = [each for each in pending.requests if each.name not in pending.heads]
    atoms += [(_request_put(each),) for each in alone]
    for worker, draining in pending.drained.items():
        atoms.append((Put(f"drained/{worker}", b"{}" if draining else None),))
    for name in pending.forgotten:
        gone = Put(f"{workflow_path(name)}/", None, below=True)
        atoms.append((gone, Put(_note_path(name), b"{}")))
    atoms += [(Put(_note_path(name), None),) for name in pending.discarded]
    atoms += [(Put(f"requests/{request_id}", None),) for request_id in pending.dropped]
    return Commit(state.commits, tuple(objects), tuple(atoms), tuple(garbage))


def _head_atom(state: State, pending: Pending, name: str) -> tuple[Put, ...]:
    """The head with the answers to the requests that changed it: one transaction."""
    workflow = state.workflows[name]
    path = workflow_path(name)
    puts = [Put(f"{path}/head", encode_head(workflow))]
    if name in pending.recipes:
        puts.append(Put(f"{path}/recipe", workflow.recipe_yaml.encode()))
    puts += [_request_put(each) for each in pending.requests if each.name == name]
    pending.succeeded += [
        (name, key)
        for key, run in workflow.experiments.items()
        if run.state is RunState.SUCCEEDED and not run.durable
    ]
    pending.generations[name] = (workflow.generation, workflow.state)
    return tuple(puts)


def _request_put(request: Request) -> Put:
    value = json.dumps({"kind": request.kind, "name": request.name}).encode()
    return Put(f"requests/{request.request_id}", value, expires=True)


def workflow_path(name: str) -> str:
    """`tenants/{t}/workflows/{w}` -> where its keys are."""
    _, tenant, _, workflow = name.split("/")
    return f"workflows/{tenant}/{workflow}"


def _note_path(name: str) -> str:
    """Where it is noted that a forgotten workflow's results are to be deleted."""
    return f"forgotten/{workflow_path(name).removeprefix('workflows/')}"


def results_root(workflow: str) -> str:
    """Where all result objects of a workflow are."""
    return f"results/{workflow_path(workflow)}/"


def results_folder(workflow: str, experiment: str, page: int) -> str:
    """Where the result objects of a page are."""
    return f"{results_root(workflow)}{experiment}/{page:06d}"


def encode_head(workflow: WorkflowRun) -> bytes:
    """The head as etcd holds it; what pages tell is left out."""
    value: dict[str, Any] = {
        "name": workflow.name,
        "create_time": workflow.create_time,
        "end_time": workflow.end_time,
        "state": workflow.state.value,
        "stopping": None if workflow.stopping is None else workflow.stopping.value,
        "paused": workflow.paused,
        "message": workflow.message,
        "generation": workflow.generation,
        "experiments": {
            name: {
                "state": run.state.value,
                "total": run.total,
                "start_time": run.start_time,
                "end_time": run.end_time,
                "lost": run.lost,
                "message": run.message,
            }
            for name, run in workflow.experiments.items()
        },
    }
    return json.dumps(value, separators=(",", ":")).encode()
