"""Why nothing of a workflow starts, in one sentence for people."""

from __future__ import annotations

from collections import Counter

from hyper_scheduler.core.dispatch import at_quota
from hyper_scheduler.core.model import Experiment, Spot
from hyper_scheduler.core.state import SLOT, ExperimentRun, RunState, State, WorkerRun, WorkflowRun
from hyper_scheduler.core.tasks import places_when_empty, wrong_labels


def why_waiting(state: State, workflow: WorkflowRun) -> str:
    """Empty while its tasks start as they come, or while nothing of it is to start."""
    if workflow.state.ended or workflow.stopping is not None:
        return ""
    if workflow.paused:
        return f"paused: `hyper resume {workflow.name.rpartition('/')[2]}` goes on"
    usable = [each for each in state.workers.values() if each.session and not each.draining]
    budget = state.over_budget.get(workflow.name, "")
    if budget and _has_more(workflow) and all(each.capacity.offer for each in usable):
        return budget
    waiting = [run for run in workflow.experiments.values() if _waits(run)]
    if not waiting:
        return ""
    if workflow.name in state.held:
        return "a new scheduler leads: it waits for the workers that it knows of, a few seconds"
    note = budget or state.placement.get(workflow.name, "")
    if not usable:
        gone = len(state.workers) - len(usable)
        rest = f" ({gone} silent or draining)" if gone else ""
        return f"no worker is connected{rest}: {note or '`hyper nodes` lists them'}"
    for run in waiting:
        if text := _no_place(usable, run):
            return f"{run.spec.name}: {text}" + (f"; {note}" if note else "")
    if any(run.running for run in waiting):
        return ""  # it gets on
    if at_quota(state, workflow.tenant):
        slots = state.limits.quota(workflow.tenant).slots
        return f"tenant {workflow.tenant} uses all of its {slots} slots"
    run = waiting[0]
    busy = sum(min(each.load, each.capacity.slots * SLOT) for each in usable) // SLOT
    slots = sum(each.capacity.slots for each in usable)
    if run.spec.gang > 1:
        wanted = f"waits for {run.spec.gang} free slots at once"
        return f"{run.spec.name}: {wanted} ({busy} of {slots} busy)"
    if run.suspects:
        return f"{run.spec.name}: waits for a worker that runs nothing else"
    return f"{run.spec.name}: waits for a free slot ({busy} of {slots} busy)" if busy else ""


def _has_more(workflow: WorkflowRun) -> bool:
    """Whether something is left to do when what runs is done."""
    runs = [run for run in workflow.experiments.values() if not run.state.ended]
    return any(
        run.state is RunState.PENDING or run.succeeded + run.failed + run.running < run.total
        for run in runs
    )


def _waits(run: ExperimentRun) -> bool:
    """Whether some of its tasks could run if there were a place."""
    if run.state is not RunState.RUNNING or run.spec.items:
        return False
    if run.spec.workers and run.slots >= run.spec.workers:
        return False
    if run.spec.gang > 1:
        return run.gangs.first() is not None
    return run.peek() is not None or run.suspect() is not None


def _no_place(usable: list[WorkerRun], run: ExperimentRun) -> str:
    """What no worker has, however idle; empty when some could run it."""
    spec = run.spec
    places: Counter[tuple[str, str, str]] = Counter()
    for each in usable:  # of thousands the first has a place, as a rule
        zone = each.capacity.zone
        places[zone] += places_when_empty(each, spec)
        if places[zone] >= spec.gang:
            return ""
    if largest := max(places.values()):
        what = f"a gang of {spec.gang} needs as many places at once in one zone"
        return f"{what}, and none has more than {largest}"
    kind = [each for each in usable if not wrong_labels(each, spec)]
    if not kind:
        return f"none of {len(usable)} workers has the labels {_labels(spec)}"
    need = spec.hardware
    for what, wanted, most in (
        ("CPUs", need.cpus, max(each.capacity.cpus for each in kind)),
        ("GPUs", need.gpus, max(each.capacity.gpus for each in kind)),
        ("GiB of memory", need.memory_bytes / 2**30,
         max(each.capacity.for_tasks_bytes for each in kind) / 2**30),
    ):  # fmt: skip
        if wanted > most:
            return f"a task needs {wanted:g} {what}, and no worker has more than {most:.4g}"
    return f"none of {len(usable)} workers has all that a task needs at once"


def _labels(spec: Experiment) -> str:
    wanted, need = dict(spec.labels), spec.hardware
    for key, value in (
        ("gpu", need.gpu), ("instance_type", need.instance_type),
        ("cloud", " or ".join(need.clouds)), ("spot", "false" * (need.spot is Spot.NEVER)),
    ):  # fmt: skip
        if value:
            wanted[key] = value
    return ", ".join(f"{key}={value}" for key, value in wanted.items())
