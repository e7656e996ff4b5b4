"""The stages of `hyper align` as task functions: each reads, calls pure functions, and writes.

Every function may run twice, on any worker: what it writes depends on its inputs alone and goes to
its own shard or file of the job's session. The recipe is written by `hyper.align.recipe`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hyper.context import TaskContext
from hyper.errors import InvalidArgumentError
from hyper_matcher.align.geometry import NOTHING_TO_MATCH, PairMatches, point_pairs
from hyper_matcher.align.metrics import mean_gradient
from hyper_matcher.align.order import swapped_sections
from hyper_matcher.align.pipeline import pairs_of
from hyper_matcher.align.quality import measure_pair
from hyper_matcher.align.relax import RelaxOptions
from hyper_matcher.align.relax import relax as relax_stack
from hyper_matcher.align.render import choose_canvas, jacobians, render_section, tissue_kept
from hyper_matcher.bandpass import bandpass_onnx
from hyper_matcher.job_files import (
    ALIGNED,
    FEATURES,
    MODEL_FILE,
    RAW,
    Job,
    match_file,
    measure_file,
    pack_pair,
    section_file,
)
from hyper_matcher.job_plan import choose_plan

_FEATURE_GAIN = 127.0  # tanh's -1..1 becomes 1..255; 128 is no feature
_FEATURE_ZERO = 128.0
_MIN_KEPT = 0.97


def prepare(context: TaskContext, *, session: str) -> dict[str, Any]:
    """Look at some sections, choose the parameters, make the arrays and the band-pass net."""
    job = Job.open(context, session)
    plan = choose_plan(job.settings, [job.source_section(z) for z in job.sample()])
    job.write_plan(plan)
    depth, height, width = job.shape
    if job.settings["files"]:
        job.make_array(RAW, job.shape, job.settings["dtype"])
    job.make_array(FEATURES, (depth, height, width), "uint8")
    model = bandpass_onnx(
        plan.sigma_low_px, plan.sigma_high_px, offset=plan.grey_mean, gain=plan.gain
    )
    job.session.write(MODEL_FILE, model)
    for line in plan.reasons:
        context.log(line)
    return {"template_px": plan.template_px, "spacing_px": plan.spacing_px}


def ingest(context: TaskContext, *, session: str, z: int) -> dict[str, Any]:
    """Decode one section into array `raw`; a section that was left out stays blank."""
    job = Job.open(context, session)
    if job.left_out(z):
        return {"blank": True}
    section = job.source_section(z)
    job.session[RAW][z] = section
    return {"mean": round(float(section.mean()), 2)}


def features(context: TaskContext, *, session: str, z: int) -> dict[str, Any]:
    """Filter one section with the band-pass net, on the inference service."""
    job = Job.open(context, session)
    if job.left_out(z):
        return {"blank": True}
    source = job.source_array()
    _, height, width = job.shape
    context.client.infer_volume(
        f"{session}/files/{MODEL_FILE}",
        source,
        job.session[FEATURES],
        box=((z, 0, 0), (z + 1, height, width)),
        output_scale=_FEATURE_GAIN,
        output_shift=_FEATURE_ZERO,
    )
    return {}


def match(context: TaskContext, *, session: str, z: int) -> dict[str, Any]:
    """Match section z with the next ones, on the matcher service."""
    job = Job.open(context, session)
    plan = job.plan
    pairs = [pair for pair in pairs_of(job.shape[0], plan.neighbours) if pair[0] == z]
    accepted = 0
    for found in context.client.match_sections(
        job.session[FEATURES],
        pairs,
        spacing_px=plan.spacing_px,
        template_px=plan.template_px,
        search_px=plan.search_px,
    ):
        ok = found.rejection == 0
        accepted += int(ok.sum())
        if found.flag:
            context.log(f"{found.source_z} - {found.target_z}: {found.flag}")
        job.session.write(match_file(found.source_z, found.target_z), pack_pair(found))
    return {"accepted": accepted}


def relax(context: TaskContext, *, session: str) -> dict[str, Any]:
    """Bring all meshes to rest at once; decide the canvas; make array `aligned`."""
    job = Job.open(context, session)
    depth, height, width = job.shape
    pairs = job.load_matches()
    points = point_pairs(job.settings["options"].get("points") or ())
    relaxed = relax_stack(
        (height, width), depth, pairs, RelaxOptions(spacing_px=job.plan.mesh_spacing_px), points
    )
    flagged = swapped_sections(depth, pairs) | relaxed.flagged
    for bad in job.settings["bad"]:
        flagged[int(bad["z"])] = f"left blank: {bad['reason']}"
    if len(flagged) == depth:
        raise InvalidArgumentError(
            f"nothing can be aligned: {why_nothing(relaxed.flagged, pairs)}",
            reason="INVALID_IMAGE",
        )
    canvas = choose_canvas(relaxed.positions, relaxed.mesh, _MIN_KEPT, tuple(flagged))
    job.write_relaxed(relaxed, canvas, flagged)
    job.make_array(ALIGNED, (depth, *canvas.shape), job.settings["dtype"])
    for z, why in sorted(flagged.items()):
        context.log(f"section {z} is flagged: {why}")
    return {"flagged": len(flagged), "canvas": list(canvas.shape)}


def why_nothing(flagged: Mapping[int, str], pairs: Sequence[PairMatches]) -> str:
    """One line on a stack none of whose sections can be trusted."""
    rejected: Counter[str] = Counter()
    for pair in pairs:
        rejected.update(pair.counts())
    for nothing in NOTHING_TO_MATCH:
        del rejected[nothing.name.lower()]
    if not rejected:
        return f"none of the {len(flagged)} sections has any contrast"
    reason, number = rejected.most_common(1)[0]
    section, why = min(flagged.items())
    return (
        f"no two of the {len(flagged)} sections match (section {section}: {why}; most matches "
        f"failed for {reason.replace('_', ' ')}: {number} of {rejected.total()}); are they "
        "neighbours, in order, and of tissue?"
    )


def render(context: TaskContext, *, session: str, z: int) -> dict[str, Any]:
    """Render one section into array `aligned`."""
    job = Job.open(context, session)
    source = job.source_section(z)
    mesh, positions, canvas = job.load_relaxed(z)
    section, valid = render_section(source, positions, mesh, canvas)
    job.session[ALIGNED][z] = section
    areas = jacobians(positions, mesh)
    facts = {
        "blank": not source.any(),
        "tissue_kept": tissue_kept(positions, mesh, canvas, valid),
        "gradient_before": mean_gradient(source),
        "gradient_after": mean_gradient(section, valid),
        "jacobian_min": float(areas.min()),
        "jacobian_max": float(areas.max()),
    }
    job.write_json(section_file(z), facts)
    return {"tissue_kept": round(float(facts["tissue_kept"]), 4)}


def measure(context: TaskContext, *, session: str, z: int) -> dict[str, Any]:
    """Score section z with its next two, before and after."""
    job = Job.open(context, session)
    depth = job.shape[0]
    here, here_before = job.session[ALIGNED][z], job.source_section(z)
    before, after = [], []
    for a, b in pairs_of(depth, 2):
        if a != z:
            continue
        after.append(measure_pair(here, job.session[ALIGNED][b], a, b).to_json())
        if b == a + 1:
            quality = measure_pair(here_before, job.source_section(b), a, b, residuals=False)
            before.append(quality.to_json())
    job.write_json(measure_file(z), {"before": before, "after": after})
    return {"pairs": len(after)}


def report(context: TaskContext, *, session: str) -> dict[str, Any]:
    """Gather everything, write the result object and the report, commit the session."""
    from hyper_matcher.job_report import write_report

    job = Job.open(context, session)
    result = write_report(context, job)
    if not job.settings["options"]["keep_intermediates"]:
        job.drop_intermediates()
    version = job.commit(context.task)
    return {"version": version, "cpc94": result["cpc94"]}
