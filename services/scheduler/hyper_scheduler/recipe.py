"""YAML -> `Recipe`. Every mistake is refused with its line and key, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec

from hyper_scheduler.around import AROUND_KEYS, check_tenant, read_around
from hyper_scheduler.core.model import (
    Asha,
    Domain,
    Experiment,
    Hardware,
    Items,
    Objective,
    Recipe,
    Sampling,
    Spot,
)
from hyper_scheduler.core.parameters import MAX_COMBINATIONS, combinations, count, size
from hyper_scheduler.domains import read_domain
from hyper_scheduler.positioned import Node, fail, read
from hyper_scheduler.readers import amount_of_memory as _bytes
from hyper_scheduler.readers import duration as _duration
from hyper_scheduler.readers import integer as _integer
from hyper_scheduler.readers import mapping as _mapping
from hyper_scheduler.readers import name as _name
from hyper_scheduler.readers import number as _number
from hyper_scheduler.readers import strings as _strings
from hyper_scheduler.readers import text as _text
from hyper_scheduler.readers import wrong_type as _wrong_type

MAX_EXPERIMENTS = 1_000
MAX_TASKS = 100_000_000
MAX_COMMAND_BYTES = 65_536
MAX_RETRIES = 1_000

MAX_GANG = 10_000
MAX_TPE_SAMPLES = 10_000
_TEMPLATE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z", re.ASCII)

_RECIPE_KEYS = ("version", "name", "experiments", "deadline", "budget", "priority")
_EXPERIMENT_KEYS = (
    "command", "commands", "function", "depends_on", "parameters", "sampling", "samples", "seed",
    "workers", "hardware", "image", "env", "labels", "retries", "timeout", "grace", "workdir",
    "gang", "objective", *AROUND_KEYS,
)  # fmt: skip
_HARDWARE_KEYS = (
    "cpus", "memory", "gpu", "gpu_count", "spot", "instance_type", "clouds", "max_price", "data",
)  # fmt: skip


def parse_recipe(text: str, tenant: str = "") -> Recipe:
    """Read and check a recipe.

    Args:
        text: its YAML.
        tenant: whose it is to be: then it may name no dataset of another.

    Raises:
        InvalidArgumentError: INVALID_RECIPE, with `line` and `key` in its metadata.
    """
    root = read(text)
    top = _mapping(root, _RECIPE_KEYS)
    if "version" in top and top["version"].value != 1:
        top["version"].fail("only version 1 is known; write `version: 1`")
    for key in ("name", "experiments"):
        if key not in top:
            fail(f"`{key}` is missing", line=root.line, key=key)
    name = _name(top["name"], _text(top["name"]))
    nodes = _mapping(top["experiments"], None)
    if not nodes:
        top["experiments"].fail("there is no experiment; name at least one")
    if len(nodes) > MAX_EXPERIMENTS:
        top["experiments"].fail(f"more than {MAX_EXPERIMENTS} experiments; use parameters")
    experiments = {key: _experiment(key, node) for key, node in nodes.items()}
    for node in nodes.values() if tenant else ():
        check_tenant(_mapping(node, None), tenant)
    total = sum(count(each) * each.gang for each in experiments.values())
    if total > MAX_TASKS:
        top["experiments"].fail(f"{total} tasks are more than {MAX_TASKS}")
    return Recipe(
        name=name,
        experiments=_in_order(experiments, nodes),
        deadline_s=_duration(top["deadline"]) if "deadline" in top else None,
        budget_usd=_usd(top["budget"], "in all") if "budget" in top else None,
        priority=_integer(top["priority"], -1000, 1000) if "priority" in top else 0,
    )


def _experiment(key: str, node: Node) -> Experiment:
    _name(node, key)
    fields = _mapping(node, _EXPERIMENT_KEYS)
    command, function = _work(node, fields)
    parameters = _parameters(fields)
    sampling = _sampling(fields)
    depends_on, each = _depends_on(fields, parameters)
    experiment = Experiment(
        name=key,
        command=command,
        function=function,
        depends_on=depends_on,
        each=each,
        parameters=parameters,
        sampling=sampling,
        samples=_integer(fields["samples"], 1, MAX_TASKS) if "samples" in fields else 0,
        seed=_integer(fields["seed"], 0, 2**63 - 1) if "seed" in fields else 0,
        workers=_integer(fields["workers"], 1, 1_000_000) if "workers" in fields else 0,
        hardware=_hardware(fields["hardware"]) if "hardware" in fields else Hardware(),
        image=_text(fields["image"]) if "image" in fields else "",
        env=_strings(fields["env"]) if "env" in fields else {},
        labels=_strings(fields["labels"]) if "labels" in fields else {},
        retries=_integer(fields["retries"], 0, MAX_RETRIES) if "retries" in fields else 3,
        timeout_s=_duration(fields["timeout"]) if "timeout" in fields else None,
        grace_s=_duration(fields["grace"], zero=True) if "grace" in fields else 10.0,
        workdir=_text(fields["workdir"]) if "workdir" in fields else "",
        around=read_around(fields, parameters),
        gang=_integer(fields["gang"], 1, MAX_GANG) if "gang" in fields else 1,
        objective=_objective(fields["objective"]) if "objective" in fields else None,
        ranked="gang" in fields,
    )
    _check_gang(fields, experiment)
    _check_sampling(node, fields, experiment)
    _check_names(node, fields, experiment)
    return experiment


def _work(node: Node, fields: Mapping[str, Node]) -> tuple[str, str]:
    """The command or the function: exactly one of them."""
    given = [key for key in ("command", "commands", "function") if key in fields]
    if not given:
        node.fail("`command` or `function` is missing; write one of them")
    if len(given) > 1:
        fields[given[1]].fail(f"`{given[0]}` and `{given[1]}` are both given; keep one")
    source = fields[given[0]]
    if given[0] == "function":
        function = _text(source)
        if not _FUNCTION.match(function):
            source.fail(f"{function[:80]!r} is not a function; write package.module:callable")
        return "", function
    if isinstance(source.value, list):
        command = " && ".join(_text(each) for each in source.value)
    else:
        command = _text(source)
    if not command.strip():
        source.fail("the command is empty")
    if len(command.encode()) > MAX_COMMAND_BYTES or "\0" in command:
        source.fail(f"the command is longer than {MAX_COMMAND_BYTES} bytes or holds a NUL")
    return command, ""


def _parameters(fields: Mapping[str, Node]) -> dict[str, Domain]:
    if "parameters" not in fields:
        return {}
    result: dict[str, Domain] = {}
    for name, node in _mapping(fields["parameters"], None).items():
        if not _IDENTIFIER.match(name):
            node.fail(f"{name[:80]!r} cannot name a parameter; use letters, digits and '_'")
        if name == "context" and "function" in fields:
            node.fail("`context` is the name of a function's first argument; choose another")
        result[name] = read_domain(node)
    return result


def _sampling(fields: Mapping[str, Node]) -> Sampling:
    if "sampling" not in fields:
        return Sampling.GRID
    node = fields["sampling"]
    text = _text(node)
    if text not in tuple(Sampling):
        node.fail(f"{text[:40]!r} is not known; write grid, random or tpe")
    if text == Sampling.TPE and find_spec("optuna") is None:
        node.fail("`tpe` needs Optuna where the scheduler runs: pip install optuna; or use random")
    return Sampling(text)


def _check_sampling(node: Node, fields: Mapping[str, Node], experiment: Experiment) -> None:
    grid = experiment.sampling is Sampling.GRID
    if not grid and not experiment.samples:
        node.fail(f"{experiment.sampling} sampling needs `samples`, how many tasks to draw")
    if grid and experiment.samples:
        fields["samples"].fail(
            "`samples` needs `sampling: random` or `tpe`; a grid runs them all"
        )  # fmt: skip
    if combinations(experiment) > MAX_COMBINATIONS:
        fields["parameters"].fail("the product of the parameters is too large")
    for name, domain in experiment.parameters.items():
        place = _mapping(fields["parameters"], None)[name]
        if grid and size(domain) is None:
            place.fail("a continuous parameter needs `sampling: random` or `tpe`, and `samples`")
        if isinstance(domain, Items) and experiment.sampling is Sampling.TPE:
            place.fail("`tpe` chooses among values that the recipe names; use grid or random")
    if experiment.sampling is Sampling.TPE:
        if experiment.objective is None:
            node.fail("`tpe` needs `objective: {metric: ..., goal: maximize or minimize}`")
        if experiment.samples > MAX_TPE_SAMPLES:
            fields["samples"].fail(f"`tpe` draws at most {MAX_TPE_SAMPLES} samples; use random")


def _objective(node: Node) -> Objective:
    fields = _mapping(node, ("metric", "goal", "early_stopping"))
    if "metric" not in fields:
        node.fail("`metric` is missing: the name under which tasks report it")
    goal = _text(fields["goal"]) if "goal" in fields else "maximize"
    if goal not in ("maximize", "minimize"):
        fields["goal"].fail(f"{goal[:40]!r} is not known; write maximize or minimize")
    asha: Asha | None = None
    if "early_stopping" in fields:
        asha = _asha(fields["early_stopping"])
    return Objective(_text(fields["metric"]), goal == "maximize", asha)


def _asha(node: Node) -> Asha:
    if node.value == "asha":
        return Asha()
    fields = _mapping(node, ("asha",)) if isinstance(node.value, dict) else {}
    if "asha" not in fields:
        node.fail("write `asha`, or {asha: {min_steps: 1, reduction: 3}}")
    inner = _mapping(fields["asha"], ("min_steps", "reduction"))
    return Asha(
        min_steps=_integer(inner["min_steps"], 1, 10**9) if "min_steps" in inner else 1,
        reduction=_integer(inner["reduction"], 2, 100) if "reduction" in inner else 3,
    )


def _check_gang(fields: Mapping[str, Node], experiment: Experiment) -> None:
    if experiment.gang == 1:
        return
    if experiment.objective is not None:
        fields["objective"].fail("an objective of gangs is not known; let `gang` be 1")
    if experiment.workers and experiment.workers < experiment.gang:
        fields["workers"].fail(
            f"a gang of {experiment.gang} needs as many at once; remove `workers`, or raise it"
        )


def _check_names(node: Node, fields: Mapping[str, Node], experiment: Experiment) -> None:
    """Every {{name}} of the command must be a parameter."""
    place = fields.get("command") or fields.get("commands") or node
    for match in _TEMPLATE.finditer(experiment.command):
        name = match.group(1).strip()
        if name not in experiment.parameters:
            known = ", ".join(experiment.parameters) or "none"
            place.fail(f"{{{{{name[:80]}}}}} is not a parameter (there are: {known})")


def _depends_on(
    fields: Mapping[str, Node], parameters: Mapping[str, Domain]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All experiments that it depends on, and those of them that it follows task by task."""
    names: list[str] = []
    each: list[str] = []
    node = fields.get("depends_on")
    if node is not None and isinstance(node.value, dict):
        for name, how in node.value.items():
            if how.value not in ("each", "all"):
                how.fail("write `each` to follow it task by task, or `all` to wait for its end")
            names.append(name)
            each += [name] if how.value == "each" else []
    elif node is not None:
        items = node.value if isinstance(node.value, list) else [node]
        names = [_text(item) for item in items]
    if node is not None and len(set(names)) < len(names):
        node.fail("an experiment is named twice")
    for parameter, domain in parameters.items():
        if isinstance(domain, Items):
            if domain.experiment in each:
                place = _mapping(fields["parameters"], None)[parameter]
                place.fail(f"its items are known when all of {domain.experiment} is done, so it "
                           "cannot follow it task by task; write `all`")  # fmt: skip
            names += [domain.experiment] if domain.experiment not in names else []
    return tuple(names), tuple(each)


