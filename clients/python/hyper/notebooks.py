"""What workflows, arrays, plans and more look like in a notebook: HTML, every value escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyper.arrays import Array
    from hyper.datasets import Dataset
    from hyper.placement import Cost, Estimate, Plan
    from hyper.status import ExperimentStatus, WorkflowStatus

_CELL = "text-align:left;padding:.15em 1em .15em 0"
_COLOURS = {"succeeded": "#3b7d3b", "failed": "#a8324a", "running": "#2563a8"}
_MOST_ROWS = 50
_OFFERS = 8


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


def plan(value: Plan) -> str:
    """What it would cost and take, and the best offers of each experiment."""

    def spread(one: Estimate | None) -> str:
        return f"{one.mean:.4g} ({one.p10:.4g} to {one.p90:.4g})" if one else "nothing fits"

    facts = [
        ("cost, USD", spread(value.cost_usd)),
        ("all on demand, USD", f"{value.on_demand_usd:.4g}"),
        ("finish, s", spread(value.finish_s)),
        ("misses its deadline", f"{value.late_probability:.0%}"),
        ("prices of", escape(value.catalogue_date)),
    ]
    parts = ["<b>Plan</b>" + _table((), facts)]
    for each in value.experiments[:_MOST_ROWS]:
        how = "measured" if each.measured else "assumed"
        note = f": {escape(each.message)}" if each.message else ""
        parts.append(f"<b>{escape(each.experiment)}</b>, {each.tasks} tasks of {each.task_s:.4g} s "
                     f"({how}){note}")  # fmt: skip
        rows = [
            (
                escape(one.offer), "spot" if one.spot else "on demand", f"{one.usd_h:.4g}",
                "does not fit" if math.isinf(one.usd_per_unit) else f"{one.usd_per_unit:.4g}",
                str(one.machines or ""), escape(one.reason),
            )
            for one in each.offers[:_OFFERS]
        ]  # fmt: skip
        parts.append(_table(("offer", "sort", "USD/h", "USD/unit of work", "first", "why"), rows))
    return "".join(parts)


def cost(value: Cost) -> str:
    """A row a workflow, then the machines that are paid for now."""
    rows = [
        (
            escape(each.name), f"{each.usd:.4g}",
            "" if each.budget_usd is None else f"{each.budget_usd:.4g}",
            f"{each.on_demand_usd:.4g}", f"{each.rework_usd:.4g}", escape(each.message),
        )
        for each in value.workflows[:_MOST_ROWS]
    ]  # fmt: skip
    heads = ("workflow", "USD", "budget", "on demand", "rework", "")
    text = f"<b>{value.usd:.4g} USD spent</b>" + _table(heads, rows)
    machines = [
        (escape(each.machine), escape(each.offer), "spot" if each.spot else "on demand",
         f"{each.usd_h:.4g}", escape(each.workflow))
        for each in value.machines[:_MOST_ROWS]
    ]  # fmt: skip
    if machines:
        text += _table(("machine paid for now", "offer", "sort", "USD/h", "for"), machines)
    return text


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
