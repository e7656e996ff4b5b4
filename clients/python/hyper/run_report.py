"""What a workflow did, as one HTML page without scripts: time line, speed-up, cost.

`collect` asks a cluster; the rest are pure functions on what it found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from hyper import placement
from hyper.errors import FailedPreconditionError, PermissionDeniedError

if TYPE_CHECKING:
    from hyper.workflows import Workflow

SPANS_MAX = 20_000
"""Tasks of a workflow that are looked at."""
_DRAWN_MAX = 2_000
_WIDTH, _LANE, _LEFT, _BOTTOM = 860, 18, 150, 26
_COLOURS = ("#2563a8", "#c2571a", "#3b7d3b", "#8a4f9e", "#8c6d1f", "#a8324a", "#3a7f86", "#666666")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c1c1c; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: left;
        font-variant-numeric: tabular-nums } th { font-weight: 600; border-bottom: 1px solid #bbb }
svg text { font: 11px system-ui, sans-serif; fill: #1c1c1c } figure { margin: 1rem 0 }
figcaption, .note { color: #555; font-size: .9rem } pre { background: #f5f5f5; padding: .6rem;
        overflow-x: auto }
"""


@dataclass(frozen=True, slots=True)
class Span:
    """One task that has run: seconds since the workflow was made."""

    experiment: str
    index: int
    worker: str
    start_s: float
    end_s: float
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """One workflow that has ended.

    Args:
        name: resource name.
        title: the recipe's name.
        state: how it ended.
        wall_s: from submission to end.
        experiments: names in topological order, with the number of tasks.
        spans: tasks that ran, at most `SPANS_MAX`.
        losses: attempts that ended with their node and were run again.
        usd: spent on machines that were launched for it; None: none were.
    """

    name: str
    title: str
    state: str
    wall_s: float
    experiments: Mapping[str, int]
    spans: tuple[Span, ...]
    losses: int = 0
    usd: float | None = None

    @property
    def busy_s(self) -> float:
        """Seconds of work, over all tasks."""
        return sum(span.end_s - span.start_s for span in self.spans)

    def peak(self, experiment: str | None = None) -> int:
        """How many tasks of an experiment, or of all together, ran at once."""
        edges = sorted(
            edge
            for span in self.spans
            if experiment in (None, span.experiment)
            for edge in ((span.start_s, 1), (span.end_s, -1))
        )
        most = now = 0
        for _, step in edges:
            now += step
            most = max(most, now)
        return most

    def stage_s(self, experiment: str) -> float:
        """From the first start to the last end of an experiment's tasks."""
        spans = [span for span in self.spans if span.experiment == experiment]
        if not spans:
            return 0.0
        return max(span.end_s for span in spans) - min(span.start_s for span in spans)


def collect(workflow: Workflow) -> Run:
    """Ask for the tasks of a workflow that has ended, and for what its machines have cost."""
    status = workflow.refresh()
    begun = status.create_time
    every = (task for each in status.experiments for task in workflow.tasks(each.id))
    spans: list[Span] = []
    for task in every:
        if task.start_time is None or task.end_time is None or begun is None:
            continue
        start, end = (
            (moment - begun).total_seconds() for moment in (task.start_time, task.end_time)
        )
        worker = task.worker.removeprefix("workers/")
        failed = task.state.lower() == "failed"
        spans.append(Span(task.experiment, task.index, worker, start, max(start, end), failed))
        if len(spans) >= SPANS_MAX:
            break
    ended = status.end_time
    wall_s = (ended - begun).total_seconds() if ended is not None and begun is not None else 0.0
    counts = {each.id: each.tasks.total for each in status.experiments}
    return Run(
        status.name, status.display_name, str(status.state), wall_s, counts, tuple(spans),
        losses=status.tasks.lost, usd=_spent(workflow),
    )  # fmt: skip


def _spent(workflow: Workflow) -> float | None:
    """What the scheduler's ledger has for it; None where no machines were launched."""
    try:
        every = placement.cost(workflow._client).workflows
    except (FailedPreconditionError, PermissionDeniedError):
        return None
    mine = [each for each in every if each.name == workflow.name]
    return mine[0].usd if mine and any(each.launches for each in mine[0].offers) else None


