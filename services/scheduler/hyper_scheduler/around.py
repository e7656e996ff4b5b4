"""What a task finds around it: setup, secrets, inputs, outputs, a checkpoint, the network."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Mapping, Sequence

from hyper.errors import HyperError
from hyper.names import check_part, parse_address
from hyper_scheduler.core.model import Around
from hyper_scheduler.positioned import Node
from hyper_scheduler.readers import duration, mapping, text, wrong_type

AROUND_KEYS = ("setup", "secrets", "registry", "inputs", "outputs", "checkpoint", "network")
MAX_BINDINGS = 32
MAX_SECRETS = 64
MAX_SETUP_BYTES = 65_536
MIN_CHECKPOINT_S = 1.0
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
_TEMPLATE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_SCHEME = "hyper://"
_ONLY_COMMANDS = ("secrets", "registry", "inputs", "outputs", "checkpoint", "network")


def read_around(fields: Mapping[str, Node], parameters: Mapping[str, object]) -> Around:
    """The keys of an experiment that say what its tasks find around them."""
    if "function" in fields:
        for key in _ONLY_COMMANDS:
            if key in fields:
                fields[key].fail(
                    f"`{key}` needs `command`; a function reads and writes datasets through its "
                    "context"
                )
    if "registry" in fields and "image" not in fields:
        fields["registry"].fail("`registry` says how an image is fetched, and there is no `image`")
    if "network" in fields and "image" not in fields:
        fields["network"].fail("`network` is of containers, and there is no `image`")
    inputs = _bindings(fields.get("inputs"), parameters, versions=True)
    outputs = _bindings(fields.get("outputs"), parameters, versions=False)
    path, every_s = _checkpoint(fields.get("checkpoint"))
    _no_overlap(fields, [*(p for p, _ in inputs), *(p for p, _ in outputs), *filter(None, [path])])
    network = fields["network"].value if "network" in fields else False
    if not isinstance(network, bool):
        fields["network"].fail(wrong_type(fields["network"], "true or false"))
    return Around(
        setup=_setup(fields.get("setup")),
        secrets=_secrets(fields.get("secrets")),
        registry=_secret_name(fields["registry"]) if "registry" in fields else "",
        inputs=inputs,
        outputs=outputs,
        checkpoint_path=path,
        checkpoint_every_s=every_s,
        network=network,
    )


def check_tenant(fields: Mapping[str, Node], tenant: str) -> None:
    """Refuse an experiment that names another tenant's datasets; workers refuse its tasks, too."""
    places = [fields["workdir"]] if "workdir" in fields else []
    if places and not text(places[0]).startswith(_SCHEME):
        places = []  # a folder that nobody has uploaded
    for key in ("inputs", "outputs"):
        places += mapping(fields[key], None).values() if key in fields else []
    for place in places:
        if text(place).removeprefix(_SCHEME).partition("/")[0] != tenant:
            place.fail(f"{text(place)[:80]!r} is of another tenant than the workflow, {tenant}")


def _setup(node: Node | None) -> str:
    if node is None:
        return ""
    lines = [text(each) for each in node.value] if isinstance(node.value, list) else [text(node)]
    command = " && ".join(lines)
    if not command.strip():
        node.fail("the setup is empty")
    if len(command.encode()) > MAX_SETUP_BYTES or "\0" in command:
        node.fail(f"the setup is longer than {MAX_SETUP_BYTES} bytes or holds a NUL")
    return command


def _secrets(node: Node | None) -> dict[str, str]:
    """`{VARIABLE: secret}`, or a list of secrets that are named like their variables."""
    if node is None:
        return {}
    if isinstance(node.value, list):
        pairs = [(text(each), each) for each in node.value]
    else:
        pairs = list(mapping(node, None).items())
    if len(pairs) > MAX_SECRETS:
        node.fail(f"more than {MAX_SECRETS} secrets")
    for variable, each in pairs:
        if not _VARIABLE.match(variable) or variable.startswith("HYPER_"):
            each.fail(f"{variable[:80]!r} cannot name a variable; use letters, digits and '_'")
    return {variable: _secret_name(each) for variable, each in pairs}


def _secret_name(node: Node) -> str:
    try:
        return check_part(text(node), "secret")
    except HyperError as error:
        node.fail(error.message)


def _bindings(
    node: Node | None, parameters: Mapping[str, object], *, versions: bool
) -> tuple[tuple[str, str], ...]:
    if node is None:
        return ()
    found = mapping(node, None)
    if len(found) > MAX_BINDINGS:
        node.fail(f"more than {MAX_BINDINGS} of them")
    return tuple(
        (_path(each, path), _address(each, parameters, versions=versions))
        for path, each in found.items()
    )


def _path(node: Node, path: str) -> str:
    """A folder: absolute, or relative to where the command runs."""
    clean = posixpath.normpath(path)
    if path.startswith("//") or clean in ("/", ".", "..") or clean.startswith("../"):
        node.fail(f"{path[:80]!r} is not a folder of the task's own; write /in/data or data")
    if not path.isprintable() or len(path.encode()) > 1024 or ":" in path:
        node.fail(f"{path[:80]!r} cannot be a path here; use printable characters without ':'")
    return clean


def _address(node: Node, parameters: Mapping[str, object], *, versions: bool) -> str:
    """hyper://tenant/name[@version], in which {{parameter}} may stand for a part of a name."""
    address = text(node)
    for match in _TEMPLATE.finditer(address):
        if match[1] not in parameters:
            known = ", ".join(parameters) or "none"
            node.fail(f"{{{{{match[1][:80]}}}}} is not a parameter (there are: {known})")
    sample = _TEMPLATE.sub("1", address)
    try:
        parsed = parse_address(sample)
    except HyperError as error:
        node.fail(error.message)
    if parsed.array is not None:
        node.fail("files of a dataset are meant: write hyper://tenant/name, without an array")
    if parsed.version is not None and not versions:
        node.fail("outputs become a new version: write hyper://tenant/name, without '@'")
    if "{{" in address.removeprefix(_SCHEME).partition("/")[0]:
        node.fail("the tenant cannot be a parameter")
    return address


def _checkpoint(node: Node | None) -> tuple[str, float]:
    if node is None:
        return "", 0.0
    fields = mapping(node, ("path", "every"))
    if "path" not in fields:
        node.fail("`path` is missing; write checkpoint: {path: ckpt, every: 5m}")
    every_s = duration(fields["every"]) if "every" in fields else 300.0
    if every_s < MIN_CHECKPOINT_S:
        fields["every"].fail(f"a checkpoint at most every {MIN_CHECKPOINT_S:g} s")
    return _path(fields["path"], text(fields["path"])), every_s


def _no_overlap(fields: Mapping[str, Node], paths: Sequence[str]) -> None:
    """No folder may be another one, or lie in it."""
    place = next((fields[k] for k in ("outputs", "checkpoint", "inputs") if k in fields), None)
    ordered = sorted(paths, key=lambda path: path.split("/"))
    for one, other in itertools.pairwise(ordered):
        if place is not None and (other == one or other.startswith(f"{one}/")):
            place.fail(f"{other} is {one} or lies in it; give each a folder of its own")
