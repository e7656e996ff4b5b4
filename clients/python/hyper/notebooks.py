"""What workflows, arrays and datasets look like in a notebook: HTML, with every value escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyper.arrays import Array
    from hyper.datasets import Dataset
    from hyper.status import ExperimentStatus, WorkflowStatus

_CELL = "text-align:left;padding:.15em 1em .15em 0"
_COLOURS = {"succeeded": "#3b7d3b", "failed": "#a8324a", "running": "#2563a8"}
_MOST_ROWS = 50


def workflow(status: WorkflowStatus) -> str:
    """A row an experiment, with a bar of how far it is."""
    rows = [
        (escape(each.id), _state(each.state), _bar(each), escape(each.message))
        for each in status.experiments[:_MOST_ROWS]
    ]
    head = f"<b>{escape(status.name)}</b> {_state(status.state)}"
    notes = [escape(text) for text in (status.message, status.waiting) if text]
    return "<br>".join([head, *notes]) + _table(("experiment", "state", "tasks", ""), rows)


def array(value: Array) -> str:
    """Shape, type, size, and how it is cut."""
    size = value.voxel_size_nm
    rows = [
        ("shape", " × ".join(map(str, value.shape))),
        ("dtype", escape(str(value.dtype))),
        ("size", _bytes(value.nbytes)),
        ("chunks", " × ".join(map(str, value.chunks))),
        ("shards", " × ".join(map(str, value.shards))),
        (
            "voxel size, nm (z, y, x)",
            "unknown" if size is None else " × ".join(f"{s:g}" for s in size),
        ),
        ("address", escape(value.url or "read it through Hyper")),
    ]
    rows += [
        (escape(str(key)), escape(str(entry)[:200]))
        for key, entry in list(value.attributes.items())[:10]
    ]
    return f"<b>{escape(value.name)}</b>" + _table((), rows)


def dataset(value: Dataset) -> str:
    """Version, files and arrays."""
    names = value.arrays()
    shown = ", ".join(escape(name) for name in names[:_MOST_ROWS])
    rows = [
        ("version", str(value.version)),
        ("committed", f"{value.created:%Y-%m-%d %H:%M} UTC"),
        ("message", escape(value.message)),
        ("files", f"{value.file_count} ({_bytes(value.file_bytes)})"),
        ("arrays", shown or "none"),
    ]
    return f"<b>{escape(value.name)}</b>" + _table((), rows)


def _state(state: Any) -> str:
    name = str(state).lower()
    return f'<span style="color:{_COLOURS.get(name, "#555")}">{escape(name)}</span>'


def _bar(each: ExperimentStatus) -> str:
    counts = each.tasks
    total = max(counts.total, 1)
    parts = "".join(
        f'<span style="display:inline-block;height:.7em;width:{8 * count / total:.3f}em;'
        f'background:{colour}"></span>'
        for count, colour in (
            (counts.succeeded, "#3b7d3b"), (counts.running, "#2563a8"),
            (counts.failed, "#a8324a"),
            (total - counts.succeeded - counts.running - counts.failed, "#ddd"),
        )
        if count > 0
    )  # fmt: skip
    return f"{parts} {counts.succeeded}/{counts.total}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f'<th style="{_CELL}">{cell}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table>{f'<tr>{top}</tr>' if top else ''}{body}</table>"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