def _in_order(experiments: dict[str, Experiment], nodes: dict[str, Node]) -> tuple[Experiment, ...]:
    """Topological order, as declared where the graph leaves a choice."""

    def place(name: str) -> Node:
        fields = nodes[name].value
        if not isinstance(fields, dict):
            return nodes[name]
        return fields.get("depends_on") or fields.get("parameters") or nodes[name]

    for name, experiment in experiments.items():
        for needed in experiment.depends_on:
            if needed not in experiments:
                place(name).fail(f"there is no experiment {needed[:80]!r}")
        for needed in experiment.each:
            _check_each(place(name), experiment, experiments[needed])
    done: dict[str, Experiment] = {}
    waiting = dict(experiments)
    while waiting:
        free = [name for name, each in waiting.items() if set(each.depends_on) <= done.keys()]
        if not free:
            cycle = _cycle(waiting)
            place(cycle[0]).fail(
                f"experiments depend on each other in a cycle: {' -> '.join(cycle)}"
            )
        done[free[0]] = waiting.pop(free[0])
    return tuple(done.values())


def _check_each(place: Node, experiment: Experiment, needed: Experiment) -> None:
    known = not experiment.items and not needed.items  # else when the items are
    if known and count(experiment) != count(needed):
        place.fail(
            f"it has {count(experiment)} tasks and follows {needed.name} task by task, which has "
            f"{count(needed)}; give both the same parameters, or write `all`"
        )