def timeline(run: Run) -> str:
    """SVG: a lane a worker slot, a bar a task."""
    lanes, placed = _lanes(run.spans)
    height = len(lanes) * _LANE + _BOTTOM
    scale = (_WIDTH - _LEFT) / max(run.wall_s, max((s.end_s for s in run.spans), default=0), 1e-9)
    colours = dict(zip(run.experiments, _cycle(len(run.experiments)), strict=True))
    parts = []
    for row, lane in enumerate(lanes):
        parts.append(f'<text x="0" y="{row * _LANE + 13}">{escape(lane[:24])}</text>')
    for span, row in placed[:_DRAWN_MAX]:
        x, width = _LEFT + span.start_s * scale, max((span.end_s - span.start_s) * scale, 0.6)
        colour = "#000" if span.failed else colours[span.experiment]
        parts.append(
            f'<rect x="{x:.1f}" y="{row * _LANE + 3}" width="{width:.1f}" height="{_LANE - 5}" '
            f'fill="{colour}"><title>{escape(span.experiment)}/{span.index}: '
            f"{span.end_s - span.start_s:.2f} s</title></rect>"
        )
    for share in range(5):
        x = _LEFT + (_WIDTH - _LEFT) * share / 4
        anchor = "end" if share == 4 else "middle" if share else "start"
        seconds = (_WIDTH - _LEFT) * share / 4 / scale
        parts.append(f'<text x="{x:.0f}" y="{height - 8}" text-anchor="{anchor}">'
                     f"{seconds:.3g} s</text>")  # fmt: skip
    legend = " ".join(
        f'<span style="color:{colour}">&#9632;</span> {escape(name)}'
        for name, colour in colours.items()
    )
    drawn = "" if len(placed) <= _DRAWN_MAX else f" The first {_DRAWN_MAX} tasks are drawn."
    return (
        f'<figure><svg role="img" aria-label="time line of {escape(run.title)}" '
        f'viewBox="0 0 {_WIDTH} {height}" width="100%">{"".join(parts)}</svg>'
        f"<figcaption>{legend}.{drawn}</figcaption></figure>"
    )


