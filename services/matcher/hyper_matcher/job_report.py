"""The last stage: everything the others left, as the result object and the report."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper.align import REPORT_FILE, RESULT_FILE
from hyper.arrays import Array
from hyper.context import TaskContext
from hyper.workflows import Workflow
from hyper_matcher.align.facts import PairFacts
from hyper_matcher.align.order import failed_pairs
from hyper_matcher.align.quality import (
    Facts,
    PairQuality,
    join_quality,
    residuals_at,
    result_object,
)
from hyper_matcher.align.render import tissue_kept
from hyper_matcher.job_files import ALIGNED, Job, RenderedPart, measure_file, section_file
from hyper_matcher.job_pairs import load_facts
from hyper_matcher.job_plan import Plan
from hyper_matcher.report import (
    NeighbourScore,
    Overlay,
    Parameter,
    ReportData,
    SectionMesh,
    Stage,
    WorkerShare,
    render_report,
)

_OVERLAYS = 4
_TASKS = 20_000  # of a stage whose workers are told
_MESHES = 2
_RESLICE_SECTIONS = 400  # more are thinned out
_PICTURE_PX = 1024  # an overlay shows at most so much of a section, from its middle


def write_report(context: TaskContext, job: Job) -> dict[str, Any]:
    """Write the result object and the report into the session; returns the result object."""
    workflow = context.client.workflow(context.task.partition("/experiments/")[0])
    before, after = _measures(job)
    pairs = load_facts(job)
    sections = [
        RenderedPart.joined([RenderedPart(**part) for part in parts])
        for parts in _each(job, section_file, job.tasks_a_section())
    ]
    flagged = job.flagged()
    result = result_object(before, after, _facts(job, workflow, sections, pairs, flagged))
    result["cpu_seconds"] = result["peak_rss_mb"] = None  # known to who watches the cluster
    result["source"] = job.settings["source"]
    left_out = [int(bad["z"]) for bad in job.settings["bad"]]
    result["failed_pairs"] = [
        {"source_z": a, "target_z": b, "why": why}
        for a, b, why in (failed_pairs(job.shape[0], pairs, left_out) if pairs else [])
    ]
    result["flags"] = {str(z): why for z, why in sorted(flagged.items())}
    job.write_json(RESULT_FILE, result)
    page = render_report(_report_data(job, workflow, result, before, after, pairs, flagged))
    job.session.write(REPORT_FILE, page.encode())
    return result


def _measures(job: Job) -> tuple[list[PairQuality], list[PairQuality]]:
    """Scores of all pairs, as they came and as rendered."""
    found: dict[str, list[PairQuality]] = {"before": [], "after": []}
    for shares in _each(job, measure_file, job.tasks_a_section()):
        for when, pairs in found.items():
            for same in zip(*(scores[when] for scores in shares), strict=True):
                pairs.append(join_quality([PairQuality.from_json(values) for values in same]))
    return found["before"], found["after"]


def _each(job: Job, file_of: Callable[[int, int], str], count: int) -> Iterator[list[Any]]:
    """For each section what is in the files of its parts."""
    names = (file_of(z, part) for z in range(job.shape[0]) for part in range(count))
    contents = job.stream_files(names)
    for _ in range(job.shape[0]):
        yield [json.loads(content) for content in itertools.islice(contents, count)]


def _facts(
    job: Job,
    workflow: Workflow,
    sections: Sequence[RenderedPart],
    pairs: Sequence[PairFacts],
    flagged: Mapping[int, str],
) -> Facts:
    tissue = [facts for facts in sections if not facts.blank]
    rejected: Counter[str] = Counter()
    for pair in pairs:
        rejected.update(pair.rejected)
    source, rendered = (
        float(np.mean([total / weight if weight else 0.0 for total, weight in means]))
        for means in (
            [facts.gradient_before for facts in tissue], [facts.gradient_after for facts in tissue],
        )
    )  # fmt: skip
    started = workflow.status.create_time
    return Facts(
        tissue_kept=float(
            np.mean([tissue_kept(facts.valid_px, facts.placed_px) for facts in tissue])
        ),
        sharpness=rendered / source if source > 0 else 0.0,
        jacobian_min=min(facts.jacobian_min for facts in sections),
        jacobian_max=max(facts.jacobian_max for facts in sections),
        matches=sum(pair.accepted for pair in pairs),
        rejected=dict(sorted(rejected.items())),
        flagged=flagged,
        seconds=(datetime.now(UTC) - started).total_seconds() if started else 0.0,
        cpu_seconds=0.0,
        peak_rss_mb=0.0,
        array=f"{job.settings['destination']}/{ALIGNED}",
        report=f"hyper://{job.settings['destination']}/{REPORT_FILE}",
    )


def _report_data(
    job: Job,
    workflow: Workflow,
    result: Mapping[str, Any],
    before: Sequence[PairQuality],
    after: Sequence[PairQuality],
    pairs: Sequence[PairFacts],
    flagged: Mapping[int, str],
) -> ReportData:
    settings = job.settings
    aligned, source = job.session[ALIGNED], job.source_array()
    neighbours = {p.source_z: p for p in after if p.target_z == p.source_z + 1}
    came = {p.source_z: p for p in before}
    stages, workers = _work(workflow)
    depth, height, width = job.shape
    return ReportData(
        title=settings["options"]["title"] or f"{settings['destination']}: aligned",
        subtitle=(
            f"{settings['source']}, {depth} sections of {height} x {width}, into "
            f"{settings['destination']}/{ALIGNED}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        ),
        result=result,
        overlays=_overlays(source, aligned, list(neighbours.values())),
        reslice_before=_reslice(source),
        reslice_after=_reslice(aligned),
        scores=[
            NeighbourScore(z, z + 1, came[z].cpc if z in came else None, pair.cpc)
            for z, pair in sorted(neighbours.items())
        ],
        residuals_z1=residuals_at(after, 1),
        residuals_z2=residuals_at(after, 2),
        matches=result["matches"],
        rejected=result["rejected"],
        flagged=flagged,
        doubtful=[(p.source_z, p.target_z, p.flag) for p in pairs if p.flag],
        meshes=_meshes(job, neighbours),
        stages=stages,
        workers=workers,
        parameters=_parameters(job.plan),
        notes=_notes(job),
    )


def _overlays(source: Array, aligned: Array, neighbours: Sequence[PairQuality]) -> list[Overlay]:
    """The neighbours that fit worst, worst first."""
    scored = sorted((p for p in neighbours if p.cpc is not None), key=lambda p: p.cpc or 0.0)
    shown = []
    for rank, pair in enumerate(scored[:_OVERLAYS]):
        a, b = pair.source_z, pair.target_z
        shown.append(
            Overlay(
                a,
                b,
                before=(_middle(source, a), _middle(source, b)),
                after=(_middle(aligned, a), _middle(aligned, b)),
                note="fits worst" if rank == 0 else "",
            )
        )
    return shown


def _middle(array: Array, z: int) -> NDArray[Any]:
    """The middle of a section, at most `_PICTURE_PX` each way."""
    cut = []
    for edge in array.shape[1:]:
        low = max(0, (edge - _PICTURE_PX) // 2)
        cut.append(slice(low, min(edge, low + _PICTURE_PX)))
    return np.asarray(array[z, cut[0], cut[1]])


def _reslice(array: Array) -> NDArray[Any]:
    """(Z, X) through the middle, at most `_PICTURE_PX` wide; a long stack is thinned out."""
    step = -(-array.shape[0] // _RESLICE_SECTIONS)
    row, width = array.shape[1] // 2, array.shape[2]
    low = max(0, (width - _PICTURE_PX) // 2)
    lines = [
        np.asarray(array[z, row, low : low + _PICTURE_PX]) for z in range(0, array.shape[0], step)
    ]
    return np.stack(lines)


def _meshes(job: Job, neighbours: Mapping[int, PairQuality]) -> list[SectionMesh]:
    """The sections whose residuals are largest."""
    worst = sorted(
        (p for p in neighbours.values() if len(p.residuals)),
        key=lambda p: -(p.residuals.percentile(95) or 0.0),
    )
    shown = []
    for pair in worst[:_MESHES]:
        mesh, positions, _ = job.load_placed(pair.source_z)
        p95 = pair.residuals.percentile(95)
        note = f"residual to section {pair.target_z}: p95 {p95:.2f} px"
        shown.append(SectionMesh(pair.source_z, mesh, positions, note))
    return shown


def _work(workflow: Workflow) -> tuple[list[Stage], list[WorkerShare]]:
    """Time of every stage so far, and which worker ran what, of the first tasks of each."""
    status = workflow.refresh()
    stages: list[Stage] = []
    shares: dict[str, Counter[str]] = {}
    now = datetime.now(UTC)
    for experiment in status.experiments:
        if experiment.start_time is not None:
            end = experiment.end_time or now
            seconds = (end - experiment.start_time).total_seconds()
            stages.append(Stage(experiment.id, seconds, experiment.tasks.total))
        for task in itertools.islice(workflow.tasks(experiment.id), _TASKS):
            if task.worker:
                share = shares.setdefault(task.worker.rpartition("/")[2], Counter())
                share[experiment.id] += 1
    return stages, [WorkerShare(worker, dict(tasks)) for worker, tasks in sorted(shares.items())]


def _parameters(plan: Plan) -> list[Parameter]:
    """What was used; the reasons are sentences of the plan."""
    values = {
        "band-pass": f"{plan.sigma_low_px:g} to {plan.sigma_high_px:g} px",
        "template": f"{plan.template_px} px",
        "search radius": f"{plan.search_px} px" if plan.search_px else "chosen a pair",
        "matches every": f"{plan.spacing_px:g} px",
        "mesh": f"{plan.mesh_spacing_px:.3g} px",
        "neighbours": f"z+1 to z+{plan.neighbours}",
    }
    words = {"template": "templates", "mesh": "mesh of", "neighbours": "sections z"}
    found = []
    for name, value in values.items():
        key = words.get(name, name)
        why = next((reason for reason in plan.reasons if reason.startswith(key)), "as asked")
        found.append(Parameter(name, value, why))
    return found


def _notes(job: Job) -> list[str]:
    """Anything else worth a line."""
    return [
        f"Section {bad['z']} ({bad['file']}) was left blank: {bad['reason']}"
        for bad in job.settings["bad"]
    ]
