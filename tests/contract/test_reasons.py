"""Where services raise errors that travel: each reason with its own class, and so its code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from hyper.errors import CLASS_OF_REASON

ROOT = Path(__file__).parents[2]
CLASSES = {kind.__name__ for kind in CLASS_OF_REASON.values()}


def raised() -> Iterator[tuple[str, str, str]]:
    """(place, class, reason) of every error made with a literal reason."""
    for path in sorted((ROOT / "services").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            for keyword in node.keywords:
                if name in CLASSES and keyword.arg == "reason":
                    match keyword.value:
                        case ast.Constant(value=str(reason)):
                            yield f"{path.relative_to(ROOT)}:{node.lineno}", name, reason


def test_every_reason_is_raised_with_its_class() -> None:
    found = list(raised())
    assert len(found) > 5
    wrong = [
        f"{place}: {name}(reason={reason!r})"
        for place, name, reason in found
        if reason not in CLASS_OF_REASON or CLASS_OF_REASON[reason].__name__ != name
    ]
    assert not wrong, "\n".join(wrong)
