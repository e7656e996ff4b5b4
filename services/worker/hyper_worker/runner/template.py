"""Commands from templates: a parameter's value is data and can never become shell syntax.

`{{name}}` becomes a reference to an environment variable that holds the value, quoted to suit
where it stands: the shell never parses the value itself, so no content can break out, not even
where the quotes around the placeholder are odd. In the quoted script of an inner shell
(`sh -c "... {{name}} ..."`, `eval`) the variable holds the value quoted once more, as that script's
own quotes ask, for the inner shell does parse it.
"""

from __future__ import annotations

import json
import re
from typing import Any

PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_.-]*)\s*\}\}")
_IMPOSSIBLE = re.compile(r"[\0\ud800-\udfff]")
_VARIABLE = "HYPER_PARAMETER_{}"
_LOOK_BACK = 500  # characters before a quote in which the inner shell's name stands
_INNER_SHELL = re.compile(
    r"(?:^|[\s;&|(/`])(?:(?:(?:ba|da|z|k|a)?sh|su)\s(?:[^;&|()\n'\"]*\s)?-[A-Za-z]*c|eval)\s+$"
)


class TemplateError(ValueError):
    """A command that cannot be made of its template, however often it is tried."""


def render(template: str, parameters: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The shell command of a template and the variables it refers to.

    Raises:
        TemplateError: a placeholder names no parameter, or a value holds what no command can take.
    """
    pieces: list[str] = []
    variables: dict[str, str] = {}
    position = 0
    quote, opened = "", -1  # of the shell, and where that began
    inner, script_quote = False, ""  # whether that is an inner shell's script; the quote in it
    for match in PLACEHOLDER.finditer(template):
        before, last = template[position : match.start()], opened
        quote, opened = _quote_after(before, quote, opened, position)
        if opened != last:
            inner = bool(_INNER_SHELL.search(template[max(0, opened - _LOOK_BACK) : opened]))
            script_quote = ""
        if quote and inner:
            script = _unquoted(template[max(position, opened + 1) : match.start()], quote)
            script_quote, _ = _quote_after(script, script_quote, -1, 0)
        position = match.end()
        name = match[1]
        if name not in parameters:
            raise TemplateError(
                f"the command uses {{{{{name}}}}}, which is not a parameter; "
                f"there are: {', '.join(sorted(parameters)) or 'none'}"
            )
        value = as_text(parameters[name])
        if _IMPOSSIBLE.search(value):
            what = "a NUL" if "\0" in value else "half of a surrogate pair"
            raise TemplateError(f"parameter {name} holds {what}, which no command can take")
        variable = _VARIABLE.format(re.sub(r"[^A-Za-z0-9_]", "_", name))
        if quote and inner:
            value = _quoted(value, script_quote)
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


def _unquoted(script: str, quote: str) -> str:
    """What stands in quotes, as the inner shell gets it."""
    return re.sub(r'\\([\\"$`])', r"\1", script) if quote == '"' else script


def _quoted(value: str, quote: str) -> str:
    """The value as text that a shell which is in `quote` reads as the value."""
    if quote == '"':
        return re.sub(r'([\\"$`])', r"\\\1", value)
    inside = value.replace("'", "'\"'\"'")
    return inside if quote == "'" else f"'{inside}'"


def _quote_after(text: str, quote: str, opened: int, base: int) -> tuple[str, int]:
    """The quote the shell is in after `text`, and where the last one was opened.

    Args:
        text: begins at `base`.
        quote: in which it begins.
        opened: where that was opened.
        base: of the places.
    """
    escaped = False
    for place, character in enumerate(text, base):
        if escaped:
            escaped = False
        elif character == "\\" and quote != "'":
            escaped = True
        elif quote:
            if character == quote:
                quote = ""
        elif character in "'\"":
            quote, opened = character, place
    return quote, opened
