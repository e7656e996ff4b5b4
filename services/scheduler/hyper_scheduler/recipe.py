"""YAML -> `Recipe`. Every mistake is refused with its line and key, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hyper_scheduler.around import AROUND_KEYS, read_around
from hyper_scheduler.core.model import Domain, Experiment, Hardware, Recipe, Sampling
from hyper_scheduler.core.parameters import combinations, count, size
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
MAX_COMBINATIONS = 1 << 62
MAX_COMMAND_BYTES = 65_536
MAX_RETRIES = 1_000

_LATER = {"gang": "gangs", "objective": "objectives"}
_TEMPLATE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z", re.ASCII)

_RECIPE_KEYS = ("version", "name", "experiments", "deadline", "budget", "priority")
_EXPERIMENT_KEYS = (
    "command", "commands", "function", "depends_on", "parameters", "sampling", "samples", "seed",
    "workers", "hardware", "image", "env", "labels", "retries", "timeout", "grace", "workdir",
    *AROUND_KEYS,
)  # fmt: skip
_HARDWARE_KEYS = ("cpus", "memory", "gpu", "gpu_count", "spot")


def parse_recipe(text: str) -> Recipe:
    """Read and check a recipe.

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
    total = sum(count(each) for each in experiments.values())
    if total > MAX_TASKS:
        top["experiments"].fail(f"{total} tasks are more than {MAX_TASKS}")
    return Recipe(
        name=name,
        experiments=_in_order(experiments, nodes),
        deadline_s=_duration(top["deadline"]) if "deadline" in top else None,
        budget_usd=_budget(top["budget"]) if "budget" in top else None,
        priority=_integer(top["priority"], -1000, 1000) if "priority" in top else 0,
    )


def _experiment(key: str, node: Node) -> Experiment:
    _name(node, key)
    for later, what in _LATER.items():
        if isinstance(node.value, dict) and later in node.value:
            node.value[later].fail(f"{what} are not supported yet; remove `{later}`")
    fields = _mapping(node, _EXPERIMENT_KEYS)
    command, function = _work(node, fields)
    parameters = _parameters(fields)
    sampling = _sampling(fields)
    experiment = Experiment(
        name=key,
        command=command,
        function=function,
        depends_on=_depends_on(fields),
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
    )
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
    if text == "tpe":
        node.fail("`tpe` is not supported yet; write grid or random")
    if text not in tuple(Sampling):
        node.fail(f"{text[:40]!r} is not known; write grid or random")
    return Sampling(text)


def _check_sampling(node: Node, fields: Mapping[str, Node], experiment: Experiment) -> None:
    random = experiment.sampling is Sampling.RANDOM
    if random and not experiment.samples:
        node.fail("random sampling needs `samples`, how many tasks to draw")
    if not random and experiment.samples:
        fields["samples"].fail("`samples` needs `sampling: random`; a grid runs them all")
    if combinations(experiment) > MAX_COMBINATIONS:
        fields["parameters"].fail("the product of the parameters is too large")
    for name, domain in experiment.parameters.items():
        if not random and size(domain) is None:
            place = _mapping(fields["parameters"], None)[name]
            place.fail("a continuous parameter needs `sampling: random` and `samples`")


def _check_names(node: Node, fields: Mapping[str, Node], experiment: Experiment) -> None:
    """Every {{name}} of the command must be a parameter."""
    place = fields.get("command") or fields.get("commands") or node
    for match in _TEMPLATE.finditer(experiment.command):
        name = match.group(1).strip()
        if name not in experiment.parameters:
            known = ", ".join(experiment.parameters) or "none"
            place.fail(f"{{{{{name[:80]}}}}} is not a parameter (there are: {known})")


def _depends_on(fields: Mapping[str, Node]) -> tuple[str, ...]:
    if "depends_on" not in fields:
        return ()
    node = fields["depends_on"]
    if isinstance(node.value, dict):
        node.fail("index-wise dependencies are not supported yet; write a list of experiments")
    if not isinstance(node.value, list):
        return (_text(node),)
    names = [_text(each) for each in node.value]
    if len(set(names)) < len(names):
        node.fail("an experiment is named twice")
    return tuple(names)


def _in_order(experiments: dict[str, Experiment], nodes: dict[str, Node]) -> tuple[Experiment, ...]:
    """Topological order, as declared where the graph leaves a choice."""

    def place(name: str) -> Node:
        fields = nodes[name].value
        return fields["depends_on"] if isinstance(fields, dict) else nodes[name]

    for name, experiment in experiments.items():
        for needed in experiment.depends_on:
            if needed not in experiments:
                place(name).fail(f"there is no experiment {needed[:80]!r}")
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
    spot = fields["spot"].value if "spot" in fields else True
    if not isinstance(spot, bool):
        fields["spot"].fail(_wrong_type(fields["spot"], "true or false"))
    return Hardware(
        cpus=_number(fields["cpus"], 0, 100_000) if "cpus" in fields else 0.0,
        memory_bytes=_bytes(fields["memory"]) if "memory" in fields else 0,
        gpus=gpus,
        gpu=kind,
        spot=spot,
    )


def _budget(node: Node) -> float:
    if isinstance(node.value, str):
        amount, _, currency = node.value.strip().partition(" ")
        if currency == "USD" and re.fullmatch(r"[0-9]+(\.[0-9]+)?", amount):
            return float(amount)
        node.fail(f"{node.value[:40]!r} is not a budget; write 40 USD")
    return _number(node, 0, 1e12)
