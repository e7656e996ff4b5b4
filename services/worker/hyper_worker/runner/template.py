"""Commands from templates: a parameter's value is data and can never become shell syntax.

`{{name}}` becomes a reference to an environment variable that holds the value, quoted to suit
where it stands: the shell never parses the value itself, so no content can break out, not even
where the quotes around the placeholder are odd.
"""

from __future__ import annotations

import json
import re
from typing import Any

PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_.-]*)\s*\}\}")
_VARIABLE = "HYPER_PARAMETER_{}"


def render(template: str, parameters: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The shell command of a template and the variables it refers to.

    Raises:
        ValueError: a placeholder names no parameter, or a value holds a NUL.
    """
    pieces: list[str] = []
    variables: dict[str, str] = {}
    position = 0
    quote = ""
    for match in PLACEHOLDER.finditer(template):
        before = template[position : match.start()]
        position = match.end()
        quote = _quote_after(before, quote)
        name = match[1]
        if name not in parameters:
            raise ValueError(
                f"the command uses {{{{{name}}}}}, which is not a parameter; "
                f"there are: {', '.join(sorted(parameters)) or 'none'}"
            )
        value = as_text(parameters[name])
        if "\0" in value:
            raise ValueError(f"parameter {name} holds a NUL, which no command can take")
        variable = _VARIABLE.format(re.sub(r"[^A-Za-z0-9_]", "_", name))
        while variables.get(variable, value) != value:  # a-b and a_b
            variable += "_"
        variables[variable] = value
        pieces += [before, _reference(variable, quote)]
    pieces.append(template[position:])
    return "".join(pieces), variables


def as_text(value: Any) -> str:
    """A parameter as a command sees it: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _reference(variable: str, quote: str) -> str:
    if quote == '"':
        return "${" + variable + "}"
    if quote == "'":
        return "'\"${" + variable + "}\"'"
    return '"${' + variable + '}"'


def _quote_after(text: str, quote: str) -> str:
    """The quote the shell is in after `text`, if it was in `quote` before."""
    escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\" and quote != "'":
            escaped = True
        elif quote:
            if character == quote:
                quote = ""
        elif character in "'\"":
            quote = character
    return quote