def _cycle(waiting: Mapping[str, Experiment]) -> list[str]:
    """A closed walk among experiments that all wait for another of them."""
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(next(each for each in waiting[path[-1]].depends_on if each in waiting))
    return path[path.index(path[-1]) :]


def _hardware(node: Node) -> Hardware:
    fields = _mapping(node, _HARDWARE_KEYS)
    gpus, kind = 0, ""
    if "gpu" in fields:
        value = fields["gpu"].value
        if isinstance(value, str):
            gpus, kind = 1, value
        elif isinstance(value, bool):
            gpus = int(value)
        else:
            gpus = _integer(fields["gpu"], 0, 1024)
    if "gpu_count" in fields:
        gpus = _integer(fields["gpu_count"], 0, 1024)
    clouds: tuple[str, ...] = ()
    if "clouds" in fields:
        listed = fields["clouds"].value
        clouds = tuple(map(_text, listed if isinstance(listed, list) else [fields["clouds"]]))
    return Hardware(
        cpus=_number(fields["cpus"], 0, 100_000) if "cpus" in fields else 0.0,
        memory_bytes=_bytes(fields["memory"]) if "memory" in fields else 0,
        gpus=gpus,
        gpu=kind,
        spot=_spot(fields["spot"]) if "spot" in fields else Spot.ONLY,
        instance_type=_text(fields["instance_type"]) if "instance_type" in fields else "",
        clouds=clouds,
        max_usd_h=_usd(fields["max_price"], "an hour") if "max_price" in fields else None,
        data_bytes=_bytes(fields["data"]) if "data" in fields else 0,
    )


def _spot(node: Node) -> Spot:
    if isinstance(node.value, bool):
        return Spot.ONLY if node.value else Spot.NEVER
    if node.value == Spot.PREFER:
        return Spot.PREFER
    return node.fail(_wrong_type(node, "true, false or prefer"))


def _usd(node: Node, what: str) -> float:
    if isinstance(node.value, str):
        amount, _, currency = node.value.strip().partition(" ")
        if currency == "USD" and re.fullmatch(r"[0-9]+(\.[0-9]+)?", amount):
            return float(amount)
        node.fail(f"{node.value[:40]!r} is not an amount of money {what}; write 40 USD")
    return _number(node, 0, 1e12)
