"""What a recipe says, as frozen values. `hyper_scheduler.recipe` makes them from YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

# What YAML and JSON can say.
Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]


class Sampling(StrEnum):
    """How tasks are drawn from the parameters."""

    GRID = "grid"
    RANDOM = "random"
    TPE = "tpe"  # by what earlier tasks have come to: drawn one by one, stored with their page


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these values, each held as JSON text; a constant is a choice of one."""

    values_json: tuple[str, ...]

    @staticmethod
    def of(values: list[Value]) -> Choice:
        """A choice between plain values."""
        return Choice(tuple(json.dumps(value) for value in values))


@dataclass(frozen=True, slots=True)
class Steps:
    """`start`, `start + step`, ... in all `count` numbers."""

    start: int | float
    step: int | float
    count: int


@dataclass(frozen=True, slots=True)
class Uniform:
    """Any number from low to high, all equally likely."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LogUniform:
    """Any number from low to high, its logarithm equally likely."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Items:
    """The items that an earlier experiment's tasks have left; a `Choice` once they are known.

    Args:
        experiment: which one; all of it is done before.
        key: of each result, which is a mapping then; empty: the result itself.
    """

    experiment: str
    key: str = ""


Domain = Choice | Steps | Uniform | LogUniform | Items


@dataclass(frozen=True, slots=True)
class Asha:
    """Asynchronous successive halving (Li et al., MLSys 2020, arXiv 1810.05934), stopping variant.

    At steps `min_steps`, `min_steps * reduction`, ... a task goes on only if its value is among
    the best 1 / `reduction` of all that have reached that step.
    """

    min_steps: int = 1
    reduction: int = 3


@dataclass(frozen=True, slots=True)
class Objective:
    """What makes one task better than another: a metric that it reports or returns."""

    metric: str
    maximize: bool = True
    asha: Asha | None = None


class Spot(StrEnum):
    """On which machines: those that may vanish, others, or those that may where there are any."""

    ONLY = "true"  # on-demand where it costs no more, and before a deadline that would be missed
    PREFER = "prefer"
    NEVER = "false"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What one task needs of its worker; zero asks for nothing in particular.

    Args:
        spot: on which kind of machines.
        instance_type: as a cloud names it; "": any.
        clouds: on which; none: on any.
        max_usd_h: of a machine; None: any price.
        data_bytes: that a task reads from storage and writes there.
    """

    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: int = 0
    gpu: str = ""
    spot: Spot = Spot.ONLY
    instance_type: str = ""
    clouds: tuple[str, ...] = ()
    max_usd_h: float | None = None
    data_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Around:
    """What a task finds around it.

    Args:
        setup: shell commands, once a node and content.
        secrets: environment variable -> name of the secret.
        registry: name of the secret ("user:password") that fetches the image.
        inputs: (folder, address of a dataset); `{{parameter}}` may stand in the address.
        outputs: the same; committed with the attempt.
        checkpoint_path: folder that is kept while the task runs; "": none.
        checkpoint_every_s: how often.
        network: whether a container has one.
    """

    setup: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict)
    registry: str = ""
    inputs: tuple[tuple[str, str], ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()
    checkpoint_path: str = ""
    checkpoint_every_s: float = 0.0
    network: bool = False


@dataclass(frozen=True, slots=True)
class Experiment:
    """One node of the DAG: a command or function over many parameters."""

    name: str
    command: str = ""
    function: str = ""
    depends_on: tuple[str, ...] = ()
    each: tuple[str, ...] = ()  # of `depends_on`: task by task, not all before any
    parameters: Mapping[str, Domain] = field(default_factory=dict)
    sampling: Sampling = Sampling.GRID
    samples: int = 0
    seed: int = 0
    workers: int = 0  # most tasks at once; 0: no limit
    hardware: Hardware = Hardware()
    image: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)  # a worker must have them all
    retries: int = 3
    timeout_s: float | None = None
    grace_s: float = 10.0
    workdir: str = ""
    around: Around = Around()
    gang: int = 1  # tasks with the same parameters that start, restart and succeed together
    objective: Objective | None = None
    ranked: bool = False  # tasks hear their place in the gang, also where `gang` is 1

    @property
    def items(self) -> dict[str, Items]:
        """Parameters whose values are not known yet."""
        return {name: each for name, each in self.parameters.items() if isinstance(each, Items)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A valid recipe: names resolve, the graph has no cycle, no experiment is empty."""

    name: str
    experiments: tuple[Experiment, ...]  # in topological order
    deadline_s: float | None = None
    budget_usd: float | None = None
    priority: int = 0


class Attempt(NamedTuple):
    """One run of one task; greater is newer, also across schedulers."""

    epoch: int
    number: int


class TaskId(NamedTuple):
    """Which task: the workflow's resource name, the experiment, the index."""

    workflow: str
    experiment: str
    index: int  # type: ignore[assignment]  # hides tuple's method, which nobody needs

    @property
    def name(self) -> str:
        """The resource name."""
        return f"{self.workflow}/experiments/{self.experiment}/tasks/{self.index}"
