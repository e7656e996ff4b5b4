"""Parameters from files beside a recipe: `{file: list.txt}` becomes the values that are in it.

A `.json` file holds a list; of any other file, each line that is not blank is a value. The
scheduler never sees the file, so the values travel in the recipe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import yaml

from hyper.errors import InvalidArgumentError

RECIPE_BYTES_MAX = 262_144  # what a scheduler takes


def inline_files(text: str, base: Path) -> str:
    """The recipe with the values of its files in place; everything else keeps its line.

    Args:
        text: the recipe's YAML.
        base: the folder that relative paths start from.

    Raises:
        InvalidArgumentError: a file is missing, holds no values, or too many.
    """
    for key, path in sorted(_places(text), key=lambda pair: -pair[0].start_mark.index):
        kind, values = _read(base / path.value, path)
        text = (
            text[: key.start_mark.index]
            + kind
            + text[key.end_mark.index : path.start_mark.index]
            + json.dumps(values, ensure_ascii=False)
            + text[path.end_mark.index :]
        )
        if len(text.encode()) > RECIPE_BYTES_MAX:
            _fail(
                path,
                f"the values of {path.value!r} make the recipe longer than "
                f"{RECIPE_BYTES_MAX >> 10} KiB: let a task read the file and take its items with "
                "{from: EXPERIMENT}",
            )
    return text


def _places(text: str) -> Iterator[tuple[yaml.ScalarNode, yaml.ScalarNode]]:
    """The `file` keys of all parameters and their values; nothing if the text is no recipe (the
    scheduler says why).
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return
    for experiment in _children(_child(root, "experiments")):
        for parameter in _children(_child(experiment, "parameters")):
            if isinstance(parameter, yaml.MappingNode) and len(parameter.value) == 1:
                ((key, value),) = parameter.value
                if key.value == "file" and isinstance(value, yaml.ScalarNode):
                    yield key, value


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


def _children(node: yaml.Node | None) -> list[yaml.Node]:
    return [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else []


def _read(file: Path, node: yaml.ScalarNode) -> tuple[str, object]:
    """The kind of parameter, and its value, that stand for a file."""
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        _fail(node, f"file {node.value!r} cannot be read: {error}")
    if file.suffix != ".json":
        if "\0" in content or not content.strip():
            _fail(node, f"file {node.value!r} holds no lines of text")
        return "lines", content
    try:
        values = json.loads(content)
    except ValueError as error:
        _fail(node, f"file {node.value!r} is not JSON: {error}")
    if not isinstance(values, list) or not values:
        _fail(node, f"file {node.value!r} holds no list of values")
    return "choice", values


def _fail(node: yaml.ScalarNode, problem: str) -> NoReturn:
    line = str(node.start_mark.line + 1)
    raise InvalidArgumentError(
        f"recipe: line {line}: {problem}",
        reason="INVALID_RECIPE",
        metadata={"line": line, "key": "file"},
    )
