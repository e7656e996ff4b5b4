"""What commands print: results on stdout, everything else on stderr.

A result is text for people or, with `--json`, one JSON value on the last line. A command that fails
before it has a result prints `{"error": {...}}` there instead (`hyper.cli.main`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class Said:
    """What this process has printed so far."""

    result = False  # as JSON
    last = ""  # to people


def emit(value: Any, text: str, *, as_json: bool) -> None:
    """Print a result: `value` as JSON on one line, or `text`."""
    Said.result = Said.result or as_json
    print(json.dumps(value, ensure_ascii=False) if as_json else text, flush=True)


def say(text: str) -> None:
    """Tell people what happens; goes to stderr, so that results stay clean."""
    Said.last = text.strip() or Said.last
    print(text, file=sys.stderr, flush=True)


@contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """Tell people what happens step by step, under a spinner if they look at it."""
    if not interactive():
        yield say
        return
    screen = console()
    with screen.status(text):
        yield lambda line: screen.print(line, markup=False, soft_wrap=True)


def fail(text: str) -> None:
    """Print an error; its first line starts with `error: `."""
    say(f"error: {text}")


def interactive() -> bool:
    """Whether a person looks at stderr."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def console() -> Console:
    """A rich console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def progress() -> Progress:
    """A progress display on stderr: description, bar, count, time; use as a context manager."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Elapsed(),
    )
    return Progress(*columns, console=console(), transient=True, disable=not interactive())


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as aligned columns of text, the way `ps` prints them."""
    cells = [[str(cell) for cell in row] for row in rows]
    lines = [list(headings), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def human_bytes(count: float) -> str:
    """A size for people: "1.5 GB" (10^9 bytes)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
