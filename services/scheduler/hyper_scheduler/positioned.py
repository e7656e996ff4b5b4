"""YAML from strangers, read into plain values that remember their line.

Scalars follow YAML 1.2's core schema, so `1e-3` is a number and `on` is text. Refused before any
memory is spent on it: huge documents, deep nesting, aliases that multiply, tags, duplicate keys.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NoReturn

import yaml

from hyper.errors import InvalidArgumentError
from hyper_scheduler.core.model import Value

MAX_BYTES = 262_144  # etcd keeps the text in one value
MAX_DEPTH = 24
MAX_NODES = 50_000

_INT = re.compile(r"[-+]?[0-9]+\Z|0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")
_CONSTANTS: dict[str, Value] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
# The C parser where libyaml is there; both keep positions.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Node:
    """A value with the line it stands on and the path of keys that leads to it."""

    value: bool | int | float | str | list[Node] | dict[str, Node] | None
    line: int
    path: str

    def plain(self) -> Value:
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def fail(self, problem: str) -> NoReturn:
        """Raise INVALID_RECIPE at this place."""
        fail(problem, line=self.line, key=self.path)


def fail(problem: str, *, line: int, key: str) -> NoReturn:
    """Raise INVALID_RECIPE with a sentence that names line and key.

    Raises:
        InvalidArgumentError: always.
    """
    where = f"line {line}, {key}" if key else f"line {line}"
    raise InvalidArgumentError(
        f"recipe: {where}: {problem}",
        reason="INVALID_RECIPE",
        metadata={"line": str(line), "key": key},
        field="recipe_yaml",
    )


def read(text: str, what: str = "recipe", needs: str = "`name` and `experiments`") -> Node:
    """Read one YAML document.

    Args:
        text: of it.
        what: it is, for messages.
        needs: what cannot be left out.

    Raises:
        InvalidArgumentError: INVALID_RECIPE; not YAML, or more than a recipe may hold.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        fail(
            f"the {what} is longer than {MAX_BYTES // 1024} KiB; keep data in files", line=1, key=""
        )
    try:
        _check_depth(text)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = f"not valid YAML: {error.problem or error.context or 'cannot be parsed'}"
        fail(problem, line=mark.line + 1 if mark else 1, key="")
    except (yaml.YAMLError, UnicodeError) as error:
        fail(f"not valid YAML: {' '.join(str(error).split())[:200]}", line=1, key="")
    if root is None:
        fail(f"the {what} is empty; it needs {needs}", line=1, key="")
    return _Converter().convert(root, "", 0)


def _check_depth(text: str) -> None:
    """Walk the parser's events, which needs no stack, before composing, which recurses."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                fail(f"nested deeper than {MAX_DEPTH} levels", line=line, key="")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Converter:
    """Turns composed nodes into `Node`s, counting, so that aliases cannot multiply unseen."""

    def __init__(self) -> None:
        self._seen = 0

    def convert(self, node: yaml.Node, path: str, depth: int) -> Node:
        line = node.start_mark.line + 1
        self._seen += 1
        if self._seen > MAX_NODES or depth > MAX_DEPTH:
            fail("aliases or nesting make the recipe too large", line=line, key=path)
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node, path, depth), line, path)
        if isinstance(node, yaml.SequenceNode):
            items = [
                self.convert(each, f"{path}[{place}]", depth + 1)
                for place, each in enumerate(node.value)
            ]
            return Node(items, line, path)
        if not isinstance(node, yaml.ScalarNode):
            raise TypeError(f"YAML has no {type(node).__name__}")
        return Node(_scalar(node, line, path), line, path)

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Node]:
        result: dict[str, Node] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.value:
                fail("a key must be a word", line=line, key=path)
            key: str = key_node.value
            key_path = f"{path}.{key}" if path else key
            if key in result:
                fail(f"the key {key!r} is given twice", line=line, key=key_path)
            value = self.convert(value_node, key_path, depth + 1)
            result[key] = Node(value.value, line, key_path)  # people look for the key's line
        return result


def _scalar(node: yaml.ScalarNode, line: int, path: str) -> bool | int | float | str | None:
    text: str = node.value
    if node.style in ("'", '"', "|", ">"):
        return text
    if _NOT_FINITE.match(text):
        fail(f"{text} is not a number that can be used", line=line, key=path)
    if text in _CONSTANTS:
        constant = _CONSTANTS[text]
        return constant if isinstance(constant, bool) else None
    if _INT.match(text):
        if len(text) > 40:
            fail(f"{text[:20]}... is too large a number", line=line, key=path)
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.match(text):
        value = float(text)
        if not math.isfinite(value):
            fail(f"{text[:20]} is too large a number", line=line, key=path)
        return value
    return text
