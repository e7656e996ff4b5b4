"""What experiments need of machines, what is known of offers, and what a plan is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hyper_scheduler.core.model import Hardware
from hyper_scheduler.placement.hazard import Hazard


@dataclass(frozen=True, slots=True)
class Demand:
    """An experiment that has tasks to run.

    Args:
        workflow: its resource name.
        experiment: within it.
        tasks: that have not ended, a gang's counted each.
        limit: machines' slots at most at once; 0: no bound.
        hardware: of one task.
        gang: tasks that start together, in one zone.
        task_s: what a task takes on the reference machine; 0: not known.
        step_s: work that is lost with a machine: a task, or a checkpoint's interval.
        left_s: until the deadline; infinite: none.
        deadline_s: from the workflow's start to its deadline.
        egress_gb: that a task moves between storage and its machine.
        total: tasks in all.
        labels: that its machines must have.
        paused: nothing new starts; what runs goes on.
    """

    workflow: str
    experiment: str
    tasks: int
    total: int
    hardware: Hardware
    limit: int = 0
    gang: int = 1
    task_s: float = 0.0
    step_s: float = 0.0
    left_s: float = math.inf
    deadline_s: float = math.inf
    egress_gb: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    paused: bool = False


_UNSEEN = Hazard()


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one offer.

    Args:
        hazard: of its spot machines.
        throughput: tasks an hour of one slot; 0: not measured.
        cold_start_h: from the launch to the first task.
    """

    hazard: Hazard = _UNSEEN
    throughput: float = 0.0
    cold_start_h: float = 0.05


@dataclass(frozen=True, slots=True)
class Held:
    """A machine of the experiment that is there or on its way; one that is drained is not held."""

    name: str
    offer: str
    spot: bool
    ready: bool
    age_h: float
    busy: int = 0  # tasks that it runs


@dataclass(frozen=True, slots=True)
class Row:
    """One way to buy one offer, as people see it."""

    offer: str
    spot: bool
    usd_h: float
    usd_per_task_h: float
    machines: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for one experiment."""

    launches: tuple[tuple[str, bool], ...] = ()  # offer, spot
    ends: tuple[str, ...] = ()  # machines that are drained, and terminated when they run nothing
    moved: frozenset[str] = frozenset()  # of these: their tasks go on elsewhere from checkpoints
    rows: tuple[Row, ...] = ()
    message: str = ""


NO_AGENT = "NoAgent"  # a machine came, its agent did not


def refusal_key(offer: str, *, spot: bool) -> str:
    """Under which refusals are remembered."""
    return f"{offer}/{'spot' if spot else 'on-demand'}"