def chart(
    series: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str
) -> str:
    """SVG: lines through points (x, y), each series a colour; both axes start at 0."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    wide, high, left, bottom = 520, 260, 60, 40
    x_max = max(x for x, _ in points) or 1.0
    y_max = (max(y for _, y in points) or 1.0) * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / x_max * (wide - left - 12), high - bottom - y / y_max * (high - bottom)

    parts = [
        f'<line x1="{left}" y1="{high - bottom}" x2="{wide}" y2="{high - bottom}" stroke="#999"/>',
        f'<line x1="{left}" y1="0" x2="{left}" y2="{high - bottom}" stroke="#999"/>',
        f'<text x="{(wide + left) / 2}" y="{high - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text x="12" y="{(high - bottom) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(high - bottom) / 2})">{escape(y_label)}</text>',
    ]
    for share in range(5):
        (x, _), (_, y) = place(x_max * share / 4, 0), place(0, y_max * share / 4)
        parts.append(f'<text x="{x:.0f}" y="{high - bottom + 14}" text-anchor="middle">'
                     f"{x_max * share / 4:.3g}</text>")  # fmt: skip
        parts.append(f'<text x="{left - 5}" y="{y + 4:.0f}" text-anchor="end">'
                     f"{y_max * share / 4:.3g}</text>")  # fmt: skip
    for (name, line), colour in zip(series.items(), _cycle(len(series)), strict=True):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2">'
                     f"<title>{escape(name)}</title></polyline>")  # fmt: skip
        if len(line) <= 32:
            for x, y in (place(*point) for point in line):
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    legend = " ".join(
        f'<span style="color:{colour}">&#9632;</span> {escape(name)}'
        for name, colour in zip(series, _cycle(len(series)), strict=True)
    )
    return (
        f'<figure><svg role="img" aria-label="{escape(y_label)} by {escape(x_label)}" '
        f'viewBox="0 0 {wide} {high}" width="{wide}">{"".join(parts)}</svg>'
        f"<figcaption>{legend}</figcaption></figure>"
    )


def speedup(runs: Sequence[Run], experiment: str) -> list[tuple[int, float, float]]:
    """(tasks at once, seconds, speed-up against the run with fewest at once), by tasks at once."""
    found = sorted((run.peak(experiment), run.stage_s(experiment)) for run in runs)
    if not found or found[0][0] == 0 or found[0][1] <= 0:
        return []
    base_n, base_s = found[0]
    return [(n, seconds, base_s * base_n / seconds) for n, seconds in found if seconds > 0]


def render(
    title: str,
    runs: Sequence[Run],
    *,
    stage: str | None = None,
    usd_per_hour: float = 0.0,
    sections: Mapping[str, str] | None = None,
) -> str:
    """The page.

    Args:
        title: of the page.
        runs: the last one is shown in full; all of them in the plot of the speed-up.
        stage: the experiment whose speed-up is plotted; by default the one with most work.
        usd_per_hour: price of a worker slot.
        sections: more of the page, HTML by heading; the caller has escaped it.
    """
    run = runs[-1]
    stage = stage or _heaviest(run)
    parts = [f"<h1>{escape(title)}</h1>",
             f'<p class="note">{escape(run.name)}, {escape(run.state.lower())} after '
             f"{run.wall_s:.1f} s</p>"]  # fmt: skip
    parts += [f"<h2>{escape(head)}</h2>\n{body}" for head, body in (sections or {}).items()]
    parts += ["<h2>Time line</h2>", timeline(run)]
    rows = [
        (name, total, run.peak(name), f"{run.stage_s(name):.2f}",
         f"{sum(s.end_s - s.start_s for s in run.spans if s.experiment == name):.2f}")
        for name, total in run.experiments.items()
    ]  # fmt: skip
    parts.append(table(("experiment", "tasks", "at once", "seconds", "slot-seconds"), rows))
    found = speedup(runs, stage)
    if len(found) > 1:
        parts.append(f"<h2>Speed-up of {escape(stage)} with workers</h2>")
        lines = {
            "measured": [(0.0, 0.0), *((float(n), factor) for n, _, factor in found)],
            "linear": [(0.0, 0.0), (float(found[-1][0]), float(found[-1][0]))],
        }
        parts.append(chart(lines, x_label="tasks at once", y_label="times as fast"))
        parts.append(table(("tasks at once", "seconds", "times as fast"),
                           [(n, f"{s:.2f}", f"{f:.2f}") for n, s, f in found]))  # fmt: skip
    parts += ["<h2>Cost</h2>", _cost(runs, usd_per_hour)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table of escaped cells."""
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cost(runs: Sequence[Run], usd_per_hour: float) -> str:
    launched = any(run.usd is not None for run in runs)
    rows = []
    for run in runs:
        slots = run.peak()
        paid_s = slots * run.wall_s
        share = run.busy_s / paid_s if paid_s else 0.0
        row = [slots, f"{run.wall_s:.1f}", f"{paid_s:.1f}", f"{run.busy_s:.1f}", f"{share:.0%}",
               run.losses]  # fmt: skip
        if launched:
            row.append("none launched" if run.usd is None else f"{run.usd:.6g}")
        elif usd_per_hour:
            row.append(f"{paid_s / 3600 * usd_per_hour:.6f}")
        rows.append(row)
    heads = ["slots", "seconds", "slot-seconds paid", "of work", "in use", "attempts lost"]
    note = "No price of a slot was given."
    if launched:
        heads.append("USD spent on machines")
        note = "What the ledger of the scheduler has: `hyper cost` shows it offer by offer."
    elif usd_per_hour:
        heads.append(f"USD at {usd_per_hour:g} a slot-hour")
        note = (
            "Slots are those of the busiest moment, paid from submission to end at the price given."
        )
    return table(heads, rows) + f'<p class="note">{escape(note)}</p>'


def _heaviest(run: Run) -> str:
    work = dict.fromkeys(run.experiments, 0.0)
    for span in run.spans:
        work[span.experiment] += span.end_s - span.start_s
    return max(work, key=work.__getitem__)


def _cycle(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _lanes(spans: Sequence[Span]) -> tuple[list[str], list[tuple[Span, int]]]:
    """A lane for each worker, more where it runs several at once; each span with its lane."""
    names: list[str] = []
    free_at: list[float] = []
    placed: list[tuple[Span, int]] = []
    for span in sorted(spans, key=lambda span: (span.worker, span.start_s)):
        fitting = [
            row
            for row, name in enumerate(names)
            if name == span.worker and free_at[row] <= span.start_s + 1e-3
        ]
        if not fitting:
            names.append(span.worker)
            free_at.append(0.0)
            fitting = [len(names) - 1]
        free_at[fitting[0]] = span.end_s
        placed.append((span, fitting[0]))
    return names, sorted(placed, key=lambda pair: pair[0].start_s)
