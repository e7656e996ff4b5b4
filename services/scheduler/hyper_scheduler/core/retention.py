"""Workflows that have ended stay for people to see, and are forgotten in time.

Without a bound etcd, the leader's memory and the time a new leader needs would grow with every
workflow that ever ran. One transaction takes the keys of a workflow away and leaves a note that
its results are to be deleted; only then the shell deletes them, so that a deposed leader never
deletes what another has retried. The note goes last: results that a dead leader has left behind
are deleted by the next.
"""

from __future__ import annotations

from hyper_scheduler.core.commands import Command, Discard
from hyper_scheduler.core.events import Discarded
from hyper_scheduler.core.state import State, WorkflowRun

AT_ONCE = 16  # forgotten in one step


def keep(state: State, workflow: WorkflowRun) -> None:
    """It has durably ended: from now on its time runs."""
    pages = sum(len(run.pages) for run in workflow.experiments.values())
    state.kept.setdefault(workflow.tenant, {})[workflow.name] = pages


def keep_no_longer(state: State, workflow: WorkflowRun) -> None:
    """It runs again, or is forgotten."""
    mine = state.kept.get(workflow.tenant, {})
    mine.pop(workflow.name, None)
    if not mine:
        state.kept.pop(workflow.tenant, None)


def forget_old(state: State, now: float) -> None:
    """Forget what has been kept for too long, or is too much."""
    for _ in range(AT_ONCE):
        name = _too_old(state, now) or _too_many(state, now)
        if not name:
            return
        _forget(state, state.workflows[name], now)


def _too_old(state: State, now: float) -> str:
    """A workflow that ended longer ago than they are kept; empty: none."""
    limit_s = state.limits.kept_s
    if limit_s:
        for names in state.kept.values():
            name = next(iter(names))
            if now - state.workflows[name].end_time > limit_s:
                return name
    return ""


def _too_many(state: State, now: float) -> str:
    """One to forget because there are too many: the oldest of the tenant that has most of them."""
    limits = state.limits
    workflows = sum(map(len, state.kept.values()))
    pages = sum(sum(names.values()) for names in state.kept.values())
    if limits.kept_workflows and workflows > limits.kept_workflows:
        tenants = sorted(state.kept, key=lambda name: -len(state.kept[name]))
    elif limits.kept_pages and pages > limits.kept_pages:
        tenants = sorted(state.kept, key=lambda name: -sum(state.kept[name].values()))
    else:
        return ""
    for tenant in tenants:
        name = next(iter(state.kept[tenant]))
        if now - state.workflows[name].end_time > limits.kept_least_s:
            return name
    return ""


def _forget(state: State, workflow: WorkflowRun, now: float) -> None:
    name, pending = workflow.name, state.pending
    keep_no_longer(state, workflow)
    del state.workflows[name]
    state.held.pop(name, None)
    for task in [task for task in state.broken if task.workflow == name]:
        del state.broken[task]
    state.discarding[name] = None
    pending.forgotten.append(name)
    if pending.since is None:
        pending.since = now
    state.touched[name] = None


def discard_forgotten(state: State, names: list[str]) -> list[Command]:
    """It is durable that they are gone: their results may go."""
    return [Discard(name) for name in names if name in state.discarding]


def discarded(state: State, event: Discarded) -> list[Command]:
    """Nothing of a forgotten workflow is left: neither is the note."""
    if event.workflow in state.discarding:
        del state.discarding[event.workflow]
        state.pending.discarded.append(event.workflow)
        if state.pending.since is None:
            state.pending.since = event.now
    return []
