"""The report of an alignment: one HTML file that needs nothing else, made from plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper_matcher import report_charts as charts
from hyper_matcher.align.geometry import Mesh
from hyper_matcher.align.lengths import NONE, Lengths

_GOAL_CPC = 0.5


@dataclass(frozen=True, slots=True)
class Overlay:
    """Two sections laid over each other: before (as they came) and after.

    Args:
        source_z: the magenta one.
        target_z: the green one.
        before: (h, w) of both as they came.
        after: (h, w) of both as rendered.
        note: why this pair is shown.
    """

    source_z: int
    target_z: int
    before: tuple[NDArray[Any], NDArray[Any]]
    after: tuple[NDArray[Any], NDArray[Any]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class NeighbourScore:
    """CPC of two neighbours; None where they share no tissue."""

    source_z: int
    target_z: int
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class SectionMesh:
    """A section's mesh at rest, to be drawn.

    Args:
        z: section.
        mesh: at rest.
        positions: (n, 2) in the common frame.
        note: why it is shown.
    """

    z: int
    mesh: Mesh
    positions: NDArray[np.float64]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the job.

    Args:
        name: of the experiment.
        seconds: wall clock, first start to last end.
        tasks: how many ran.
        cpu_seconds: of its tasks; None where not known.
    """

    name: str
    seconds: float
    tasks: int
    cpu_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """What one worker ran: {stage: tasks}."""

    worker: str
    tasks: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter, its value, and why it was chosen."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that the report shows. Text is escaped; pictures are shrunk.

    Args:
        title: of the page.
        subtitle: source, destination, date.
        result: the result object.
        overlays: pairs to show.
        reslice_before: (Z, X) cut through the sections as they came.
        reslice_after: (Z, X) through the rendered ones.
        scores: of every neighbour.
        residuals_z1: lengths of fresh matches of neighbours.
        residuals_z2: of the next but one.
        matches: accepted ones.
        rejected: {reason: count}.
        flagged: {section: why}.
        doubtful: (section, section, why) of pairs that cannot be trusted as a whole.
        meshes: the worst sections'.
        stages: in order.
        workers: who ran what.
        parameters: chosen ones.
        notes: anything else worth a line, such as synthetic data.
    """

    title: str
    subtitle: str
    result: Mapping[str, Any]
    overlays: Sequence[Overlay] = ()
    reslice_before: NDArray[Any] | None = None
    reslice_after: NDArray[Any] | None = None
    scores: Sequence[NeighbourScore] = ()
    residuals_z1: Lengths = NONE
    residuals_z2: Lengths = NONE
    matches: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    flagged: Mapping[int, str] = field(default_factory=dict)
    doubtful: Sequence[tuple[int, int, str]] = ()
    meshes: Sequence[SectionMesh] = ()
    stages: Sequence[Stage] = ()
    workers: Sequence[WorkerShare] = ()
    parameters: Sequence[Parameter] = ()
    notes: Sequence[str] = ()


def render_report(data: ReportData) -> str:
    """The page as text; under about 6 MB."""
    sections = (
        _headline(data),
        _flagged(data),
        _overlays(data),
        _reslices(data),
        _scores(data),
        _residuals(data),
        _rejections(data),
        _meshes(data),
        _stages(data),
        _parameters(data),
        _result(data),
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in data.notes)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(data.title)}</h1><p>{escape(data.subtitle)}</p>{notes}</header>"
        + "".join(sections)
        + "</main></body></html>\n"
    )


def _headline(data: ReportData) -> str:
    result = data.result
    cards = [
        ("CPC of neighbours", f"{_number(result.get('cpc94_before'), 3)} → "
         f"{_number(result.get('cpc94'), 3)}", "mean correlation of 94-px tiles"),
        ("Residual, p95", f"{_number(result.get('residual_z1_p95'), 2)} px",
         "fresh matches of neighbours"),
        ("Tissue kept", _percent(result.get("tissue_kept")), "of the source's area"),
        ("Jacobian", f"{_number(result.get('jacobian_min'), 2)} to "
         f"{_number(result.get('jacobian_max'), 2)}", "area change of the mesh's triangles"),
        ("Matches", f"{data.matches:,}", f"{sum(data.rejected.values()):,} rejected"),
        ("Time", f"{_number(result.get('seconds'), 1)} s", _cpu_note(data)),
    ]  # fmt: skip
    inner = "".join(
        f'<div class="card"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<small>{escape(note)}</small></div>"
        for name, value, note in cards
    )
    return f'<section class="cards">{inner}</section>'


def _cpu_note(data: ReportData) -> str:
    """CPU time where it is known; else how many tasks shared the work."""
    cpu = data.result.get("cpu_seconds")
    if cpu is not None:
        return f"{cpu:.1f} s of CPU"
    tasks = sum(stage.tasks for stage in data.stages)
    return f"{tasks:,} tasks on {len(data.workers)} workers" if tasks else "wall clock"


def _flagged(data: ReportData) -> str:
    if not data.flagged:
        return '<section><p class="good">No section is flagged.</p></section>'
    rows = [(f"section {z}", why) for z, why in sorted(data.flagged.items())]
    return html_section("Flagged sections", html_table(("section", "why"), rows), warn=True)


def _overlays(data: ReportData) -> str:
    if not data.overlays:
        return ""
    parts = []
    for pair in data.overlays:
        name = f"{pair.source_z} and {pair.target_z}"
        views = []
        for when, (first, second) in (("before", pair.before), ("after", pair.after)):
            mixed = charts.overlay(first, second)
            whole = charts.picture(mixed, f"sections {name}, {when}", 520)
            close = charts.picture(_middle(mixed, 260), f"the middle of {name}, {when}", 260)
            views.append(
                f'<figure>{whole}<div class="close">{close}</div>'
                f"<figcaption>{when}</figcaption></figure>"
            )
        note = f" <small>{escape(pair.note)}</small>" if pair.note else ""
        parts.append(f'<h3>{escape(name)}{note}</h3><div class="pair">{"".join(views)}</div>')
    intro = (
        "<p>One section magenta, the next green: what lies together is grey. "
        "Inset: the middle at full resolution.</p>"
    )
    return html_section("Neighbouring sections", intro + "".join(parts))


def _reslices(data: ReportData) -> str:
    views = []
    for when, slab in (("before", data.reslice_before), ("after", data.reslice_after)):
        if slab is not None and slab.size:
            height = max(1, min(16, round(240 / len(slab))))
            image = charts.picture(charts.reslice_picture(slab, height), f"x-z cut, {when}", 1024)
            views.append(f'<figure class="wide">{image}<figcaption>{when}</figcaption></figure>')
    if not views:
        return ""
    return html_section("Cut along the stack (x to the right, z down)", "".join(views))


def _scores(data: ReportData) -> str:
    if not data.scores:
        return ""
    labels = [f"{score.source_z}–{score.target_z}" for score in data.scores]
    chart = charts.lines(
        labels,
        {"before": [s.before for s in data.scores], "after": [s.after for s in data.scores]},
        y_label="CPC",
        reference=_GOAL_CPC,
    )
    rows = [
        (label, _number(s.before, 3), _number(s.after, 3))
        for label, s in zip(labels, data.scores, strict=True)
    ]
    table = html_table(("sections", "before", "after"), rows)
    details = f"<details><summary>Every neighbour</summary>{table}</details>"
    return html_section(
        "Correlation of every neighbour", _legend("before", "after") + chart + details
    )


def _residuals(data: ReportData) -> str:
    if not len(data.residuals_z1):
        return ""
    limit = 3.0
    for values in (data.residuals_z1, data.residuals_z2):
        p99 = values.percentile(99)
        if p99 is not None:
            limit = max(limit, min(24.0, float(np.ceil(p99))))
    chart = charts.histogram(
        {"z2": data.residuals_z2, "z1": data.residuals_z1}, x_label="residual, px", limit=limit
    )
    rows = [
        (
            name,
            f"{len(values):,}",
            *(_number(values.percentile(p) or 0.0, 2) for p in (50, 95, 99)),
        )
        for name, values in (("z + 1", data.residuals_z1), ("z + 2", data.residuals_z2))
        if len(values)
    ]
    table = html_table(("distance", "matches", "p50, px", "p95, px", "p99, px"), rows)
    intro = "<p>160-px templates matched afresh in the rendered sections, no consensus filter.</p>"
    legend = _legend("z1", "z2")
    return html_section("Residuals", intro + legend + chart + table)


def _rejections(data: ReportData) -> str:
    total = data.matches + sum(data.rejected.values())
    if not total:
        return ""
    text = (
        f"<p>{data.matches:,} of {total:,} matches were accepted ({data.matches / total:.0%}).</p>"
    )
    if data.rejected:
        ranked = sorted(data.rejected.items(), key=lambda item: -item[1])
        named = {name.replace("_", " "): float(count) for name, count in ranked}
        text += charts.bars(named, unit="")
    if data.doubtful:
        table = html_table(
            ("sections", "why"),
            [(f"{first}–{second}", why) for first, second, why in data.doubtful],
        )
        text += (
            f"<details><summary>{len(data.doubtful)} pairs of sections that could not be matched "
            f"well as a whole</summary>{table}</details>"
        )
    return html_section("Rejected matches by reason", text)


def _meshes(data: ReportData) -> str:
    if not data.meshes:
        return ""
    figures = []
    for one in data.meshes:
        note = f": {one.note}" if one.note else ""
        figures.append(
            f"<figure><h3>section {one.z}{escape(note)}</h3>"
            f"{charts.strain_map(one.mesh, one.positions)}</figure>"
        )
    intro = (
        "<p>Red grows, blue shrinks (full colour: 20%); arrows show where tissue moved beside "
        "the section's rotation and shift.</p>"
    )
    body = f'{intro}<div class="pair">{"".join(figures)}</div>'
    return html_section("Deformation of the worst sections", body)


def _stages(data: ReportData) -> str:
    if not data.stages:
        return ""
    chart = charts.bars({s.name: s.seconds for s in data.stages}, unit="s", digits=1)
    names = [stage.name for stage in data.stages]
    rows = [[s.name, str(s.tasks), f"{s.seconds:.2f}"] for s in data.stages]
    head = ["stage", "tasks", "wall, s"]
    if any(s.cpu_seconds is not None for s in data.stages):
        head.append("CPU, s")
        for row, stage in zip(rows, data.stages, strict=True):
            row.append(_number(stage.cpu_seconds, 2))
    body = chart + html_table(head, rows)
    if data.workers:
        shares = [
            (w.worker, *(str(w.tasks.get(name, 0) or "·") for name in names),
             str(sum(w.tasks.values())))
            for w in data.workers
        ]  # fmt: skip
        body += "<h3>Who ran what (tasks)</h3>" + html_table(("worker", *names, "all"), shares)
    return html_section("Time of every stage", body)


def _parameters(data: ReportData) -> str:
    if not data.parameters:
        return ""
    rows = [(p.name, p.value, p.why) for p in data.parameters]
    return html_section("Parameters, and why", html_table(("parameter", "value", "why"), rows))


def _result(data: ReportData) -> str:
    rows = [(key, str(value)) for key, value in data.result.items()]
    table = html_table(("key", "value"), rows)
    return html_section(
        "Result object", f"<details><summary>All numbers</summary>{table}</details>"
    )


def html_section(title: str, body: str, *, warn: bool = False) -> str:
    """A part of the page; `title` is escaped, `body` is HTML."""
    return f"<section{' class=warn' if warn else ''}><h2>{escape(title)}</h2>{body}</section>"


def _legend(*names: str) -> str:
    words = {"z1": "z + 1", "z2": "z + 2"}
    keys = "".join(
        f'<span><i class="{name}"></i>{escape(words.get(name, name))}</span>' for name in names
    )
    return f'<p class="legend">{keys}</p>'


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are escaped."""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{header}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _middle(pixels: NDArray[np.uint8], edge: int) -> NDArray[np.uint8]:
    y, x = (max(0, (length - edge) // 2) for length in pixels.shape[:2])
    return pixels[y : y + edge, x : x + edge]


def _number(value: Any, digits: int) -> str:
    return "–" if value is None else f"{float(value):.{digits}f}"


def _percent(value: Any) -> str:
    return "–" if value is None else f"{float(value):.1%}"


STYLE = """
:root{color-scheme:light dark;--bg:#fafafa;--fg:#1b1f24;--mute:#66707a;--card:#fff;--line:#dde1e6;
--before:#b0389a;--after:#1a7f4b;--z1:#1a7f4b;--z2:#d08a1d;--warn:#b3261e}
@media (prefers-color-scheme:dark){:root{--bg:#12151a;--fg:#e6e9ed;--mute:#98a2ad;--card:#1b2027;
--line:#313943;--before:#e07ccd;--after:#4cc38a;--z1:#4cc38a;--z2:#f0b24f;--warn:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,"Segoe UI",sans-serif}
main{max-width:1140px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0}h2{font-size:18px;margin:0 0 10px}h3{font-size:15px;margin:16px 0 6px}
header p{color:var(--mute);margin:4px 0 18px;overflow-wrap:anywhere}
header .note{color:var(--warn);font-weight:600}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;
margin:0 0 16px}
section.warn{border-color:var(--warn)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;padding:0;
border:0;background:none}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.card span,.card small{display:block;color:var(--mute);font-size:13px}
.card b{font-size:19px;font-variant-numeric:tabular-nums;white-space:nowrap}
.good{margin:0;color:var(--after)}
small{color:var(--mute);font-weight:400}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:16px}
figure{margin:0;position:relative}figure.wide{margin-bottom:12px}
figcaption{color:var(--mute);font-size:13px}
img{width:100%;height:auto;display:block;border-radius:6px;background:#000}
.close{position:absolute;right:8px;top:8px;width:38%;border:2px solid #fff;border-radius:8px}
svg{width:100%;height:auto;display:block}svg.strain{border:1px solid var(--line)}
svg text{font:12px system-ui,sans-serif;fill:var(--mute)}
.mid{text-anchor:middle}.end{text-anchor:end}
.grid{stroke:var(--line)}.goal{stroke:var(--mute);stroke-dasharray:5 5}
.line{fill:none;stroke-width:2}.line.before{stroke:var(--before)}.line.after{stroke:var(--after)}
.dot.before{fill:var(--before)}.dot.after,.bar.after{fill:var(--after)}
.bar.z1{fill:var(--z1);opacity:.75}.bar.z2{fill:var(--z2);opacity:.75}
.arrow{stroke:#1b1f24;fill:#1b1f24;stroke-width:1.1}
.legend span{margin-right:18px}.legend i{display:inline-block;width:12px;height:12px;
border-radius:3px;margin-right:6px}
i.before{background:var(--before)}i.after{background:var(--after)}
i.z1{background:var(--z1)}i.z2{background:var(--z2)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 10px 5px 0;border-bottom:1px solid var(--line);
overflow-wrap:anywhere}
th{color:var(--mute);font-weight:500}
summary{cursor:pointer;color:var(--mute)}
@media print{section{break-inside:avoid}}
"""
